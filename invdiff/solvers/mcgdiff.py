"""Particles along the singular vectors of the operator, where a measurement is a state seen at its own noise level.

Notation of :mod:`invdiff.solvers.spectral`: ``c_y`` is the measurement along a singular direction, of noise ``b``. It
has the law of the state at level ``b`` there, so ``c_y`` is taken for that state: from ``b`` on nothing is left to be
measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import ladder
from invdiff.solvers.particles import Particles, Rows, ensemble, wide, widened
from invdiff.solvers.spectral import measured_directions


@dataclass(frozen=True)
class Pinned(Particles):
    """What both share: the prior's step times what is seen of the state at its end, drawn exactly along each direction."""

    steps: int = 50

    def check(self, p: Problem) -> None:
        if not p.spectral:
            self._refuse("an operator with a singular value decomposition", "use TDS or AFDPS for this one")
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use FK, or give noise=<standard deviation>")
        super().check(p)

    def push(self, p: Problem, pull: Tensor) -> Tensor:
        """Along the directions that are not measured: the step along the others is drawn exactly."""
        return pull - p.A.V(torch.where(measured_directions(p)[0] > 0, p.A.V_adjoint(pull), 0.0))

    def start(self, p: Problem, s: float) -> Tensor:
        mean, spread = wide(p, s)
        return self._draw(p, mean, mean, spread, float("inf"), s)[0]

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        return {"x0": p.denoise(x, s), "value": torch.zeros(len(x), dtype=x.dtype, device=x.device)}

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        """Here the ratio is that of ``g`` too: what the drawn step integrates to, over ``g_s(x)``."""
        a, b, _ = measured_directions(p)
        target, variance = self._seen(p, s)
        square = torch.where((a > 0) & (b < s) & (variance > 0), 1 / variance.clamp(min=1e-30 * s**2), 0.0)
        owed = -_energy(p, square, target - p.A.V_adjoint(x)) / 2
        moved, integral = self._draw(p, x, mean, tau, s, t)
        return moved, integral - owed

    def _draw(self, p: Problem, x: Tensor, mean: Tensor, tau: float, s: float, t: float) -> tuple[Tensor, Tensor]:
        """A draw of the step from ``s`` times what is seen at ``t``, and the log of the integral up to a constant.

        A step that crosses ``b`` is made of two, with the same ``d``: from ``s`` to ``b``, where the state is ``c_y``,
        and from there to ``t``.
        """
        a, b, c_y = measured_directions(p)
        live, crossing = (a > 0) & (b < s), (b > t) & (b < s) & (0 < t)
        target, variance = self._seen(p, t)
        if t == 0:  # c_y is on the way from x0 to the state, which says something of its noise
            left = 1 - torch.where(live, b / s, 0.0) ** 2
            target, variance = (target - (1 - left) * p.A.V_adjoint(x)) / left, variance / left
        variance = torch.where(live, variance, 1.0) + tau**2
        gain = tau**2 / variance
        c = p.A.V_adjoint(mean)
        off, centre, spread = target - c, c + gain * (target - c), (1 - gain).clamp(min=0).sqrt()
        if bool(crossing.any()):
            q, first, second = (
                (t / s) ** 2,
                torch.where(crossing, b / s, 0.5) ** 2,
                torch.where(crossing, t / b, 0.5) ** 2,
            )
            c_x = p.A.V_adjoint(x)
            c_d = (c - q * c_x) / (1 - q)
            off = torch.where(crossing, c_y - first * c_x - (1 - first) * c_d, off)
            variance = torch.where(crossing, b**2 * (1 - first), variance)
            centre = torch.where(crossing, second * c_y + (1 - second) * c_d, centre)
            spread = torch.where(crossing, t * (1 - second).sqrt() / tau, spread)
        z = p.randn()
        c_z = tau * p.A.V_adjoint(z)
        x = mean + tau * z + p.A.V(torch.where(live, centre - c + (spread - 1) * c_z, 0.0))
        return x, -_energy(p, torch.where(live, 1 / variance, 0.0), off) / 2

    def _seen(self, p: Problem, t: float) -> tuple[Tensor, Tensor]:
        """``(target, variance)``: what is seen of the state at ``t`` along each direction, ``N(target; c, variance)``.

        Where ``b > t`` that is the measurement itself, as the noisier state that it is (at the start and at the end).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MCGDiff(Pinned):
    """Twist ``g_s(x) = p(x_b = c_y | x_s = x)`` in each direction with ``b < s``, under a white Gaussian prior, widened.

    With the prior's mean ``m`` and variance ``v`` it is normal in ``c_y``, of mean ``m + r (c - m)`` and variance ``u^2
    r``, where ``r = (v + b^2) / (v + b^2 + u^2)`` and ``u^2 = tempering^2 (s^2 - b^2)``; the paper's twist is that of
    tempering 1 and large ``v``. The default is wider where few numbers are measured
    (:func:`~invdiff.solvers.particles.widened`). The proposal is the prior's step times ``g_t``, drawn exactly; a step
    that crosses ``b`` passes through ``c_y`` there, and nothing is left to be measured. Gradient-free: one evaluation a
    level. Operators with a singular value decomposition, Gaussian noise.

    Cardoso et al. 2024, "Monte Carlo Guided Denoising Diffusion Models for Bayesian Linear Inverse Problems", algorithm
    1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{cardoso2024mcgdiff, title={Monte Carlo Guided Denoising Diffusion Models for {B}ayesian Linear "
        "Inverse Problems}, author={Cardoso, Gabriel and Janati El Idrissi, Yazid and Le Corff, Sylvain and Moulines, Eric}, "
        "booktitle={ICLR}, year={2024}}"
    )

    tempering: float | None = None

    def _seen(self, p: Problem, t: float) -> tuple[Tensor, Tensor]:
        _, b, c_y = measured_directions(p)
        mean, v, late = p.A.V_adjoint(wide(p, t)[0][:1]), p.prior.std**2, b > t
        u2 = widened(p, self.tempering) ** 2 * torch.where(late, 0.0, t**2 - b**2)
        inverse = torch.where(late, 1.0, 1 + u2 / (v + b**2))
        return mean + (c_y - mean) * inverse, torch.where(late, b**2 - t**2, u2 * inverse)


@dataclass(frozen=True)
class FPS(Pinned):
    """Filtering: the measurement is noised along a random path ``y_s``, shared by all particles, and states are made to fit it.

    In a direction with ``b < s`` the state is ``c_y`` plus a Brownian path from level ``b`` up. Its law given ``y``
    does not depend on the image, so that the particles tend to the posterior whatever the path; but they have to follow
    it, which takes more of them than the average over all paths (``mcgdiff``). Operators with a singular value
    decomposition, Gaussian noise; one evaluation a level.

    The paper lets every ``y_s`` have a noise of its own, so that ``y`` counts once a level: exact without noise only.

    Dou & Song 2024, "Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective",
    algorithm 2.
    """

    reference: ClassVar[str] = (
        "@inproceedings{dou2024fps, title={Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering "
        "Perspective}, author={Dou, Zehao and Song, Yang}, booktitle={ICLR}, year={2024}}"
    )

    def _seen(self, p: Problem, t: float) -> tuple[Tensor, Tensor]:
        _, b, c_y = measured_directions(p)
        late = b > t
        return torch.where(late, c_y, c_y + self._path(p, t)), torch.where(late, b**2 - t**2, 0.0)

    def _path(self, p: Problem, t: float) -> Tensor:
        """The path at level ``t``, along the singular directions; drawn whole when first asked for."""
        key = "path {}"
        if key.format(t) not in p.cache:
            _, b, c_y = measured_directions(p)
            path, low = torch.zeros_like(c_y[:1]), 0.0
            for level in reversed(ladder(self.steps, *self.levels(p))):
                rise = (level**2 - b.clamp(min=low) ** 2).clamp(min=0).sqrt()
                path = path + rise * p.A.V_adjoint(ensemble(p)(rows=1))
                p.cache[key.format(level)], low = path, level
        return p.cache[key.format(t)]


def _energy(p: Problem, square: Tensor, c: Tensor) -> Tensor:
    """``sum square c^2`` over the singular directions, shape (rows,): as an image, since there may be more of them than pixels."""
    image = p.A.V(torch.where(square > 0, square.sqrt() * c, 0.0))
    return image.square().flatten(1).sum(1)
