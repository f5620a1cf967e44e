"""Diffusion posterior sampling: the gradient of the misfit, taken through the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import Estimate
from invdiff.solvers.base import Guided, likelihood_step, posterior_estimate


@dataclass(frozen=True)
class DPS(Guided):
    """Diffusion posterior sampling, for any differentiable operator and any noise with a variance.

    ``x0_y = D(x, s) + d``, ``d`` the step of :func:`~invdiff.solvers.base.likelihood_step`: ``s^2`` times the gradient of
    ``log p(y | D(x, s))``, cut where it would overshoot. The paper divides the gradient by the norm ``|r|`` of the residual and tunes
    the factor for each task and size; the likelihood's own gradient has the same direction and, so cut, needs no tuning. ``residual=1``
    divides it by ``max(|r|^2 / m, sigma_y^2)`` instead of ``sigma_y^2``: gentler, and farther from posteriors that are known. None is 0 for
    linear ``A`` and 1 for others, where the cut is no bound. One evaluation and one backward pass a step.

    Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{chung2023dps, title={Diffusion Posterior Sampling for General Noisy Inverse Problems}, "
        "author={Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul}, "
        "booktitle={ICLR}, year={2023}}"
    )
    gradient: ClassVar[bool] = True

    steps: int = 100
    weight: float = 1.0
    residual: float | None = None

    def check(self, p: Problem) -> None:
        self._need_gradient(p)

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        residual = (0.0 if p.linear else 1.0) if self.residual is None else self.residual
        x0, step = likelihood_step(p, x, s, self.weight, residual)
        return posterior_estimate(x, x0 + step, s)
