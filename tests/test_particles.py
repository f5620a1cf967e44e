"""Particle strategies: the laws of resampling, exact posteriors in closed form, and what a result makes of weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Result, operators, priors, solve, solvers
from invdiff.bench import truth
from invdiff.operators import Linear, Spectral
from invdiff.problem import EnsembleNoise, Problem
from invdiff.solvers import AFDPS, DPS, FK, FPS, MMPS, TDS, MCGDiff, Particles, PiGDM
from invdiff.solvers.particles import condition, effective_size, misfit, systematic

NAMES = [name for name in solvers.names() if solvers.get(name).particles]


class Matrix(Spectral):
    """``y = M x`` for images (1, 1, N)."""

    def __init__(self, matrix: Tensor, noise: float) -> None:
        super().__init__(noise=noise)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        for name, value in {"left": left, "mask": values, "right": right}.items():
            self.register_buffer(name, value)

    def U(self, c: Tensor, **kwargs: object) -> Tensor:
        return c @ self.left.T

    def U_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y @ self.left

    def V(self, c: Tensor, **kwargs: object) -> Tensor:
        return (c @ self.right).view(len(c), 1, 1, -1)

    def V_adjoint(self, x: Tensor, **kwargs: object) -> Tensor:
        return x.flatten(1) @ self.right.T


def four_modes() -> tuple[Tensor, Matrix, priors.GaussianMixture]:
    """Two modes explain ``y``, with posterior weights 0.8 and 0.2."""
    means = torch.tensor([[1.0, -1.0], [-0.5, 1.5], [2.0, 1.0], [-1.5, -1.0]], dtype=torch.float64).view(4, 1, 1, 2)
    A = Matrix(torch.tensor([[1.0, 0.6]], dtype=torch.float64), noise=0.15)
    return torch.tensor([[0.5]], dtype=torch.float64), A, priors.GaussianMixture([0.4, 0.1, 0.3, 0.2], means, 0.25**2)


def correlated() -> tuple[Tensor, Matrix, priors.Gaussian]:
    """Five correlated pixels, two measured numbers of different noise in their directions."""
    g = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=g, dtype=torch.float64)
    prior = priors.Gaussian(torch.full((1, 1, 5), 0.3, dtype=torch.float64), root @ root.T / 5)
    A = Matrix(torch.randn(2, 5, generator=g, dtype=torch.float64), noise=0.2)
    return A.measure(prior.sample(1, seed=3).double(), seed=0), A, prior


def problem(y: Tensor, A: Linear, prior: priors.Gaussian, rows: int) -> Problem:
    randn = EnsembleNoise(0, 0, rows, prior.img_size, y.device, y.dtype)
    return Problem(y.expand(rows, -1), A, prior, operators.as_noise(A.noise_model), randn)


def mode_weights(result: Result, prior: priors.GaussianMixture) -> Tensor:
    """Weight of the particles nearest to each mean."""
    assert result.log_weights is not None
    nearest = torch.cdist(result.samples[:, 0].flatten(1), prior.means.flatten(1)).argmin(1)
    return torch.zeros(4, dtype=torch.float64).index_add(0, nearest, result.log_weights[:, 0].exp())


def bias_and_spread(result: Result, y: Tensor, A: Linear, prior: priors.Gaussian) -> tuple[float, float]:
    """Rms error of the mean in posterior standard deviations, and the spread over the posterior's."""
    exact = prior.posterior(y, A)
    bias = ((result.mean - exact.mean) / exact.std).square().mean().sqrt()
    return float(bias), float((result.std.square().mean() / exact.std.square().mean()).sqrt())


def test_systematic_resampling_is_unbiased() -> None:
    """Over all ``u`` a particle is chosen K w times on average; for each ``u`` that often, rounded up or down."""
    w = torch.tensor([0.02, 0.3, 0.0, 0.43, 0.25], dtype=torch.float64)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.stack([systematic(w.log(), u).bincount(minlength=5) for u in grid]).double()
    assert float((counts.mean(0) - 5 * w).abs().max()) < 2e-3
    assert bool(((counts >= (5 * w).floor()) & (counts <= (5 * w).ceil())).all())


def test_effective_size() -> None:
    assert float(effective_size(torch.full((7,), -900.0))) == pytest.approx(7)
    assert float(effective_size(torch.tensor([0.0, -1e4, -1e4]))) == pytest.approx(1)
    assert float(effective_size(torch.tensor([0.5, 0.25, 0.25]).log())) == pytest.approx(1 / 0.375)


def test_a_draw_of_a_gaussian_given_the_measurement() -> None:
    """Mean, covariance and integral of ``N(x; m, tau^2) N(y; A x, noise^2 + c A A^T)`` against matrices."""
    y, A, prior = correlated()
    n, tau, c, noise = 40000, 0.7, 0.3, 0.4
    p, M, level = (
        problem(y, A, prior, n),
        A.left @ torch.diag(A.mask) @ A.right,
        torch.full((1, 1, 1, 1), noise, dtype=torch.float64),
    )
    m = torch.linspace(-1, 1, 5, dtype=torch.float64).view(1, 1, 1, 5)
    x, integral = condition(p, p.y, m.expand(n, -1, -1, -1), tau, c, level)
    S = noise**2 * torch.eye(2, dtype=torch.float64) + c * M @ M.T
    precision = torch.eye(5, dtype=torch.float64) / tau**2 + M.T @ S.inverse() @ M
    mean = precision.inverse() @ (m.flatten() / tau**2 + M.T @ S.inverse() @ y[0])
    assert float((x.flatten(1).mean(0) - mean).abs().max()) < 0.015
    assert float((x.flatten(1).T.cov() - precision.inverse()).abs().max()) < 0.015
    r = y[0] - M @ m.flatten()
    assert float(integral[0]) == pytest.approx(float(-r @ (S + tau**2 * M @ M.T).inverse() @ r / 2), rel=1e-9)
    for state in (0.0, c):
        T = noise**2 * torch.eye(2, dtype=torch.float64) + state * M @ M.T
        assert float(misfit(p, p.y, m.expand(n, -1, -1, -1), state, level)[0]) == pytest.approx(
            float(r @ T.inverse() @ r), rel=1e-9
        )


CORRECTED = [
    TDS(),
    TDS(proposal=PiGDM()),
    TDS(proposal=DPS()),
    MCGDiff(),
    FPS(),
    AFDPS(),
    AFDPS(tempering=4.0),
    FK(),
    FK(proposal=DPS()),
    MCGDiff(proposal=MMPS()),
    FPS(proposal=MMPS()),
    AFDPS(proposal=PiGDM()),
]


@pytest.mark.parametrize("strategy", CORRECTED, ids=repr)
def test_weights_correct_every_twist_and_proposal(strategy: Particles) -> None:
    """On a Gaussian: mean and spread of the posterior, whatever moves the particles."""
    y, A, prior = correlated()
    result = solve(y, A, prior, strategy, samples=1000, steps=50)
    bias, spread = bias_and_spread(result, y, A, prior)
    assert bias < 0.15 and abs(spread - 1) < 0.1, (bias, spread, float(result.ess[0]))  # type: ignore[index]


def test_tds_takes_many_measured_numbers_too() -> None:
    prior = priors.Gaussian(torch.full((1, 4, 4), 0.5, dtype=torch.float64), 0.04)
    A = operators.Inpainting(torch.ones(4, 4, dtype=torch.float64), noise=0.1)
    y = A.measure(prior.sample(1, seed=0).double())
    bias, spread = bias_and_spread(solve(y, A, prior, "tds", samples=500, steps=50), y, A, prior)
    assert bias < 0.15 and abs(spread - 1) < 0.1, (bias, spread)


@pytest.mark.parametrize("proposal", ["dps", DPS, TDS(), solvers.DAPS(), 3], ids=repr)
def test_proposals_of_the_wrong_kind_are_refused_at_once(proposal: object) -> None:
    for kind in (TDS, FK, MCGDiff, FPS, AFDPS):
        with pytest.raises(TypeError, match="proposal is a strategy that guides"):
            kind(proposal=proposal)  # type: ignore[arg-type]


def test_levels_of_particles_must_fall() -> None:
    y, A, prior = correlated()
    with pytest.raises(ValueError, match="first level must be above the last"):
        solve(y, A, prior, MCGDiff(sigma_max=0.5, sigma_min=0.5, steps=5), samples=4)


@pytest.mark.parametrize("noise", [2e-4, 1e-3, 0.3])
def test_a_misfit_is_right_however_small_the_noise(noise: float) -> None:
    """In float32: the difference of two nearly equal numbers over the noise would be all rounding."""
    g = torch.Generator().manual_seed(0)
    A = operators.Inpainting(torch.ones(8, 8), noise=0.01)
    x, y = (0.5 + 0.2 * torch.randn(1, 1, 8, 8, generator=g) for _ in range(2))
    randn = EnsembleNoise(0, 0, 1, (1, 8, 8), y.device, y.dtype)
    p = Problem(y, A, priors.Gaussian(torch.full((1, 8, 8), 0.5), 0.04), operators.as_noise(0.01), randn)
    found = misfit(p, y, x, 0.04, torch.full((1, 1, 1, 1), noise))
    assert float(found) == pytest.approx(float((y - x).double().square().sum()) / (noise**2 + 0.04), rel=1e-4)


@pytest.mark.parametrize("name", ["fps", "mcgdiff"])
@pytest.mark.parametrize("ratio", [1.02, 1.5, 4.0])
def test_a_measurement_as_noisy_as_the_last_level_counts_once(name: str, ratio: float) -> None:
    """The state at the last level, ``ratio`` times the noise, already holds the measurement; counted again it narrowed samples to 0.71."""
    prior = priors.Gaussian(torch.full((1, 2, 2), 0.5, dtype=torch.float64), 0.04)
    A = operators.Inpainting(torch.ones(2, 2, dtype=torch.float64), noise=0.02)
    y = A.measure(prior.sample(1, seed=0).double())
    strategy = dataclasses.replace(solvers.get(name), sigma_min=ratio * 0.02)
    bias, spread = bias_and_spread(solve(y, A, prior, strategy, samples=2000), y, A, prior)
    assert bias < 0.1 and abs(spread - 1) < 0.06, (bias, spread)


@pytest.mark.parametrize("noise", [0.0015, 0.015, 0.15])
def test_tds_keeps_particles_apart_where_128_numbers_are_measured(noise: float) -> None:
    """64 particles on 256 pixels: they descend from several of the first level, and have the spread of the posterior."""
    prior = truth.correlated(16)
    A = operators.Inpainting(operators.random_mask((16, 16), 0.5, seed=1), noise=noise)
    y = A.measure(prior.sample(1, seed=1).float().view(1, 1, 16, 16), seed=1)
    result = solve(y, A, prior, "tds")
    bias, spread = bias_and_spread(result, y, A, prior)
    assert result.ancestors is not None and int(result.ancestors[0]) >= 5
    assert bias < 0.5 and 0.8 < spread < 1.1, (bias, spread)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_modes(name: str) -> None:
    y, A, prior = four_modes()
    found = mode_weights(solve(y, A, prior, name, samples=1000, steps=50), prior)
    exact = prior.posterior(y, A).weights[0]
    assert float((found - exact).abs().max()) < 0.08, (found, exact)


@pytest.mark.parametrize(
    "strategy", [FK(potential="max", every=10), FK(potential="sum", every=10), FK(strength=2.0)], ids=repr
)
def test_potentials_leave_the_last_reward_alone(strategy: FK) -> None:
    """Their product is ``exp(strength r_0)``, so strength 2 is the posterior of half the noise variance."""
    y, A, prior = correlated()
    sharper = Matrix(A.left @ torch.diag(A.mask) @ A.right, noise=0.2 / strategy.strength**0.5)
    bias, spread = bias_and_spread(solve(y, A, prior, strategy, samples=2000, steps=50), y, sharper, prior)
    assert bias < 0.25 and abs(spread - 1) < 0.15, (bias, spread)


def black_box(x: Tensor) -> Tensor:
    """A coarse rounding, which no gradient passes."""
    return torch.as_tensor((x.detach().numpy() * 4).round() / 4)


@pytest.mark.parametrize("strategy", [FK(), FK(select="children")], ids=repr)
def test_operators_that_are_only_evaluated(strategy: FK) -> None:
    prior = priors.Gaussian(torch.full((1, 2, 2), 0.5, dtype=torch.float64), 0.09)
    truth = prior.sample(3, seed=1).double()
    y = black_box(truth)
    result = solve(y, black_box, prior, strategy, samples=64, steps=60, noise=0.1)
    before = (truth - 0.5).square().mean().sqrt()
    assert float((result.x - truth).square().mean().sqrt()) < (0.5 if strategy.select == "all" else 0.7) * float(before)
    assert float(result.std.mean()) > 0.02  # a law, not the most likely image


def test_children_compete_with_their_siblings_only() -> None:
    y, A, prior = correlated()
    strategy = FK(select="children", children=4)
    result = solve(y, A, prior, strategy, samples=12, steps=6)
    assert result.parents is not None and result.log_weights is not None
    group = torch.arange(12).view(1, 12, 1) // 4
    assert bool((result.parents // 4 == group).all())
    assert torch.allclose(
        result.log_weights[:, 0].exp().view(3, 4).sum(1), torch.full((3,), 1 / 3, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="samples=10 is no multiple"):
        solve(y, A, prior, strategy, samples=10, steps=6)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_genealogy_are_reported(name: str) -> None:
    y, A, prior = correlated()
    for threshold in (0.0, 1.0):
        strategy = dataclasses.replace(solvers.get(name), threshold=threshold)  # type: ignore[call-arg]
        result = solve(y.repeat(2, 1), A, prior, strategy, samples=20, steps=8)
        assert result.log_weights is not None and result.ess is not None and result.parents is not None
        assert torch.allclose(result.log_weights.exp().sum(0), torch.ones(2, dtype=torch.float64))
        assert torch.allclose(result.ess, 1 / result.log_weights.exp().square().sum(0))
        assert result.parents.shape == (8, 20, 2)
        kept = bool((result.parents == torch.arange(20).view(1, 20, 1)).all())
        assert kept == (threshold == 0)
        first = torch.arange(20).view(20, 1).repeat(1, 2)  # followed from the first level on, the other way round
        for chosen in result.parents:
            first = first.gather(0, chosen)
        assert result.ancestors is not None and result.ancestors.tolist() == [len(set(c.tolist())) for c in first.T]
        assert (result.ancestors == 20).all() == kept
    assert len(solve(y, A, prior, name, steps=1).samples) == solvers.get(name).particles


def test_memory_that_runs_out_changes_nothing_but_the_slices() -> None:
    y, A, prior = correlated()
    tried = []

    def limited(x: Tensor, sigma: float) -> Tensor:
        tried.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("no room")
        return prior(x, sigma)

    small = priors.as_prior(limited, mean=prior.mean, std=prior.std, sigma_max=prior.sigma_max)
    roomy = priors.as_prior(lambda x, s: prior(x, s), mean=prior.mean, std=prior.std, sigma_max=prior.sigma_max)
    result, expected = (solve(y, A, some, "tds", samples=10, steps=5) for some in (small, roomy))
    assert tried[:3] == [10, 5, 2] and result.nfe == expected.nfe == 5
    assert float((result.samples - expected.samples).abs().max()) < 1e-10


def test_a_result_goes_by_its_weights(tmp_path: Path) -> None:
    """A particle of three times the weight counts as three particles."""
    y, A, prior = correlated()
    result = solve(y, A, prior, "tds", samples=4, steps=3)
    w = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64)
    log_weights = (w / w.sum()).log().view(4, 1)
    weighted = dataclasses.replace(result, log_weights=log_weights, ess=effective_size(log_weights))
    repeated = result.samples.repeat_interleave(w.long(), 0)
    assert torch.allclose(weighted.mean, repeated.mean(0)) and torch.equal(weighted.x, weighted.mean)
    unbiased = repeated.var(0, correction=0) / (1 - (w / 8).square().sum())
    assert torch.allclose(weighted.std, unbiased.sqrt())
    none = torch.full((4, 1), -torch.inf, dtype=torch.float64)
    padded = dataclasses.replace(
        weighted, samples=result.samples.repeat(2, 1, 1, 1, 1), log_weights=torch.cat([log_weights, none])
    )
    assert torch.equal(padded.equal(), repeated)  # eight particles, four of them of no weight
    assert torch.equal(dataclasses.replace(result, log_weights=None).equal(), result.samples)
    for q in (0.1, 0.5, 0.9):
        at_most = (repeated <= weighted.quantile(q)).double().mean(0)
        less = (repeated < weighted.quantile(q)).double().mean(0)
        assert bool(((at_most >= q - 1e-12) & (less < q)).all())
    weighted.save(tmp_path / "out.npz")
    saved = np.load(tmp_path / "out.npz")
    assert np.allclose(saved["mean"], weighted.mean.numpy()) and np.allclose(saved["log_weights"], log_weights.numpy())
    assert json.loads(str(saved["settings"]))["solver"] == repr(TDS(steps=3))
    assert "sample 1" in [axis.get_title() for axis in weighted.plot().axes][2]


def test_what_particles_refuse() -> None:
    y, prior = torch.ones(1, 1, 1, 5, dtype=torch.float64), correlated()[2]
    for strategy in (TDS(), AFDPS(), MCGDiff(), FPS(), FK(proposal=PiGDM())):
        with pytest.raises(ValueError, match=" needs "):
            solve(y, lambda x: x**2, prior, strategy, noise=0.1)
    for wrong in ({"potential": "min"}, {"select": "best"}, {"every": 0}, {"children": 0}, {"threshold": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FK(**wrong)  # type: ignore[arg-type]
