"""Twisted diffusion sampling: particles that are guided, with weights that correct the guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem, prox
from invdiff.solvers.base import Guided, shorten
from invdiff.solvers.particles import FEW, Particles, Rows, condition, misfit, remaining, shifted


@dataclass(frozen=True)
class TDS(Particles):
    """Twist ``g_s(x) = N(y; A x0, sigma_y^2 + A C A^T)``, ``x0 = D(x, s)`` and ``C`` the covariance of x0 given x.

    Up to 8 measured numbers ``C = s^2 J`` with the prior's Jacobian ``J`` (one backward pass a number), exact for a
    Gaussian prior; above, ``C = s^2 v / (s^2 + v)`` with the prior's variance ``v`` (one backward pass). The proposal
    is the prior's step with its mean moved by ``(1 - t^2 / s^2) s^2 grad log g_s``, in which ``C`` is held fixed; or by
    what any guided strategy given as ``proposal`` makes of ``x0`` (one more evaluation). Above 8 numbers the move is
    cut where it would overshoot, as in PiGDM. The last step draws x0 given ``y``. Linear operators with Gaussian noise.
    Weights that are right for any prior do not make few particles enough: their spread grows with the number of
    measured numbers (``result.ess``).

    Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models", algorithm 1; the
    covariance is that of Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization",
    eq. 19.
    """

    reference: ClassVar[str] = (
        "@inproceedings{wu2023tds, title={Practical and Asymptotically Exact Conditional Sampling in Diffusion Models}, "
        "author={Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.}, "
        "booktitle={NeurIPS}, year={2023}}"
    )
    gradient: ClassVar[bool] = True

    proposal: Guided | None = None

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator", "use FK for this one, with proposal=DPS() if it can be differentiated")
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use FK, or give noise=<standard deviation>")
        if self.proposal is not None:
            self.proposal.check(p)

    def start(self, p: Problem, s: float) -> Tensor:
        _ = p.measured  # found once, before the rows are taken in slices
        return super().start(p, s)

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        numbers = p.measured[0].flatten().nonzero().flatten().tolist()
        few = len(numbers) <= FEW
        x0, vjp = p.linearize(x, s, products=len(numbers) if few else 1)
        value, pull = self._few(p, x0, vjp, s, numbers) if few else self._many(p, x0, vjp, s)
        if self.proposal is not None:
            pull = self.proposal.estimate(p, x, s).x0 - x0
        return {"x0": x0, "value": value, "pull": pull}

    @staticmethod
    def _few(p: Problem, x0: Tensor, vjp: Callable[[Tensor], Tensor], s: float, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """``log g`` and the pull, with ``S = sigma_y^2 + s^2 A J A^T``: a row of ``A J`` a measured number."""
        z = p.A.A(x0).flatten(1)[:, numbers]
        units = torch.eye(p.y[0].numel(), dtype=p.y.dtype, device=p.y.device)[numbers].view(-1, 1, *p.y.shape[1:])
        rows = [vjp(p.A.A_adjoint(unit.expand_as(p.y))) for unit in units]
        S = s**2 * torch.stack([p.A.A(row).flatten(1)[:, numbers] for row in rows], 1)
        values, vectors = torch.linalg.eigh((S + S.mT) / 2)  # the Jacobian of a network is not quite symmetric
        values = values.clamp(min=0) + p.sigma_y.view(-1, 1) ** 2
        r = (p.y.flatten(1)[:, numbers] - z).unsqueeze(1) @ vectors
        value = -(r.squeeze(1).square() / values + values.log()).sum(1) / 2
        solved = (r / values.unsqueeze(1) @ vectors.mT).squeeze(1)
        pull = sum(c.view(-1, *[1] * (x0.ndim - 1)) * row for c, row in zip(solved.T, rows))
        return value, s**2 * torch.as_tensor(pull)

    @staticmethod
    def _many(p: Problem, x0: Tensor, vjp: Callable[[Tensor], Tensor], s: float) -> tuple[Tensor, Tensor]:
        """The same with ``S = sigma_y^2 + r^2 A A^T``, whose determinant is that of all particles."""
        r2 = remaining(p, s)
        step = (prox(p, x0, r2 / p.sigma_y**2) - x0) / r2
        return -misfit(p, p.y, x0, r2, p.sigma_y) / 2, shorten(p, x0, p.A.A(x0), s**2 * vjp(step))

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        if t == 0:
            return condition(p, p.y, mean, tau, 0.0, p.sigma_y)
        return shifted(p, mean, (1 - (t / s) ** 2) * known["pull"], tau)
