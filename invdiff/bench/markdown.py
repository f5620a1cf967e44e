"""The results of a benchmark as one Markdown page, ``report.md``: what fits a repository and can be read on GitHub.

A table a task, and one of all tasks together: means over images with half of their 95 % intervals, and paired differences from a
reference (:class:`~invdiff.bench.stats.Study`). What records say is never markup.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from invdiff.bench.stats import COSTS, MEASURES, RESAMPLES, Study

QUALITY = ("psnr", "ssim", "psnr_sample", "ssim_sample")
CALIBRATION = ("spread_skill", "coverage_90")
COST = ("nfe", "cpu_seconds")
DIGITS = {"psnr": 2, "psnr_sample": 2, "ssim": 3, "ssim_sample": 3, "spread_skill": 2, "coverage_90": 3, "nfe": 0, "cpu_seconds": 1}
MOST = 40  # failures in words
LIBRARIES = ("deepinv_", "azula_")  # names of contestants from outside begin so

LEGEND = f"""Means over the images, with half of the 95 % interval ({RESAMPLES} bootstrap resamples of the images, Student's t for their small
number): it is mostly the images that differ. Differences are paired, and compare methods far better: over the images that both have, they are
beyond noise where the interval excludes 0.{{of_samples}} *Evaluations* of the network are those of one sample, *processor time* is that of all samples on one thread or more, which other work on the
machine hardly changes. Where runs failed, the means are over the others. What is not there does not apply."""

OF_SAMPLES = {
    "psnr_sample": """ *PSNR* and *SSIM* are of the estimate, the mean of the samples; *of a sample*: the mean of the
scores of single samples, which look sharper.""",
    "spread_skill": """ *Error / spread* is 1 for samples of the true posterior, more where they are too sure; *coverage*: the part of the
values that the central 90 % intervals hold.""",
}

EQUAL = """Each contestant of another library, and the strategy here that needs the fewest passes through the network, forward and backward, to have at
least its PSNR of a sample (mean over the images). Passes and seconds (of the processor) are of one sample; memory is the largest of the whole process."""


def page(study: Study, suite: dict[str, Any], notes: Sequence[str], again: str) -> str:
    """The page. ``suite``: the frozen suite as YAML has it, ``{}`` where it is lost; ``again``: the command that runs it again."""
    first = study.records[0]
    name = _plain(first["suite"])
    named = str(suite.get("reference", ""))
    reference = study.methods.index(named) if named in study.methods else 0
    protocols, versions = sorted({r["protocol"] for r in study.records}), {f"{k} {v}" for r in study.records for k, v in r["versions"].items()}
    machines = {f"{m.get('gpu') or m.get('cpu')}, {m.get('threads')} thread(s)" for m in (r["machine"] for r in study.records)}
    facts = [
        f"Written by `invdiff bench report`; do not edit. {_code(again)} runs it again.",
        f"Frozen protocol {', '.join(map(_code, protocols))}. Images: {_plain(', '.join(study.images[:30]))}{' ...' if len(study.images) > 30 else ''} ({len(study.images)}).",
        f"Made with {_plain(', '.join(sorted(versions)))}, on {_plain('; '.join(sorted(machines)))}.",
    ]
    told = "".join(text for measure, text in OF_SAMPLES.items() if measure in study.measures)
    parts = [f"# {name}", _plain(suite.get("about", "")), " ".join(facts), _plain(suite.get("note", "")), LEGEND.format(of_samples=told)]
    titles = suite.get("tasks") if isinstance(suite.get("tasks"), dict) else {}
    for task, key in enumerate(study.tasks):
        title = (titles.get(key) or {}).get("title", "")  # type: ignore[union-attr]
        parts += [f"## {_plain(key)}" + (f": {_plain(title)}" if title else ""), table(study, task, reference)]
    if len(study.tasks) > 1:
        parts += ["## All tasks together", "Of methods that have a score in each.", table(study, None, reference)]
    if lines := equal_quality(study):
        parts += ["## At equal quality", EQUAL, lines]
    if failures := list(_failures(study)):
        parts += ["## What failed, and what was refused", "\n".join(failures[:MOST])]
        parts += [f"{len(failures) - MOST} more are in results.csv."] * (len(failures) > MOST)
    parts += ["## Scores", "\n".join(_scores(study))]
    parts += ["## Settings", "\n".join(_settings(study))]
    parts += ["## Notes", "\n".join(f"- {_plain(note)}" for note in notes)] * bool(notes)
    return "\n\n".join(part for part in parts if part) + "\n"


def table(study: Study, task: int | None, reference: int) -> str:
    """The table of a task (None: of all); columns in which nothing stands are left out."""
    (mean, half), (gap, width) = study.means(task), study.differences(task, reference)
    shown = [m for m in study.measures if m in (*QUALITY, *CALIBRATION, *COST) or m not in MEASURES]
    shown.sort(key=lambda m: (m in COST, m in CALIBRATION))  # a suite's own scores after those of images
    columns = {"": [_code(name) + _part(*counts) for name, counts in zip(study.methods, study.counts_of(task), strict=True)]}
    for name in shown:
        k, what = study.measures.index(name), study.described(name)
        unit, ends = f", {what.unit}" if what.unit else "", half[:, k] if name not in COST else np.full(len(half), np.nan)
        columns[_plain(what.title + unit)] = [_number(name, *pair) for pair in zip(mean[:, k], ends)]
        if name == shown[0]:
            cells = [_number(name, *pair, "+") for pair in zip(gap[:, k], width[:, k])]
            cells[reference] = ""
            columns[f"{_plain(what.title)} minus {_code(study.methods[reference])}{unit}"] = cells
    rows = [i for i in range(len(study.methods)) if any(cells[i] for title, cells in columns.items() if title)]
    columns["Samples"] = _samples(study, task)
    columns = {title: cells for title, cells in columns.items() if any(cells[i] for i in rows)}
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *([cells[i] for cells in columns.values()] for i in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def equal_quality(study: Study) -> str:
    """The table of :data:`EQUAL`; empty where no other library took part."""
    settings = {name: str(record["spec"].get("settings")) for name, record in zip(study.labels, study.records, strict=True)}
    outside = [settings[name].startswith(LIBRARIES) for name in study.methods]
    strategies = [settings[name][:1].isupper() for name in study.methods]  # they print as classes, other contestants as functions
    head = ["task", "theirs", "PSNR, dB", "passes", "time, s", "memory, MiB", "here", "PSNR, dB", "passes", "time, s", "memory, MiB"]
    lines = [head, ["---" if name in ("task", "theirs", "here") else "---:" for name in head]]
    for t, task in enumerate(study.tasks):
        mean, _ = study.means(t)
        found = {name: mean[:, k] for k, name in enumerate(study.measures)}
        if not {"psnr", "nfe", "backward", "cpu_seconds", "peak_mib"} <= set(found):
            return ""
        samples = np.array([float(text or 1) for text in _samples(study, t)])
        psnr = np.where(samples > 1, found.get("psnr_sample", found["psnr"]), found["psnr"])  # of one sample its own
        passes = found["nfe"] + found["backward"]
        cells = [[f"{psnr[m]:.2f}", f"{passes[m]:.0f}", f"{found['cpu_seconds'][m] / samples[m]:.1f}", f"{found['peak_mib'][m]:.0f}"] for m in range(len(psnr))]
        for theirs in (m for m in np.flatnonzero(outside) if math.isfinite(psnr[m])):
            as_good = [m for m in np.flatnonzero(strategies) if psnr[m] >= psnr[theirs]]
            ours = min(as_good, key=lambda m: (passes[m], -psnr[m]), default=None)
            here = ["none", *[""] * 4] if ours is None else [_code(study.methods[ours]), *cells[ours]]
            lines.append([_plain(task), _code(study.methods[theirs]), *cells[theirs], *here])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _part(ok: int, failed: int, refused: int) -> str:
    return f" ({ok} of {ok + failed + refused} runs)" if failed + refused else ""


def _number(measure: str, value: float, half: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return ""
    form = f".{DIGITS[measure]}f" if measure in DIGITS else ".3g"
    return f"{value:{sign}{form}}" + (f" ± {half:{form}}" if math.isfinite(half) else "")


def _samples(study: Study, task: int | None) -> list[str]:
    """How many samples each method drew; classical ones, which know no prior, draw none."""
    found: list[set[int]] = [set() for _ in study.methods]
    for (_, t, method), record in zip(study.places, study.records, strict=True):
        if task in (None, t) and record["spec"].get("prior") is not None:
            found[method].add(int(record["spec"].get("samples") or 1))
    return [", ".join(map(str, sorted(counts))) for counts in found]


def _failures(study: Study) -> Iterator[str]:
    """A line for each method and error, and the tasks in which it came up."""
    found: dict[tuple[int, str, str], set[int]] = defaultdict(set)
    count: dict[tuple[int, str, str], int] = defaultdict(int)
    for (_, task, method), record in zip(study.places, study.records, strict=True):
        if record["status"] != "ok":
            key = (method, record["status"], record["error"] or "")
            found[key].add(task)
            count[key] += 1
    for (method, status, error), tasks in sorted(found.items()):
        where = ", ".join(_plain(study.tasks[t]) for t in sorted(tasks))
        yield f"- {_code(study.methods[method])}, {where}: {count[method, status, error]} {status}, {_code(error)}"


def _scores(study: Study) -> Iterator[str]:
    """A line for each score and what computed it, and one for those without a value."""
    for name in study.measures:
        if name not in COSTS:
            what = study.described(name)
            yield f"- {_plain(what.title)}: {_plain(what.backend)}"
    missing = [what.title for name, what in MEASURES.items() if name not in study.measures]
    if missing:
        yield f"- Without a value in any run: {', '.join(missing)} (LPIPS and DISTS need weights, which are never downloaded; others larger images, those of samples two or more of them, CRPS, coverage and spread four)."


def _settings(study: Study) -> Iterator[str]:
    """A line for each method and its settings, with the tasks where they are not the same in all."""
    found: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for (_, task, method), record in zip(study.places, study.records, strict=True):
        found[method][str(record["spec"].get("settings"))].add(task)
    for method, settings in sorted(found.items()):
        for text, tasks in settings.items():
            where = f" ({', '.join(_plain(study.tasks[t]) for t in sorted(tasks))})" if len(settings) > 1 else ""
            yield f"- {_code(study.methods[method])}{where}: {_code(text)}"


def _plain(text: Any) -> str:
    """One line in which nothing is a tag, a link or code."""
    flat = " ".join(str(text).split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("[", "&#91;").replace("`", "&#96;")


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
