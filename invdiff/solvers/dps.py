"""Diffusion posterior sampling: the gradient of the misfit, taken through the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import Estimate
from invdiff.solvers.base import Guided, likelihood_gradient, posterior_estimate


@dataclass(frozen=True)
class DPS(Guided):
    """Diffusion posterior sampling, for any differentiable operator and any noise with a likelihood.

    ``x0_y = D(x, s) + weight s^2 g``, ``g`` the estimate of ``grad log p(y | x)`` of
    :func:`~invdiff.solvers.base.likelihood_gradient`. The paper divides the gradient by the norm ``|r|`` of the residual
    and tunes the factor for each task and size; here it is divided by ``max(|r|^2 / m, sigma_y^2)``, which has the same
    direction and needs no tuning. One evaluation and one backward pass a step.

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

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0, gradient = likelihood_gradient(p, x, s)
        return posterior_estimate(x, x0 + self.weight * s**2 * gradient, s)
