"""Records: one JSON file a run, written whole or not at all, read with suspicion.

``KEY`` is the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of ``spec``, so that equal runs have one file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict

from invdiff import __version__
from invdiff.bench.components import canonical
from invdiff.files import write_text

LIBRARIES = ("torch", "deepinv", "piq", "scikit-image", "numpy", "azula", "bm3d", "PyWavelets")


class Record(TypedDict):
    """What a run was, and what came of it.

    ``status``: "ok"; "failed" (it raised, gave NaN or diverged); "refused" (it said before the first evaluation that it cannot
    treat the task, or a package it needs is missing). ``metrics`` holds None where one does not apply, names as in ``invdiff.metrics``. ``cost``: ``nfe`` and
    ``backward``, forward and backward passes through the network a sample; ``seconds`` and ``cpu_seconds`` of the whole run (all
    samples, no scoring), the latter of the process; ``peak_mib``, the largest memory of the process during the run,
    libraries and weights included, on a GPU what torch allocated there. ``pictures``: paths from the folder.
    """

    key: str
    suite: str
    protocol: str
    spec: dict[str, Any]
    status: Literal["ok", "failed", "refused"]
    error: str | None
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    versions: dict[str, str]
    machine: dict[str, Any]
    started: str
    warnings: list[str]
    pictures: dict[str, str]


def digest(data: bytes) -> str:
    """16 hexadecimal digits that name some data."""
    return hashlib.sha256(data).hexdigest()[:16]


def key(spec: dict[str, Any]) -> str:
    """The name of a run."""
    return digest(canonical(spec).encode())


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that scores depend on, those that are installed."""
    found = {"invdiff": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(folder: Path, record: Record) -> None:
    """Write a record under its key."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    path = folder / "runs" / f"{record['key']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def load(folder: str | Path) -> tuple[list[Record], list[str]]:
    """The records of a folder, by key, and one line about each file that is none: cut off, altered, or of another run."""
    records, problems = [], []
    for path in sorted((Path(folder) / "runs").glob("*.json")):
        try:
            records.append(_checked(json.loads(path.read_bytes()), path.stem))
        except (ValueError, TypeError, OSError, RecursionError, OverflowError) as error:
            problems.append(f"{path}: corrupt record ({' '.join(str(error).split())})")
    return records, problems


_KINDS: dict[str, type] = {
    "suite": str, "protocol": str, "started": str, "spec": dict, "metrics": dict, "cost": dict, "versions": dict, "machine": dict,
    "warnings": list, "pictures": dict,
}  # fmt: skip


def _checked(record: Any, name: str) -> Record:
    if not isinstance(record, dict):
        raise TypeError("not a record")
    missing = [field for field in Record.__annotations__ if field not in record]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for field, kind in _KINDS.items():
        if not isinstance(record[field], kind):
            raise TypeError(f"its {field} is {type(record[field]).__name__}, not {kind.__name__}")
    numbers = [*record["metrics"].values(), *record["cost"].values()]
    if not all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)) for v in numbers):
        raise ValueError("a score or a cost is no number")
    if not all(isinstance(record["spec"].get(k), str) for k in ("task", "image", "method")):
        raise ValueError("its spec has no task, image or method")
    if not all(isinstance(path, str) for path in record["pictures"].values()):
        raise ValueError("a picture is no path")
    if record["status"] not in ("ok", "failed", "refused"):
        raise ValueError(f"its status is {record['status']!r}")
    if not record["key"] == name == key(record["spec"]):
        raise ValueError("its name is not that of its settings")
    return record  # type: ignore[return-value]
