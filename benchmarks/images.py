"""Every strategy on photographs, against total variation: ``python benchmarks/images.py``, hours on one CPU thread.

The photographs, corruptions and scores are those of ``invdiff demo``. Each run is one line of ``OUT.jsonl``, written when it is
done; what is there is not run again, so a killed benchmark goes on where it was, and the strategies that take long may be run
with fewer ``--samples``. After every run ``OUT.md`` is written anew from all lines of that prior, that size and today's default
settings. After a change to a strategy that its settings do not show, delete its lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from invdiff import demo, priors, solve, solvers
from invdiff.baseline import best_tv

OUT = Path(__file__).parents[1] / "docs" / "images"
Run = dict[str, Any]  # a line: what was run, and what came out


def load(path: Path) -> list[Run]:
    """The runs that are done."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def asked(strategy: str) -> str:
    """The settings that a name stands for; ``auto`` has none before it has seen a task."""
    return strategy if strategy == "auto" else repr(solvers.get(strategy))


def fingerprint(prior: priors.DenoisingUNet) -> str:
    """Identifies the weights, whatever file they come from."""
    digest = hashlib.sha256()
    for value in prior.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def baselines(task: demo.Task, y: Tensor, A: Any, truth: Tensor) -> Run:
    """Scores of the measurement itself and of best-weight total variation, as ``invdiff demo`` has them."""
    begin = time.perf_counter()
    tv = best_tv(y, A, truth, [task.noise * 2.0**k for k in range(-5, 1)]).x
    seconds = time.perf_counter() - begin
    return {"input": demo.scores(task.show(y), truth), "tv": demo.scores(tv, truth), "seconds": seconds}


def restore(strategy: str, samples: int, y: Tensor, A: Any, prior: priors.DenoisingUNet, truth: Tensor) -> Run:
    """Scores of one sample and of the mean, its squared error, and the squared spread that the samples claim."""
    try:
        result = solve(y, A, prior, strategy, samples=samples)
    except (ValueError, FloatingPointError) as error:  # it refuses the task, or diverges: the page says so
        return {"error": str(error)}
    return {
        "one": demo.scores(result.equal()[0], truth),
        "mean": demo.scores(result.x, truth),
        "mse": float((result.x - truth).square().mean()),
        "variance": float(result.std.square().mean()),
        "evaluations": result.nfe,
        "seconds": result.seconds,
        "settings": repr(result.solver),
    }


def missing(runs: list[Run], wanted: list[Run]) -> Iterator[Run]:
    """The runs that are not among ``runs`` yet; one that was done with more samples will do."""
    for run in wanted:
        same = [r for r in runs if all(r[k] == v for k, v in run.items() if k != "samples")]
        if all(r["samples"] < run["samples"] for r in same):
            yield run


def table(runs: list[Run], images: list[str], task: str, strategies: list[str]) -> str:
    """Means over the images, for one corruption; a strategy that lacks an image is left out."""
    found = {(r["strategy"], r["image"]): r for r in sorted(runs, key=lambda r: r["samples"]) if r["task"] == task}
    base = [found[None, i] for i in images]

    def score(rows: list[Run], name: str) -> str:
        psnr, ssim = (fmean(r[name][k] for r in rows) for k in (0, 1))
        return f"{psnr:.2f} / {ssim:.3f}"

    lines = [
        "| | one sample | mean of samples | mean - TV, dB | error / spread | samples | evaluations | seconds a sample |",
        "| --- |" + " ---: |" * 7,
        f"| measurement | {score(base, 'input')} | | | | | | |",
        f"| total variation | {score(base, 'tv')} | | 0.00 | | | | {fmean(r['seconds'] for r in base):.1f} |",
    ]
    for name in strategies:
        rows = [found[name, i] for i in images if (name, i) in found]
        if any("error" in r for r in rows):
            lines.append(f"| `{name}` | " + next(r["error"] for r in rows if "error" in r) + " | | | | | | |")
        elif len(rows) == len(images):
            gap = fmean(r["mean"][0] - b["tv"][0] for r, b in zip(rows, base))
            spread = fmean(r["variance"] for r in rows)
            ratio = f"{(fmean(r['mse'] for r in rows) / spread) ** 0.5:.2f}" if spread else "-"
            samples, evaluations = ({r[k] for r in rows} for k in ("samples", "evaluations"))
            lines.append(
                f"| `{name}` | {score(rows, 'one')} | {score(rows, 'mean')} | {gap:+.2f} | {ratio} | {min(samples)} | "
                f"{min(evaluations)} | {fmean(r['seconds'] / r['samples'] for r in rows):.1f} |"
            )
    return "\n".join(lines)


def summary(runs: list[Run], images: list[str], strategies: list[str]) -> str:
    """Gain over total variation in dB, mean over the images, then over the corruptions."""
    found = {(r["strategy"], r["task"], r["image"]): r for r in sorted(runs, key=lambda r: r["samples"])}
    lines = ["| | one sample - TV, dB | mean of samples - TV, dB |", "| --- | ---: | ---: |"]
    places = [(t.name, i) for t in demo.TASKS for i in images]
    for name in strategies:
        rows = [(found[name, t, i], found[None, t, i]) for t, i in places if (name, t, i) in found]
        if len(rows) == len(places) and not any("error" in r for r, _ in rows):
            one, mean = (fmean(r[k][0] - b["tv"][0] for r, b in rows) for k in ("one", "mean"))
            lines.append(f"| `{name}` | {one:+.2f} | {mean:+.2f} |")
    return "\n".join(lines)


PREFACE = """# How well each strategy restores photographs

Written by `python benchmarks/images.py`; do not edit.

The photographs are scikit-image's {images}, the centre square reduced to {size}x{size}; none was trained on. The prior is
`{prior}`, the strategies have their default settings, `auto` is what `solve` picks when it is not told. Total variation has the
weight that is best for the truth, which no one has in practice.

What was tuned on what: the strategy, steps, sampler and weight that `auto` takes for each kind of operator were picked on five held-out
photographs of BSDS500, reduced to 160x160, with earlier weights of the prior. DiffPIR's default weight and RED-Diff's were first picked on
astronaut, coffee and chelsea at 128x128, with still earlier weights; DiffPIR's was confirmed on the held-out ones, RED-Diff's was not.

Scores are PSNR in dB / SSIM, means over the photographs. *one sample*: the first. *mean of samples*: `result.x`. A mean has the
smaller squared error (up to 3 dB), a sample looks sharper. *error / spread*: root mean square error of the mean over the root mean
square of `result.std`. An exact sampler has 1 to `sqrt(1 + 2 / samples)`, the less the better its pairs of samples cancel; more is too
sure. *evaluations* of the network are those of one sample. *seconds* are of one CPU thread on a busy machine: compare evaluations, not seconds (`benchmarks/overhead.py`).
"""


def page(runs: list[Run], images: list[str], size: int, prior: str) -> str:
    strategies = ["auto", *solvers.names()]
    parts = [PREFACE.format(images=", ".join(images), size=size, prior=prior)]
    parts += [
        f"## {t.title[0].upper()}{t.title[1:]}\n\n{table(runs, images, t.name, strategies)}\n" for t in demo.TASKS
    ]
    parts.append("## All three\n\nGain over total variation.\n\n" + summary(runs, images, strategies) + "\n")
    settings = {r["settings"] for r in runs if "settings" in r}
    parts.append("## Settings\n\n```\n" + "\n".join(sorted(settings)) + "\n```\n")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=demo.SIDE, help="side of the photographs, a multiple of 4")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--strategies", nargs="+", default=["auto", *solvers.names()])
    parser.add_argument("--images", nargs="+", default=list(demo.PHOTOGRAPHS))
    parser.add_argument("--prior", default="natural", help="name or path of a prior")
    parser.add_argument("--out", type=Path, default=OUT, help="page and lines, without their ending")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    demo.SIDE = args.size  # its photographs and its mask follow
    prior = priors.load(args.prior)
    weights = fingerprint(prior)
    path = args.out.with_suffix(".jsonl")

    places = [{"task": t.name, "image": i, "size": args.size} for t in demo.TASKS for i in args.images]
    wanted = [{**p, "strategy": None, "asked": None, "samples": 1, "prior": None} for p in places]  # total variation
    for name in args.strategies:
        run = {"strategy": name, "asked": asked(name), "samples": args.samples, "prior": weights}
        wanted += [{**p, **run} for p in places]
    tasks = {t.name: t for t in demo.TASKS}
    for run in missing(load(path), wanted):
        task, truth = tasks[run["task"]], demo.photograph(run["image"])
        A = task.operator(task.noise)
        y = A.measure(truth, seed=0)
        if run["strategy"] is None:
            run |= baselines(task, y, A, truth)
        else:
            run |= restore(run["strategy"], run["samples"], y, A, prior, truth)
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(run) + "\n")
        print(
            *(run[k] for k in ("strategy", "task", "image")),
            run.get("mean", run.get("tv", run.get("error"))),
            flush=True,
        )
        if run["strategy"] is not None:  # the baselines are all there
            runs = [r for r in load(path) if r["size"] == args.size and r["prior"] in (None, weights)]
            runs = [r for r in runs if r["strategy"] is None or r["asked"] == asked(r["strategy"])]
            text = page(runs, args.images, args.size, Path(args.prior).stem)
            args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
