"""What a contestant is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepinv.physics import Physics
from torch import Tensor

from invdiff.operators import Noise


@dataclass(frozen=True)
class Case:
    """One task on one image: ``y`` (1, ...), the operator, the law of its noise, the prior, and the true image (1, C, H, W).

    The truth is there for baselines that choose their weight with it, which no one can in practice.
    """

    y: Tensor
    A: Physics
    noise: Noise
    prior: Any
    truth: Tensor
    samples: int | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The estimate ``x`` (1, C, H, W); from samplers also ``samples`` (K, 1, C, H, W) and their ``std`` (1, C, H, W).

    Of particles: ``ess``, how many equally weighted ones they are worth, and ``ancestors``, from how many of the first level they descend.
    """

    x: Tensor
    samples: Tensor | None = None
    std: Tensor | None = None
    ess: float | None = None
    ancestors: float | None = None

    @classmethod
    def of(cls, samples: Tensor) -> Outcome:
        """The outcome of independent samples (K, 1, C, H, W)."""
        return cls(samples.mean(0), samples, samples.std(0)) if len(samples) > 1 else cls(samples[0])
