"""Twisted diffusion sampling: particles that are guided, with weights that correct the guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.solvers.mmps import inner, moment_solve
from invdiff.solvers.particles import FEW, Particles, Rows, condition, misfit, remaining

PRODUCTS = 20  # with the prior's Jacobian, at most, a level


@dataclass(frozen=True)
class TDS(Particles):
    """Twist ``g_s(x) = N(y; A x0, sigma_y^2 + A C A^T)``, ``x0 = D(x, s)`` and ``C = s^2 J`` the covariance of x0 given x.

    ``J`` is the prior's Jacobian: exact for a Gaussian prior. The proposal is the prior's step with its mean moved by ``(1 - t^2
    / s^2) s^2 grad log g_s``, in which ``C`` is held fixed; or by what a ``proposal`` asks for. The last step draws x0 given ``y``.

    Up to 8 measured numbers ``A C A^T`` is written out, a backward pass a number. Above, its system is solved by products as
    in :class:`~invdiff.solvers.mmps.MMPS`, to ``tolerance``, a handful of backward passes a level, and its determinant is taken
    for that of all particles; and the proposal is as much narrower than the prior's step as ``g_t`` makes it under a white Gaussian
    prior: both keep the weights of many measured numbers together. Still the spread of the weights grows with how many
    they are, and shrinks with ``steps`` (``result.ess``). Linear operators with Gaussian noise.

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

    tolerance: float = 0.02

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator", "use FK for this one, with proposal=DPS() if it can be differentiated")
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use FK, or give noise=<standard deviation>")
        super().check(p)

    def start(self, p: Problem, s: float) -> Tensor:
        _ = p.measured  # found once, before the rows are taken in slices
        return super().start(p, s)

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        numbers = p.measured[0].flatten().nonzero().flatten().tolist()
        few = len(numbers) <= FEW
        x0, vjp = p.linearize(x, s, products=len(numbers) if few else None)
        value, pull = self._few(p, x0, vjp, s, numbers) if few else self._many(p, x0, vjp, s)
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

    def _many(self, p: Problem, x0: Tensor, vjp: Callable[[Tensor], Tensor], s: float) -> tuple[Tensor, Tensor]:
        """The same but for the determinant, with no matrix."""
        r = p.y - p.A.A(x0)
        u, pull, left = moment_solve(p, vjp, s, r, PRODUCTS, self.tolerance)
        return -(inner(r, u) + inner(u, left)).clamp(min=0) / 2, pull  # of r^T S^-1 r, to second order in what is left

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        if t == 0:
            return condition(p, p.y, mean, tau, 0.0, p.sigma_y)
        if int(p.size[0]) <= FEW:
            return mean + tau * p.randn(), torch.zeros_like(known["value"])
        share = p.prior.std**2 / (p.prior.std**2 + t**2)  # J of a white prior, with which g_t is a law of the state
        y, state, noise = p.A.A(mean), remaining(p, t) / share**2, p.sigma_y / share
        moved, _ = condition(p, y, mean, tau, state, noise)
        return moved, misfit(p, y, moved, state, noise) / 2
