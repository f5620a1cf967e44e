"""Benchmark suites: strategies x tasks x images, run once, resumed at will, and the same again from one file.

    from invdiff import bench
    bench.run("quick", "runs/quick")                        # what `invdiff bench run quick --out runs/quick` does
    records, problems = bench.load("runs/quick")

A suite is a YAML file (``bench.suites()`` names those that ship). Running it writes ``suite.yaml``, the suite with everything
frozen that determines the scores, ``runs/KEY.json``, one record a run, and ``pictures/``. Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invdiff.bench.case import Case, Outcome
    from invdiff.bench.records import Record, load
    from invdiff.bench.running import run
    from invdiff.bench.suite import Suite, suites

__all__ = ["Case", "Outcome", "Record", "Suite", "load", "run", "suites"]

_HOMES = {"Case": "case", "Outcome": "case", "Record": "records", "load": "records", "run": "running"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'invdiff.bench' has no attribute {name!r}")
    return getattr(import_module(f"invdiff.bench.{_HOMES.get(name, 'suite')}"), name)
