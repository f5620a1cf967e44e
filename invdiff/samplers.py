"""How the reverse process is discretised, and the loop that all guided strategies share.

Notation (variance exploding, in the unit of the image): the state at level ``s`` is ``x = x0 + s n``. A strategy
turns it into an :class:`Estimate`: ``x0``, its estimate of E[x0 | x, y], and ``eps``, the direction of the noise,
``(x - x0) / s`` unless it says otherwise. A sampler moves the state from level ``s`` to level ``t < s``; ``z`` is
fresh unit noise. The last level is 0, where every sampler returns ``x0``.

A state x_VP of a variance-preserving schedule is ``x sqrt(abar)`` with ``sigma = sqrt((1 - abar) / abar)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Estimate(NamedTuple):
    """``x0``: estimate of the clean image; ``eps``: estimate of the unit noise in the state."""

    x0: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, float], Estimate]


def ladder(steps: int, sigma_max: float, sigma_min: float) -> list[float]:
    """``steps`` levels evenly spaced in log sigma from ``sigma_max`` down to ``sigma_min``, then 0."""
    if steps < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(f"a ladder needs steps >= 1 and 0 < sigma_min <= sigma_max, got {steps}, {sigma_min}, {sigma_max}")
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp()
    return [*levels.tolist(), 0.0]


def _share(name: str, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{name}: eta lies in [0, 1], got {eta}")


@dataclass(frozen=True)
class Sampler:
    """Base class. ``memory`` is an empty dict at the start of a run, for samplers with a history."""

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        """Move the state ``x`` from level ``s`` to level ``t``."""
        raise NotImplementedError


@dataclass(frozen=True)
class DDIM(Sampler):
    """``x' = x0 + sqrt(t^2 - c^2) eps + c z`` with ``c = eta t sqrt(1 - t^2 / s^2)``.

    ``eta`` in [0, 1]: 0 is deterministic, 1 is ancestral sampling (DDPM). Song et al. 2021, "Denoising Diffusion
    Implicit Models", eq. 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        _share(type(self).__name__, self.eta)

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        if t == 0:
            return x0
        c = self.eta * t * math.sqrt(1 - (t / s) ** 2)
        out = x0 + math.sqrt(t**2 - c**2) * eps
        return out + c * randn() if c else out


@dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling, ``DDIM(eta=1)``. Ho et al. 2020, "Denoising Diffusion Probabilistic Models"."""

    eta: float = 1.0


@dataclass(frozen=True)
class Renoise(Sampler):
    """``x' = x0 + t (sqrt(1 - eta^2) eps + eta z)``: a share ``eta^2`` of the noise is drawn anew.

    The rule of DDRM, DDNM and DiffPIR (whose ``zeta`` is ``eta^2``); with ``eta = 1`` the old noise is forgotten.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _share(type(self).__name__, self.eta)

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        if t == 0:
            return x0
        out = x0 + t * math.sqrt(1 - self.eta**2) * eps if self.eta < 1 else x0
        return out + t * self.eta * randn() if self.eta else out


@dataclass(frozen=True)
class Euler(Sampler):
    """``x' = x + (t - s) eps``: one Euler step of the probability-flow equation ``dx/dsigma = eps``."""

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        return x + (t - s) * eps if t else x0


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's second-order step, two estimates each (one in the last). Karras et al. 2022, algorithm 1."""

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        if t == 0:
            return x0
        ahead = denoise(x + (t - s) * eps, t).eps
        return x + (t - s) * (eps + ahead) / 2


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M): ``x' = (t/s) x + (1 - t/s) d``, ``d`` extrapolated in log sigma from the last two ``x0``.

    Second order at one estimate a step. Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        d = self.extrapolate(denoise(x, s).x0, s, t, memory)
        return (t / s) * x + (1 - t / s) * d if t else d

    @staticmethod
    def extrapolate(x0: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        """``x0`` at the middle of the step in log sigma, from its value at ``s`` and the one before; as it is if ``t = 0``."""
        d = x0
        if memory and t:
            r = math.log(float(memory["s"]) / s) / math.log(s / t)
            d = x0 + (x0 - memory["x0"]) / (2 * r)
        memory.update(x0=x0, s=torch.tensor(s, dtype=torch.float64))
        return d


@dataclass(frozen=True)
class Multistep(Sampler):
    """Base class of samplers that fit a polynomial through the last ``order`` estimates; fewer in the first steps.

    Of ``order`` 1 to 4. The first steps, where there is no history yet, are of lower order: begin at a level high enough for them not to matter.
    """

    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"{type(self).__name__}: order is 1, 2, 3 or 4, got {self.order!r}")

    def remember(self, memory: dict[str, Tensor], value: Tensor, s: float) -> tuple[list[float], Tensor]:
        """The last levels, newest first, and the values there, shape (levels, *value.shape)."""
        level = torch.tensor([s], dtype=torch.float64)
        values = torch.cat([value[None], memory.get("values", value[:0, None].expand(0, *value.shape))])[: self.order]
        levels = torch.cat([level, memory.get("levels", level[:0])])[: self.order]
        memory.update(values=values, levels=levels)
        return levels.tolist(), values


@dataclass(frozen=True)
class DEIS(Multistep):
    """``x' = x + int_s^t eps dsigma`` with ``eps`` a polynomial in log sigma through its last ``order`` values.

    One estimate a step. Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", eq. 15 (their
    tAB-DEIS, in log sigma).
    """

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        levels, values = self.remember(memory, eps, s)
        return _combine(_integrals(levels, s, t, 1), values, x) if t else x0


@dataclass(frozen=True)
class DPMSolver3M(Multistep):
    """DPM-Solver++(3M): ``x' = (t/s) x + t int_s^t x0 d(1/sigma)``, ``x0`` a polynomial in log sigma through its last 3 values.

    One estimate a step; third order where :class:`DPMSolver2M` is of second. Lu et al. 2022, "DPM-Solver++", appendix B.
    """

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0 = denoise(x, s).x0
        levels, values = self.remember(memory, x0, s)
        return _combine(-t * _integrals(levels, s, t, -1), values, (t / s) * x) if t else x0


@dataclass(frozen=True)
class PNDM(Multistep):
    """``x' = x + (t - s) eps'``, ``eps'`` by Adams and Bashforth's weights, as though the levels were evenly spaced.

    ``(55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24`` for ``order`` 4. One estimate a step, also at the beginning, where
    the paper takes four in each of three (this is what others call iPNDM). Second order on the ladder of :func:`ladder`.

    Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", eq. 12.
    """

    order: int = 4

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x0, eps = denoise(x, s)
        levels, values = self.remember(memory, eps, s)
        weights = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
        return _combine((t - s) * np.array(weights[len(levels) - 1]), values, x) if t else x0


@dataclass(frozen=True)
class SDEDPMSolver2M(DPMSolver2M):
    """SDE-DPM-Solver++(2M): ``x' = (t/s)^2 x + (1 - t^2/s^2) d + t sqrt(1 - t^2/s^2) z``, ``d`` as in :class:`DPMSolver2M`.

    The ancestral step with an extrapolated ``x0``: one estimate a step. Lu et al. 2022, "DPM-Solver++", section 5.
    """

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        d = self.extrapolate(denoise(x, s).x0, s, t, memory)
        if t == 0:
            return d
        kept = (t / s) ** 2
        return kept * x + (1 - kept) * d + t * math.sqrt(1 - kept) * randn()


@dataclass(frozen=True)
class StochasticHeun(Heun):
    """Heun's step from a level raised by fresh noise, ``s' = (1 + churn) s``: it forgets errors made before.

    ``churn`` is the paper's ``S_churn`` over the number of steps, 0 to ``sqrt(2) - 1``; none at the first level, which is
    noise alone, nor in the last step. Two estimates a step. Karras et al. 2022, "Elucidating the Design Space of
    Diffusion-Based Generative Models", algorithm 2, with ``S_noise = 1`` and no limits.
    """

    churn: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= math.sqrt(2) - 1:
            raise ValueError(f"StochasticHeun: churn lies in [0, 0.414], got {self.churn}")

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        if t and memory:
            raised = (1 + self.churn) * s
            x, s = x + math.sqrt(raised**2 - s**2) * randn(), raised
        memory["begun"] = torch.ones(())
        return super().step(denoise, x, s, t, randn, memory)


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of ``predictor``, then ``corrections`` steps of Langevin's equation at the new level.

    ``x <- x - 2 snr^2 t eps + 2 snr t z``: the paper's step with the norms of score and noise by their expected ratio, so
    that images do not influence one another. ``corrections`` more estimates a step, none in the last.

    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", algorithms 2 and 4.
    """

    predictor: Sampler = DDPM()
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if isinstance(self.corrections, bool) or not isinstance(self.corrections, int) or self.corrections < 0:
            raise ValueError(f"PredictorCorrector: corrections is a whole number from 0, got {self.corrections!r}")
        if not 0 < self.snr <= 0.5:
            raise ValueError(f"PredictorCorrector: snr lies in (0, 0.5], got {self.snr}")

    def step(
        self, denoise: Denoise, x: Tensor, s: float, t: float, randn: Callable[[], Tensor], memory: dict[str, Tensor]
    ) -> Tensor:
        x = self.predictor.step(denoise, x, s, t, randn, memory)
        for _ in range(self.corrections if t else 0):
            x = x - 2 * self.snr**2 * t * denoise(x, t).eps + 2 * self.snr * t * randn()
        return x


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]; when first asked for, since NumPy's polynomials take time to import."""
    return np.polynomial.legendre.leggauss(16)


def _integrals(nodes: list[float], s: float, t: float, power: int) -> np.ndarray:
    """``int_s^t l_j(log sigma) d(sigma^power) / power`` of the Lagrange polynomials ``l_j`` on ``log nodes``, for ``power`` 1 or -1.

    Gauss-Legendre quadrature in log sigma: exact to rounding for steps of the usual size.
    """
    z, w = _quadrature()
    h, logs = math.log(t / s), np.log(nodes)
    at = math.log(s) + (1 + z) * h / 2
    out = []
    for j, node in enumerate(logs):
        others = np.delete(logs, j)
        lagrange = np.prod((at[:, None] - others) / (node - others), axis=1)
        out.append(h / 2 * np.sum(w * np.exp(power * at) * lagrange))
    return np.array(out)


def _combine(weights: np.ndarray, values: Tensor, x: Tensor) -> Tensor:
    """``x + sum_j weights_j values_j``."""
    for weight, value in zip(weights.tolist(), values):
        x = x + weight * value
    return x


def reverse(
    move: Callable[[Tensor, float, float], Tensor], x: Tensor, levels: list[float], tick: Callable[[], None]
) -> Tensor:
    """Carry the state down the ladder: ``x <- move(x, s, t)`` for each pair of neighbouring levels.

    Raises ``FloatingPointError`` as soon as the state is no longer finite, or has grown to a thousand times its first size;
    ``tick`` is called after every level.
    """
    bound = 1000 * float(x.abs().max())
    for s, t in pairwise(levels):
        x = move(x, s, t)
        if not float(x.abs().max()) <= bound:  # also when it is not a number
            raise FloatingPointError(
                f"diverged: the state is no longer finite, or a thousand times too large, after the step from sigma {s:.3g} "
                f"to {t:.3g}; take more steps, a smaller guidance weight, or check the noise level"
            )
        tick()
    return x
