"""Plug-and-play restoration along the diffusion: a proximal step on the misfit at every level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem, per_row, prox
from invdiff.samplers import Estimate, Renoise, Sampler
from invdiff.solvers.base import Guided, posterior_estimate


@dataclass(frozen=True)
class DiffPIR(Guided):
    """``x0_y = argmin_z |A z - y|^2 / sigma_y^2 + weight |z - x0|^2 / c``, ``x0 = D(x, s)``; then noise is drawn anew.

    ``c`` is the variance of the error of ``x0``. The paper takes ``s^2`` and tunes ``weight`` (its lambda, 1 to 25) to each
    task, for the error of a good denoiser is far smaller than the noise. With ``calibrated`` it is read off the residual,
    ``c = (|y - A x0|^2 / m - sigma_y^2) / a^2`` with ``a^2`` the mean square gain of ``A`` over ``m`` measured numbers, and
    one weight serves all tasks, sizes and noise levels. The share of fresh noise, the paper's zeta, is ``eta^2`` of the
    sampler. The defaults are those whose samples are near to the posterior; for one good image at less cost take ``steps=20``,
    ``sampler=Renoise(eta=1.0)`` and ``weight=0.25``, as ``solver="auto"`` does. Gradient-free: one evaluation and one proximal
    step a step. Linear operators with Gaussian noise.

    Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{zhu2023diffpir, title={Denoising Diffusion Models for Plug-and-Play Image Restoration}, "
        "author={Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu and "
        "Van Gool, Luc}, booktitle={CVPR Workshops}, year={2023}}"
    )

    steps: int = 50
    sampler: Sampler = Renoise(eta=0.85)  # noqa: RUF009
    weight: float = 0.5
    calibrated: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight == 0:
            raise ValueError("DiffPIR: weight must be positive, got 0; a small one trusts the measurement more")

    def check(self, p: Problem) -> None:
        self._need_linear_gaussian(p, "DPS")

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0 = p.denoise(x, s)
        c = self._error(p, x0, s) if self.calibrated else torch.full_like(p.size, s**2)
        return posterior_estimate(x, prox(p, x0, c / (self.weight * p.sigma_y**2)), s)

    @staticmethod
    def _error(p: Problem, x0: Tensor, s: float) -> Tensor:
        """Variance of the error of ``x0``, from its misfit; at most that of a prior that knows only mean and spread."""
        misfit = per_row((p.y - p.A.A(x0)).square(), x0.ndim) / p.size
        v = p.prior.std**2
        return ((misfit - p.noise_left * p.sigma_y**2) / p.gain).clamp(min=1e-4 * s**2, max=s**2 * v / (s**2 + v))
