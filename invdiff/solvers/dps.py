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

    ``x0_y = D(x, s) + d``, ``d`` the step of :func:`~invdiff.solvers.base.likelihood_step`: ``s^2`` times an estimate of
    ``grad log p(y | x)``. The paper divides the gradient by the norm ``|r|`` of the residual and tunes the factor for each
    task and size (``weight`` is 1 for all of them here); here it is divided by ``max(|r|^2 / m, sigma_y^2)``, which has the same direction, needs no tuning, and
    is cut where it would overshoot. One evaluation and one backward pass a step.

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

    def check(self, p: Problem) -> None:
        self._need_gradient(p)

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0, step = likelihood_step(p, x, s, self.weight)
        return posterior_estimate(x, x0 + step, s)
