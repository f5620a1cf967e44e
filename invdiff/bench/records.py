"""Records: one JSON file a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypedDict


class Record(TypedDict):
    """What a run was, and what came of it."""

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


def key(spec: dict[str, Any]) -> str:
    """The name of a run."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(folder: str | Path) -> tuple[list[Record], list[str]]:
    """The records of a folder, by key, and one line about each file that is none."""
    records, problems = [], []
    for path in sorted((Path(folder) / "runs").glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            if not record["key"] == path.stem == key(record["spec"]):
                raise ValueError("its name is not that of its settings")
            records.append(record)
        except (ValueError, OSError, KeyError, TypeError) as error:
            problems.append(f"{path}: corrupt record ({error})")
    return records, problems
