"""What got better or worse between two benchmarks, beyond noise: ``compare(OLD, NEW)``, for people and for continuous integration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.bench import suite as suites
from invdiff.bench.records import Record, load
from invdiff.bench.stats import COSTS, JUDGED, MEASURES, interval
from invdiff.metrics import Metric

LEVEL = 0.99
TOLERANCE = 0.005
MOST = 40  # lines of differences that cannot be judged
FEW = 5  # images: the interval of fewer excludes next to nothing at that level
SAME = ("image_sha256", "measurement_sha256")  # what has to be equal for two runs to be of the same problem

Place = tuple[str, str, str]  # task, image, method


def compare(
    old: str | Path, new: str | Path, *, level: float = LEVEL, tolerance: float = TOLERANCE
) -> tuple[str, list[str]]:
    """``(text, regressions)`` of the benchmark in folder ``new`` against that in ``old``; without regressions all is well.

    Scores are paired over (task, image, method). A task and method got better or worse in a metric if the interval of the
    mean difference over its images (:func:`invdiff.bench.stats.interval`) excludes zero at ``level``, 99 % since hundreds of
    comparisons are made, and if the difference is more than ``tolerance`` of the old mean, so that rounding is no news (0.005: about
    0.1 dB). Of fewer than FEW images, run with the same settings, seeds and weights, that is also said where each of two or more changed so, the same way: there is no
    noise in such runs but that of the code. For metrics with a target, the distance from it counts. One image alone shows no noise, so that its differences are listed, and not judged. A run that
    went well and now fails, is refused or is missing is a regression; costs are reported and never are.

    ``ValueError`` if there is nothing to compare, or if images or measurements are not the same; protocols that differ otherwise
    are compared, and the text shows in what they differ.
    """
    (before, notes), (after, more) = (_read(Path(folder)) for folder in (old, new))
    common = [place for place in before if place in after]
    _check_same(before, after, common, Path(old), Path(new))
    notes += [*more, *_protocols(before, after, Path(old), Path(new)), *_changed(before, after, common)]
    added = len(after) - len(common)
    notes += [f"{added} runs are only in {new}"] if added else []

    worse, better = _statuses(before, after)
    judged, alone, costs = 0, [], []
    repeated = _repeated(before, after, common)
    for (task, method), images in _groups(before, after, common).items():
        for name in dict.fromkeys(k for a, _ in images for k in a):
            lost = sum(name in a and name not in b for a, b in images)
            if lost:
                worse.append(f"{method} / {task}: {name} has no value any more on {lost} of {len(images)} images")
            if not any(name in a and name in b for a, b in images):
                continue
            m = (MEASURES | JUDGED).get(name)
            pairs = np.array([(a[name], b[name]) for a, b in images if name in a and name in b], dtype=float)
            if m is None or not m.better:
                continue
            line, each, half = _difference(task, method, m, pairs, level)
            gain = float(each.mean())
            scale = tolerance * abs(m.target or pairs[:, 0].mean())
            if name in COSTS:
                costs += [f"  {line}"] if abs(gain) > max(scale, 0.1 * abs(pairs[:, 0].mean())) else []
            elif half is None:
                alone += [line] if abs(gain) > scale else []
            else:
                judged += 1
                one_way = len(each) < FEW and (task, method) in repeated and bool((each > scale).all() or (each < -scale).all())
                if abs(gain) > max(half, scale) or one_way:
                    (better if gain > 0 else worse).append(line)

    said = [f"{old} -> {new}: {len(common)} runs in both, {judged} comparisons"]
    said += [f"note: {note}" for note in notes]
    for title, lines in (("worse", worse), ("better", better)):
        said += [f"{title} ({len(lines)})", *(f"  {line}" for line in lines)] if lines else []
    same = sum(_scores(before[place]) == _scores(after[place]) for place in common)
    said += [f"{same} of {len(common)} runs have the same scores, digit for digit"] if same else []
    if alone:
        said += [f"differences on a single image, which cannot be judged ({len(alone)})", *(f"  {line}" for line in alone[:MOST])]
        said += [f"  and {len(alone) - MOST} more"] if len(alone) > MOST else []
    if not judged:
        said.append("no score could be judged: a task needs two images that both benchmarks ran")
    if costs:
        said += [f"costs that changed by more than 10 % ({len(costs)}; not judged)", *costs]
    if not worse and not better:
        said.append("no difference beyond noise")
    return "\n".join(said), worse


def _read(folder: Path) -> tuple[dict[Place, list[Record]], list[str]]:
    """Records by place (several where seeds differ), and what is wrong with the files of others."""
    records, problems = load(folder)
    if not records:
        raise ValueError(f"{folder} has no records (runs/*.json); `invdiff bench run SUITE --out {folder}` makes them")
    found: dict[Place, list[Record]] = defaultdict(list)
    for record in records:
        spec = record["spec"]
        found[spec["task"], spec["image"], spec["method"]].append(record)
    return dict(found), problems


def _check_same(before: dict[Place, list[Record]], after: dict[Place, list[Record]], common: list[Place], old: Path, new: Path) -> None:
    again = f"run `invdiff bench run {old / 'suite.yaml'} --out DIR` and compare with DIR"
    if not common:
        raise ValueError(f"{old} and {new} have no task, image and method in common; {again}")
    for place in common:
        for fact in SAME:
            if before[place][0]["spec"].get(fact) != after[place][0]["spec"].get(fact):
                what = "image" if fact == SAME[0] else "measurement"
                raise ValueError(f"the {what} of {' / '.join(place)} is not the same in {old} and {new}; {again}")


def _protocols(before: dict[Place, list[Record]], after: dict[Place, list[Record]], old: Path, new: Path) -> Iterator[str]:
    names = [sorted({r["protocol"] for runs in found.values() for r in runs}) for found in (before, after)]
    if names[0] == names[1]:
        return
    files = [folder / "suite.yaml" for folder in (old, new)]
    try:
        lines = suites.differences(*(suites.read(f) for f in files))
    except ValueError as error:  # lost, or edited since
        lines = [str(error)]
    shown = [f"\n    {line}" for line in lines[:20]] + ([f"\n    and {len(lines) - 20} more"] if len(lines) > 20 else [])
    yield f"the protocols differ ({', '.join(names[0])} and {', '.join(names[1])}):{''.join(shown)}"


def _changed(before: dict[Place, list[Record]], after: dict[Place, list[Record]], common: list[Place]) -> Iterator[str]:
    """What the runs differ in, but for what came of them."""
    for fact in ("settings", "prior_sha256", "samples", "seed"):
        differ = [place for place in common if before[place][0]["spec"].get(fact) != after[place][0]["spec"].get(fact)]
        if differ:
            yield f"{len(differ)} runs differ in {fact}, such as {' / '.join(differ[0])}"


def _statuses(before: dict[Place, list[Record]], after: dict[Place, list[Record]]) -> tuple[list[str], list[str]]:
    """Runs that went well and do no more, and the other way round."""
    worse, better = [], []
    for place, runs in before.items():
        was_ok = all(r["status"] == "ok" for r in runs)
        bad = [r for r in after.get(place, []) if r["status"] != "ok"]
        name = " / ".join(place)
        if was_ok and place not in after:
            worse.append(f"{name}: is missing")
        elif was_ok and bad:
            worse.append(f"{name}: {bad[0]['status']} ({bad[0]['error']})")
        elif not was_ok and place in after and not bad:
            better.append(f"{name}: ran, was {next(r['status'] for r in runs if r['status'] != 'ok')}")
    return worse, better


def _groups(
    before: dict[Place, list[Record]], after: dict[Place, list[Record]], common: list[Place]
) -> dict[tuple[str, str], list[tuple[dict[str, float], dict[str, float]]]]:
    """Values before and after of each image, by (task, method)."""
    found = defaultdict(list)
    for task, image, method in common:
        pair = _values(before[task, image, method]), _values(after[task, image, method])
        if all(pair):
            found[task, method].append(pair)
    return dict(found)


def _repeated(before: dict[Place, list[Record]], after: dict[Place, list[Record]], common: list[Place]) -> set[tuple[str, str]]:
    """Each (task, method) whose runs are the same ones again: of equal keys."""
    keys = {place: [[r["key"] for r in found[place]] for found in (before, after)] for place in common}
    others = {(task, method) for (task, _, method), (a, b) in keys.items() if a != b}
    return {(task, method) for task, _, method in common} - others


def _scores(runs: list[Record]) -> list[Any]:
    return [(r["status"], r["metrics"]) for r in runs]


def _values(runs: list[Record]) -> dict[str, float]:
    """Metrics and costs, means over the runs; nothing if one did not go well."""
    if any(r["status"] != "ok" for r in runs):
        return {}
    all_values: list[dict[str, Any]] = [{**r["metrics"], **r["cost"]} for r in runs]
    there = [k for k in all_values[0] if all(v.get(k) is not None and np.isfinite(v[k]) for v in all_values)]
    return {k: float(np.mean([v[k] for v in all_values])) for k in there}


def _difference(task: str, method: str, m: Metric, pairs: Any, level: float) -> tuple[str, Any, float | None]:
    """A line about it, the gain of each image (positive is better), and the half width of the interval of its mean, None for one image."""
    worth = -np.abs(pairs - m.target) if m.better == "target" else pairs if m.better == "higher" else -pairs
    mean, half = interval(worth[:, 1:] - worth[:, :1], level)
    gain, width = float(mean[0]), float(half[0]) if np.isfinite(half[0]) else None
    unit = f" {m.unit}" if m.unit else ""
    images = f"{len(pairs)} image{'s' if len(pairs) > 1 else ''}"
    a, b = pairs.mean(0)
    change = f"{abs(gain):.3g} {'better' if gain > 0 else 'worse'}{'' if width is None else f', +- {width:.2g}'}"
    return f"{method} / {task}: {m.title} {a:.5g} -> {b:.5g}{unit} ({change}, {images})", worth[:, 1] - worth[:, 0], width
