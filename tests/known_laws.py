"""Gaussian and mixture priors whose covariances are known as matrices, for the tests of priors and posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepinv import physics as dinv
from torch import Tensor

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


def priors() -> dict[str, Callable[[], Any]]:
    table = {kind: lambda kind=kind: Gaussian(randn(*SIZE, seed=2), KINDS[kind]()[0]) for kind in KINDS}
    covariances = [make()[0] for make in KINDS.values()]
    return table | {"mixture": lambda: GaussianMixture([1, 2, 3, 4], randn(4, *SIZE, seed=2), covariances)}


PRIORS = priors()
each_prior = pytest.mark.parametrize("name", PRIORS)


def assert_monte_carlo(values: Tensor, expected: Tensor) -> None:
    """Every column's mean is within 5 standard errors of what is expected."""
    error = (values.mean(0) - expected).abs() / (values.std(0) / len(values) ** 0.5 + 1e-12)
    assert float(error.max()) < 5, f"{float(error.max()):.2f} standard errors"
