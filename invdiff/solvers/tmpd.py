"""Tweedie moment projection: the covariance of the prior's estimate, projected to a diagonal in the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import Estimate
from invdiff.solvers.base import Guided, posterior_estimate, shorten


@dataclass(frozen=True)
class TMPD(Guided):
    """``x0_y = x0 + S A^T (y - A x0) / (sigma_y^2 + c)``, ``c = max(A S A^T 1, 0)``; ``x0 = D(x, s)``, ``S = s^2 J^T``.

    ``J`` is the Jacobian of ``D``, and ``c`` the row sums of the covariance ``A S A^T`` in place of the matrix: nothing is solved. Exact
    where that matrix is diagonal, such as a white Gaussian prior seen through a mask; elsewhere only an approximation. The step is cut where
    it would overshoot, as in DPS. Linear operators with Gaussian noise; one evaluation and two backward passes a step.

    Boys et al. 2024, "Tweedie Moment Projected Diffusions for Inverse Problems".
    """

    reference: ClassVar[str] = (
        "@article{boys2024tmpd, title={Tweedie Moment Projected Diffusions for Inverse Problems}, "
        "author={Boys, Benjamin and Girolami, Mark and Pidstrigach, Jakiw and Reich, Sebastian and Mosca, Alan and Akyildiz, "
        "O. Deniz}, journal={Transactions on Machine Learning Research}, year={2024}}"
    )
    gradient: ClassVar[bool] = True

    steps: int = 100

    def check(self, p: Problem) -> None:
        self._need_linear_gaussian(p, "DPS")

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0, vjp = p.linearize(x, s, products=2)
        z = p.A.A(x0)
        c = p.A.A(s**2 * vjp(p.A.A_adjoint(torch.ones_like(z)))).clamp(min=0)
        variance = p.sigma_y.reshape(-1, *[1] * (z.ndim - 1)) ** 2 + c
        step = s**2 * vjp(p.A.A_adjoint((p.y - z) / variance))
        return posterior_estimate(x, x0 + shorten(p, x0, z, step), s)
