"""What all strategies have in common.

A strategy is a frozen dataclass of its settings with one method, ``sample(problem)``, that returns one clean image a
row. It can be printed, compared and hashed. Guided strategies give only :meth:`Guided.estimate`;
the sampler and the reverse loop (:mod:`invdiff.samplers`) do the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem, per_row
from invdiff.samplers import DDIM, Estimate, Sampler, ladder, reverse

# What settings may hold, by their annotation
KINDS: dict[Any, tuple[type, ...]] = {"float": (Real,), "float | None": (Real, type(None)), "Sampler": (Sampler,)}


@dataclass(frozen=True)
class Strategy:
    """Base class. ``reference`` is the BibTeX entry of the paper; ``gradient`` whether it differentiates the prior.

    ``particles``: 0 where samples are independent; where they are the particles of an ensemble, how many are drawn by default.
    ``warm``: whether it can begin from given images.
    """

    reference: ClassVar[str] = ""
    gradient: ClassVar[bool] = False
    particles: ClassVar[int] = 0
    warm: ClassVar[bool] = True

    steps: int = 20

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{name}: steps must be at least 1 and a whole number, got {self.steps!r}")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in KINDS and (not isinstance(value, KINDS[f.type]) or isinstance(value, bool)):
                raise TypeError(f"{name}: {f.name} must be {'a number' if f.type != 'Sampler' else 'a sampler such as DDIM(eta=1.0)'}, got {value!r}")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < float("inf"):
                raise ValueError(f"{name}: {f.name} must be finite and not negative, got {value}")

    def check(self, p: Problem) -> None:
        """Raise ``ValueError`` if this strategy cannot treat the problem, before any work is done."""

    def sample(self, p: Problem) -> Tensor:
        """Draw one image a row."""
        raise NotImplementedError

    def _need_linear_gaussian(self, p: Problem, other: str) -> None:
        """Refuse other problems; ``other`` is the strategy to take for them."""
        if not p.linear:
            self._refuse("a linear operator", f"use {other} for this one")
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", f"use {other}, or give noise=<standard deviation>")

    def _need_gradient(self, p: Problem) -> None:
        """Refuse an operator that autograd cannot follow: the gradient of the likelihood would fail, or be zero."""
        mean = torch.as_tensor(p.prior.mean, dtype=p.y.dtype, device=p.y.device)
        x = mean.expand(len(p.y), *p.randn.shape).clone().requires_grad_()
        try:
            with torch.enable_grad():
                followed = p.A.A(x).requires_grad
        except RuntimeError as error:
            if "requires grad" not in str(error):  # what .numpy() says
                raise
            followed = False
        if not followed:
            self._refuse(
                "an operator that can be differentiated",
                "compute it with torch functions alone, without .detach(), .numpy() or torch.no_grad(), or, if it is linear, "
                "give it an adjoint and use DiffPIR",
            )

    def _refuse(self, what: str, remedy: str) -> None:
        raise ValueError(f"{type(self).__name__} needs {what}; {remedy}")


@dataclass(frozen=True)
class Reverse(Strategy):
    """A strategy that carries a state down a ladder of noise levels: a subclass gives :meth:`move`.

    The ladder has ``steps`` levels, evenly spaced in log sigma from ``sigma_max`` to ``sigma_min``. ``None`` takes 4 times
    the prior's spread and 0.3 times the measurement noise (kept within 0.02 and 0.08 of the prior's spread).
    """

    sigma_max: float | None = None
    sigma_min: float | None = None

    def levels(self, p: Problem) -> tuple[float, float]:
        """The first and the last level above 0."""
        return p.levels(self.sigma_max, self.sigma_min)

    def ladder(self, p: Problem) -> list[float]:
        """The levels, descending, then 0."""
        return ladder(self.steps, *self.levels(p))

    def start(self, p: Problem, s: float) -> Tensor:
        """The state at the first level."""
        return p.start(s)

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        """The state at level ``t``, from that at ``s``."""
        raise NotImplementedError

    def sample(self, p: Problem) -> Tensor:
        levels = self.ladder(p)
        memory: dict[str, Tensor] = {}
        return reverse(lambda x, s, t: self.move(p, x, s, t, memory), self.start(p, levels[0]), levels, p.tick)


@dataclass(frozen=True)
class Guided(Reverse):
    """A strategy that only says how the measurement enters the estimate of the clean image.

    ``sampler`` is any of :mod:`invdiff.samplers`; ladder as in :class:`Reverse`.
    """

    sampler: Sampler = DDIM(eta=1.0)  # noqa: RUF009 (an immutable value)

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        """E[x0 | x, y] and the noise direction, for states ``x`` at level ``s``."""
        raise NotImplementedError

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        return self.sampler.step(lambda x, s: self.estimate(p, x, s), x, s, t, p.randn, memory)


def posterior_estimate(x: Tensor, x0: Tensor, s: float) -> Estimate:
    """An estimate whose noise direction is what remains of the state: ``eps = (x - x0) / s``."""
    return Estimate(x0, (x - x0) / s)


def likelihood_step(p: Problem, x: Tensor, s: float, weight: float, residual: float) -> tuple[Tensor, Tensor]:
    """``(x0, d)``: the prior's estimate ``x0 = D(x, s)`` and the step ``d`` that the measurement asks of it.

    ``d = a weight s^2 g``, ``g = grad_x [-|w|^2 / 2] / max(residual |w|^2 / m, 1)``, ``w = (y - A x0) / std(noise)`` over the ``m``
    measured numbers: with ``residual = 0`` the gradient of ``log p(y | x0(x))``; with 1 the spread of ``y`` given ``x`` is taken
    to be that of the residual itself. ``a <= 1`` shortens the step to the one that minimises ``|w|`` along it, so that it can never
    overshoot where ``A`` is linear. Nothing here depends on the number of pixels, on the noise level or on the other images of the batch.
    """
    x0, vjp = p.linearize(x, s)
    with torch.enable_grad():
        z = p.A.A(x0.requires_grad_())
        deviation = p.noise.variance(z.detach()).sqrt().clamp(min=float(p.sigma_y.min()))
        w = (p.y - z) / deviation
        squares = per_row(w.square(), x.ndim)
        (pull,) = torch.autograd.grad(-squares.sum() / 2, x0)
    x0 = x0.detach()
    step = weight * s**2 * vjp(pull) / (residual * squares.detach() / p.size).clamp(min=1)
    return x0, shorten(p, x0, z.detach(), step)


def shorten(p: Problem, x0: Tensor, z: Tensor, step: Tensor) -> Tensor:
    """``step``, cut to where the misfit along ``x0 + a step``, in units of the noise, is least; ``z = A(x0)``."""
    deviation = p.noise.variance(z).sqrt().clamp(min=float(p.sigma_y.min()))
    w = (p.y - z) / deviation
    change = (p.A.A(x0 + step) - z) / deviation
    along, length = per_row(w * change, x0.ndim), per_row(change.square(), x0.ndim)
    return torch.where(length > 0, along / length.clamp(min=1e-30), 1.0).clamp(0, 1) * step
