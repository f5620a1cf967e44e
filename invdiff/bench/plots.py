"""One picture a task: the mean of each strategy with its interval, and quality against cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.bench.stats import Array, Study

QUALITY = ("psnr", "nmse", "crps")  # the first one that there is
COST = ("nfe", "seconds")


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
        mean, half = study.means(task)
        figure = _figure(study, name, quality, cost, mean, half)
        if figure is not None:
            path = folder / (re.sub(r"[^\w.+-]", "_", name) + ".png")
            temporary = path.with_name(f".{path.name}.tmp")
            figure.savefig(temporary, format="png", dpi=100)
            temporary.replace(path)


def _figure(study: Study, task: str, quality: str, cost: str, mean: Array, half: Array) -> Any:
    from matplotlib.figure import Figure

    q, c = study.measures.index(quality), study.measures.index(cost)
    higher = study.described(quality).better == "higher"
    there = np.flatnonzero(np.isfinite(mean[:, q]))
    if not len(there):
        return None
    order = there[np.argsort(mean[there, q] if higher else -mean[there, q])]  # best on top
    width = np.nan_to_num(half[order, q])
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
    right.set_xscale("symlog", linthresh=1)
    right.set_xlim(left=0)
    right.grid(alpha=0.3)
    titles = {name: (m := study.described(name)).title + (f", {m.unit}" if m.unit else "") for name in (quality, cost)}
    left.set_xlabel(titles[quality])
    right.set_xlabel(titles[cost])
    right.set_ylabel(titles[quality])
    title = f"{shorten(study.records[0]['suite'], 40)}: {shorten(task, 40)}"
    figure.suptitle(f"{title} (means over images, 95 % intervals)", parse_math=False)
    for text in (*left.get_yticklabels(), *right.texts):
        text.set_parse_math(False)
    return figure
