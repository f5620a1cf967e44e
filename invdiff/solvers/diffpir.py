"""Plug-and-play restoration along the diffusion: a proximal step on the misfit at every level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.problem import Problem, prox
from invdiff.samplers import Estimate, Renoise, Sampler
from invdiff.solvers.base import Guided, posterior_estimate


@dataclass(frozen=True)
class DiffPIR(Guided):
    """``x0_y = argmin_z |A z - y|^2 / sigma_y^2 + weight |z - D(x, s)|^2 / s^2``, then part of the noise is drawn anew.

    ``weight`` is the paper's lambda; the share of fresh noise, its zeta, is ``eta^2`` of the sampler. Gradient-free:
    one evaluation and one proximal step a step. Linear operators with Gaussian noise.

    Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{zhu2023diffpir, title={Denoising Diffusion Models for Plug-and-Play Image Restoration}, "
        "author={Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu and "
        "Van Gool, Luc}, booktitle={CVPR Workshops}, year={2023}}"
    )

    steps: int = 20
    sampler: Sampler = Renoise(eta=1.0)
    weight: float = 4.0

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator with a proximal step", "use DPS for this one")
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use DPS, or give noise=<standard deviation>")

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        return posterior_estimate(x, prox(p, p.denoise(x, s), s**2 / (self.weight * p.sigma_y**2)), s)
