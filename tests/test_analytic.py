"""The Gaussian and mixture priors against dense formulas, grids and one another."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators import Inpainting
from invdiff.priors import Dense, Diagonal, Gaussian, GaussianMixture, LowRank, Stationary
from invdiff.priors.covariance import Covariance

SIZE = (2, 4, 3)
N = 24
EXACT: Any = {"rtol": 1e-9, "atol": 1e-9}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(r: Tensor) -> Tensor:
    return 0.09 * torch.exp(-r / 2)


def diagonal() -> tuple[Covariance, Tensor]:
    variance = randn(*SIZE).square()
    return Diagonal(variance), torch.diag(variance.flatten())


def stationary() -> tuple[Covariance, Tensor]:
    spectrum = torch.fft.fft2(randn(*SIZE)).abs() ** 2
    autocovariance = torch.fft.ifft2(spectrum).real
    blocks = []
    for channel in autocovariance:  # C[(i, j), (k, m)] = c[i - k, j - m]
        rows = [channel.roll((k, m), (0, 1)).flatten() for k in range(SIZE[1]) for m in range(SIZE[2])]
        blocks.append(torch.stack(rows, 1))
    return Stationary(spectrum), torch.block_diag(*blocks)


def low_rank() -> tuple[Covariance, Tensor]:
    factor = randn(3, *SIZE)
    return LowRank(factor, 0.2), factor.flatten(1).T @ factor.flatten(1) + 0.2 * torch.eye(N, dtype=torch.float64)


def dense() -> tuple[Covariance, Tensor]:
    root = randn(N, N)
    matrix = root @ root.T / N + 0.01 * torch.eye(N, dtype=torch.float64)
    return Dense(matrix, SIZE), matrix


KINDS = {f.__name__: f for f in (diagonal, stationary, low_rank, dense)}
each_kind = pytest.mark.parametrize("kind", KINDS)


def two_d_mixture() -> GaussianMixture:
    """Four components of two pixels: correlated, wide, narrow and tiny."""
    means = torch.tensor([[0.0, 0.0], [2.0, 0.5], [-1.0, 1.5], [0.5, -2.0]], dtype=torch.float64).view(4, 1, 1, 2)
    matrices = [[[0.3, 0.2], [0.2, 0.4]], [[1.0, 0.0], [0.0, 0.5]], [[0.2, -0.1], [-0.1, 0.3]], [[0.05, 0], [0, 0.05]]]
    covariances = [Dense(torch.tensor(m, dtype=torch.float64), (1, 1, 2)) for m in matrices]
    return GaussianMixture([0.4, 0.1, 0.3, 0.2], means, covariances)


def grid(points: int = 1201, half: float = 9.0) -> tuple[Tensor, float]:
    """Images of two pixels on a grid (points^2, 1, 1, 2), and the area of a cell."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2), float(axis[1] - axis[0]) ** 2


def linear(matrix: Tensor, img_size: tuple[int, ...], noise: float) -> dinv.LinearPhysics:
    """The operator of a matrix (M, N) as a deepinv physics, with ``y`` of shape (B, M)."""
    return dinv.LinearPhysics(
        A=lambda x, **_: x.flatten(1) @ matrix.to(x).T,
        A_adjoint=lambda y, **_: (y @ matrix.to(y)).view(-1, *img_size),
        noise_model=dinv.GaussianNoise(noise),
    )


def normal(mean: Tensor, matrix: Tensor) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(mean, matrix)


# Covariances


@each_kind
def test_covariance_agrees_with_its_matrix(kind: str) -> None:
    covariance, matrix = KINDS[kind]()
    v, s2 = randn(5, *SIZE, seed=1), 0.3**2
    identity = torch.eye(N, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix + s2 * identity)
    for got, expected in (
        (covariance.matmul(v), v.flatten(1) @ matrix),
        (covariance.sqrt(covariance.sqrt(v)), v.flatten(1) @ matrix),
        (covariance.solve(v, 0.3), v.flatten(1) @ inverse),
        (covariance.shrink(v, 0.3), v.flatten(1) @ inverse @ matrix),
    ):
        torch.testing.assert_close(got.flatten(1), expected, **EXACT)
    torch.testing.assert_close(covariance.matrix(), matrix, **EXACT)
    torch.testing.assert_close(covariance.variance().flatten(), matrix.diagonal(), **EXACT)
    assert covariance.trace() == pytest.approx(float(matrix.trace()), rel=1e-9)
    expected = normal(torch.zeros(N, dtype=torch.float64), matrix + s2 * identity).log_prob(v.flatten(1))
    torch.testing.assert_close(covariance.log_density(v, 0.3), expected, **EXACT)


def test_kernels_give_the_covariance_of_pixel_pairs() -> None:
    size = (2, 5, 4)
    flat = Dense.from_kernel(kernel, size).matrix().view(2, 5, 4, 2, 5, 4)
    assert float(flat[0, 1, 1, 0, 4, 3]) == pytest.approx(0.09 * torch.exp(torch.tensor(-(13**0.5) / 2)).item())
    assert float(flat[0, 1, 1, 1, 4, 3]) == pytest.approx(0.0, abs=1e-12)
    periodic = Stationary.from_kernel(kernel, (1, 32, 40)).matrix().view(32, 40, 32, 40)
    for a, b, distance in (((0, 0), (3, 4), 5.0), ((0, 0), (31, 0), 1.0), ((5, 38), (5, 2), 4.0)):
        expected = float(kernel(torch.tensor(distance)))
        assert float(periodic[a + b]) == pytest.approx(expected, abs=1e-5)  # the rest comes from the other periods


# Denoisers


@each_kind
def test_gaussian_denoiser_is_tweedie_of_its_density(kind: str) -> None:
    prior = Gaussian(randn(*SIZE, seed=2), KINDS[kind]()[0])
    x = randn(3, *SIZE, seed=3).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x, 0.4).sum(), x)
    torch.testing.assert_close(prior(x, 0.4), x + 0.4**2 * score, **EXACT)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_mixture_denoiser_by_integration_and_tweedie(sigma: float) -> None:
    prior, (points, cell) = two_d_mixture(), grid()
    x = torch.tensor([[0.7, -0.2], [-1.5, 2.5], [3.0, 3.0]], dtype=torch.float64).view(-1, 1, 1, 2).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x, sigma).sum(), x)
    density = prior.log_density(points)
    for i in range(len(x)):
        likelihood = -(points - x[i].detach()).square().flatten(1).sum(1) / (2 * sigma**2)
        joint = (density + likelihood).exp()
        mean = (joint[:, None] * points.flatten(1)).sum(0) / joint.sum()
        torch.testing.assert_close(prior(x, sigma)[i].flatten(), mean, rtol=1e-7, atol=1e-7)
        evidence = joint.sum() * cell / (2 * torch.pi * sigma**2)
        torch.testing.assert_close(prior.log_density(x, sigma)[i], evidence.log(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prior(x, sigma), x + sigma**2 * score, **EXACT)


def test_mixture_is_safe_at_small_noise_and_far_away() -> None:
    means = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    points = GaussianMixture([0.5, 0.5], means, 0.0)  # two points: only the noise level blurs them
    x = torch.tensor([0.49, 0.51, -300.0, 1e4]).view(-1, 1, 1, 1)
    assert points(x, 1e-4).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    assert bool(points.log_density(x, 1e-4).isfinite().all())
    wide = GaussianMixture([0.5, 0.5], means, 1e-2)
    far = torch.full((1, 1, 1, 1), 1e6)
    torch.testing.assert_close(wide(far, 0.1), (1 + far) / 2)  # the nearer component, half way: s^2 = sigma^2
    torch.testing.assert_close(wide(x, 1e-6), x)
    # Log-densities of -1e9 whose difference decides: float32 alone would lose it.
    close = torch.tensor([[-1e-3, 0.0], [1e-3, 0.0]]).view(2, 1, 1, 2)
    out = GaussianMixture([0.5, 0.5], close, 0.0)(torch.tensor([5e-4, 50.0]).view(1, 1, 1, 2), 1e-3)
    torch.testing.assert_close(out.flatten(), torch.tensor([1e-3 * math.tanh(0.5), 0.0]), rtol=1e-5, atol=0)


def test_without_noise_a_pixel_is_kept_unless_it_is_fixed() -> None:
    prior = Gaussian(torch.tensor([0.2, 0.3]).view(1, 1, 2), torch.tensor([0.1, 0.0]).view(1, 1, 2))
    assert prior(torch.tensor([0.7, 0.8]).view(1, 1, 1, 2), 0.0).flatten().tolist() == pytest.approx([0.7, 0.3])


def priors() -> dict[str, Callable[[], Any]]:
    table = {kind: lambda kind=kind: Gaussian(randn(*SIZE, seed=2), KINDS[kind]()[0]) for kind in KINDS}
    covariances = [make()[0] for make in KINDS.values()]
    return table | {"mixture": lambda: GaussianMixture([1, 2, 3, 4], randn(4, *SIZE, seed=2), covariances)}


PRIORS = priors()
each_prior = pytest.mark.parametrize("name", PRIORS)


@each_prior
def test_prior_is_batch_independent_keeps_dtype_and_pickles(name: str) -> None:
    prior, x = PRIORS[name](), randn(4, *SIZE, seed=4)
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    together = prior(x, sigma)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], prior(x[i : i + 1], float(sigma[i])), **EXACT)
    single = prior(x.float(), sigma.float())
    assert (together.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), together, rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(prior))
    assert torch.equal(again(x, sigma), together)
    assert torch.equal(again.sample(3, seed=1), prior.sample(3, seed=1))
    assert torch.autograd.gradcheck(lambda z, s: prior(z, s), (x.requires_grad_(), sigma.requires_grad_()))


@each_prior
def test_samples_follow_the_prior(name: str) -> None:
    prior, n = PRIORS[name](), 4000
    x = prior.sample(n, seed=5)
    torch.testing.assert_close(prior.sample(7, seed=5), x[:7], **EXACT)
    assert not torch.equal(prior.sample(7, seed=6), x[:7])
    if name == "mixture":
        means, matrices = prior.means.flatten(1), [c.matrix() for c in prior.covariances]
    else:
        means, matrices = prior.mean.flatten()[None], [prior.covariance.matrix()]
    weights = getattr(prior, "weights", torch.ones(1, dtype=torch.float64))
    mean = weights @ means
    second = sum(w * (c + torch.outer(m - mean, m - mean)) for w, m, c in zip(weights, means, matrices))
    torch.testing.assert_close(prior.mean.flatten(), mean, **EXACT)
    assert prior.std == pytest.approx(float(second.trace() / N) ** 0.5)
    assert prior.sigma_min < 0.1 * prior.std and prior.sigma_max >= 20 * prior.std
    deviation = x.flatten(1) - mean
    assert_monte_carlo(deviation, torch.zeros(N, dtype=torch.float64))
    assert_monte_carlo((deviation[:, :, None] * deviation[:, None]).flatten(1), second.flatten())


def assert_monte_carlo(values: Tensor, expected: Tensor) -> None:
    """Every column's mean is within 5 standard errors of what is expected."""
    error = (values.mean(0) - expected).abs() / (values.std(0) / len(values) ** 0.5 + 1e-12)
    assert float(error.max()) < 5, f"{float(error.max()):.2f} standard errors"


# Posteriors

OPERATORS = {
    "denoising": lambda: dinv.Denoising(dinv.GaussianNoise(0.2)),
    "mask": lambda: dinv.Inpainting(SIZE, mask=0.5, noise_model=dinv.GaussianNoise(0.2)),
    "downsampling": lambda: dinv.Downsampling(SIZE, filter=None, factor=2, noise_model=dinv.GaussianNoise(0.2)),
    "more rows than columns": lambda: linear(randn(60, N, seed=6), SIZE, 0.2),
    "rank one": lambda: linear(randn(1, N, seed=6), SIZE, 0.2),
}


@each_kind
@pytest.mark.parametrize("operator", OPERATORS)
def test_gaussian_posterior_is_the_textbook_formula(kind: str, operator: str) -> None:
    covariance, c = KINDS[kind]()
    prior, A = Gaussian(randn(*SIZE, seed=2), covariance), OPERATORS[operator]()
    y = A.A(prior.sample(3)) + 0.2
    got = prior.posterior(y, A, noise=0.2)
    a = A.A(torch.eye(N, dtype=torch.float64).view(N, *SIZE)).flatten(1).T
    gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + 0.04 * torch.eye(len(a), dtype=torch.float64))
    mean = prior.mean.flatten() + (y.flatten(1) - a @ prior.mean.flatten()) @ gain.T
    torch.testing.assert_close(got.mean.flatten(1), mean, **EXACT)
    torch.testing.assert_close(got.covariance, c - gain @ a @ c, **EXACT)
    torch.testing.assert_close(got.std.flatten() ** 2, (c - gain @ a @ c).diagonal(), **EXACT)
    own = prior.posterior(y, A) if kind == "dense" else got  # the operator's own noise model: 0.2 in float32
    torch.testing.assert_close(own.mean, got.mean, rtol=1e-6, atol=1e-6)


def test_posterior_without_noise_is_the_conditional_law() -> None:
    covariance, c = dense()
    prior = Gaussian(0.5, covariance)
    mask = (torch.arange(N) % 3 > 0).view(1, *SIZE)
    A = dinv.Inpainting(SIZE, mask=mask.double())  # rows of zeros and no noise: A C A^T is singular
    x = prior.sample(1).double()
    got, m = prior.posterior(A.A(x), A), mask.flatten()
    torch.testing.assert_close(got.mean.flatten()[m], x.flatten()[m], rtol=1e-7, atol=1e-7)
    gain = c[~m][:, m] @ torch.linalg.inv(c[m][:, m])
    torch.testing.assert_close(got.mean.flatten()[~m], 0.5 + gain @ (x.flatten()[m] - 0.5), rtol=1e-7, atol=1e-7)
    assert float(got.covariance[m].abs().max()) < 1e-7
    torch.testing.assert_close(got.covariance[~m][:, ~m], c[~m][:, ~m] - gain @ c[m][:, ~m], rtol=1e-7, atol=1e-7)


def test_mixture_posterior_on_a_grid() -> None:
    prior, (points, cell) = two_d_mixture(), grid()
    row, sigma = torch.tensor([[1.0, 0.6]], dtype=torch.float64), 0.4
    y = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    got = prior.posterior(y, linear(row, (1, 1, 2), sigma))
    parts = torch.stack(
        [w.log() + c.log_density(points - m) for w, m, c in zip(prior.weights, prior.means, prior.covariances)], 1
    )
    for i in range(2):
        likelihood = -((points.flatten(1) @ row[0] - y[i]) ** 2) / (2 * sigma**2)
        joint = (parts + likelihood[:, None]).exp()
        total = joint.sum()
        flat = points.flatten(1)
        close: Any = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(got.weights[i], joint.sum(0) / total, **close)
        mean = joint.sum(1) @ flat / total
        torch.testing.assert_close(got.mean[i].flatten(), mean, **close)
        torch.testing.assert_close(got.std[i].flatten() ** 2, joint.sum(1) @ (flat - mean) ** 2 / total, **close)
        for k in range(4):
            share = joint[:, k] / joint[:, k].sum()
            torch.testing.assert_close(got.means[k, i].flatten(), share @ flat, **close)
            offset = flat - share @ flat
            torch.testing.assert_close(got.covariances[k], offset.T @ (share[:, None] * offset), **close)
        density = (joint.sum(1) / (total * cell)).log()
        inside = density > -20
        torch.testing.assert_close(
            prior.posterior(y[i : i + 1], linear(row, (1, 1, 2), sigma)).log_density(points[inside]),
            density[inside],
            **close,
        )


@each_prior
def test_posterior_denoiser_composes_with_the_measurement(name: str) -> None:
    """E[x0 | x_sigma, y] is the mean given the measurement (y, x_sigma) of the stacked operator (A, I)."""
    prior, sigma, a = PRIORS[name](), 0.7, randn(9, N, seed=6)
    y, x = randn(3, 9, seed=7), randn(3, *SIZE, seed=8)
    posterior = prior.posterior(y, linear(a, SIZE, 1.0), noise=0.2)
    stacked = linear(torch.cat([a / 0.2, torch.eye(N, dtype=torch.float64) / sigma]), SIZE, 1.0)
    both = prior.posterior(torch.cat([y / 0.2, x.flatten(1) / sigma], 1), stacked)
    torch.testing.assert_close(posterior.denoise(x, sigma), both.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.denoise(x, 1e7), posterior.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.denoise(x, 1e-7), x, rtol=1e-8, atol=1e-8)
    z = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(posterior.log_density(z, sigma).sum(), z)
    torch.testing.assert_close(posterior.denoise(x, sigma), x + sigma**2 * score, rtol=1e-8, atol=1e-8)
    single = prior.posterior(y.float(), linear(a, SIZE, 1.0), noise=0.2)
    assert single.mean.dtype == single.denoise(x.float(), sigma).dtype == torch.float32
    torch.testing.assert_close(single.denoise(x.float(), sigma).double(), both.mean, rtol=1e-3, atol=1e-3)
    again = pickle.loads(pickle.dumps(posterior))
    assert torch.equal(again.sample(2, seed=3), posterior.sample(2, seed=3))


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_posterior_samples(name: str) -> None:
    prior, a, n = PRIORS[name](), randn(9, N, seed=6) / 5, 3000
    A, y = linear(a, SIZE, 0.5), randn(2, 9, seed=7)
    posterior = prior.posterior(y, A)
    x = posterior.sample(n, seed=1)
    assert x.shape == (n, 2, *SIZE)
    torch.testing.assert_close(prior.posterior(y[:1], A).sample(4, seed=1), x[:4, :1], **EXACT)
    for b in range(2):
        deviation = x[:, b].flatten(1) - posterior.mean[b].flatten()
        assert_monte_carlo(deviation, torch.zeros(N, dtype=torch.float64))
        assert_monte_carlo(deviation**2, (posterior.std.expand(2, *SIZE)[b] ** 2).flatten())
    images = [x[:, 0], x[:, 1], prior.sample(n, seed=1)]  # no two of them share their noise
    first = torch.stack([(v - v.mean(0)).flatten(1)[:, 0] for v in images])
    assert float((torch.corrcoef(first) - torch.eye(3, dtype=torch.float64)).abs().max()) < 5 / n**0.5


def test_average_posterior_is_the_prior() -> None:
    """Draw x0, measure it, draw from its posterior: the draws follow the prior again."""
    prior, n = two_d_mixture(), 600
    A = linear(torch.tensor([[1.0, 0.6]], dtype=torch.float64), (1, 1, 2), 0.3)
    y = A.A(prior.sample(n)) + 0.3 * randn(n, 1, seed=9)
    x = prior.posterior(y, A).sample(1)[0].flatten(1)
    exact = prior.sample(4000, seed=10).flatten(1)
    for f in (lambda v: v, lambda v: v**2, lambda v: v[:, :1] * v[:, 1:], lambda v: (v[:, :1] < -1.3).double()):
        error = (f(exact).std(0) / len(exact) ** 0.5) ** 2 + (f(x).std(0) / n**0.5) ** 2
        assert float(((f(x).mean(0) - f(exact).mean(0)).abs() / error.sqrt()).max()) < 5


def circular_blur(noise: float = 0.05) -> dinv.LinearPhysics:
    filter = torch.tensor([[0.0, 0.1, 0.0], [0.3, 0.4, 0.1], [0.0, 0.1, 0.0]], dtype=torch.float64)
    return dinv.Blur(filter[None, None], padding="circular", noise_model=dinv.GaussianNoise(noise))


def test_fourier_posterior_agrees_with_the_matrix() -> None:
    covariance = Stationary.from_kernel(kernel, (1, 9, 8))
    A, mean = circular_blur(), randn(1, 9, 8, seed=2)
    fourier, matrix = Gaussian(mean, covariance), Gaussian(mean, Dense(covariance.matrix(), (1, 9, 8)))
    y = A.A(fourier.sample(2)) + 0.05 * randn(2, 1, 9, 8, seed=3)
    a, b = fourier.posterior(y, A), matrix.posterior(y, A)
    assert isinstance(a.law, Stationary)
    torch.testing.assert_close(a.mean, b.mean, **EXACT)
    torch.testing.assert_close(a.covariance, b.covariance, **EXACT)
    masked = fourier.posterior(y, dinv.Inpainting((1, 9, 8), mask=0.5), noise=0.1)  # not a convolution
    assert isinstance(masked.law, Dense)


def test_fourier_posterior_of_a_large_image_solves_the_normal_equations() -> None:
    size = (3, 64, 96)
    prior, A = (
        Gaussian(torch.full(size, 0.5, dtype=torch.float64), Stationary.from_kernel(kernel, size)),
        circular_blur(),
    )
    y = A.A(prior.sample(1)) + 0.05 * randn(1, *size, seed=3)
    got = prior.posterior(y, A, noise=0.05)
    gradient = A.A_adjoint(A.A(got.mean) - y) / 0.05**2 + prior.covariance.solve(got.mean - 0.5, 0.0)
    assert float(gradient.abs().max()) < 1e-8
    with pytest.raises(ValueError, match="4096"):
        prior.posterior(y, dinv.Inpainting(size, mask=0.5), noise=0.05)
    with pytest.raises(ValueError, match="4096"):
        _ = got.covariance


# Errors


def gaussian() -> Gaussian:
    return Gaussian(0.5, torch.ones(SIZE))


IMAGE = torch.zeros(1, *SIZE)
ERRORS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no size": (ValueError, "image size", lambda: Gaussian(0.5, 0.1)),
    "flat mean": (ValueError, "image size", lambda: Gaussian(torch.zeros(5), 0.1)),
    "sizes differ": (ValueError, "covariance is of images", lambda: Gaussian(torch.zeros(1, 2, 2), torch.ones(SIZE))),
    "covariance type": (TypeError, "covariance is a float", lambda: Gaussian(torch.zeros(SIZE), "")),  # type: ignore
    "negative": (ValueError, "positive semidefinite", lambda: Gaussian(torch.zeros(SIZE), -1.0)),
    "not finite": (ValueError, "positive semidefinite", lambda: Gaussian(torch.zeros(SIZE), float("nan"))),
    "asymmetric": (ValueError, "symmetric", lambda: Dense(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), (1, 1, 2))),
    "matrix shape": (ValueError, "shape", lambda: Dense(torch.eye(3), (1, 1, 2))),
    "spectrum": (ValueError, "symmetric", lambda: Stationary(torch.arange(12.0).view(1, 3, 4))),
    "factor": (ValueError, "K images", lambda: LowRank(torch.ones(2, 12), 0.1)),
    "weights": (ValueError, "not negative", lambda: GaussianMixture([1, -1], torch.zeros(2, *SIZE), 0.1)),
    "weights shape": (ValueError, "K weights", lambda: GaussianMixture([1], torch.zeros(2, *SIZE), 0.1)),
    "covariance count": (ValueError, "2 means", lambda: GaussianMixture([1, 1], torch.zeros(2, *SIZE), [0.1])),
    "image shape": (ValueError, r"\(B, 2, 4, 3\)", lambda: gaussian()(torch.zeros(1, 1, 4, 3), 0.1)),
    "posterior image shape": (
        ValueError,
        r"\(B, 2, 4, 3\)",
        lambda: gaussian().posterior(IMAGE, dinv.Denoising(), 0.1).denoise(torch.zeros(1, 1, 4, 3), 0.1),
    ),
    "singular density": (ValueError, "singular", lambda: Gaussian(torch.zeros(SIZE), 0.0).log_density(IMAGE)),
    "nonlinear": (TypeError, "linear operator", lambda: gaussian().posterior(IMAGE, dinv.Physics())),
    "poisson": (
        ValueError,
        "Gaussian noise",
        lambda: gaussian().posterior(IMAGE, dinv.Denoising(dinv.PoissonNoise(0.1))),
    ),
    "unknown noise": (
        TypeError,
        "likelihood",
        lambda: gaussian().posterior(IMAGE, dinv.Denoising(dinv.UniformNoise(0.1))),
    ),
    "levels": (
        ValueError,
        "one level",
        lambda: gaussian().posterior(IMAGE, dinv.Denoising(), noise=torch.tensor([0.1, 0.2])),
    ),
    "y shape": (ValueError, "y has 12", lambda: gaussian().posterior(IMAGE[:, :1], dinv.Denoising(), noise=0.1)),
    "mixture without noise": (
        ValueError,
        "need noise",
        lambda: GaussianMixture([1], torch.zeros(1, *SIZE), 0.1).posterior(IMAGE, dinv.Denoising(), noise=0.0),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case: str) -> None:
    kind, message, call = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("sigma", [0.0, 0.3, torch.tensor([0.1, 2.0, 0.4])])
def test_a_covariance_that_all_components_share_is_as_good_as_one_each(sigma: float | Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 1, 2, 3, generator=generator, dtype=torch.float64)
    variance = torch.linspace(0.1, 1, 6, dtype=torch.float64).view(1, 2, 3)
    shared, each = (GaussianMixture([1, 2, 3, 4], means, c) for c in (variance, [variance.clone() for _ in means]))
    for name in ("forward", "log_density", "responsibilities"):
        torch.testing.assert_close(getattr(shared, name)(x, sigma), getattr(each, name)(x, sigma))


def test_responsibilities_of_posterior_samples_are_the_weights_of_the_posterior() -> None:
    means = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64).view(2, 1, 1, 2)
    prior = GaussianMixture([0.3, 0.7], means, 0.4**2)
    A = Inpainting(torch.tensor([[1.0, 0.0]]), noise=0.3)
    posterior = prior.posterior(torch.tensor([[[[0.4, 0.0]]]], dtype=torch.float64), A)
    shares = prior.responsibilities(posterior.sample(4000)[:, 0])
    assert (shares.mean(0) - posterior.weights[0]).abs().max() < 0.03
