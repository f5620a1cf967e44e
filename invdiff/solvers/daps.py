"""Decoupled annealing: at every noise level a clean image from the posterior given the state, then noise anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import ladder
from invdiff.solvers.base import Reverse
from invdiff.solvers.likelihood import HMC, PriorDraw
from invdiff.solvers.mmps import moment_solve


@dataclass(frozen=True)
class DAPS(Reverse):
    """At each level ``s``: ``x0 ~ p(x0 | x_s, y)``, then ``x_t = x0 + t n``, which has the right law at ``t`` however far it is from ``s``.

    p(x0 | x_s) is taken for Gaussian. With a linear ``A`` and Gaussian noise a draw ``x`` of it
    (:class:`~invdiff.solvers.likelihood.PriorDraw`) is moved to the measurement (Matheron's rule):

        ``x0 = x + P A^T (A P A^T + sigma_y^2 I)^{-1} (y + sigma_y e - A x)``,   ``P = s^2 dD/dx (x_s)`` its covariance,

    the inverse by at most ``iterations`` products with ``P`` (:func:`~invdiff.solvers.mmps.moment_solve`), a backward pass through
    the prior each, until the error of a pixel falls to ``tolerance s``: exact for a Gaussian prior. The paper takes ``r^2 I`` for
    ``P``; ``jacobian=False`` does, with ``r^2 = s^2 v / (s^2 + v)`` for a prior of variance ``v``, by one proximal step and without
    a backward pass. Otherwise :class:`~invdiff.solvers.likelihood.HMC` on
    ``exp(-|x0 - D(x_s, s)|^2 / (2 r^2)) p(y | x0)``.

    Zhang et al. 2025, "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{zhang2025daps, title={Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing}, "
        "author={Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima and Song, Yang}, "
        "booktitle={CVPR}, year={2025}}"
    )
    gradient: ClassVar[bool] = True

    steps: int = 20
    draw: PriorDraw = PriorDraw()  # noqa: RUF009 (an immutable value)
    jacobian: bool = True
    iterations: int = 5
    tolerance: float = 0.001
    hmc: HMC = HMC()  # noqa: RUF009

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._need_gradient(p)

    def ladder(self, p: Problem) -> list[float]:
        high = min(10 * p.prior.std, p.prior.sigma_max) if self.sigma_max is None else self.sigma_max
        return ladder(self.steps, high, min(p.levels(None, self.sigma_min)[1], high))

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        if not (p.linear and p.gaussian):
            x0 = self.simulate(p, x, s, memory)
        elif self.jacobian:
            x0 = self.update(p, x, s)
        else:
            x0, r2 = self.draw(p, x, s), self.variance(p, s)
            x0 = p.A.prox_l2(x0, self.perturbed(p), (r2 / p.sigma_y**2).expand(len(x), *p.sigma_y.shape[1:]))
        return x0 + t * p.randn() if t else x0

    def update(self, p: Problem, x: Tensor, s: float) -> Tensor:
        """Matheron's rule with the covariance that the prior's Jacobian says."""
        x0 = self.draw(p, x, s)
        _, vjp = p.linearize(x, s, products=None)
        return x0 + moment_solve(p, vjp, s, self.perturbed(p) - p.A.A(x0), self.iterations, self.tolerance)[1]

    def simulate(self, p: Problem, x: Tensor, s: float, memory: dict[str, Tensor]) -> Tensor:
        mean, r = p.denoise(x, s), self.variance(p, s) ** 0.5
        return self.hmc(p, mean + r * p.randn(), mean, r, memory)

    @staticmethod
    def perturbed(p: Problem) -> Tensor:
        """``y + sigma_y e``: the measurement of an image that is to be drawn, not averaged."""
        return p.y + p.sigma_y.view(-1, *[1] * (p.y.ndim - 1)) * p.randn(p.y.shape[1:])

    @staticmethod
    def variance(p: Problem, s: float) -> float:
        """Variance of x0 given ``x_s`` under a white prior of the same spread."""
        return float(s**2 * p.prior.std**2 / (s**2 + p.prior.std**2))
