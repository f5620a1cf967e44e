"""The Gaussian and mixture priors against dense formulas, grids and one another."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepinv import physics as dinv
from known_laws import (
    EXACT,
    KINDS,
    PRIORS,
    SIZE,
    N,
    assert_monte_carlo,
    each_kind,
    each_prior,
    grid,
    kernel,
    normal,
    randn,
    two_d_mixture,
)
from torch import Tensor

from invdiff.priors import Dense, Gaussian, GaussianMixture, LowRank, Stationary

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
