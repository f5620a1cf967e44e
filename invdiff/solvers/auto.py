"""What ``solver="auto"`` picks, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deepinv.physics import DecomposablePhysics, Denoising, Downsampling, LinearPhysics, Physics
from torch import Tensor

from invdiff import operators
from invdiff.problem import Problem
from invdiff.samplers import Renoise
from invdiff.solvers.base import Strategy
from invdiff.solvers.diffpir import DiffPIR
from invdiff.solvers.dps import DPS

DEFAULT_SAMPLES = 4


@dataclass(frozen=True)
class Tweedie(Strategy):
    """The posterior mean ``D(y, sigma_y)``, in one evaluation: for an image that is only noisy, there is nothing to solve.

    It is no sample: every row is the same, and there is no spread.
    """

    reference: ClassVar[str] = (
        "@article{efron2011tweedie, title={Tweedie's Formula and Selection Bias}, author={Efron, Bradley}, "
        "journal={Journal of the American Statistical Association}, volume={106}, number={496}, year={2011}}"
    )

    steps: int = 1

    def sample(self, p: Problem) -> Tensor:
        levels = p.sigma_y.flatten()
        p.tick()
        return p.denoise(p.y, float(levels[0])) if len(levels) == 1 else p.denoise(p.y, levels)  # type: ignore[arg-type]


def choose(A: Physics, noise: operators.Noise, samples: int | None) -> tuple[Strategy, int, str]:
    """``(strategy, samples, reason)`` of ``solver="auto"``, by what the operator offers.

    Strategies, steps and weights were picked on held-out photographs of BSDS500 reduced to 160x160, those for latents on
    held-out digits and phantoms; ``docs/images.md`` has what they do to photographs that played no part in it.
    """
    count = DEFAULT_SAMPLES if samples is None else samples
    if isinstance(A, operators.Decoded):
        reason = "a prior of latents: gradients through the decoder; renewing all noise brings the mean nearer to the truth"
        return DPS(steps=50, sampler=Renoise(eta=1.0), weight=3.0), count, reason
    if not isinstance(A, LinearPhysics) or not isinstance(noise, operators.Gaussian):
        return DPS(), count, "nonlinear operator or noise that is not Gaussian: only gradients of the likelihood are at hand"
    if samples is None and isinstance(A, (Denoising, operators.Denoising)):
        return Tweedie(), 1, "only noise to remove: the prior's estimate is the posterior mean (ask for samples to get a spread)"
    if isinstance(A, DecomposablePhysics) and isinstance(A.mask, Tensor) and _selects(A.mask):
        reason = "the operator keeps some numbers and drops the others: gradients carry what is known to what is not"
        return DPS(steps=30, sampler=Renoise(eta=1.0), weight=1.4), count, reason
    if isinstance(A, (Downsampling, operators.Downsampling)):
        reason = "the operator keeps what is coarse almost unchanged: proximal steps that trust the measurement"
        return DiffPIR(weight=0.05), count, reason
    return DiffPIR(), count, "linear operator, Gaussian noise: proximal steps need no gradient through the prior"


def _selects(a: Tensor) -> bool:
    """Whether singular values are all zero or one, with zeros among them."""
    return bool(((a == 0) | (a == 1)).all()) and bool((a == 0).any())
