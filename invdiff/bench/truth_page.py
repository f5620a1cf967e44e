"""The page of a run of the suite ``truth``: ``python -m invdiff.bench.truth_page DIR docs/exactness.md``; a picture lies beside it.

Rows are methods, columns problems, cells means over the measurements with their standard error.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, geometric_mean, stdev
from typing import Any

from invdiff.bench import suite as suites
from invdiff.bench.records import Record, load
from invdiff.bench.suite import Suite
from invdiff.files import write_atomically, write_text

FOREIGN = ("deepinv", "azula")
FEWEST = 64  # samples whose distance can be compared with that of hundreds, roughly
Cells = Callable[[str, str], str]  # of a method and a task


@dataclass(frozen=True)
class Run:
    """A folder of ``invdiff bench run truth``: the frozen suite and its records, some of which may be missing."""

    suite: Suite
    records: list[Record]

    @classmethod
    def read(cls, folder: Path) -> Run:
        records, problems = load(folder)
        if not records or problems:
            raise ValueError(f"{folder}: {'; '.join(problems) or 'no records'}")
        return cls(suites.read(folder / "suite.yaml"), records)

    @cached_property
    def by_place(self) -> dict[tuple[str, str], list[Record]]:
        """The records of each method and task."""
        found = defaultdict(list)
        for record in self.records:
            found[record["spec"]["method"], record["spec"]["task"]].append(record)
        return dict(found)

    def values(self, method: str, task: str, name: str) -> list[float]:
        """A score or cost of a method in a task, one number a measurement."""
        done = [{**r["metrics"], **r["cost"]} for r in self.by_place.get((method, task), []) if r["status"] == "ok"]
        return [value for found in done if (value := found.get(name)) is not None]

    @cached_property
    def growing(self) -> dict[str, dict[int, str]]:
        """Methods that are run with several numbers of samples: their names by that number, by what comes before it."""
        found: dict[str, dict[int, str]] = defaultdict(dict)
        for name, method in self.suite.methods.items():
            if (match := re.fullmatch(r"(.+)-(\d+)", name)) and method.samples == int(match[2]):
                found[match[1]][method.samples] = name
        return {label: names for label, names in found.items() if len(names) > 1}

    @cached_property
    def methods(self) -> list[str]:
        """Those that have a row."""
        grown = {name for names in self.growing.values() for name in names.values()}
        return [name for name in self.suite.methods if name not in grown]

    def tasks(self, name: str) -> list[str]:
        """Those in which a score has a value."""
        return [task for task in self.suite.tasks if any(self.values(method, task, name) for method in self.methods)]


def number(values: list[float], digits: int | None = None) -> str:
    """Mean ± standard error, with ``digits`` after the point; ``None`` takes those that the size of the mean bears out."""
    if not values:
        return "-"
    mean = fmean(values)
    if digits is None:
        digits = 2 if abs(mean) < 10 else 1 if abs(mean) < 100 else 0
    return f"{mean:.{digits}f}" + (f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "")


def table(rows: list[str], columns: list[str], cell: Cells) -> str:
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[f"`{row}`", *(cell(row, column) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores(run: Run, *names: str) -> Iterator[str]:
    """A table of scores, those of one cell divided by a stroke; two where the problems are Gaussian and others."""

    def cell(method: str, task: str) -> str:
        return " / ".join(number(run.values(method, task, name)) for name in names)

    gaussian = set(run.tasks("spread_measured"))
    for columns in ([t for t in run.tasks(names[0]) if (t in gaussian) == kind] for kind in (True, False)):
        rows = [m for m in run.methods if any(run.values(m, t, names[0]) for t in columns)]
        if columns:
            yield table(rows, columns, cell)


def cost(run: Run) -> str:
    """Samples, passes a sample and seconds a measurement; ranges where problems differ."""

    def cell(method: str, name: str) -> str:
        ok = [r for r in run.records if r["spec"]["method"] == method and r["status"] == "ok"]
        if name == "samples":
            return ", ".join(sorted({str(r["spec"]["samples"]) for r in ok}))
        values = [fmean(found) for task in run.suite.tasks if (found := run.values(method, task, keys[name]))]
        if not values:
            return "-"
        low, high = (f"{v:.2f}" if name == "seconds" else f"{v:.0f}" for v in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"

    keys = {"samples": "", "evaluations": "nfe", "backward passes": "backward", "seconds": "seconds"}
    return table([m for m in run.methods if any(run.values(m, t, "seconds") for t in run.suite.tasks)], list(keys), cell)


def in_short(run: Run) -> str:
    """Worst scores of what should be exact for Gaussian priors; on how many problems ours are nearer to the posterior than other libraries'."""
    gaussian = run.tasks("spread_measured")
    worst = {}
    for name in ("mmps", "daps", "pnpdm"):
        spreads = [fmean(v) for t in gaussian for part in ("measured", "unmeasured") if (v := run.values(name, t, f"spread_{part}")) and t != "digits"]
        biases = [fmean(v) for t in gaussian if (v := run.values(name, t, "bias")) and t != "digits"]
        passes = [fmean(run.values(name, t, "nfe")) + fmean(run.values(name, t, "backward")) for t in gaussian if run.values(name, t, "nfe")]
        if biases and spreads:
            worst[name] = [f"{max(biases):.3f}", f"{min(spreads):.3f} to {max(spreads):.3f}", f"{max(passes):.0f}"]
    columns = ["largest bias", "spreads", "most passes"]
    parts = [table(list(worst), columns, lambda name, column: worst[name][columns.index(column)])] if worst else []

    def nearer(ours: str, theirs: list[str], score: str) -> str:
        pairs = [(run.values(ours, t, score), [v for name in theirs if (v := run.values(name, t, score))]) for t in run.suite.tasks]
        both = [fmean(ours) < min(map(fmean, others)) for ours, others in pairs if ours and others]
        return f"{sum(both)} of {len(both)}"

    rows = {}
    for ours, peer in (("dps", "deepinv-dps"), ("dps-few", "azula-dps"), ("diffpir", "deepinv-diffpir"), ("diffpir", "azula-diffpir")):
        weights = [name for name in run.methods if re.fullmatch(peer + r"(-[\d.]+)?", name)]
        if ours in run.methods and weights:
            rows[f"{ours} against {peer}"] = {"bias": nearer(ours, [peer], "bias"), "distance": nearer(ours, [peer], "sliced_w2_ratio")}
            rows[f"{ours} against {peer}, the best of {len(weights)} weights for each problem"] = {
                "bias": nearer(ours, weights, "bias"), "distance": nearer(ours, weights, "sliced_w2_ratio")
            }  # fmt: skip
    if rows:
        parts.append("Problems in which ours, at its default settings, is nearer to the posterior (`dps-few`: as many samples as azula's DPS):")
        parts.append(table(list(rows), ["bias", "distance"], lambda row, column: rows[row][column]))
    return "\n\n".join(parts)


def unsolved(run: Run) -> Iterator[str]:
    """A line for each method and reason."""
    found: dict[tuple[str, str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for (method, task), records in run.by_place.items():
        for record in records:
            if record["status"] != "ok":
                found[method, record["status"], " ".join(str(record["error"]).split())][task] += 1
    order = list(run.suite.methods)
    for (method, status, error), tasks in sorted(found.items(), key=lambda item: order.index(item[0][0])):
        places = ", ".join(f"{task} ({count})" if status == "failed" else task for task, count in tasks.items())
        yield f"- `{method}` {status} {places}: {error}"


def growth(run: Run) -> tuple[list[str], list[str]]:
    """The methods of several numbers of samples, and the tasks in which they have been run."""
    names = [name for found in run.growing.values() for _, name in sorted(found.items())]
    return names, [task for task in run.suite.tasks if any(run.values(name, task, "weights_error") for name in names)]


def growing_table(run: Run) -> str:
    """Error of the weights, distance, and passes of all particles together in thousands."""

    def cell(name: str, task: str) -> str:
        passes = [a + b for a, b in zip(run.values(name, task, "nfe"), run.values(name, task, "backward"))]
        if not passes:
            return "-"
        total = fmean(passes) * (run.suite.methods[name].samples or 1) / 1000
        return f"{number(run.values(name, task, 'weights_error'), 3)} / {number(run.values(name, task, 'sliced_w2_ratio'))} / {total:,.0f}"

    return table(*growth(run), cell)


def plot(run: Run, path: Path) -> None:
    """Error of the modes' weights against the number of particles, and the line of independent exact samples, a panel a task."""
    from matplotlib.figure import Figure

    _, tasks = growth(run)
    counts = sorted({n for names in run.growing.values() for n in names})
    figure = Figure(figsize=(4.4 * len(tasks), 4.4), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0], tasks):
        axis.loglog()
        for label, names in run.growing.items():
            errors = {n: run.values(name, task, "weights_error") for n, name in sorted(names.items())}
            ends = {n: v for n, v in errors.items() if v}
            bars = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in ends.values()]
            axis.errorbar(list(ends), [fmean(v) for v in ends.values()], yerr=bars, fmt="o-", label=label, markersize=4, capsize=2)
        if exact := run.values("exact", task, "weights_error"):
            size = fmean(exact) * run.by_place["exact", task][0]["spec"]["samples"] ** 0.5
            axis.plot(counts, [size / n**0.5 for n in counts], "k--", label="exact samples, 1 / sqrt(N)")
        axis.set(xlabel="particles", title=task)
        axis.set_xticks(counts, [str(n) for n in counts], rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.axes[0].set_ylabel("largest error of the weight of a mode")
    write_atomically(path, partial(figure.savefig, format="png", dpi=100))


def plot_cost(run: Run, path: Path) -> None:
    """Distance from the posterior against the passes of a sample, each method's mean (geometric) over Gaussian problems and over others."""
    from matplotlib.figure import Figure

    gaussian = set(run.tasks("spread_measured"))
    foreigners = [name for name in run.methods if name.startswith(FOREIGN)]
    shared = [t for t in run.tasks("sliced_w2_ratio") if all(run.values(name, t, "sliced_w2_ratio") for name in foreigners)]
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for axis, kind, title in zip(figure.subplots(1, 2), (True, False), ("Gaussian priors", "modes, nonlinear")):
        axis.loglog()
        tasks = [t for t in shared if (t in gaussian) == kind]
        for name in run.methods:
            distances = [fmean(v) for t in tasks if (v := run.values(name, t, "sliced_w2_ratio"))]
            passes = [
                fmean(run.values(name, t, "nfe")) + fmean(run.values(name, t, "backward"))
                for t in tasks
                if run.values(name, t, "nfe")
            ]
            if not distances or not passes or fmean(passes) == 0 or (run.suite.methods[name].samples or FEWEST) < FEWEST:
                continue
            x, y = fmean(passes), geometric_mean(distances)
            foreign = name.startswith(FOREIGN)
            axis.plot(x, y, "s" if foreign else "o", color="tab:gray" if foreign else "tab:blue", markersize=4)
            axis.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="passes a sample, forward and backward", title=title)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("distance from the posterior, over that of exact samples")
    write_atomically(path, partial(figure.savefig, format="png", dpi=100))


PREFACE = """# How near to the true posterior

Written by `python -m invdiff.bench.truth_page DIR docs/exactness.md` from what `invdiff bench run truth --out DIR` left; do not edit.

In these problems the posterior, the law of the images given the measurement, is known: the prior is a Gaussian or a mixture of Gaussians, its
denoiser exact, and whatever differs from the posterior is the strategy's doing. Every strategy has its default settings and is given the
measurements of several images drawn from the prior. A cell is the mean over measurements ± its standard error; of one measurement, the
score alone.

Measurements have random numbers of their own, as draws do (but of *digits*), so that ± holds all that is left to chance.

- `exact`: samples of the posterior itself; what they score is left to chance. `exact-64`: as few of them as particle methods (`tds` to
  `fk`) have by default.
- `prior`: samples that ignore the measurement.
- `auto`: what `solve` picks when it is not told, made for good pictures and not for calibrated spreads.
- `deepinv-...`, `azula-...`: samplers of these libraries with their own defaults, on the same denoisers, on some of the problems; with a number
  at the end of the name, with another weight, so that the best one for each problem can be picked. The libraries
  are made for images, so that all problems have values about 0.5 that spread by 0.15 to 0.25.

{problems}

*dense*: the prior's covariance has a spectrum over two decades, and the measured numbers are random sums, in *many* too; *blur*, *half*:
pixels correlate as exp(-distance / 3); noise 0.0015, 0.015 and 0.15 are about 0.01, 0.1 and 1 of the prior's spread. *many*: the problem of MCGDiff's paper, 25 modes
8 apart and 1 wide, at a fiftieth of its scale, so that the noise is as large as a mode is wide. *ring*: held to a fine grid. *digits* is the
exception: its prior is the network `mnist`, and its posterior is known as well as 9216 draws of it tell, weighted by p(y | x): to a bias of about
0.05 (`invdiff/bench/truth_digits.py`). So little is measured there that the prior itself has a bias of 0.3: look at the spread. Runs of it share
their random numbers. DiffPIR's default weight, steps and share of noise were picked on *dense-0.1*, *blur-0.1*, *half-0.1*, *half-16*, *four* and *many-8-1*.
"""

PARTS: dict[tuple[str, ...], str] = {
    ("bias",): """## Bias

Error of the samples' mean in posterior standard deviations, root mean square over the values of an image. 0 is right; of K independent
exact samples it is about 1 / sqrt(K). Strategies but those of particles draw antithetic pairs, whose mean has no such error where it is
affine in the noise: what is left is the strategy's own.
""",
    ("spread_measured",): """## Spread where the operator measures

Standard deviation of the samples over that of the posterior, along the singular vectors that the operator measures. 1 is right, less is
too sure, more is not sure enough.
""",
    ("spread_unmeasured",): """## Spread where it does not

The same along the directions of which the operator says nothing; the blur has none.
""",
    ("weights_error",): """## Weights of modes

Largest error of the probability of a mode. 0 is right; 1 is a mode that is certain, and not found.
""",
    ("sliced_w2_ratio",): """## Distance

Sliced Wasserstein-2 distance of the samples from the posterior, each value in units of its posterior standard deviation, over that of as
many exact samples. 1 is right. It sees all of the law: mean, spread, shape and modes. Antithetic pairs may be nearer than independent
samples, under 1. For the same law a distance grows with the square root of the number of samples: compare particle methods with
one another.
""",
    ("ess", "ancestors"): """## Effective sample size

Of particle methods: how many equally weighted particles those at the last level are worth, and from how many of the first level they
descend. Few of the latter mean that the ensemble has lost most of its particles on the way; a high effective number alone proves nothing.
""",
    ("coverage_50", "coverage_90"): """## Coverage

Posterior probability of the central 50 % and 90 % of the samples, mean over the values. 0.50 / 0.90 are right, and prove little: samples
that ignore the measurement may have them, too.
""",
}

COST = """## Cost

![Distance from the posterior against passes]({picture})

Geometric mean of the distances over the problems in which all were run, other libraries (gray), too. Particle methods have fewer samples, 64, and
so less distance to reach; methods of still fewer are left out.

Evaluations of the denoiser and backward passes a sample, seconds for all samples of a measurement, from the fastest problem to the slowest, on one CPU thread, where the
exact denoiser takes next to no time. Of a network, count the first two.
"""

GROWING = """## How many particles

![Error of the weights against the number of particles]({picture})

Means over measurements. Exact samples halve their error with four times as many; particle methods that are right in the limit follow the same
slope. `azula-tds` takes 256 steps here.

Error of the weights / distance from the posterior, over that of as many exact samples / passes in thousands, of all particles together, forward
and backward:

{table}
"""


def page(run: Run, picture: str) -> str:
    problems = "\n".join(f"- **{name}**: {task.title}; {len(task.images)} measurements" for name, task in run.suite.tasks.items())
    parts = [PREFACE.format(problems=problems)]
    if short := in_short(run):
        parts.append(f"## In short\n\nStrategies that should be exact, on the Gaussian problems:\n\n{short}\n")
    for names, text in PARTS.items():
        parts += [text, *(f"{part}\n" for part in scores(run, *names))]
    if growth(run)[1]:
        parts.append(GROWING.format(picture=picture, table=growing_table(run)))
    parts.append(COST.format(picture=cost_picture(picture)) + "\n" + cost(run) + "\n")
    if lines := list(unsolved(run)):
        parts.append("## Refused and failed\n\nA strategy refuses what its method does not cover, before any work is done.\n\n" + "\n".join(lines) + "\n")
    return "\n".join([*parts, protocol(run)])


def cost_picture(picture: str) -> str:
    """The name of the second picture, beside that of the first."""
    return picture.replace(".png", "-cost.png")


def protocol(run: Run) -> str:
    """What was run, and on what."""
    versions = sorted({f"{k} {v}" for r in run.records for k, v in r["versions"].items()})
    machines = sorted({f"{m.get('gpu') or m.get('cpu')}, {m.get('threads')} thread" for m in (r["machine"] for r in run.records)})
    settings: dict[str, set[str]] = defaultdict(set)
    for record in run.records:
        settings[record["spec"]["method"]].add(f"`{record['spec']['settings']}`")
    missing = len(list(run.suite.pairs())) - len(run.records)
    return "\n".join(
        [
            "## Settings\n",
            f"Frozen protocol `{run.suite.protocol}`" + (f", of which {missing} runs are not there yet" if missing else "") + ".",
            f"Made with {', '.join(versions)}, on {'; '.join(machines)}.\n",
            *(f"- `{name}`: {', '.join(sorted(settings[name]))}" for name in run.suite.methods if settings[name]),
            "",
        ]
    )


def main(argv: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `invdiff bench run truth --out DIR` wrote")
    parser.add_argument("page", type=Path, metavar="PAGE", help="the Markdown file; a PNG of its name lies beside it")
    args = parser.parse_args(argv)
    run, picture = Run.read(args.folder), args.page.with_suffix(".png")
    if growth(run)[1]:
        plot(run, picture)
    plot_cost(run, picture.with_name(cost_picture(picture.name)))
    write_text(args.page, page(run, picture.name))


if __name__ == "__main__":
    main()
