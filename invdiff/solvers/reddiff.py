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
    """Minimise the misfit plus a regulariser whose gradient is the prior's residual, one Adam step a level.

    At level ``s``, descending, with fresh noise ``z``: ``gradient = grad_u |A u - y|^2 / (2 m) * n / sum(a^2)``-scaled
    misfit plus ``weight (u - D(u + s z, s))``.
    """

    reference: ClassVar[str] = (
        "@inproceedings{mardani2024reddiff, title={A Variational Perspective on Solving Inverse Problems with Diffusion "
        "Models}, author={Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash}, booktitle={ICLR}, "
        "year={2024}}"
    )

    steps: int = 100
    weight: float = 0.25
    learning_rate: float = 0.05
    sigma_max: float | None = None
    sigma_min: float | None = None

    def check(self, p: Problem) -> None:
        pass

    def sample(self, p: Problem) -> Tensor:
        u = p.start(0.0)
        m = v = torch.zeros_like(u)
        for i, s in enumerate(ladder(self.steps, *p.levels(self.steps, self.sigma_max, self.sigma_min))[:-1], 1):
            gradient = p.A.A_vjp(u, p.A.A(u) - p.y) + self.weight * (u - p.denoise(u + s * p.randn(), s))
            m = 0.9 * m + 0.1 * gradient
            v = 0.99 * v + 0.01 * gradient**2
            u = u - self.learning_rate * p.prior.std * (m / (1 - 0.9**i)) / ((v / (1 - 0.99**i)).sqrt() + 1e-8)
            p.tick()
        return u
