"""The one call: randomness, chunking, counting, what it accepts and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import deepinv
import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Result, citation, operators, priors, solve, solvers
from invdiff.priors import covariance
from invdiff.problem import out_of_memory
from invdiff.solvers import DDNM, DDRM, DPS, DDNMPlus, DiffPIR, PiGDM

SIDE = 8
EVERY = solvers.names()


def prior() -> priors.Gaussian:
    return priors.Gaussian(
        torch.full((1, SIDE, SIDE), 0.5, dtype=torch.float64), covariance.Diagonal(torch.full((1, SIDE, SIDE), 0.04))
    )


def masks(batch: int) -> Tensor:
    return torch.cat([operators.random_mask((SIDE, SIDE), 0.5, seed=i).reshape(1, 1, SIDE, SIDE) for i in range(batch)])


LEVELS = torch.tensor([0.05, 0.02, 0.1, 0.05, 0.02])  # one noise level an image


def problem(batch: int = 5) -> tuple[Tensor, operators.Inpainting]:
    A = operators.Inpainting(masks(batch), noise=LEVELS[:batch])
    return A.measure(prior().sample(batch, seed=0).double(), seed=0), A


def run(y: Tensor, A: deepinv.physics.Physics, name: str, **kwargs: object) -> Result:
    return solve(y, A, prior(), name, steps=6, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_sample(name: str) -> None:
    """Alone, in a batch of 5 with masks and noise of their own, with 1 or 8 samples, in chunks or not: the same numbers."""
    y, A = problem()
    joint = bool(solvers.get(name).particles)  # the number of particles is part of what they are
    whole = run(y, A, name, samples=8).samples
    one = operators.Inpainting(masks(1), noise=LEVELS[:1])
    alone = run(y[:1], one, name, samples=8 if joint else 1).samples
    chunked = run(y, A, name, samples=8, batch_size=3).samples
    fewer = whole[:2] if joint else run(y, A, name, samples=2).samples
    for other in (alone[:, 0] - whole[: len(alone), 0], chunked - whole, fewer - whole[:2]):
        assert float(other.abs().max()) < 1e-10
    assert float((whole[0] - whole[1]).abs().max()) > (1e-3 if name != "reddiff" else 1e-6)  # samples do differ
    assert float((run(y, A, name, samples=8 if joint else 1, seed=1).samples[0] - whole[0]).abs().max()) > 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_evaluations_are_counted(name: str) -> None:
    calls = []
    inner = prior()

    def counting(x: Tensor, sigma: float) -> Tensor:
        calls.append(len(x))
        return inner(x, sigma)

    y, A = problem(1)
    result = solve(y, A, counting, name, samples=2, steps=7, batch_size=2)
    assert result.nfe == len(calls) and set(calls) == {2}


@pytest.mark.parametrize("name", ["auto", "diffpir", "pigdm"])
def test_same_seed_same_sample_with_the_network_that_ships(name: str) -> None:
    """Its 16-bit arithmetic amplifies rounding, to less than a grey level of 256."""
    A = operators.Inpainting(operators.random_mask((40, 40), 0.5), noise=0.05)
    y = A.measure(0.3 + 0.4 * torch.rand((3, 3, 40, 40), generator=torch.Generator().manual_seed(0)))
    natural = priors.load("natural")
    whole = solve(y, A, natural, name, samples=2, steps=12).samples
    chunked = solve(y, A, natural, name, samples=2, steps=12, batch_size=1).samples
    alone = solve(y[:1], A, natural, name, samples=1, steps=12).samples
    assert float((chunked - whole).abs().max()) < 1 / 256 and float((alone[0, 0] - whole[0, 0]).abs().max()) < 1 / 256
    assert solve(y.double(), A, natural, name, samples=1, steps=2).x.dtype == torch.float64


@pytest.mark.parametrize("strategy", [PiGDM(steps=6), DiffPIR(steps=6, calibrated=False), DDRM(steps=6)])
def test_the_noise_cancels_in_the_mean_of_a_pair(strategy: solvers.Strategy) -> None:
    """Affine in the noise for a Gaussian prior, where no step is cut: the mean of a pair is theirs, whatever the seed."""
    y, A = problem(1)
    a, b = (solve(y, A, prior(), strategy, samples=2, seed=seed) for seed in (0, 1))
    assert float((a.x - b.x).abs().max()) < 1e-10
    assert float((a.samples[0] - b.samples[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])  # of the variance that is odd in the noise
def test_the_spread_of_pairs_is_unbiased(share: float) -> None:
    g = torch.Generator().manual_seed(0)
    odd, even = torch.randn((2, 2, 1, 1, 300, 300), generator=g)
    pairs = [share**0.5 * sign * o + (1 - share) ** 0.5 * e for o, e in zip(odd, even) for sign in (1, -1)]
    result = dataclasses.replace(run(*problem(1), "diffpir"), samples=torch.stack(pairs))
    assert float(result.std.square().mean()) == pytest.approx(1.0, abs=0.02)


def test_the_callers_generator_is_left_alone() -> None:
    y, A = problem(1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(y, A, "diffpir", samples=1)
    assert torch.equal(before, torch.get_rng_state())


def test_out_of_memory_halves_the_chunk() -> None:
    y, A = problem()
    small_machine, tried = prior(), []
    forward = small_machine.forward

    def limited(x: Tensor, sigma: float) -> Tensor:
        tried.append(len(x))
        if len(x) > 6:
            raise torch.OutOfMemoryError("no room")
        return forward(x, sigma)

    small_machine.forward = limited  # type: ignore[method-assign]
    result = solve(y, A, small_machine, "diffpir", samples=4, steps=6, noise=0.05)
    expected = run(y, A, "diffpir", samples=4, noise=0.05).samples
    assert tried[:3] == [20, 10, 5] and torch.equal(result.samples, expected)


def test_progress_reaches_the_end_once() -> None:
    seen: list[tuple[int, int]] = []
    y, A = problem()
    run(y, A, "diffpir", samples=3, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1] == 3 * 5 * 6


def test_accepts_plain_callables_and_deepinv_objects() -> None:
    x = prior().sample(1, seed=4).float()
    plain = solve(2 * x, lambda z: 2 * z, prior(), "dps", noise=0.1, steps=4, samples=1)
    assert plain.samples.shape == (1, 1, 1, SIDE, SIDE)
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    denoiser = deepinv.models.MedianFilter()
    assert solve(x, physics, denoiser, samples=2, steps=3).x.shape == x.shape


def test_poisson_noise_is_treated_by_dps_and_helps() -> None:
    x = prior().sample(4, seed=1).clamp(0.05, 1)
    A = operators.Denoising(noise=operators.Poisson(gain=0.05))
    y = A.measure(x)
    result = solve(y, A, prior(), samples=8, steps=40)
    before, after = float((y - x).square().mean().sqrt()), float((result.x - x).square().mean().sqrt())
    assert isinstance(result.solver, DPS) and after < 0.9 * before, (before, after)


def test_result(tmp_path: Path) -> None:
    y, A = problem(2)
    result = run(y, A, "diffpir", samples=4)
    assert torch.equal(result.x, result.mean) and result.std.shape == result.x.shape
    assert bool((result.quantile(0.1) <= result.quantile(0.9)).all())
    result.save(tmp_path / "out.npz")
    saved = np.load(tmp_path / "out.npz")
    assert np.array_equal(saved["samples"], result.samples.numpy())
    assert json.loads(str(saved["settings"]))["solver"] == repr(result.solver)
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
    assert bool(run(y, A, "diffpir", samples=1).std.isnan().all())
    assert len(result.plot(1).axes) >= 3


@pytest.mark.parametrize("name", EVERY)
def test_settings_are_values(name: str) -> None:
    strategy = solvers.get(name)
    assert strategy == solvers.get(name) and hash(strategy) == hash(solvers.get(name))
    assert "steps=" in repr(strategy) and strategy.reference.startswith("@")
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.steps = 3  # type: ignore[misc]
    for f in dataclasses.fields(strategy):
        if isinstance(getattr(strategy, f.name), (int, float)):
            with pytest.raises(ValueError, match=f.name):
                dataclasses.replace(strategy, **{f.name: -1})


BAD_INPUT = {
    "integers": (lambda y, A: (y.int(), A, {}), TypeError, "divide|/ 255"),
    "not a tensor": (lambda y, A: (y.numpy(), A, {}), TypeError, "torch tensor"),
    "nan": (lambda y, A: (y * math.nan, A, {}), ValueError, "NaN"),
    "no batch axis": (lambda y, A: (y[0, 0], A, {}), ValueError, "shape"),
    "wrong shape": (lambda y, A: (y[..., :-1], A, {}), ValueError, "shape"),
    "empty batch": (lambda y, A: (y[:0], A, {}), ValueError, "at least one"),
    "bytes as floats": (lambda y, A: (255 * y, A, {}), ValueError, "255"),
    "values outside the mask": (lambda y, A: (torch.ones_like(y), A, {}), ValueError, "outside the operator's range"),
    "half precision": (lambda y, A: (y.half(), A, {}), TypeError, "float32 or float64"),
    "a list": (lambda y, A: ([[1.0]], lambda x: x, {}), TypeError, "torch tensor"),
    "too many levels": (lambda y, A: (y, A, {"noise": torch.ones(3)}), ValueError, "3 levels for 2 images"),
    "negative seed": (lambda y, A: (y, A, {"seed": -1}), ValueError, "seed must be at least 0"),
    "half a step": (lambda y, A: (y, A, {"steps": 2.5}), ValueError, "whole number"),
    "half a sample": (lambda y, A: (y, A, {"samples": 1.5}), ValueError, "whole number"),
    "unknown solver": (lambda y, A: (y, A, {"solver": "dsp"}), ValueError, "known: auto, dps, mcg"),
    "negative noise": (lambda y, A: (y, A, {"noise": -0.1}), ValueError, "not negative"),
    "nan noise": (lambda y, A: (y, A, {"noise": math.nan}), ValueError, "finite"),
    "no samples": (lambda y, A: (y, A, {"samples": 0}), ValueError, "samples must be at least 1"),
    "no steps": (lambda y, A: (y, A, {"steps": 0}), ValueError, "steps must be at least 1"),
    "not an operator": (lambda y, A: (y, 3, {}), TypeError, "callable"),
    "all zero callable": (lambda y, A: (y, lambda x: 0 * x, {}), ValueError, "measures nothing"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_any_evaluation(case: str) -> None:
    make, kind, words = BAD_INPUT[case]

    def never(x: Tensor, sigma: float) -> Tensor:
        raise RuntimeError("the prior was called")

    y, A, kwargs = make(*problem(2))
    with pytest.raises(kind, match=words) as error:
        solve(y, A, never, **{"solver": "diffpir", **kwargs})
    assert "\n" not in str(error.value)


def test_strategies_refuse_what_they_cannot_do() -> None:
    y, A = problem(1)
    for strategy in (PiGDM(), DDRM(), DDNMPlus(), DiffPIR()):
        with pytest.raises(ValueError, match="Gaussian noise"):
            solve(y.clamp(min=0), A, prior(), strategy, noise=operators.Poisson(0.1))
    blur = operators.Blur(torch.ones(3, 3), noise=0.05, boundary="valid")
    for strategy in (DDRM(), DDNMPlus()):
        with pytest.raises(ValueError, match="singular value"):
            solve(blur.measure(prior().sample(1, seed=0)), blur, prior(), strategy)
    for strategy in (PiGDM(), DDNM(), DiffPIR(), solvers.MCG()):
        with pytest.raises(ValueError, match="linear"):
            solve(y, lambda x: x**2, prior(), strategy, noise=0.1)


class Detached(operators.Linear):
    """Half of an image, by way of NumPy or without a graph, as measuring code of others does."""

    def __init__(self, how: str) -> None:
        super().__init__(0.1)
        self.how = how

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.how == "numpy":
            return torch.from_numpy(x.numpy() / 2)
        return (x.detach() if self.how == "detach" else x) / 2

    A_adjoint = A


@pytest.mark.parametrize("how", ["numpy", "detach"])
def test_an_operator_without_a_gradient_is_refused_before_any_evaluation(how: str) -> None:
    A, y = Detached(how), torch.full((1, 1, 4, 4), 0.3)

    def never(x: Tensor, sigma: float) -> Tensor:
        raise AssertionError("the prior was called")

    for name, operator in (("dps", A), ("mcg", A), ("dps", A.A), ("reddiff", A.A), ("daps", A.A), ("pnpdm", A.A)):
        with pytest.raises(ValueError, match=r"needs an operator that can be differentiated; .* without .detach\(\)"):
            solve(y, operator, never, name, noise=0.1)
    for name in ("pigdm", "diffpir", "reddiff"):  # these take its adjoint
        prior = priors.Gaussian(torch.full((1, 4, 4), 0.5), 0.04)
        results = [solve(y, operator, prior, name, steps=5) for operator in (A, Detached("as it should be"))]
        torch.testing.assert_close(results[0].samples, results[1].samples)


@pytest.mark.parametrize("factor", [math.nan, 100.0])
def test_a_prior_that_breaks_raises(factor: float) -> None:
    y, A = problem(1)
    with pytest.raises(FloatingPointError, match="diverged"):
        solve(y, A, lambda x, s: x * factor, "diffpir")


def test_memory_errors_are_known() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(10**16)
    assert out_of_memory(error.value) and not out_of_memory(RuntimeError("shapes differ"))


def test_citation() -> None:
    y, A = problem(1)
    assert "Denoising Diffusion Models for Plug-and-Play" in citation(run(y, A, "diffpir", samples=1))
    assert citation("dps").startswith("@inproceedings{chung2023dps")


def test_no_level_above_the_range_of_the_prior() -> None:
    levels = []

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        levels.append(float(sigma))
        return x / (1 + 16 * float(sigma) ** 2)

    y, A = problem(1)
    solve(y, A, priors.as_prior(denoiser, sigma_max=0.2), "diffpir", steps=4, samples=1)
    assert max(levels) == pytest.approx(0.2)


def test_a_volume_is_plotted() -> None:
    volume = torch.rand(1, 1, 3, SIDE, SIDE, dtype=torch.float64)
    result = solve(volume, operators.Denoising(noise=0.1), priors.as_prior(lambda x, s: x), "diffpir", steps=2)
    assert len(result.plot().axes) == 6


def test_beginning_from_posterior_samples_keeps_their_law() -> None:
    """A state made of posterior samples has the law that the ladder would have brought it to; levels above are saved."""
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    smooth = priors.Gaussian(torch.full((1, SIDE, SIDE), 0.5).double(), 0.04 * torch.exp(-torch.cdist(grid, grid) / 3))
    A = operators.Inpainting(operators.random_mask((SIDE, SIDE), 0.5, seed=1).double(), noise=0.05)
    y = A.measure(smooth.sample(1, seed=0).double(), seed=0)
    posterior = smooth.posterior(y, A)
    exact = posterior.sample(512, seed=3).double()
    result = solve(y, A, smooth, solvers.MMPS(steps=10, sigma_max=0.1), samples=512, start=exact)
    error = (result.mean - posterior.mean) / posterior.std
    assert float(error.square().mean().sqrt()) < 0.06
    assert float((result.std / posterior.std).mean()) == pytest.approx(1, abs=0.03)
    # from an image that is none of the posterior's, at a level that leaves it as it is, the result stays near
    far = solve(y, A, smooth, solvers.DiffPIR(sigma_max=0.02, steps=3), samples=1, start=posterior.mean + 0.3)
    assert float((far.x - posterior.mean).mean()) > 0.05


@pytest.mark.parametrize(
    ("start", "solver", "message"),
    [
        (torch.zeros(1, 1, 8, 8), "ddrm", "cannot begin from images"),
        (torch.zeros(1, 1, 8, 8), "tds", "cannot begin from images"),
        (torch.zeros(1, 8, 8), "dps", "start has shape"),
        (torch.full((1, 1, 8, 8), torch.nan), "dps", "NaN"),
    ],
)
def test_what_cannot_be_begun_from_is_refused(start: Tensor, solver: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(torch.zeros(1, 1, SIDE, SIDE).double(), operators.Denoising(0.1), prior(), solver, start=start.double(), samples=2)
