"""The two halves of a split Gibbs sampler: an image from the prior around a noisy one, a noisy image from the measurement.

Notation: ``x0`` the clean image, ``z = x0 + r n`` the same at level ``r``, ``y = A(x0) + e`` the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.problem import Problem, per_row
from invdiff.samplers import Heun, Sampler, ladder, reverse
from invdiff.solvers.base import posterior_estimate

_ROOT = (1, -1 / 2, -1 / 8, -1 / 16, -5 / 128)  # sqrt(1 - b), to 0.2 % for b up to 1/2


@dataclass(frozen=True)
class PriorDraw:
    """Draws ``x0 ~ p(x0 | z)`` as ``F(F(z) + r n)``, ``F`` the probability flow from level ``r`` to a clean image.

    Exact for a Gaussian prior of any covariance, since there ``F`` multiplies a direction of variance ``v`` by
    ``g = sqrt(v / (v + r^2))``, and ``g^2 z + g r n`` is the draw; and near enough to one at low ``r``, where any prior is
    nearly so. The law of ``x0`` is the prior's for every prior. A reverse diffusion
    with noise, the usual way, has lost a tenth of the spread at as many evaluations.

    ``F`` is followed down a ladder of ``levels`` levels from ``r`` to ``depth r`` by a deterministic ``sampler``.
    """

    levels: int = 2
    depth: float = 0.25
    sampler: Sampler = Heun()  # noqa: RUF009 (an immutable value)

    def __post_init__(self) -> None:
        if self.levels < 1 or not 0 < self.depth < 1:
            raise ValueError(f"PriorDraw: levels is at least 1 and depth inside (0, 1), got {self.levels}, {self.depth}")

    def __call__(self, p: Problem, z: Tensor, r: float) -> Tensor:
        return self.flow(p, self.flow(p, z, r) + r * p.randn(), r)

    def flow(self, p: Problem, z: Tensor, r: float) -> Tensor:
        """The clean image at the end of the probability flow from ``z``."""
        memory: dict[str, Tensor] = {}

        def move(x: Tensor, s: float, t: float) -> Tensor:
            return self.sampler.step(
                lambda x, s: posterior_estimate(x, p.denoise(x, s), s), x, s, t, p.randn, memory
            )

        low = min(max(self.depth * r, lowest(p)), 0.9 * r)
        return reverse(move, z, ladder(self.levels, r, low), lambda: None)


def lowest(p: Problem) -> float:
    """The lowest level that a prior is asked for: a quarter of its least, where it all but returns what it is given."""
    return float(p.prior.sigma_min) / 4


def operator_norm(p: Problem) -> Tensor:
    """Largest singular value of ``A``, shape (rows, 1, 1, 1), or (1, 1, 1, 1) where all rows share one; where ``A`` is not linear,
    of its derivative at an image of white noise of the prior's mean and spread."""
    if "norm" not in p.cache:
        mean = torch.as_tensor(p.prior.mean, dtype=p.y.dtype, device=p.y.device)
        x = mean.expand(len(p.y), *p.randn.shape).contiguous()
        if p.spectral:
            p.A.A(x)  # a blur learns its singular values from the size of an image
            p.cache["norm"] = torch.atleast_2d(p.A.mask.abs()).flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1))
        else:
            p.cache["norm"] = _power_iteration(p, x)
    return p.cache["norm"]


def _power_iteration(p: Problem, x: Tensor) -> Tensor:
    """Norm of the derivative ``J`` of ``A`` around ``x``: ``v <- J^T J v / |J^T J v|``, ``J v`` by a finite difference."""
    v = torch.randn(tuple(x.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device).expand_as(x)
    x, h = x + p.prior.std * v, 0.01 * p.prior.std * x[0].numel() ** 0.5
    z = p.A.A(x)
    length = per_row(v.square(), v.ndim).sqrt()
    for _ in range(20):
        v = v / length.clamp(min=torch.finfo(x.dtype).tiny)
        v = p.A.A_vjp(x, (p.A.A(x + h * v) - z) / h)
        length = per_row(v.square(), v.ndim).sqrt()
    return length.sqrt()


def gaussian_draw(p: Problem, x: Tensor, r: float) -> Tensor:
    """Draw ``z ~ p(z | x0 = x, y)`` for a linear ``A`` and Gaussian noise: the exact step of a split Gibbs sampler.

    The noise of ``y`` is split between ``z`` and ``y``: ``z = x0 + r n`` and ``y = A z + e'`` with ``e'`` of covariance
    ``sigma_y^2 I - r^2 A A^T``, so that ``y = A x0 + e`` keeps the covariance ``sigma_y^2 I`` whatever ``r`` is. (Wu et al. give ``e'``
    the covariance ``sigma_y^2 I``, which adds ``r^2 A A^T`` to the noise and is exact only as ``r`` tends to 0.) Then, with
    ``u = x + r n``, ``z = u + r^2 A^T (y + e' - A u) / sigma_y^2``, with no system to solve.

    Where ``r`` times the singular value ``a`` is above ``sigma_y``, ``e'`` is zero and the noise of ``y`` counts as ``r a``. Without a
    singular value decomposition that holds for ``r |A| <= 0.7 sigma_y``; above, it is Wu et al.'s step, by perturbing ``x`` and ``y``
    and solving a proximal step.
    """
    u, e = x + r * p.randn(), p.randn(p.y.shape[1:])
    sigma = p.sigma_y.view(-1, *[1] * (e.ndim - 1))
    if p.spectral:
        p.A.A(x)  # a blur learns its singular values from the size of an image
        a, c = p.A.mask, p.A.U_adjoint(p.y - p.A.A(u))
        noise = p.sigma_y.view(-1, *[1] * (c.ndim - 1)) ** 2
        left = (noise - (r * a) ** 2).clamp(min=0)
        c = c + left.sqrt() * p.A.U_adjoint(e)
        return u + p.A.V(r**2 * a / (left + (r * a) ** 2) * c)
    if r * float(operator_norm(p).max()) > 0.71 * float(p.sigma_y.min()):
        return p.A.prox_l2(u, p.y + sigma * e, (r**2 / p.sigma_y**2).expand(len(x), *p.sigma_y.shape[1:]))
    root = torch.zeros_like(e)
    for coefficient in _ROOT:
        root = root + coefficient * e
        e = (r / sigma) ** 2 * p.A.A(p.A.A_adjoint(e))
    return u + (r / p.sigma_y) ** 2 * p.A.A_adjoint(p.y + sigma * root - p.A.A(u))


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo on ``p(z) = exp(-|z - x|^2 / (2 r^2)) p(y | z)^b``, for any differentiable ``A`` and any noise.

    A move is ``leaps`` leapfrog steps and a Metropolis test, row by row; ``leaps=1`` is the Metropolis-adjusted Langevin
    algorithm. The first step is ``1 / sqrt(1 / r^2 + b |A|^2 / var(y))``, the shortest scale of the law. Each row then
    makes its own longer after a move that was accepted and shorter after one that was not, so that there is nothing to tune.
    ``b`` counts the noise of ``y`` as at least ``r |A|``: more than that, ``z`` could not tell; and the law is never narrow.

    Duane et al. 1987, "Hybrid Monte Carlo".
    """

    moves: int = 4
    leaps: int = 6

    def __post_init__(self) -> None:
        if self.moves < 1 or self.leaps < 1:
            raise ValueError(f"HMC: moves and leaps are at least 1, got {self.moves} and {self.leaps}")

    def __call__(self, p: Problem, z: Tensor, x: Tensor, r: float, memory: dict[str, Tensor]) -> Tensor:
        """``z`` after ``moves`` moves; ``memory`` keeps each row's length of step for the next call."""
        measured = p.noise.variance(p.A.A(x)).clamp(min=float(p.sigma_y.min()) ** 2)
        precision = operator_norm(p) ** 2 * p.size / per_row(measured.expand_as(p.y), x.ndim)
        b = 1 / (r**2 * precision).clamp(min=1)
        scale = 1 / (1 / r**2 + b * precision).sqrt()
        length = memory.get("length", torch.ones_like(scale))

        def force(z: Tensor) -> Tensor:
            return (x - z) / r**2 + b * p.A.A_vjp(z, p.noise.score(p.y, p.A.A(z)))

        def log_density(z: Tensor) -> Tensor:
            likelihood = p.noise.log_likelihood(p.y, p.A.A(z)).view(-1, *[1] * (z.ndim - 1))
            return b * likelihood - per_row((z - x).square(), z.ndim) / (2 * r**2)

        before = log_density(z)
        for _ in range(self.moves):
            step, v = length * scale, p.randn()
            kinetic, w = per_row(v.square(), v.ndim) / 2, z
            v = v + step / 2 * force(w)
            for leap in range(self.leaps):
                w = w + step * v
                v = v + (step if leap < self.leaps - 1 else step / 2) * force(w)
            after = log_density(w)
            ratio = after - before + kinetic - per_row(v.square(), v.ndim) / 2
            uniform = torch.special.ndtr(p.randn(()).view_as(ratio))
            accepted = uniform.log() < ratio  # never where the ratio is not a number
            z, before = torch.where(accepted, w, z), torch.where(accepted, after, before)
            length = length * torch.where(accepted, 1.1, 0.8)
        memory["length"] = length
        return z
