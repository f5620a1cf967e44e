"""Approximation-free posterior sampling: particles of the tempered posterior, whose likelihood is that of the state itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.solvers.particles import Particles, Rows, condition, misfit, wide, widened


@dataclass(frozen=True)
class AFDPS(Particles):
    """Twist ``g_s(x) = N(y; A(m + w (x - m)), sigma_y^2 + k A A^T)``, the likelihood of the state under a white Gaussian prior.

    ``m`` and ``v`` are the prior's mean and variance, ``w = v / (u^2 + v)`` and ``k = u^2 v / (u^2 + v)`` with ``u =
    tempering * s``. The proposal is the prior's step times ``g_t``, drawn exactly. ``tempering = 1`` is right for a
    white Gaussian prior, the default is wider where few numbers are measured
    (:func:`~invdiff.solvers.particles.widened`); ``0`` is the paper's target ``p_s(x) exp(-|y - A x|^2 / 2
    sigma_y^2)``, which narrows to a few particles at high noise. Gradient-free: one evaluation and three proximal steps
    a level. Linear operators with Gaussian noise.

    The paper moves the particles by an Euler step of a stochastic equation and integrates their weights; that step is
    unstable where it exceeds ``sigma_y^2`` over the largest eigenvalue of ``A A^T``, as on any ladder spaced evenly in
    log sigma. Here both are those of the discrete step, exact for any ladder.

    Chen et al. 2025, "Solving Inverse Problems via Diffusion-Based Priors: An Approximation-Free Ensemble Sampling
    Approach".
    """

    reference: ClassVar[str] = (
        "@article{chen2025afdps, title={Solving Inverse Problems via Diffusion-Based Priors: An Approximation-Free Ensemble "
        "Sampling Approach}, author={Chen, Haoxuan and Ren, Yinuo and Min, Martin Renqiang and Ying, Lexing and Izzo, Zachary}, "
        "journal={arXiv preprint arXiv:2506.03979}, year={2025}}"
    )

    steps: int = 50
    tempering: float | None = None

    def check(self, p: Problem) -> None:
        self._need_linear_gaussian(p, "FK")
        super().check(p)

    def start(self, p: Problem, s: float) -> Tensor:
        y, state, noise = self._twist(p, s)
        return condition(p, y, *wide(p, s), state, noise)[0]

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        return {"x0": p.denoise(x, s), "value": torch.zeros(len(x), dtype=x.dtype, device=x.device)}

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        """Here the ratio is that of ``g`` too: what the drawn step integrates to, over ``g_s(x)``."""
        y, state, noise = self._twist(p, s)
        owed = -misfit(p, y, x, state, noise) / 2
        y, state, noise = self._twist(p, t)
        moved, integral = condition(p, y, mean, tau, state, noise)
        return moved, integral - owed

    def _twist(self, p: Problem, s: float) -> tuple[Tensor, float, Tensor]:
        """``g_s`` as a law of the state: ``N(y'; A x, noise^2 + state A A^T)`` up to a constant."""
        v, u2 = p.prior.std**2, (widened(p, self.tempering) * s) ** 2
        w = v / (u2 + v)
        centre = p.A.A(wide(p, s)[0])
        return centre + (p.y - centre) / w, u2 / w, p.sigma_y / w
