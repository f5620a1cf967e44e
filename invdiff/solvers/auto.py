"""What ``solver="auto"`` picks, and why."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from deepinv.physics import Blur, BlurFFT, DecomposablePhysics, Denoising, Downsampling, LinearPhysics, Physics
from torch import Tensor

from invdiff import operators
from invdiff.problem import Problem
from invdiff.samplers import Renoise
from invdiff.solvers.base import Strategy
from invdiff.solvers.daps import DAPS
from invdiff.solvers.diffpir import DiffPIR
from invdiff.solvers.dps import DPS
from invdiff.solvers.mmps import MMPS

DEFAULT_SAMPLES = 4
Budget = Literal["fast", "balanced", "exact"]
SAMPLES: dict[Budget, int] = {"fast": 2, "balanced": DEFAULT_SAMPLES, "exact": 8}


# For a good mean of few samples: all noise is renewed at every level
_GRADIENT = DPS(steps=30, sampler=Renoise(eta=1.0), weight=1.4, residual=1.0)
_QUICK = DiffPIR(steps=20, sampler=Renoise(eta=1.0), weight=0.25)


@dataclass(frozen=True)
class Tweedie(Strategy):
    """The posterior mean ``D(y, sigma_y)``, in one evaluation: for an image that is only noisy, there is nothing to solve.

    It is no sample: every row is the same, and there is no spread.
    """

    reference: ClassVar[str] = (
        "@article{efron2011tweedie, title={Tweedie's Formula and Selection Bias}, author={Efron, Bradley}, "
        "journal={Journal of the American Statistical Association}, volume={106}, number={496}, year={2011}}"
    )
    warm: ClassVar[bool] = False

    steps: int = 1

    def sample(self, p: Problem) -> Tensor:
        levels = p.sigma_y.flatten()
        p.tick()
        return p.denoise(p.y, float(levels[0])) if len(levels) == 1 else p.denoise(p.y, levels)  # type: ignore[arg-type]


class Rule(NamedTuple):
    """What ``solver="auto"`` takes for one kind of problem, by budget. ``holds(A, noise, asked)``: ``asked`` for samples or not."""

    kind: str
    holds: Callable[[Physics, operators.Noise, bool], bool]
    fast: Strategy
    balanced: Strategy
    exact: Strategy
    reason: str


def _level(noise: operators.Noise) -> float:
    """The largest noise level of a batch, in the unit of the measurement: one strategy is chosen for all of it."""
    return float(torch.as_tensor(noise.sigma).max())


def _selects(A: Physics) -> bool:
    """Whether singular values are all zero or one, with zeros among them."""
    a = A.mask if isinstance(A, DecomposablePhysics) else None
    return isinstance(a, Tensor) and bool(((a == 0) | (a == 1)).all()) and bool((a == 0).any())


RULES = (
    Rule(
        "a prior of latents",
        lambda A, noise, asked: isinstance(A, operators.Decoded),
        _GRADIENT, replace(_GRADIENT, steps=50, weight=3.0), DAPS(),
        "gradients go through the decoder; renewing all noise brings the mean nearer to the truth",
    ),
    Rule(
        "a nonlinear operator, or noise that is not Gaussian",
        lambda A, noise, asked: not isinstance(A, LinearPhysics) or not isinstance(noise, operators.Gaussian),
        DPS(steps=30), DPS(), DPS(),
        "only gradients of the likelihood are at hand, and no strategy here is exact for it on photographs",
    ),
    Rule(
        "only noise to remove, and no samples asked for",
        lambda A, noise, asked: not asked and isinstance(A, (Denoising, operators.Denoising)),
        Tweedie(), Tweedie(), MMPS(),
        "the prior's estimate is the posterior mean (ask for samples to get a spread)",
    ),
    Rule(
        "an operator that keeps some numbers and drops the others",
        lambda A, noise, asked: _selects(A),
        replace(_QUICK, weight=0.05), _GRADIENT, MMPS(),
        "gradients carry what is known to what is not, and cost a few times what proximal steps (fast) do",
    ),
    Rule(
        "downsampling",
        lambda A, noise, asked: isinstance(A, (Downsampling, operators.Downsampling)),
        replace(_QUICK, weight=0.05), replace(_QUICK, weight=0.05), MMPS(),
        "what is coarse is kept almost unchanged: proximal steps that trust the measurement",
    ),
    Rule(
        "a blur, noise of 0.03 and more",
        lambda A, noise, asked: isinstance(A, (Blur, BlurFFT, operators.Blur)) and _level(noise) >= 0.03,
        replace(_QUICK, weight=0.1), replace(_QUICK, weight=0.1), MMPS(),
        "proximal steps need no gradient through the prior; the more noise, the more they may trust the measurement",
    ),
    Rule(
        "another linear operator, Gaussian noise",
        lambda A, noise, asked: True,
        _QUICK, _QUICK, MMPS(),
        "proximal steps need no gradient through the prior",
    ),
)  # fmt: skip
_EXACT = "its samples have the spread of the posterior where the image given the state is Gaussian"


MEASURED = Path(__file__).with_name("auto.csv")  # written by invdiff.bench.auto_table
PICTURES = "three photographs of 96x96"


def rule_of(A: Physics, noise: operators.Noise, asked: bool) -> Rule:
    """The first of ``RULES`` that holds; ``asked`` for samples or not."""
    return next(rule for rule in RULES if rule.holds(A, noise, asked))


def choose(
    A: Physics, noise: operators.Noise, samples: int | None, budget: Budget = "balanced"
) -> tuple[Strategy, int, str]:
    """``(strategy, samples, reason)`` of ``solver="auto"``: the first of ``RULES`` that holds, by what the operator offers.

    ``budget``: "fast" for a look, 2 samples; "balanced" for the image nearest to the truth, 4 samples, too sure of themselves;
    "exact" for samples that can be held to their word, 8 of them, by far the slowest. (Or as many as ``samples`` says.)
    Strategies, steps and weights of the first two were picked on held-out photographs of BSDS500, by noise level with the suite ``noise``, those for latents on
    held-out digits and phantoms; ``docs/images.md`` and ``docs/noise.md`` have what they do to photographs that played no part in it, ``docs/exactness.md`` how near they
    come to exact posteriors.
    """
    if budget not in get_args(Budget):
        raise ValueError(f"budget is one of {', '.join(get_args(Budget))}, got {budget!r}")
    rule = rule_of(A, noise, samples is not None or budget == "exact")
    strategy: Strategy = getattr(rule, budget)
    default = 1 if isinstance(strategy, Tweedie) else SAMPLES[budget]
    count = default if samples is None else samples
    return strategy, count, f"{rule.kind}: {_EXACT if isinstance(strategy, MMPS) else rule.reason}"


@cache
def say_once(text: str) -> None:
    """Print a line on stderr, the first time that it is asked for."""
    print(text, file=sys.stderr)


def table() -> str:
    """``RULES`` as text, a paragraph each, with what was measured of their choices (``MEASURED``)."""
    with MEASURED.open(encoding="utf-8", newline="") as file:
        measured = list(csv.DictReader(file))
    paragraphs = []
    for rule in RULES:
        lines = [f"{rule.kind}: {rule.reason}"]
        for budget in get_args(Budget):
            lines.append(f"  {budget:8} {getattr(rule, budget)}")
            known = [row for row in measured if (row["kind"], row["budget"]) == (rule.kind, budget)]
            lines += [f"           {row['task']}: {_measured(row)}" for row in known]
        paragraphs.append("\n".join(lines) + "\n")
    return "\n".join(paragraphs) + f"\nMeasured on {PICTURES} (docs/noise.md): mean of the samples, passes of each forward and backward.\n"


def _measured(row: dict[str, str]) -> str:
    held = f", 90 % intervals hold {float(row['coverage_90']):.0%}" if row["coverage_90"] else ""
    return f"{row['psnr']} dB, {row['passes']} passes{held}"
