"""Moment matching: the covariance of the prior's estimate, by products with the prior's Jacobian and nothing dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import DEIS, Estimate, Sampler
from invdiff.solvers.base import Guided, posterior_estimate


@dataclass(frozen=True)
class MMPS(Guided):
    """``x0_y = x0 + S A^T u``, ``(A S A^T + sigma_y^2) u = y - A x0``; ``x0 = D(x, s)``, ``S = s^2 J^T``, ``J`` its Jacobian.

    ``S`` is the covariance of x0 given x where ``D`` is the exact denoiser: then the estimate is the exact E[x0 | x, y] under
    the Gaussian of that mean and covariance, and the samples of a Gaussian prior are posterior samples but for the
    discretisation. A product with ``S`` is one backward pass. ``u`` is found by a Krylov method, each row on its own:

    * it begins at the ``u`` of the last level, and is preconditioned by the system of a white prior, ``r^2 A A^T + sigma_y^2``
      with ``r^2 = s^2 v / (s^2 + v)``, ``v = std^2`` of the prior, which is one proximal step of ``A``;
    * it ends when ``s (r^T P^-1 r)^{1/2}``, with the residual ``r`` and that preconditioner ``P``, an estimate of the error of
      x0_y, falls to ``tolerance s`` a pixel (errors fade in proportion to ``s`` on the way down, so they count the same at
      all levels), or after ``products`` products.

    ``krylov`` is ``"gmres"``, or ``"cg"``, conjugate gradients, which ask for a symmetric positive ``J``: it is so for exact
    denoisers, where they need about as many products, not for networks, with which they diverge; a row of ``"cg"`` that finds a
    direction of negative variance stops there. The ladder begins at 60 times the prior's spread, where all is noise, and
    ends at 0.2 of the measurement noise (kept within 0.002 and 0.08 of the spread). Linear operators with Gaussian noise;
    one evaluation a level and as many backward passes as the accuracy takes: 2 to 6 on average for Gaussian priors, 15 for
    the network that ships. With ``DDPM()`` as ``sampler``, give it 100 steps.

    Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization", section 4.2.
    The sampler, preconditioner, warm start and stopping rule are not theirs.
    """

    reference: ClassVar[str] = (
        "@inproceedings{rozet2024mmps, title={Learning Diffusion Priors from Observations by Expectation Maximization}, "
        "author={Rozet, Fran{\\c{c}}ois and Andry, G{\\'e}r{\\^o}me and Lanusse, Fran{\\c{c}}ois and Louppe, Gilles}, "
        "booktitle={NeurIPS}, year={2024}}"
    )
    gradient: ClassVar[bool] = True

    steps: int = 10
    sampler: Sampler = DEIS(order=4)  # noqa: RUF009
    products: int = 20
    tolerance: float = 0.01
    krylov: Literal["gmres", "cg"] = "gmres"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.krylov not in ("cg", "gmres"):
            raise ValueError(f"MMPS: krylov is 'gmres' or 'cg', got {self.krylov!r}")

    def check(self, p: Problem) -> None:
        self._need_linear_gaussian(p, "DPS")

    def levels(self, p: Problem) -> tuple[float, float]:
        high = min(60 * p.prior.std, p.prior.sigma_max)
        low = min(max(0.2 * float(p.sigma_y.min()), 0.002 * p.prior.std), 0.08 * p.prior.std)
        return p.levels(
            high if self.sigma_max is None else self.sigma_max, low if self.sigma_min is None else self.sigma_min
        )

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0, vjp = p.linearize(x, s, products=None)
        u, shift, _ = moment_solve(
            p, vjp, s, p.y - p.A.A(x0), self.products, self.tolerance, start=p.cache.get("mmps"), krylov=self.krylov
        )
        p.cache["mmps"] = u
        return posterior_estimate(x, x0 + shift, s)


def moment_solve(
    p: Problem,
    vjp: Callable[[Tensor], Tensor],
    s: float,
    r: Tensor,
    products: int,
    tolerance: float,
    *,
    start: Tensor | None = None,
    krylov: Literal["gmres", "cg"] = "gmres",
) -> tuple[Tensor, Tensor, Tensor]:
    """``u`` of ``(A S A^T + sigma_y^2) u = r``, ``S A^T u`` and what is left of ``r``, as :class:`MMPS` says; ``vjp`` is ``v -> J^T v``."""
    variance = p.sigma_y.flatten() ** 2
    gamma = (s**-2 + p.prior.std**-2) ** -1 / p.sigma_y**2
    blank = r.new_zeros(len(r), *p.randn.shape)

    def system(u: Tensor) -> tuple[Tensor, Tensor]:
        """``S A^T u``, and what the system makes of ``u``."""
        shift = s**2 * vjp(p.A.A_adjoint(u))
        return shift, times(variance, u) + p.A.A(shift)

    def precondition(r: Tensor) -> Tensor:
        """``(r^2 A A^T + sigma_y^2)^{-1} r``: the proximal step is ``r^2 A^T`` of it."""
        step = p.A.prox_l2(blank, r, gamma.expand(len(r), *gamma.shape[1:]))
        return times(1 / variance, r - p.A.A(step))

    u, shift = torch.zeros_like(r), blank
    if start is not None:
        u = start
        shift, image = system(u)
        r = r - image
    live = torch.ones(len(r), dtype=torch.bool, device=r.device)
    basis: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(products):
        d = precondition(r)
        live = live & (inner(r, d) > tolerance**2 * blank[0].numel())
        if not bool(live.any()):
            break
        d = torch.where(live.view(-1, *[1] * (d.ndim - 1)), d, 0.0)
        move, image = system(d)
        for test, size, *old in basis:
            share = inner(test, image) / size
            d, move, image = (new - times(share, part) for new, part in zip((d, move, image), old))
        test = image if krylov == "gmres" else d
        size = inner(test, image)
        live = live & (size > 0)
        size = torch.where(live, size, 1.0)
        step = torch.where(live, inner(test, r) / size, 0.0)
        u, shift, r = u + times(step, d), shift + times(step, move), r - times(step, image)
        basis.append((test, size, d, move, image))
    return u, shift, r


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row, shape (rows,), summed row by row as :func:`~invdiff.problem.per_row` does."""
    return torch.stack([(u * v).sum() for u, v in zip(a, b)])


def times(c: Tensor, t: Tensor) -> Tensor:
    """Each row of ``t`` times its number (or the one number) in ``c``."""
    return c.view(-1, *[1] * (t.ndim - 1)) * t
