"""Products of priors: what is exact about the sum of their scores, and what is not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from invdiff import operators, priors, solve
from invdiff.priors import Gaussian, Product, covariance
from invdiff.samplers import DDPM
from invdiff.solvers import PiGDM

SIZE = (1, 4, 3)
N = math.prod(SIZE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(seed: int, scale: float = 0.1) -> Gaussian:
    """A Gaussian of no special form."""
    root = randn(N, N, seed=seed) / math.sqrt(N)
    matrix = scale**2 * (root @ root.T + 0.1 * torch.eye(N, dtype=torch.float64))
    return Gaussian(0.5 + 0.1 * randn(*SIZE, seed=seed + 100), matrix)


def product_of(parts: list[Gaussian], weights: list[float]) -> Gaussian:
    """The Gaussian proportional to ``prod p_i^w_i``: precisions add."""
    precisions = [w * torch.linalg.inv(p.covariance.matrix()) for w, p in zip(weights, parts)]
    matrix = torch.linalg.inv(sum(precisions, torch.zeros(N, N, dtype=torch.float64)))
    shift = sum((a @ p.mean.flatten() for a, p in zip(precisions, parts)), torch.zeros(N, dtype=torch.float64))
    return Gaussian((matrix @ shift).view(SIZE), (matrix + matrix.T) / 2)


def test_scores_add() -> None:
    """At every level it is the denoiser of the product of the diffused densities."""
    parts, weights, x = [gaussian(0), gaussian(1), gaussian(2)], [1.0, 0.7, -0.2], randn(2, *SIZE).requires_grad_()
    prior = Product(parts, weights)
    for sigma in (0.01, 0.3, 5.0):
        density = sum((w * p.log_density(x, sigma) for w, p in zip(weights, parts)), torch.zeros(2))
        (score,) = torch.autograd.grad(density.sum(), x)
        torch.testing.assert_close((prior(x, sigma) - x).detach() / sigma**2, score)


def test_it_is_exact_only_as_the_noise_vanishes() -> None:
    """The error of the denoiser falls as sigma^4; at the spread of the priors it is as large as the denoising itself."""
    parts, weights = [gaussian(0), gaussian(1)], [1.0, 1.0]
    prior, exact, x = Product(parts, weights), product_of(parts, weights), 0.5 + 0.1 * randn(3, *SIZE)

    def error(sigma: float) -> float:
        return float((prior(x, sigma) - exact(x, sigma)).norm())

    fine = [error(sigma) for sigma in (1e-3, 5e-4, 2.5e-4)]
    assert all(abs(math.log2(a / b) - 4) < 0.15 for a, b in pairwise(fine)), fine
    assert error(0.1) > 0.2 * float((exact(x, 0.1) - x).norm())


def test_it_is_exact_for_gaussians_of_one_covariance_and_weights_that_sum_to_one() -> None:
    first = gaussian(0)
    second = Gaussian(first.mean + 0.2, first.covariance)
    prior, exact = Product([first, second], [0.3, 0.7]), Gaussian(first.mean + 0.14, first.covariance)
    for sigma in (0.01, 0.3, 5.0):
        torch.testing.assert_close(prior(randn(2, *SIZE), sigma), exact(randn(2, *SIZE), sigma))
    x = exact.sample(2)
    A = operators.Inpainting(operators.random_mask(SIZE, 0.5), noise=0.05)
    alike = priors.as_prior(exact, mean=prior.mean, std=prior.std, sigma_min=prior.sigma_min, sigma_max=prior.sigma_max)
    drawn, expected = (solve(A.measure(x), A, p, "dps", steps=6, samples=3).samples for p in (prior, alike))
    torch.testing.assert_close(drawn, expected)


def test_it_is_exact_for_priors_of_different_directions() -> None:
    """One shapes the upper half of the image and leaves the lower alone, the other the reverse."""
    upper = (torch.arange(SIZE[1]) < 2).double().view(1, -1, 1).expand(SIZE)
    both = Gaussian(0.5, covariance.Diagonal(0.01 * upper + 0.04 * (1 - upper)))

    def half(keep: Tensor) -> priors.Prior:
        return priors.Prior(lambda x, sigma: torch.where(keep > 0, both(x, sigma), x))

    prior, x = Product([half(upper), half(1 - upper)], [1, 1]), randn(2, *SIZE)
    torch.testing.assert_close(prior(x, 0.3), both(x, 0.3))


def test_what_is_drawn_is_narrower_than_the_product_unless_the_weights_sum_to_one() -> None:
    """Two white priors that differ in their means, with nothing measured."""
    parts = [Gaussian(mean, covariance.Diagonal(torch.full((1, 8, 8), 0.04))) for mean in (0.3, 0.7)]
    y, A = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64), operators.Denoising(50.0)
    for weights, low, high in (([1.0, 1.0], 0.7, 0.8), ([0.5, 0.5], 0.92, 1.02)):  # measured: 0.76 and 0.95
        drawn = solve(y, A, Product(parts, weights), PiGDM(sampler=DDPM(), sigma_max=20.0, sigma_min=0.002), samples=32)
        ratio = float(drawn.std.square().mean().sqrt()) / (sum(weights) / 0.04) ** -0.5
        assert low < ratio < high, f"spread {ratio:.3f} of the product's"
        assert float((drawn.mean - 0.5).mean().abs()) < 0.02


def test_rows_dtype_and_numbers() -> None:
    parts = [gaussian(0), gaussian(1)]
    prior, x, sigma = Product(parts, [0.5, 0.5]), randn(3, *SIZE), torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)
    whole = prior(x, sigma)
    for i in range(3):
        torch.testing.assert_close(prior(x[[i]], float(sigma[i])), whole[[i]])
    assert prior(x.float(), 0.3).dtype == torch.float32
    white = [Gaussian(m, covariance.Diagonal(torch.full(SIZE, v))) for m, v in ((0.2, 0.04), (0.8, 0.01))]
    both = Product(white, [1.0, 1.0])  # precisions 25 and 100
    assert both.std == pytest.approx(125**-0.5) and torch.allclose(
        both.mean, torch.tensor((0.2 * 25 + 0.8 * 100) / 125)
    )
    assert (both.sigma_min, both.sigma_max) == (white[0].sigma_min, white[1].sigma_max)


def test_evaluations_are_counted() -> None:
    A, y = operators.Denoising(0.1), randn(1, *SIZE)
    prior = Product([gaussian(0), Product([gaussian(1), gaussian(2)], [0.5, 0.5])], [0.5, 0.5])
    assert solve(y, A, prior, "diffpir", steps=5, samples=1).nfe == 15


def test_what_is_no_product_is_refused() -> None:
    one = gaussian(0)
    for parts, weights in (([one], [1.0]), ([one, one], [1.0])):
        with pytest.raises(ValueError, match="two or more priors, each with a weight"):
            Product(parts, weights)
    with pytest.raises(ValueError, match="has to be positive"):
        Product([one, one], [1.0, -1.0])
    with pytest.raises(TypeError, match="takes no condition"):
        solve(randn(1, *SIZE), operators.Denoising(0.1), Product([one, one], [0.5, 0.5]), condition=1)


def test_priors_of_no_common_range() -> None:
    low, high = (priors.as_prior(lambda x, s: x, sigma_min=a, sigma_max=b) for a, b in ((0.001, 0.1), (0.5, 1.0)))
    with pytest.raises(ValueError, match="share no range"):
        Product([low, high], [0.5, 0.5])
    with pytest.raises(ValueError, match="finite"):
        Product([low, low], [math.inf, 2])
