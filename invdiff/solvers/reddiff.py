"""Variational restoration: one image is optimised, the prior pulls it at random noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import ladder
from invdiff.solvers.base import Strategy


@dataclass(frozen=True)
class REDDiff(Strategy):
    """Adam on ``|A u - y|^2 / (2 sigma_y^2)`` plus a regulariser of gradient ``weight (u - D(u + s z, s)) / c``.

    One step a level ``s``, descending, with fresh noise ``z``; ``c = s^2 v / (s^2 + v)``, ``v`` the prior's variance. This is
    the paper's linear weighting in units that do not depend on the noise, the size of the image or the gain of ``A``: with
    ``weight = 1`` and a white Gaussian prior the stationary point is the posterior mean, at every level. The step is
    ``learning_rate`` in units of the prior's spread and falls linearly to zero. Gradient-free (one evaluation a step, none
    differentiated); any differentiable operator, Gaussian noise. Seeks a mode: the samples hardly differ, and their spread
    is no uncertainty.

    Mardani et al. 2024, "A Variational Perspective on Solving Inverse Problems with Diffusion Models", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{mardani2024reddiff, title={A Variational Perspective on Solving Inverse Problems with Diffusion "
        "Models}, author={Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash}, booktitle={ICLR}, "
        "year={2024}}"
    )

    steps: int = 100
    weight: float = 1.0
    learning_rate: float = 0.2
    sigma_max: float | None = None
    sigma_min: float | None = None

    def check(self, p: Problem) -> None:
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use DPS, or give noise=<standard deviation>")
        if not p.linear:
            self._need_gradient(p)

    def sample(self, p: Problem) -> Tensor:
        levels = ladder(self.steps, *p.levels(self.sigma_max, self.sigma_min))[:-1]
        u = p.start(0.0)
        m = v = torch.zeros_like(u)
        for i, s in enumerate(levels):
            c = s**2 * p.prior.std**2 / (s**2 + p.prior.std**2)
            pull = self.weight * (u - p.denoise(u + s * p.randn(), s)) / c
            gradient = p.A.A_vjp(u, p.A.A(u) - p.y) / p.sigma_y**2 + pull
            m = 0.9 * m + 0.1 * gradient
            v = 0.99 * v + 0.01 * gradient**2
            step = self.learning_rate * p.prior.std * (1 - i / self.steps)
            u = u - step * (m / (1 - 0.9 ** (i + 1))) / ((v / (1 - 0.99 ** (i + 1))).sqrt() + 1e-8)
            if not bool(torch.isfinite(u).all()):
                raise FloatingPointError(f"REDDiff diverged at step {i + 1}; lower its learning_rate")
            p.tick()
        return u
