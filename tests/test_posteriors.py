"""Posteriors of Gaussian and mixture priors against dense formulas, grids and one another."""

from __future__ import annotations

import pickle
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
    dense,
    each_kind,
    each_prior,
    grid,
    kernel,
    linear,
    randn,
    two_d_mixture,
)

from invdiff.operators import Inpainting
from invdiff.priors import Dense, Gaussian, GaussianMixture, Stationary

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


def test_responsibilities_of_posterior_samples_are_the_weights_of_the_posterior() -> None:
    means = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64).view(2, 1, 1, 2)
    prior = GaussianMixture([0.3, 0.7], means, 0.4**2)
    A = Inpainting(torch.tensor([[1.0, 0.0]]), noise=0.3)
    posterior = prior.posterior(torch.tensor([[[[0.4, 0.0]]]], dtype=torch.float64), A)
    shares = prior.responsibilities(posterior.sample(4000)[:, 0])
    assert (shares.mean(0) - posterior.weights[0]).abs().max() < 0.03
