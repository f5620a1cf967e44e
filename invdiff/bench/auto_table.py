"""What the choices of ``solver="auto"`` do, as its table shows it: ``python -m invdiff.bench.auto_table DIR`` writes ``solvers/auto.csv``.

DIR is what ``invdiff bench run noise --out DIR`` wrote.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from statistics import fmean

from invdiff.bench.tasks import operator
from invdiff.bench.truth_page import Run
from invdiff.files import write_text
from invdiff.solvers.auto import MEASURED, rule_of

BUDGETS = {"fast": "fast", "balanced": "auto", "exact": "exact"}  # the suite's method of each


def rows(run: Run) -> list[dict[str, str]]:
    """Means over images: PSNR in dB, coverage of 90 % intervals where there are enough samples, passes of a sample."""
    found = []
    for name, task in run.suite.tasks.items():
        A, noise = operator(task.operator, task.noise, (3, 96, 96))
        for budget, method in BUDGETS.items():
            psnr, coverage = (run.values(method, name, score) for score in ("psnr", "coverage_90"))
            if not psnr:
                raise ValueError(f"{name} has no result of {method}; invdiff bench run noise --out DIR makes it")
            passes = [a + b for a, b in zip(run.values(method, name, "nfe"), run.values(method, name, "backward"))]
            found.append(
                {
                    "kind": rule_of(A, noise, True).kind,
                    "task": task.title,
                    "budget": budget,
                    "psnr": f"{fmean(psnr):.1f}",
                    "coverage_90": f"{fmean(coverage):.2f}" if coverage else "",
                    "passes": f"{fmean(passes):.0f}",
                }
            )
    return found


def main(folder: Path, path: Path = MEASURED) -> None:
    text = io.StringIO()
    table = rows(Run.read(folder))
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
