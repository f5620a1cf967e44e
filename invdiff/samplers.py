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
from itertools import pairwise
from typing import NamedTuple

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
        x0 = denoise(x, s).x0
        if t == 0:
            return x0
        h = math.log(s / t)
        d = x0
        if memory:
            r = math.log(float(memory["s"]) / s) / h
            d = x0 + (x0 - memory["x0"]) / (2 * r)
        memory.update(x0=x0, s=torch.tensor(s, dtype=torch.float64))
        return (t / s) * x + (1 - t / s) * d


def _share(name: str, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{name}: eta lies in [0, 1], got {eta}")


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
