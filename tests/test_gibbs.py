"""Split Gibbs samplers: their halves against closed forms, then the whole against exact posteriors, a mixture and a grid."""

from __future__ import annotations

import pytest
import torch
from skimage import data
from skimage.transform import resize
from torch import Tensor

from invdiff import operators, priors, solve
from invdiff.operators import Linear, as_noise
from invdiff.operators.base import Spectral
from invdiff.problem import Problem, RowNoise
from invdiff.solvers import DAPS, PnPDM
from invdiff.solvers.likelihood import HMC, PriorDraw, gaussian_draw, operator_norm

SIDE, SPREAD, ROWS = 4, 0.2, 4000


class Matrix(Linear):
    """``y = M x``, without a singular value decomposition."""

    def __init__(self, matrix: Tensor, noise: float) -> None:
        super().__init__(noise)
        self.matrix = matrix

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y: Tensor, *args: object, **kwargs: object) -> Tensor:
        return (y @ self.matrix).view(len(y), 1, SIDE, SIDE)


def smooth(side: int = SIDE) -> priors.Gaussian:
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    return priors.Gaussian(torch.full((1, side, side), 0.5).double(), SPREAD**2 * torch.exp(-torch.cdist(grid, grid) / 3))


def matrix() -> Tensor:
    return torch.randn((6, SIDE**2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3


def operator(kind: str, noise: float, side: int = SIDE) -> Linear:
    if kind == "matrix":
        return Matrix(matrix(), noise)
    if kind == "blur":
        return operators.Blur(torch.ones(3, 3, dtype=torch.float64), noise=noise, boundary="circular")
    return operators.Inpainting(operators.random_mask((side, side), 0.5, seed=1).double(), noise=noise)


def problem(A: Linear, rows: int, y: Tensor) -> Problem:
    shape, pairs = (1, SIDE, SIDE), [(2 * k, 0) for k in range(rows)]  # of even samples: independent ones
    randn = RowNoise(0, pairs, shape, y.device, y.dtype)
    return Problem(y.expand(rows, *y.shape[1:]), A, smooth(), as_noise(A.noise_model), randn)


@pytest.mark.parametrize("kind", ["matrix", "blur", "mask"])
def test_the_norm_of_an_operator(kind: str) -> None:
    A = operator(kind, 0.05)
    pixels = torch.eye(SIDE**2, dtype=torch.float64).view(-1, 1, SIDE, SIDE)
    largest = float(torch.linalg.matrix_norm(A.A(pixels).flatten(1), 2))
    assert float(operator_norm(problem(A, 1, A.A(pixels[:1])))) == pytest.approx(largest, rel=0.02)


def test_the_norm_is_that_of_each_images_own_operator() -> None:
    scaled = Spectral(0.05, mask=torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1, 1))
    y = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    for A in (scaled, operators.from_callable(scaled.A, img_size=(1, SIDE, SIDE))):  # by its singular values, and by power iteration
        assert operator_norm(problem(A, 2, y)).flatten().tolist() == pytest.approx([1.0, 3.0], rel=1e-3)


@pytest.mark.parametrize("kind", ["matrix", "blur", "mask"])
@pytest.mark.parametrize("share", [0.3, 0.7])  # of sigma_y / |A|
def test_the_measurement_keeps_its_noise_whatever_the_coupling(kind: str, share: float) -> None:
    """``z`` given ``x0`` and ``y``, averaged over ``y`` given ``x0``, is ``x0 + r n``: the split of the noise is exact."""
    sigma = 0.05
    A = operator(kind, sigma)
    x0 = smooth().sample(1, seed=0).double()
    p = problem(A, ROWS, A.A(x0))
    r = share * sigma / float(operator_norm(p).max())
    p.y = p.y + sigma * torch.randn(p.y.shape, generator=torch.Generator().manual_seed(1), dtype=p.y.dtype)
    if kind == "mask":
        p.y = A.A(p.y)
    n = ((gaussian_draw(p, x0.expand(ROWS, *x0.shape[1:]), r) - x0) / r).flatten(1)
    assert float(n.mean(0).abs().max()) < 5 / ROWS**0.5
    assert float((n.T @ n / ROWS - torch.eye(SIDE**2)).abs().max()) < 6 / ROWS**0.5


@pytest.mark.parametrize("r", [0.1 * SPREAD, SPREAD, 10 * SPREAD])
def test_a_draw_from_a_gaussian_prior(r: float) -> None:
    """With a finely followed flow the draw has the mean ``D(z)`` and the covariance ``r^2 dD/dz``."""
    prior = smooth()
    z = prior.sample(1, seed=0).double() + r
    p = problem(operator("mask", 0.05), ROWS, z)
    x = PriorDraw(levels=60, depth=0.003)(p, z.expand(ROWS, *z.shape[1:]), r)
    law, values = prior.covariance, prior.covariance.eigenvalues
    white = law.transform(x - prior(z, r)) / (r * (values / (values + r**2)).sqrt())
    assert float(white.mean(0).abs().max()) < 5 / (ROWS) ** 0.5
    assert float((white.var(0) - 1).abs().max()) < 0.15


def test_hmc_draws_from_a_known_law() -> None:
    """A nonlinear measurement of each pixel: the moments of the law by quadrature."""
    A, sigma, r = operators.from_callable(lambda x: x + x**3, noise=0.3), 0.3, 0.5
    p = problem(A, 1000, torch.full((1, 1, SIDE, SIDE), 0.8, dtype=torch.float64))
    x = torch.full((1000, 1, SIDE, SIDE), 0.2, dtype=torch.float64)
    z = HMC(moves=30)(p, x, x, r, {})
    u = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    b = min(1.0, sigma**2 / (r * float(operator_norm(p).max())) ** 2)
    w = (-((u - 0.2) ** 2) / (2 * r**2) - b * (0.8 - u - u**3) ** 2 / (2 * sigma**2)).softmax(0)
    mean = float((w * u).sum())
    assert float(z.mean()) == pytest.approx(mean, abs=0.02)
    assert float(z.std()) == pytest.approx(float((w * (u - mean) ** 2).sum()) ** 0.5, rel=0.03)


@pytest.mark.parametrize("level", [0.01, 0.1, 1.0])  # noise over the prior's spread
@pytest.mark.parametrize("kind", ["matrix", "blur", "mask"])
@pytest.mark.parametrize("name", ["daps", "pnpdm"])
def test_the_default_is_exact_for_gaussian_priors(name: str, kind: str, level: float) -> None:
    """The updates are affine: in the mean all noise cancels, pair by pair, so the bias has no Monte-Carlo error. That of the spread is
    ``sqrt(tr S^2 / (2 pairs)) / tr S`` for the posterior's covariance ``S``, 0.007 to 0.010. (PnP-DM's spread is 1 to 2 % too large at level 1.)"""
    prior, A = smooth(), operator(kind, level * SPREAD)
    y = A.measure(prior.sample(1, seed=0).double(), seed=0)
    posterior, result = prior.posterior(y, A), solve(y, A, prior, name, samples=2000)
    bias = float(((result.x - posterior.mean) / posterior.std).square().mean().sqrt())
    ratio = float(result.samples.var(0).mean().sqrt() / posterior.std.square().mean().sqrt())
    assert bias < 0.05 and 0.97 < ratio < 1.03, (bias, ratio)


def test_bias_of_pnpdm_falls_with_its_levels() -> None:
    prior, A = smooth(), operator("mask", 0.01 * SPREAD)
    y = A.measure(prior.sample(1, seed=0).double(), seed=0)
    mean = prior.posterior(y, A).mean
    errors = [float((solve(y, A, prior, PnPDM(steps=n), samples=2).x - mean).norm()) for n in (20, 160)]
    assert errors[1] < 0.5 * errors[0], errors


MEANS = torch.tensor([[0.8, -0.5], [-0.7, 2.0], [-1.5, -1.0], [1.5, 1.5]], dtype=torch.float64).view(4, 1, 1, 2)


def modes() -> priors.GaussianMixture:
    """Four modes in the plane."""
    return priors.GaussianMixture([0.4, 0.1, 0.3, 0.2], MEANS, 0.05)


class Sum(Linear):
    """``y = x1 + 0.6 x2``."""

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x[..., :1] + 0.6 * x[..., 1:]

    def A_adjoint(self, y: Tensor, *args: object, **kwargs: object) -> Tensor:
        return torch.cat([y, 0.6 * y], -1)


def test_daps_with_a_network_whose_jacobian_is_not_symmetric() -> None:
    """Conjugate gradients, which ask for a symmetric one, diverge here."""
    x = torch.from_numpy(resize(data.camera(), (48, 48), anti_aliasing=True)).float()[None, None]
    A = operators.Denoising(noise=0.1)
    y = A.measure(x, seed=0)
    found = solve(y, A, priors.load("natural"), "daps", samples=1)
    assert float((found.x - x).square().mean()) < 0.5 * float((y - x).square().mean())


@pytest.mark.parametrize("strategy", [DAPS(), PnPDM(steps=50)], ids=["daps", "pnpdm"])
def test_modes_of_a_mixture(strategy: DAPS | PnPDM) -> None:
    """Two of four modes explain the measurement, with weights 0.8 and 0.2."""
    y, A, samples = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), Sum(noise=0.15), 1000
    x = solve(y, A, modes(), strategy, samples=samples).samples.view(-1, 1, 2)
    nearest = (x - MEANS.view(1, 4, 2)).square().sum(2).argmin(1)
    weights = torch.bincount(nearest, minlength=4) / samples
    assert float((weights - modes().posterior(y, A).weights[0]).abs().max()) < 0.08, weights


@pytest.mark.parametrize("leaps", [1, 6], ids=["langevin", "hmc"])
@pytest.mark.parametrize("name", ["daps", "pnpdm"])
def test_a_nonlinear_measurement_against_a_grid(name: str, leaps: int) -> None:
    def curve(x: Tensor) -> Tensor:
        return x[..., :1] + 0.6 * x[..., 1:] + 0.2 * x[..., :1] ** 2

    prior, A, hmc = modes(), operators.from_callable(curve, img_size=(1, 1, 2), noise=0.3), HMC(leaps=leaps)
    y = torch.full((1, 1, 1, 1), 0.6, dtype=torch.float64)
    strategy = DAPS(hmc=hmc) if name == "daps" else PnPDM(steps=30, hmc=hmc)
    x = solve(y, A, prior, strategy, samples=400).samples.view(-1, 2)
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).view(-1, 1, 1, 2)
    law = (prior.log_density(grid) + as_noise(0.3).log_likelihood(y, curve(grid))).softmax(0)
    mean = law @ grid.view(-1, 2)
    std = (law @ (grid.view(-1, 2) - mean) ** 2).sqrt()
    bias, spread = ((x.mean(0) - mean) / std).abs().max(), (x.std(0) / std - 1).abs().max()
    assert float(bias) < 0.35 and float(spread) < 0.2, (bias, spread)  # the prior's bias: 0.52; chance: 0.06
