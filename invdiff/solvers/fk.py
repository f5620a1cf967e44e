"""Feynman-Kac steering: particles are selected by how well the prior's estimate explains the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.solvers.particles import Particles, Rows, ensemble

POTENTIALS, SELECT = ("difference", "max", "sum"), ("all", "children")


@dataclass(frozen=True)
class FK(Particles):
    """Needs only evaluations of ``A``: reward ``r_s = log N(y; A(x0), sigma_y^2 + c gain)``, ``x0 = D(x, s)``.

    ``c = s^2 v / (s^2 + v)`` is the variance of x0 given x under a prior of variance ``v``, ``gain`` how ``A``
    amplifies it. Every ``every`` levels weights are multiplied by a *potential*, ``exp(strength r)`` in a form that the
    last step undoes, so that the product is ``exp(strength r_0)``: with strength 1 the likelihood (the Gaussian one of
    the same variance, for other noise).

    ``potential``
        ``"difference"``, ``r_t - r_s``; ``"max"``, the largest r so far; ``"sum"``, the sum of all so far. The last two count a reward again at
        every level: the paper takes ``every=20``.
    ``select``
        ``"all"``: systematic resampling among all particles. ``"children"``: each group of ``children`` particles are the
        children of one parent, and one of them, drawn by its weight, becomes the parent of the next. Groups are
        independent of one another; exact only in the limit of many steps and a reward that is the true log p(y | x).
        This is SVDD (Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft
        Value-Based Decoding").

    Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of Diffusion Models", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{singhal2025fk, title={A General Framework for Inference-time Scaling and Steering of Diffusion "
        "Models}, author={Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and McKeown, "
        "Kathleen and Ranganath, Rajesh}, booktitle={ICML}, year={2025}}"
    )

    strength: float = 1.0
    potential: str = "difference"
    every: int = 1
    select: str = "all"
    children: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("potential", POTENTIALS), ("select", SELECT)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"FK: {name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("every", "children"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"FK: {name} must be at least 1 and a whole number, got {getattr(self, name)!r}")

    def sample(self, p: Problem) -> Tensor:
        if self.select == "all":
            return super().sample(p)
        if len(p.y) % self.children:
            raise ValueError(
                f"FK draws {self.children} children of each parent; samples={len(p.y)} is no multiple of it"
            )
        x = super().sample(p)
        groups = p.report["log_weights"].view(-1, self.children)
        p.report["log_weights"] = groups.log_softmax(1).flatten() - math.log(len(groups))
        return x

    def start(self, p: Problem, s: float) -> Tensor:
        _ = p.gain  # found once, before the rows are taken in slices
        return super().start(p, s)

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        x0 = p.denoise(x, s)
        v = p.prior.std**2
        reward = self._reward(p, x0, s**2 * v / (s**2 + v))
        return {"x0": x0, "reward": reward, "value": self.strength * reward}

    def remember(self, known: Rows, before: Rows, step: int) -> Rows:
        known = super().remember(known, before, step)
        if step % self.every:
            return {**known, "reward": before["reward"], "value": before["value"]}
        if self.potential == "max":
            known["reward"] = torch.maximum(known["reward"], before["reward"])
        elif self.potential == "sum":
            known["reward"] = known["reward"] + before["reward"]
        if self.potential != "difference":
            known["value"] = before["value"] + self.strength * known["reward"]
        return known

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        if t == 0:
            return mean, self.strength * self._reward(p, mean, 0.0)
        return mean + tau * p.randn(), torch.zeros_like(known["value"])

    def resample(self, p: Problem, log_weights: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.select == "all":
            return super().resample(p, log_weights)
        edges = log_weights.double().view(-1, self.children).softmax(1).cumsum(1)
        child = (edges < ensemble(p).uniform(len(edges)).unsqueeze(1)).sum(1).clamp(max=self.children - 1)
        first = torch.arange(len(edges), device=child.device) * self.children
        return (first + child).repeat_interleave(self.children), torch.zeros_like(log_weights)

    @staticmethod
    def _reward(p: Problem, x0: Tensor, c: float) -> Tensor:
        z = p.A.A(x0)
        variance = p.noise.variance(z).clamp(min=float(p.sigma_y.min()) ** 2)
        variance = variance + c * p.gain.view(-1, *[1] * (z.ndim - 1))
        squares = (p.y - z).square() / variance + variance.log()
        return -torch.where(p.measured, squares, 0.0).flatten(1).sum(1) / 2
