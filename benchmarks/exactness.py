"""Every strategy against a posterior known in closed form: ``python benchmarks/exactness.py``, half a minute, one thread.

The prior is Gaussian, ``N(mean, spread^2 exp(-distance / 3))`` on 8x8 pixels, its denoiser exact; operators are linear, noise
is white and Gaussian. So the posterior is Gaussian too, and whatever differs from it is the strategy's doing.
Writes ``docs/exactness.md``.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from invdiff import operators, priors, solve, solvers

SIDE = 8
MEASUREMENTS = 4  # of four images, so that no strategy owes its figures to a lucky one
SAMPLES = 512
PAGE = Path(__file__).parents[1] / "docs" / "exactness.md"


@dataclass(frozen=True)
class Problem:
    """Measurements ``y`` (B, ...) of images drawn from ``prior``; ``measured`` and ``unmeasured`` are the right singular
    vectors of ``A`` with and without a singular value, as columns."""

    prior: priors.Gaussian
    A: operators.Linear
    y: Tensor
    posterior: priors.GaussianPosterior
    measured: Tensor
    unmeasured: Tensor


class Accuracy(NamedTuple):
    """``bias``: error of the samples' mean in posterior standard deviations, root mean square over pixels and measurements.
    ``measured``, ``unmeasured``: spread of the samples over that of the posterior along these directions (nan: there are none)."""

    bias: float
    measured: float
    unmeasured: float


class Row(NamedTuple):
    accuracy: Accuracy
    evaluations: int
    seconds: float
    backward: int = 0


Rows = dict[str, dict[str, Row | str]]  # by strategy, then problem; a text where the problem was not solved, and why


def problem(A: operators.Linear, spread: float = 0.15, mean: float = 0.5) -> Problem:
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    covariance = spread**2 * torch.exp(-torch.cdist(grid, grid) / 3)
    prior = priors.Gaussian(torch.full((1, SIDE, SIDE), mean), covariance.float())
    y = A.measure(prior.sample(MEASUREMENTS, seed=0), seed=0)
    pixels = torch.eye(SIDE**2).view(-1, 1, SIDE, SIDE)
    _, a, directions = torch.linalg.svd(A.A(pixels).flatten(1).T.double())
    rank = int((a > 1e-4 * a.max()).sum())
    return Problem(prior, A, y, prior.posterior(y, A), directions[:rank].T, directions[rank:].T)


def problems() -> dict[str, Problem]:
    """The problems of the page, by the heading of their column."""
    mask, box = operators.random_mask((SIDE, SIDE), keep=0.5, seed=1), torch.ones(3, 3)
    return {
        "half the pixels, noise 0.05": problem(operators.Inpainting(mask, noise=0.05)),
        "half, noise 0.01": problem(operators.Inpainting(mask, noise=0.01)),
        "half, noise 0.15": problem(operators.Inpainting(mask, noise=0.15)),
        "blur 3x3, noise 0.05": problem(operators.Blur(box, noise=0.05, boundary="circular")),
        "2x fewer a side, noise 0.05": problem(operators.Downsampling(2, noise=0.05)),
        "half, spread 1, noise 0.3": problem(operators.Inpainting(mask, noise=0.3), spread=1.0, mean=0.0),
    }


def accuracy(samples: Tensor, p: Problem) -> Accuracy:
    """How far ``samples`` (K, B, C, H, W) are from ``p.posterior``."""
    x = samples.double().flatten(2)
    error = (x.mean(0) - p.posterior.mean.double().flatten(1)) / p.posterior.std.double().flatten()
    truth = p.posterior.covariance.double()

    def spread(directions: Tensor) -> float:
        if not directions.numel():
            return math.nan
        variance = ((x - x.mean(0)) @ directions).var(0).mean()
        return float((variance / (directions * (truth @ directions)).sum(0).mean()).sqrt())

    return Accuracy(float(error.square().mean().sqrt()), spread(p.measured), spread(p.unmeasured))


def measure(strategy: str | solvers.Strategy, p: Problem, samples: int = SAMPLES) -> Row:
    """Solve ``p`` and compare. Raises what ``solve`` raises where the strategy cannot treat the problem."""
    result = solve(p.y, p.A, p.prior, strategy, samples=samples)
    return Row(accuracy(result.equal(), p), result.nfe, result.seconds, result.backward)


def references(p: Problem, samples: int = SAMPLES) -> dict[str, Row]:
    """The two ends of the scale: samples of the posterior itself, and of the prior, which ignores ``y``."""
    exact = p.posterior.sample(samples, seed=1)
    prior = p.prior.sample(samples * len(p.y), seed=1).view(exact.shape)
    return {"exact sampler": Row(accuracy(exact, p), 0, 0.0), "the prior": Row(accuracy(prior, p), 0, 0.0)}


def table(rows: Rows, name: str) -> str:
    """One figure of :class:`Accuracy`, a row a strategy and a column a problem; a dash where there is none."""

    def cell(row: Row | str) -> str:
        value = math.nan if isinstance(row, str) else getattr(row.accuracy, name)
        return "-" if math.isnan(value) else f"{value:.2f}"

    columns = list(rows["the prior"])
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {label} | " + " | ".join(cell(found[c]) for c in columns) + " |" for label, found in rows.items()]
    return "\n".join(lines)


def cost(rows: Rows) -> str:
    """Evaluations and backward passes of a sample, by problem where they differ, and seconds of all problems."""
    lines = ["| | evaluations | backward passes | seconds |", "| --- | ---: | ---: | ---: |"]
    for label, found in rows.items():
        done = [row for row in found.values() if isinstance(row, Row) and row.evaluations]
        if done:
            passes = [sorted({getattr(row, name) for row in done}) for name in ("evaluations", "backward")]
            counts = " | ".join(" or ".join(map(str, p)) if len(p) < 3 else f"{p[0]} to {p[-1]}" for p in passes)
            lines.append(f"| {label} | {counts} | {sum(row.seconds for row in done):.1f} |")
    return "\n".join(lines)


PREFACE = """# How near to the true posterior

Written by `python benchmarks/exactness.py`; do not edit.

The prior is Gaussian on {side}x{side} pixels, mean 0.5, covariance `0.15^2 exp(-distance / 3)` (in the last column mean 0 and
`1.0^2`), and its denoiser exact. So the posterior is known, and every difference from it is the strategy's. Each strategy runs
with its default settings and draws {samples} samples for each of {measurements} measurements a problem. `auto` is what `solve`
picks when it is not told. *exact sampler* draws from the posterior itself and shows what is left to chance; *the prior* ignores
the measurement.

Half: of the pixels, at random. Blur: 3x3 box, circular. 2x: the mean of each block of 2x2 pixels.
"""

BIAS = """## Bias

Error of the samples' mean in posterior standard deviations, root mean square over pixels and measurements. 0 is right; with
{samples} independent samples an exact sampler has {floor:.2f}. Strategies but those of particles draw antithetic pairs, whose mean has no such error
where it is affine in the noise: what is left is the strategy's own.
"""

MEASURED = """## Spread where the operator measures

Standard deviation of the samples over that of the posterior, along the singular vectors that the operator measures. 1 is right,
less is too sure, more is not sure enough.
"""

UNMEASURED = """## Spread where it does not

The same along the directions of which the operator says nothing; the blur has none.
"""

COST = """## Cost

Network evaluations and backward passes a sample, and seconds for all {total} samples of each of the problems together, on one CPU thread, where the
exact denoiser takes next to no time.
"""


def page(rows: Rows, samples: int) -> str:
    numbers = {"side": SIDE, "samples": samples, "measurements": MEASUREMENTS}
    parts = [
        PREFACE.format(**numbers),
        BIAS.format(samples=samples, floor=samples**-0.5) + "\n" + table(rows, "bias") + "\n",
        MEASURED + "\n" + table(rows, "measured") + "\n",
        UNMEASURED + "\n" + table(rows, "unmeasured") + "\n",
        COST.format(total=samples * MEASUREMENTS) + "\n" + cost(rows) + "\n",
    ]
    failures = [
        f"* {label}, {c}: {r}\n" for label, found in rows.items() for c, r in found.items() if isinstance(r, str)
    ]
    if failures:
        parts.append("## Not solved\n\n" + "".join(failures))
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--strategies", nargs="+", default=["auto", *solvers.names()])
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows: Rows = {}
    for column, p in problems().items():
        for label, row in references(p, args.samples).items():
            rows.setdefault(label, {})[column] = row
        for name in args.strategies:
            try:
                rows.setdefault(f"`{name}`", {})[column] = measure(name, p, args.samples)
            except (ValueError, FloatingPointError) as error:  # it refuses the problem, or diverges: the page says so
                rows.setdefault(f"`{name}`", {})[column] = str(error)
    args.out.write_text(page(rows, args.samples), encoding="utf-8")
    print(f"{args.out}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
