"""Contestants of a suite: what they make of a case."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from invdiff import Result, priors, solvers
from invdiff.bench import contestants, foreign, performing, tasks
from invdiff.bench import images as sources
from invdiff.bench.case import Case
from invdiff.operators import Denoising, Inpainting, Tomography, random_mask
from invdiff.priors import DenoisingUNet


@pytest.fixture(scope="module")
def prior() -> DenoisingUNet:
    torch.manual_seed(0)
    return DenoisingUNet(widths=(8, 8), blocks=1).eval().requires_grad_(False)


def case(prior: Any, A: Any, truth: torch.Tensor, samples: int = 2, seed: int = 0) -> Case:
    return Case(A.measure(truth, seed=0), A, A.noise_model, prior, truth, samples, seed)


SETTINGS: dict[str, dict[str, Any]] = {
    "deepinv_dps": {"num_steps": 4},
    "deepinv_diffpir": {"max_iter": 4},
    "deepinv_posterior": {"num_steps": 12, "sigma_max": 2.0},
}


@pytest.mark.parametrize("name", [name for name in foreign.METHODS if name != "azula_tds"])
def test_samplers_of_other_libraries_depend_on_the_seed_alone(name: str, prior: DenoisingUNet) -> None:
    truth = sources.photograph("astronaut", 16)
    A = Inpainting(random_mask((16, 16), 0.5), noise=0.05)
    treat = contestants.contestant({name: SETTINGS.get(name, {"steps": 4})})
    state = torch.get_rng_state()
    one = treat(case(prior, A, truth))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    again = treat(case(prior, A, truth, samples=3))
    assert one.samples is not None and again.samples is not None and one.samples.shape == (2, *truth.shape)
    torch.testing.assert_close(one.samples, again.samples[:2])
    assert not torch.allclose(one.samples[0], one.samples[1])
    assert not torch.allclose(one.samples[0], treat(case(prior, A, truth, seed=1)).x)
    assert torch.isfinite(one.x).all()


@pytest.mark.parametrize("component", [{"azula_tds": {"steps": 4}}, {"together": {"run": "deepinv_ddrm", "steps": 4}}])
def test_samples_that_are_drawn_together_depend_on_seed_and_number(component: dict[str, Any], prior: DenoisingUNet) -> None:
    truth = sources.photograph("astronaut", 16)
    A = Inpainting(random_mask((16, 16), 0.5), noise=0.05)
    treat = contestants.contestant(component)
    state = torch.get_rng_state()
    one = treat(case(prior, A, truth, samples=3))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    again = treat(case(prior, A, truth, samples=3))
    assert one.samples is not None and again.samples is not None and one.samples.shape == (3, *truth.shape)
    torch.testing.assert_close(one.samples, again.samples)
    assert not torch.allclose(one.x, treat(case(prior, A, truth, samples=3, seed=1)).x)


def test_what_depends_on_the_batch_is_not_drawn_together(prior: DenoisingUNet) -> None:
    A = Inpainting(random_mask((16, 16), 0.5), noise=0.05)
    with pytest.raises(ValueError, match="run is one of deepinv_dps, .*, got 'azula_dps'"):
        contestants.contestant({"together": {"run": "azula_dps"}})(case(prior, A, torch.rand(1, 3, 16, 16)))


@pytest.mark.parametrize("name", ["total_variation", "wavelets", "bm3d"])
def test_classical_denoisers_denoise(name: str) -> None:
    pytest.importorskip({"wavelets": "pywt", "bm3d": "bm3d"}.get(name, "torch"))
    truth = sources.photograph("astronaut", 32)
    noisy = case(None, Denoising(noise=0.1), truth)
    x = contestants.contestant({name: {}})(noisy).x
    assert (x - truth).square().mean() < 0.75 * (noisy.y - truth).square().mean()


def test_auto_can_be_given_a_budget() -> None:
    A = Inpainting(random_mask((16, 16), 0.5), noise=0.05)
    for component, name, samples in (("auto", "DPS", 4), ({"auto": {"budget": "exact"}}, "MMPS", 8)):
        run, count = contestants.chosen(contestants.complete(component), A, A.noise_model, None)
        assert list(run) == [name] and count == samples  # type: ignore[arg-type]


def test_one_evaluation_of_the_prior_is_a_denoiser() -> None:
    exact = priors.Gaussian(torch.full((3, 4, 4), 0.5), 0.04 * torch.eye(48))
    noisy = case(exact, Denoising(noise=0.1), exact.sample(1, seed=0))
    x = contestants.contestant("denoiser")(noisy).x
    torch.testing.assert_close(x, exact.posterior(noisy.y, noisy.A).mean)
    with pytest.raises(TypeError, match="only removes noise"):
        contestants.contestant("denoiser")(case(exact, Inpainting(random_mask((4, 4), 0.5), noise=0.1), noisy.truth))


def test_total_variation_treats_complex_images() -> None:
    truth = sources.complex_phantom(32, seed=1)
    assert truth.min() < -0.1
    noisy = case(None, Denoising(noise=0.05), truth)
    x = contestants.contestant({"total_variation": {"weights": [0.05], "iterations": 40}})(noisy).x
    assert (x - truth).square().mean() < 0.6 * (noisy.y - truth).square().mean()


def test_back_projection_reconstructs() -> None:
    truth = sources.phantom(64, seed=0)
    scan = case(None, Tomography(64, 90, noise=0.0), truth)
    x = contestants.contestant({"fbp": {"window": "ramp"}})(scan).x
    assert (x - truth).square().mean() < 0.1 * truth.square().mean()


def test_birdcage_maps_are_normalised_and_smooth() -> None:
    maps = tasks.birdcage_maps((2, 24, 32), coils=6)
    assert maps.shape == (6, 24, 32) and maps.is_complex()
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(24, 32))
    assert (maps[:, 1:] - maps[:, :-1]).abs().max() < 0.3
    assert maps[0].abs()[:, -1].mean() > 2 * maps[0].abs()[:, 0].mean()  # the first coil is on the right


def test_the_residual_of_the_truth_is_the_noise(prior: DenoisingUNet) -> None:
    truth = sources.photograph("astronaut", 64)
    A = Inpainting(random_mask((64, 64), 0.3), noise=0.05)
    residual = performing.residual(truth, case(None, A, truth))
    assert residual is not None and residual.numel() == 3 * round(0.3 * 64**2)
    assert residual.square().mean() == pytest.approx(1, abs=0.1)


def test_samples_of_particles_are_scored_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two particles, one of which has all the weight, scores see that one twice."""
    samples = torch.stack([torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)])
    found = Result(samples, torch.ones(1), 1, 0.0, solvers.get("tds"), 0, log_weights=torch.tensor([[-torch.inf], [0.0]]))
    monkeypatch.setattr(contestants, "solve", lambda *args, **kwargs: found)
    A = Denoising(noise=0.1)
    outcome = contestants.contestant("tds")(Case(samples[0], A, A.noise_model, None, samples[0], 2, 0))
    assert outcome.samples is not None and torch.equal(outcome.samples, torch.ones(2, 1, 1, 2, 2))
