"""Pseudo-inverse guidance: the likelihood of the state under a Gaussian around the prior's estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem, prox
from invdiff.samplers import Estimate
from invdiff.solvers.base import Guided, posterior_estimate, shorten


@dataclass(frozen=True)
class PiGDM(Guided):
    """``x0_y = x0 + s^2 J^T A^T (r^2 A A^T + sigma_y^2)^{-1} (y - A x0)``, ``x0 = D(x, s)``, ``J`` its Jacobian.

    ``r^2 = s^2 v / (s^2 + v)`` is the variance of x0 given x under a prior of variance ``v = spread^2`` (the prior's own
    if ``None``; the paper takes 1 for images in [-1, 1]). The inverse is never formed:
    ``r^2 A^T (...)^{-1} (y - A x0) = prox(x0) - x0``. The step is cut where it would overshoot, as in DPS. Exact for a white Gaussian prior. Linear operators with Gaussian
    noise; one evaluation, one backward pass and one proximal step a step.

    Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", eq. 7-8.
    """

    reference: ClassVar[str] = (
        "@inproceedings{song2023pigdm, title={Pseudoinverse-Guided Diffusion Models for Inverse Problems}, "
        "author={Song, Jiaming and Vahdat, Arash and Mardani, Morteza and Kautz, Jan}, booktitle={ICLR}, year={2023}}"
    )
    gradient: ClassVar[bool] = True

    steps: int = 100
    spread: float | None = None

    def check(self, p: Problem) -> None:
        self._need_linear_gaussian(p, "DPS")

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        v = (p.prior.std if self.spread is None else self.spread) ** 2
        r2 = s**2 * v / (s**2 + v)
        x0, vjp = p.linearize(x, s)
        pull = (prox(p, x0, r2 / p.sigma_y**2) - x0) / r2
        return posterior_estimate(x, x0 + shorten(p, x0, p.A.A(x0), s**2 * vjp(pull)), s)
