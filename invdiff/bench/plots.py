"""Two pictures a task: the mean of each strategy, how sure its difference from the best is, and quality against cost; and what each
made of the first image."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.bench import pictures
from invdiff.bench.stats import Study
from invdiff.files import write_atomically

QUALITY = ("psnr", "nmse", "crps")  # the first one that there is
COST = ("nfe", "cpu_seconds")


def shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."


def write(study: Study, folder: Path) -> None:
    """Write ``folder/TASK.png`` for each task in which a strategy has a score and a cost."""
    quality = next((name for name in QUALITY if name in study.measures), None)
    cost = next((name for name in COST if name in study.measures), None)
    if quality is None or cost is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for task, name in enumerate(study.tasks):
        figure = _figure(study, task, quality, cost)
        if figure is not None:
            path = folder / (re.sub(r"[^\w.+-]", "_", name) + ".png")
            write_atomically(path, partial(figure.savefig, format="png", dpi=100))


def write_sheets(study: Study, folder: Path, out: Path) -> None:
    """Write ``out/TASK-pictures.png`` for each task: measurement, truth and results of its first image, the best first; ``folder`` has them."""
    out.mkdir(parents=True, exist_ok=True)
    for task in study.tasks:
        records = [(label, r) for label, r in zip(study.labels, study.records) if r["spec"]["task"] == task and "x" in r["pictures"]]
        first = next((image for image in study.images if any(r["spec"]["image"] == image for _, r in records)), None)
        shown = {label: r for label, r in records if r["spec"]["image"] == first}
        order = sorted(shown, key=lambda label: -(shown[label]["metrics"].get("psnr") or 0.0))
        tiles = [(f"{label} {psnr:.1f}" if (psnr := shown[label]["metrics"].get("psnr")) else label, shown[label]["pictures"]["x"]) for label in order]
        if not tiles:
            continue
        ends = [(name, path) for name, path in (("measurement", shown[order[0]]["pictures"].get("y")), ("truth", shown[order[0]]["pictures"].get("truth"))) if path]
        readable = [(name, image) for name, path in (*ends, *tiles) if (image := pictures.read(folder, path)) is not None]
        figure = _sheet(readable)
        if figure is not None:
            path = out / (re.sub(r"[^\w.+-]", "_", task) + "-pictures.png")
            write_atomically(path, partial(figure.savefig, format="png", dpi=100))


def _sheet(tiles: list[tuple[str, np.ndarray]], columns: int = 8) -> Any:
    """Pictures in rows, each with its name over it."""
    from matplotlib.figure import Figure

    if not tiles:
        return None
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.72 * rows), layout="constrained")
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.axis("off")
    for axis, (name, image) in zip(figure.axes, tiles):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(shorten(name, 24), fontsize=7, parse_math=False)
    return figure


def _figure(study: Study, task: int, quality: str, cost: str) -> Any:
    from matplotlib.figure import Figure

    mean, _ = study.means(task)
    q, c = study.measures.index(quality), study.measures.index(cost)
    there = np.flatnonzero(np.isfinite(mean[:, q]))
    if not len(there):
        return None
    higher = study.described(quality).better == "higher"
    order = there[np.argsort(mean[there, q] if higher else -mean[there, q])]  # best on top
    width = np.nan_to_num(study.differences(task, int(order[-1]))[1][order, q])
    span = np.ptp(mean[order, q])
    width = np.minimum(width, span / 3) if span else width  # long bars are cut
    names = [shorten(name, 32) for name in study.methods]
    figure = Figure(figsize=(10, max(3.2, 1.4 + 0.24 * len(order))), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.errorbar(mean[order, q], range(len(order)), xerr=width, fmt="o", markersize=4, capsize=2)
    left.set_yticks(range(len(order)), [names[i] for i in order])
    left.grid(axis="x", alpha=0.3)
    right.errorbar(mean[order, c], mean[order, q], yerr=width, fmt="o", markersize=4, capsize=2)
    for i in order:
        if np.isfinite(mean[i, c]):
            right.annotate(names[i], (mean[i, c], mean[i, q]), xytext=(4, 4), textcoords="offset points", fontsize=7)
    costs = mean[order, c][np.isfinite(mean[order, c])]
    if len(costs) and costs.max() > 10 * costs.min():
        right.set_xscale("symlog", linthresh=1)
    right.grid(alpha=0.3)
    titles = {name: (m := study.described(name)).title + (f", {m.unit}" if m.unit else "") for name in (quality, cost)}
    left.set_xlabel(titles[quality])
    right.set_xlabel(titles[cost])
    right.set_ylabel(titles[quality])
    title = f"{shorten(study.records[0]['suite'], 40)}: {shorten(study.tasks[task], 40)}"
    bars = f"95 % interval of the paired difference from {names[order[-1]]}"
    figure.suptitle(f"{title}. Means over images; bars: {bars}", fontsize=10, parse_math=False)
    for text in (*left.get_yticklabels(), *right.texts):
        text.set_parse_math(False)
    return figure
