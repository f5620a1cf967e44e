"""Manifold constrained gradient: DPS's gradient, then a projection onto the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem
from invdiff.solvers.dps import DPS


@dataclass(frozen=True)
class MCG(DPS):
    """DPS's gradient step, then ``x' <- x' + A^+ (y + t A z - A x')``: the state is made to fit the noised measurement.

    For linear operators and little noise: the projection copies the measurement noise into the image. One evaluation,
    one backward pass and one pseudo-inverse a step.

    Chung et al. 2022, "Improving Diffusion Models for Inverse Problems using Manifold Constraints", eq. 15-16.
    """

    reference: ClassVar[str] = (
        "@inproceedings{chung2022mcg, title={Improving Diffusion Models for Inverse Problems using Manifold Constraints}, "
        "author={Chung, Hyungjin and Sim, Byeongsu and Ryu, Dohoon and Ye, Jong Chul}, booktitle={NeurIPS}, year={2022}}"
    )

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator with a pseudo-inverse", "use DPS for this one")
        super().check(p)

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        x = super().move(p, x, s, t, memory)
        target = p.y + t * p.A.A(p.randn()) if t else p.y
        return x + p.A.A_dagger(target - p.A.A(x))
