"""Plug-and-play diffusion models: a split Gibbs sampler whose coupling is annealed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem
from invdiff.solvers.base import Reverse
from invdiff.solvers.likelihood import HMC, PriorDraw, gaussian_draw, lowest, operator_norm


@dataclass(frozen=True)
class PnPDM(Reverse):
    """At each level ``r``: an image ``x0 ~ p(x0 | z)``, then a noisy one ``z = x0 + r' n`` that fits the measurement.

    With a linear ``A`` and Gaussian noise the second half is :func:`~invdiff.solvers.likelihood.gaussian_draw`, which makes the two halves a
    Gibbs sampler of p(x0, z | y) that is exact at ``r = 0.7 sigma_y / |A|``, where the ladder ends (``sigma_min=None``): what
    bias there is, is what a finite number of levels has not yet forgotten. It begins at twice the
    prior's spread. Otherwise :class:`~invdiff.solvers.likelihood.HMC`, with p(y | z) for p(y | x0), and the ladder ends at ``0.3 sigma_y / |A|``.

    The first half takes :class:`~invdiff.solvers.likelihood.PriorDraw`'s evaluations, 10 unless set otherwise; none is differentiated.

    Wu et al. 2024, "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{wu2024pnpdm, title={Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors}, "
        "author={Wu, Zihui and Sun, Yu and Chen, Yifan and Zhang, Bingliang and Yue, Yisong and Bouman, Katherine L.}, "
        "booktitle={NeurIPS}, year={2024}}"
    )

    steps: int = 150
    draw: PriorDraw = PriorDraw(levels=3, depth=0.15)  # noqa: RUF009 (an immutable value)
    hmc: HMC = HMC()  # noqa: RUF009

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._need_gradient(p)

    def ladder(self, p: Problem) -> list[float]:
        """Levels, crowded around 0.15 of the prior's spread, the last repeated for a tenth of the steps, to forget what went before.

        Directions that are not measured follow the others as long as ``r`` lets them, and stop under about a tenth of the spread. So
        the density of ``u = log r`` is ``sech(1.5 (u - c))`` around ``c``, whose integral is ``atan(sinh(1.5 (u - c)))``.
        """
        high = min(2 * p.prior.std, p.prior.sigma_max) if self.sigma_max is None else self.sigma_max
        share = 0.7 if p.linear and p.gaussian else 0.3
        low = share * float(p.sigma_y.min()) / float(operator_norm(p).max()) if self.sigma_min is None else self.sigma_min
        low, hold = min(max(low, lowest(p)), high), self.steps // 10
        centre, moving = 0.15 * float(p.prior.std), self.steps - hold
        first, last = (math.atan(math.sinh(1.5 * math.log(r / centre))) for r in (high, low))
        places = [first + (last - first) * i / max(moving - 1, 1) for i in range(1, moving)]
        levels = [high, *(centre * math.exp(math.asinh(math.tan(place)) / 1.5) for place in places)]
        return [*levels, *[low] * hold, 0.0]

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        x0 = self.draw(p, x, s)
        if t == 0:
            return x0
        return gaussian_draw(p, x0, t) if p.linear and p.gaussian else self.hmc(p, x0 + t * p.randn(), x0, t, memory)
