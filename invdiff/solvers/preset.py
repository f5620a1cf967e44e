"""Presets: a strategy with settings that were searched for a task.

Those that ship have names such as ``diffpir@superres``; beside ``presets/NAME.yaml`` lies the study it comes from, ``NAME.csv``, one line
a trial. ``invdiff tune`` writes others, which are read by their path, ``runs/tuned/preset.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names of the presets that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def is_preset(name: str) -> bool:
    """Whether a name is that of a preset rather than of a strategy."""
    return "@" in name or Path(name).suffix in (".yaml", ".yml")


def read(name: str | Path) -> dict[str, Any]:
    """A preset by name or path: ``solver``, ``settings``, and how they were ``found``. ``ValueError`` if it is none."""
    path = FOLDER / f"{name}.yaml" if str(name) in presets() else Path(name)
    if not path.is_file():
        raise ValueError(f"unknown preset {str(name)!r}; presets that ship: {', '.join(presets())}; or give a file of invdiff tune")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"preset {name}: {' '.join(str(error).split())}") from None
    form = [type(found.get(k)) for k in ("solver", "settings")] if isinstance(found, dict) else None
    if form != [str, dict]:
        raise ValueError(f"preset {name}: entries 'solver', a name, and 'settings', a mapping, are needed")
    return found


def with_settings(strategy: Any, settings: Mapping[str, Any]) -> Any:
    """The strategy with other settings; ``sampler.eta`` is the ``eta`` of its ``sampler``. ``ValueError`` for one that it lacks."""
    for name, value in settings.items():
        head, _, rest = name.partition(".")
        if not is_dataclass(strategy) or head not in {f.name for f in fields(strategy)}:
            raise ValueError(f"{type(strategy).__name__} has no setting {head!r}; it is {strategy!r}")
        inner = with_settings(getattr(strategy, head), {rest: value}) if rest else value
        strategy = replace(strategy, **{head: inner})  # type: ignore[type-var]
    return strategy
