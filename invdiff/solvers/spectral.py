"""Strategies that work in the operator's singular vectors: DDNM, DDNM+ and DDRM.

Notation: ``A = U diag(a) V^T``; ``c(x) = V^T x``; ``c_y = U^T y / a`` is the measurement in the same coordinates, of
noise ``sigma_y / a``. Directions with ``a = 0`` are not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Problem
from invdiff.samplers import Estimate, Renoise, Sampler
from invdiff.solvers.base import Guided, Reverse


def measured_directions(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values ``a``, noise ``b = sigma_y / a`` and measurement ``c_y`` of the singular directions."""
    if "c_y" not in p.cache:
        p.A.A_adjoint(p.y)  # a blur learns its singular values from the size of an image
        a = p.A.mask
        largest = a.flatten(1).amax(1).view(-1, *[1] * (a.ndim - 1)) if a.ndim > 1 else a.max()
        a = torch.where(a > 1e-4 * largest, a, 0.0)
        inverse = torch.where(a > 0, 1 / a, 0.0)
        c = p.A.U_adjoint(p.y)
        level = p.sigma_y.reshape(-1, *[1] * (c.ndim - 1))
        p.cache |= {"a": a, "b": torch.where(a > 0, level * inverse, torch.inf), "c_y": inverse * c}
    return p.cache["a"], p.cache["b"], p.cache["c_y"]


@dataclass(frozen=True)
class DDNM(Guided):
    """Null-space projection: ``x0_y = x0 + A^+ (y - A x0)``, with the noise direction of the prior's own ``x0``.

    For noiseless linear measurements (``A x = y`` holds in the result, so noise in ``y`` stays in the image: use DDNM+
    there). Gradient-free: one evaluation and one pseudo-inverse a step.

    Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", algorithm 1.
    """

    reference: ClassVar[str] = (
        "@inproceedings{wang2023ddnm, title={Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model}, "
        "author={Wang, Yinhuai and Yu, Jiwen and Zhang, Jian}, booktitle={ICLR}, year={2023}}"
    )

    steps: int = 100
    sampler: Sampler = Renoise(eta=0.85)  # noqa: RUF009

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator with a pseudo-inverse", "use DPS for this one")

    def estimate(self, p: Problem, x: Tensor, s: float) -> Estimate:
        x0 = p.denoise(x, s)
        return Estimate(x0 + p.A.A_dagger(p.y - p.A.A(x0)), (x - x0) / s)


@dataclass(frozen=True)
class DDRM(Reverse):
    """Each singular direction gets its own mixture of the prior's estimate, the measurement and fresh noise.

    From level ``s`` to ``t``, with ``x0 = D(x, s)``, ``b = sigma_y / a`` the noise of a measured direction:

    * not measured:  ``x0 + sqrt(1 - eta^2) t (x - x0) / s + eta t z``
    * ``t < b``:     ``c(x0) + sqrt(1 - eta^2) t (c_y - c(x0)) / b + eta t z``
    * ``t >= b``:    ``(1 - eta_b) c(x0) + eta_b c_y + sqrt(t^2 - eta_b^2 b^2) z``

    Gradient-free; needs an operator with a singular value decomposition and Gaussian noise.

    Kawar et al. 2022, "Denoising Diffusion Restoration Models", eq. 7-8.
    """

    reference: ClassVar[str] = (
        "@inproceedings{kawar2022ddrm, title={Denoising Diffusion Restoration Models}, "
        "author={Kawar, Bahjat and Elad, Michael and Ermon, Stefano and Song, Jiaming}, booktitle={NeurIPS}, year={2022}}"
    )
    warm: ClassVar[bool] = False

    steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta > 1 or self.eta_b > 1:
            raise ValueError(f"{type(self).__name__}: eta and eta_b lie in [0, 1], got {self.eta} and {self.eta_b}")

    def check(self, p: Problem) -> None:
        name = type(self).__name__
        if not p.spectral:
            self._refuse(
                "an operator with a singular value decomposition",
                f"use DiffPIR or PiGDM, or give {name} one of deepinv's DecomposablePhysics",
            )
        if not p.gaussian:
            self._refuse(f"Gaussian noise, not {p.noise}", "use DPS, or give noise=<standard deviation>")

    def start(self, p: Problem, s: float) -> Tensor:
        """Measured directions begin at ``c_y`` with the noise that is missing to ``s``, the others at the prior's mean."""
        noise = s * p.randn()
        x = torch.as_tensor(p.prior.mean, dtype=noise.dtype, device=noise.device) + noise
        a, b, c_y = measured_directions(p)
        spread = (s**2 - b**2).clamp(min=0).sqrt()
        new = torch.where(b < s, c_y + spread * p.A.V_adjoint(noise) / s, p.A.V_adjoint(x))
        return self._replace(p, x, a, new)

    def move(self, p: Problem, x: Tensor, s: float, t: float, memory: dict[str, Tensor]) -> Tensor:
        x0 = p.denoise(x, s)
        a, b, c_y = measured_directions(p)
        if t == 0:
            return x0
        keep, z = math.sqrt(1 - self.eta**2), p.randn()
        free = x0 + keep * t * (x - x0) / s + self.eta * t * z
        c_0, c_z = p.A.V_adjoint(x0), p.A.V_adjoint(z)
        noisy = c_0 + keep * t * (c_y - c_0) / b + self.eta * t * c_z
        clean = (1 - self.eta_b) * c_0 + self.eta_b * c_y + (t**2 - (self.eta_b * b) ** 2).clamp(min=0).sqrt() * c_z
        return self._replace(p, free, a, torch.where(t < b, noisy, clean))

    @staticmethod
    def _replace(p: Problem, x: Tensor, a: Tensor, new: Tensor) -> Tensor:
        """``x`` with its coordinates along the measured directions set to ``new``."""
        return x + p.A.V(torch.where(a > 0, new - p.A.V_adjoint(x), 0.0))


@dataclass(frozen=True)
class DDNMPlus(DDRM):
    """DDNM for noisy measurements: the projection is weakened where the measurement is noisier than the state.

    In variance-exploding form its update (the paper's eq. 19, case by case) is DDRM's with ``eta_b = 1``; it starts from
    pure noise and takes 100 steps.

    Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", section 3.3.
    """

    reference: ClassVar[str] = DDNM.reference

    steps: int = 100

    def start(self, p: Problem, s: float) -> Tensor:
        noise = s * p.randn()
        return torch.as_tensor(p.prior.mean, dtype=noise.dtype, device=noise.device) + noise
