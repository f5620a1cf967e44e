"""Moment matching: the exact conditional mean, the exact posterior at default settings, and passes counted where they happen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import operators, priors, solve, solvers
from invdiff.operators import Linear
from invdiff.priors import covariance
from invdiff.problem import Problem, RowNoise
from invdiff.solvers import MMPS, TMPD

SIDE, SPREAD, ROWS = 8, 0.2, 6
SHAPE = (1, SIDE, SIDE)


class Matrix(Linear):
    """Any matrix (M, N); the measurement has two axes."""

    def __init__(self, matrix: Tensor, noise: float | Tensor | None = None) -> None:
        super().__init__(noise=noise)
        self.matrix = matrix

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.flatten(1) @ self.matrix.T.to(x)

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (y @ self.matrix.to(y)).view(-1, *SHAPE)


class Affine:
    """The denoiser ``x -> B x`` at every level, whose Jacobian can be anything."""

    mean, std, sigma_min, sigma_max = 0.0, 1.0, 1e-3, 100.0

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).view_as(x)


def smooth() -> priors.Gaussian:
    law = covariance.Dense.from_kernel(lambda r: SPREAD**2 * torch.exp(-r / 3), SHAPE)
    return priors.Gaussian(torch.full(SHAPE, 0.4, dtype=torch.float64), law)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPERATORS = {
    "mask": lambda noise: operators.Inpainting(operators.random_mask((SIDE, SIDE), 0.5, seed=1), noise=noise),
    "blur": lambda noise: operators.Blur(operators.gaussian_kernel(1.0, 7).double(), noise=noise, boundary="circular"),
    "dense": lambda noise: Matrix(random(24, SIDE**2) / SIDE, noise),
}


def problem(prior: Any, A: Linear, y: Tensor) -> Problem:
    rows = [(k, 0) for k in range(len(y))]
    return Problem(y, A, prior, operators.as_noise(A.noise_model), RowNoise(0, rows, SHAPE, y.device, y.dtype))


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])  # in units of the prior's spread
@pytest.mark.parametrize("name", OPERATORS)
def test_the_default_draws_from_the_posterior(name: str, noise: float) -> None:
    """Bias within 0.05 posterior standard deviations and spread within 3 %, measured and unmeasured, in 100 passes at most.

    The samples are compared with those of the exact flow from the same noise, ``mean + C^(1/2) z``: nothing is left to chance.
    """
    prior, A = smooth(), OPERATORS[name](noise * SPREAD)
    y = A.measure(prior.sample(2, seed=0), seed=0)
    posterior, K = prior.posterior(y, A), 16
    result = solve(y, A, prior, "mmps", samples=K)
    z = RowNoise(0, [(k, b) for k in range(K) for b in range(2)], SHAPE, y.device, y.dtype)()
    exact = posterior.law.sqrt(z).view(K, 2, -1)
    drawn = (result.samples - result.mean).flatten(2)
    bias = float(((result.mean - posterior.mean) / posterior.std).square().mean().sqrt())
    matrix = A.A(torch.eye(SIDE**2, dtype=torch.float64).view(-1, *SHAPE)).flatten(1).T
    _, a, v = torch.linalg.svd(matrix)
    seen = int((a > 1e-4 * a.max()).sum())
    ratios = [float((drawn @ d.T).norm() / (exact @ d.T).norm()) for d in (v[:seen], v[seen:]) if len(d)]
    assert bias < 0.05 and max(abs(r - 1) for r in ratios) < 0.03, (bias, ratios)
    assert result.nfe == 10 and result.nfe + result.backward <= 100


@pytest.mark.parametrize("krylov", ["gmres", "cg"])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_estimate_is_the_conditional_mean_of_a_gaussian(name: str, krylov: Any) -> None:
    """Solved to the end, at any level, also from the solution of the last one."""
    prior, A = smooth(), OPERATORS[name](0.05)
    y = A.measure(prior.sample(ROWS, seed=0), seed=0)
    p, posterior = problem(prior, A, y), prior.posterior(y, A)
    strategy = MMPS(krylov=krylov, tolerance=1e-7, products=100)
    for s in (5.0, 0.3, 0.02):
        x = posterior.mean + s * random(ROWS, *SHAPE)
        error = strategy.estimate(p, x, s).x0 - posterior.denoise(x, s)
        assert float(error.abs().max()) < 1e-5 * max(s, SPREAD), (s, float(error.abs().max()))


def test_gmres_solves_where_the_jacobian_is_not_symmetric() -> None:
    """Against the system written out, with some eigenvalues negative."""
    B, M, s = 0.3 * random(SIDE**2, SIDE**2) / SIDE, random(20, SIDE**2, seed=1) / SIDE, 0.5
    A, y, x = Matrix(M, 0.3), random(ROWS, 20, seed=2), random(ROWS, *SHAPE, seed=3)
    x0 = x.flatten(1) @ B.T
    system = s**2 * M @ B.T @ M.T + 0.09 * torch.eye(20, dtype=torch.float64)
    expected = x0 + s**2 * torch.linalg.solve(system, (y - x0 @ M.T).T).T @ M @ B
    found = MMPS(tolerance=1e-9, products=25).estimate(problem(Affine(B), A, y), x, s).x0.flatten(1)
    assert float((found - expected).abs().max()) < 1e-7


@pytest.mark.parametrize("krylov", ["gmres", "cg"])
def test_a_jacobian_of_negative_variances_moves_nothing_out_of_bounds(krylov: Any) -> None:
    """``J = -1``: conjugate gradients stop where the first direction has negative variance; nothing is infinite or NaN."""
    B = -torch.eye(SIDE**2, dtype=torch.float64)
    A, y, x = OPERATORS["mask"](0.1), random(ROWS, *SHAPE), random(ROWS, *SHAPE, seed=1)
    x0 = MMPS(krylov=krylov).estimate(problem(Affine(B), A, A.A(y)), x, 0.5).x0
    assert bool(torch.isfinite(x0).all()) and float(x0.abs().max()) < 10
    if krylov == "cg":
        assert torch.equal(x0, -x)


def test_rows_stop_by_themselves() -> None:
    """A row that is solved at once and rows that are not, together and alone: the same, and each with its own noise level."""
    prior, levels = smooth(), torch.linspace(0.01, 0.3, ROWS)
    mask = operators.random_mask((SIDE, SIDE), 0.5, seed=1)
    y = operators.Inpainting(mask, noise=levels).measure(prior.sample(ROWS, seed=0), seed=0)
    x = 0.4 + 0.3 * random(ROWS, *SHAPE)
    y[0] = prior(x[:1], 0.3)[0] * mask
    together = problem(prior, operators.Inpainting(mask, noise=levels), y)
    alone = [problem(prior, operators.Inpainting(mask, noise=levels[[k]]), y[[k]]) for k in range(ROWS)]
    for s in (0.3, 0.1):
        rows = torch.cat([MMPS().estimate(p, x[[k]], s).x0 for k, p in enumerate(alone)])
        assert float((MMPS().estimate(together, x, s).x0 - rows).abs().max()) < 1e-12
    passes = [p.backward for p in alone]
    assert passes[0] < max(passes) == together.backward, (passes, together.backward)


def test_the_last_solution_saves_passes() -> None:
    prior, A = smooth(), OPERATORS["mask"](0.02)
    y = A.measure(prior.sample(1, seed=0), seed=0)
    warm = problem(prior, A, y)
    cold, x = 0, y + 0 * y
    for s in (1.0, 0.8, 0.6):
        fresh = problem(prior, A, y)
        MMPS().estimate(fresh, x, s)
        MMPS().estimate(warm, x, s)
        cold += fresh.backward
    assert warm.backward < 0.8 * cold, (warm.backward, cold)


class Counting(torch.autograd.Function):
    """The identity, which counts how often it is differentiated."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Counting.passes += 1
        return grad


@pytest.mark.parametrize("name", solvers.names())
def test_backward_passes_are_counted(name: str) -> None:
    inner, A = smooth(), OPERATORS["mask"](0.05)
    y = A.measure(inner.sample(1, seed=0), seed=0)
    prior = priors.as_prior(lambda x, s: inner(Counting.apply(x), s), mean=0.4, std=SPREAD)
    Counting.passes = 0
    result = solve(y, A, prior, name, samples=2, steps=5, batch_size=2)
    assert result.backward == Counting.passes and (result.backward > 0) == solvers.get(name).gradient


def test_a_measurement_with_more_axes_than_the_image() -> None:
    maps = torch.complex(random(1, 3, SIDE, SIDE), random(1, 3, SIDE, SIDE, seed=1)) / 3
    A = operators.MultiCoilMRI(operators.random_mask((SIDE, SIDE), 0.6, seed=2), maps, noise=0.05)
    prior = priors.Gaussian(torch.zeros(2, SIDE, SIDE, dtype=torch.float64), SPREAD**2)
    y = A.measure(prior.sample(2, seed=0), seed=0)
    posterior = prior.posterior(y, A)
    assert y.ndim == 5
    x = solve(y, A, prior, MMPS(), samples=2).x
    assert float(((x - posterior.mean) / posterior.std).square().mean().sqrt()) < 0.05


def test_tmpd_divides_by_row_sums() -> None:
    """The formula against matrices written out; where the covariance in the measurement is diagonal it is the conditional mean."""
    prior, s, sigma_y = smooth(), 0.05, 0.3  # so much noise that no step is cut
    A = OPERATORS["dense"](sigma_y)
    y, x = A.measure(prior.sample(ROWS, seed=0), seed=0), 0.4 + 0.1 * random(ROWS, *SHAPE)
    C = prior.covariance.matrix()
    S, M = s**2 * C @ torch.linalg.inv(C + s**2 * torch.eye(SIDE**2)), A.matrix
    sums = (M @ S @ M.T).sum(1).clamp(min=0)
    x0 = prior(x, s)
    expected = x0.flatten(1) + ((y - A.A(x0)) / (sigma_y**2 + sums)) @ M @ S
    found = TMPD().estimate(problem(prior, A, y), x, s).x0.flatten(1)
    assert float((found - expected).abs().max()) < 1e-9

    white = priors.Gaussian(prior.mean, covariance.Diagonal(torch.full(SHAPE, SPREAD**2, dtype=torch.float64)))
    mask = OPERATORS["mask"](0.05)
    y = mask.measure(white.sample(ROWS, seed=0), seed=0)
    found = TMPD().estimate(problem(white, mask, y), x, 0.3).x0
    assert float((found - white.posterior(y, mask).denoise(x, 0.3)).abs().max()) < 1e-9


def test_the_ladder_spans_noise_and_measurement() -> None:
    y = torch.zeros(1, *SHAPE)
    for noise, low in ((0.05 * SPREAD, 0.01), (1e-5, 0.002), (1.0, 0.08)):
        high, found = MMPS().levels(problem(smooth(), OPERATORS["mask"](noise), y))
        assert high == pytest.approx(60 * SPREAD) and found == pytest.approx(low * SPREAD)
    assert MMPS(sigma_max=3.0, sigma_min=0.1).levels(problem(smooth(), OPERATORS["mask"](0.1), y)) == (3.0, 0.1)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="krylov is 'gmres' or 'cg'"):
        MMPS(krylov="lsqr")  # type: ignore[arg-type]
    poisson = operators.Denoising(operators.Poisson(0.05))
    for strategy in (MMPS(), TMPD()):
        with pytest.raises(ValueError, match="needs Gaussian noise"):
            solve(torch.ones(1, *SHAPE), poisson, smooth(), strategy)
        with pytest.raises(ValueError, match="needs a linear operator"):
            solve(torch.ones(1, *SHAPE), lambda x: x**2, smooth(), strategy, noise=0.1)
