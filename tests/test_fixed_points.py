"""Strategies against their own fixed points: the image that the update of each leaves in place.

With ``sigma_max = sigma_min = s`` every step of a strategy is the same one, at level ``s``, and what it returns after many is what
that step leaves in place. For a Gaussian prior ``N(mu, C)`` this solves a linear system, written out here with matrices in float64; of the
package it uses only the forward operator, to get its matrix. ``u = x - mu``; ``W = C (C + s^2)^{-1}`` is the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import operators, priors, solve
from invdiff.operators import Linear
from invdiff.problem import RowNoise
from invdiff.samplers import Renoise
from invdiff.solvers import DDNM, DDRM, DPS, MCG, DDNMPlus, DiffPIR, REDDiff, Strategy

SIDE, SPREAD, LEVEL = 6, 0.2, 0.25
N = SIDE**2
EYE = torch.eye(N, dtype=torch.float64)
TOLERANCE = 1e-7  # in units of the image; found: 3e-11 and less


def covariance() -> Tensor:
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    return SPREAD**2 * torch.exp(-torch.cdist(grid, grid))


def prior() -> priors.Gaussian:
    return priors.Gaussian(torch.full((1, SIDE, SIDE), 0.4, dtype=torch.float64), covariance())


def operator(kind: str, noise: float) -> Linear:
    """The singular values of ``coarse`` are 0.21, 0.32, 0.5 and, in three directions of four, 0; those of ``mask`` 0 and 1."""
    if kind == "coarse":
        return operators.Downsampling(2, operators.gaussian_kernel(1.0, size=4).double(), noise=noise)
    return operators.Inpainting(operators.random_mask((SIDE, SIDE), 0.5, seed=1), noise=noise)


class Matrices:
    """The problem at level ``s`` as matrices: ``A``, ``r = y - A mu``, ``Q = (C + s^2)^{-1}``, ``W = C Q``, ``P`` the projection
    onto what is measured, ``H = A^T A / sigma_y^2`` and ``g = A^T r / sigma_y^2``."""

    def __init__(self, kind: str, noise: float, s: float = LEVEL) -> None:
        self.noise, self.s, self.operator = noise, s, operator(kind, noise)
        self.y = self.operator.measure(prior().sample(1, seed=0), seed=0)
        mean = prior().mean
        A = self.operator.A(EYE.view(N, 1, SIDE, SIDE)).flatten(1).T
        measured = A.abs().amax(1) > 0  # the pixels that a mask takes away are no measurements
        self.A, self.r = A[measured], (self.y - self.operator.A(mean[None])).flatten()[measured]
        self.Q = torch.linalg.inv(covariance() + s**2 * EYE)
        self.W = covariance() @ self.Q
        self.inverse = torch.linalg.pinv(self.A, rtol=1e-4)
        self.P = self.inverse @ self.A
        self.H, self.g = self.A.T @ self.A / noise**2, self.A.T @ self.r / noise**2


Image = Callable[[Matrices, Any, Tensor], Tensor]  # what a strategy must return, less mu, given what it did return


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, right)


def pull(m: Matrices, strategy: DPS, u: Tensor) -> float:
    """The weight of DPS's step at ``u``, residual and cut included: ``d = pull s^2 W A^T (y - A D(x)) / sigma_y^2``."""
    misfit = m.r - m.A @ m.W @ u
    weight = strategy.weight / max(1.0, (strategy.residual or 0.0) * float(misfit.square().mean()) / m.noise**2)
    change = weight * m.s**2 * m.A @ m.W @ m.A.T @ misfit / m.noise**2
    return weight * min(1.0, float(misfit @ change / change.square().sum()))


def dps(m: Matrices, strategy: DPS, u: Tensor) -> Tensor:
    """``D(x) + d = x``: the pull of the prior, ``Q u``, and that of the likelihood, through the denoiser, cancel."""
    w = pull(m, strategy, u)
    return solved(m.Q + w * m.W @ m.H @ m.W, w * m.W @ m.g)


def mcg(m: Matrices, strategy: MCG, u: Tensor) -> Tensor:
    """The measurement, ``A x = y``, and in the directions that it leaves free the balance of DPS."""
    w, free = pull(m, strategy, u), EYE - m.P
    return solved(m.P + free @ (m.Q + w * m.W @ m.H @ m.W), m.inverse @ m.r + w * free @ m.W @ m.g)


def ddnm(m: Matrices, strategy: DDNM, u: Tensor) -> Tensor:
    """``A x = y``, ``x`` the projection of ``D(z)``; free directions of ``z`` are the denoiser's fixed point, ``z = D(z)``, where ``Q z = 0``,
    the others keep ``k`` of the noise direction: ``z = A^+ y + k (z - D(z))``."""
    assert isinstance(strategy.sampler, Renoise)
    k = sqrt(1 - strategy.sampler.eta**2)
    z = solved(m.P @ (EYE - k * (EYE - m.W)) + (EYE - m.P) @ m.Q, m.inverse @ m.r)
    return m.W @ z + m.inverse @ (m.r - m.A @ m.W @ z)


def ddrm(m: Matrices, strategy: DDRM, u: Tensor) -> Tensor:
    """``D(z)``, ``z`` direction by direction ``c(z) = c(D(z)) + k (c_y - c(D(z)))``: ``k = 0`` where nothing is measured,
    ``sqrt(1 - eta^2) s / b`` where the measurement is noisier than the state, ``eta_b`` elsewhere."""
    _, a, V = torch.linalg.svd(m.A)
    a = torch.cat([a, a.new_zeros(N - len(a))])
    b = m.noise / a
    k = torch.where(m.s < b, sqrt(1 - strategy.eta**2) * m.s / b, strategy.eta_b).where(a > 1e-4, 0.0)
    measured = V.T @ (k[:, None] * V)
    z = solved(m.s**2 * m.Q + measured @ m.W, measured @ m.inverse @ m.r)
    return m.W @ z


def diffpir(m: Matrices, strategy: DiffPIR, u: Tensor) -> Tensor:
    """``x`` is its own proximal point, ``A^T (A x - y) / sigma_y^2 + weight (x - D(x)) / c = 0``, with ``c`` as the misfit of ``D(x)`` says."""
    c = m.s**2
    if strategy.calibrated:
        noise = torch.randn((1, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gain = float((m.A @ noise.flatten()).square().mean())
        misfit = float((m.r - m.A @ m.W @ u).square().mean())
        c = min(max((misfit - m.noise**2) / gain, 1e-4 * m.s**2), m.s**2 * SPREAD**2 / (m.s**2 + SPREAD**2))
    return solved(m.H + strategy.weight * (EYE - m.W) / c, m.g)


def reddiff(m: Matrices, strategy: REDDiff, u: Tensor) -> Tensor:
    """The stationary point of the objective: ``A^T (A u - y) / sigma_y^2 + weight E[u - D(u + s n)] / c = 0``."""
    c = m.s**2 * SPREAD**2 / (m.s**2 + SPREAD**2)
    return solved(m.H + strategy.weight * (EYE - m.W) / c, m.g)


def error(m: Matrices, strategy: Strategy, image: Image, steps: int, samples: int) -> float:
    repeated = replace(strategy, steps=steps, sigma_max=m.s, sigma_min=m.s)  # type: ignore[call-arg]
    found = solve(m.y, m.operator, prior(), repeated, samples=samples).x.flatten() - prior().mean.flatten()
    return float((found - image(m, strategy, found)).abs().max())


AFFINE: dict[str, tuple[Strategy, Image, float]] = {  # strategy, its image, sigma_y / s
    "dps": (DPS(sampler=Renoise()), dps, 1.0),  # where sigma_y >= s |A| no step is cut
    "dps, half the weight": (DPS(weight=0.5, sampler=Renoise(eta=0.85)), dps, 1.0),
    "mcg": (MCG(sampler=Renoise()), mcg, 1.0),
    "mcg, half the weight": (MCG(weight=0.5, sampler=Renoise(eta=0.85)), mcg, 1.0),
    "ddnm": (DDNM(), ddnm, 0.5),
    "ddnm+": (DDNMPlus(), ddrm, 0.3),
    "ddrm": (DDRM(eta_b=0.7), ddrm, 0.3),
    "ddrm, all directions noisy": (DDRM(eta=0.6), ddrm, 1.5),
    "diffpir": (DiffPIR(calibrated=False), diffpir, 0.5),
    "diffpir, weight 3": (DiffPIR(calibrated=False, weight=3.0, sampler=Renoise(eta=0.85)), diffpir, 0.5),
}


@pytest.mark.parametrize("kind", ["mask", "coarse"])
@pytest.mark.parametrize("case", AFFINE)
def test_the_mean_of_a_pair_goes_to_the_fixed_point(case: str, kind: str) -> None:
    """Where the update is affine the fresh noise cancels in the mean of two antithetic samples, to rounding."""
    strategy, image, ratio = AFFINE[case]
    assert error(Matrices(kind, ratio * LEVEL), strategy, image, steps=200, samples=2) < TOLERANCE


OTHERS: dict[str, tuple[Strategy, Image, float]] = {
    "dps, step cut": (DPS(sampler=Renoise(eta=0.85)), dps, 0.1),
    "dps, by the residual": (DPS(weight=0.4, residual=1.0, sampler=Renoise(eta=0.85)), dps, 0.1),
    "diffpir, calibrated": (DiffPIR(sampler=Renoise(eta=0.85)), diffpir, 0.1),
    "reddiff": (REDDiff(), reddiff, 0.5),
    "reddiff, a quarter of the weight": (REDDiff(weight=0.25), reddiff, 0.5),
}


@pytest.mark.parametrize("kind", ["mask", "coarse"])
@pytest.mark.parametrize("case", OTHERS)
def test_without_fresh_noise_a_strategy_goes_to_its_fixed_point(
    case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the update is not affine, with the noise set to its mean, zero."""
    draw = RowNoise.__call__
    monkeypatch.setattr(RowNoise, "__call__", lambda self, shape=None: 0 * draw(self, shape))
    strategy, image, ratio = OTHERS[case]
    assert error(Matrices(kind, ratio * LEVEL), strategy, image, steps=500, samples=1) < TOLERANCE


@pytest.mark.parametrize("kind", ["mask", "coarse"])
def test_at_low_levels_the_fixed_points_are_posterior_means(kind: str) -> None:
    """Of the formulas above: with the noise of ``y`` where a strategy counts it, otherwise with none."""
    m, law = Matrices(kind, 0.5 * LEVEL, s=1e-5), prior()
    noisy = [dps(m, DPS(), 0 * m.g), diffpir(m, DiffPIR(calibrated=False, weight=1.0), m.g), reddiff(m, REDDiff(), m.g)]
    clean = [mcg(m, MCG(), 0 * m.g), ddnm(m, DDNM(), m.g), ddrm(m, DDRM(), m.g)]
    for images, noise in ((noisy, m.noise), (clean, 1e-5)):
        mean = (law.posterior(m.y, m.operator, noise).mean - law.mean).flatten()
        assert max(float((u - mean).abs().max()) for u in images) < 1e-4
