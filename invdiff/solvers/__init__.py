"""The strategies, one file each; ``names()`` lists them, ``get(name)`` gives one with its defaults, or as a preset has it."""

from __future__ import annotations

from invdiff.solvers.afdps import AFDPS
from invdiff.solvers.auto import Tweedie, choose
from invdiff.solvers.base import Guided, Strategy
from invdiff.solvers.daps import DAPS
from invdiff.solvers.diffpir import DiffPIR
from invdiff.solvers.dps import DPS
from invdiff.solvers.fk import FK
from invdiff.solvers.mcg import MCG
from invdiff.solvers.mcgdiff import FPS, MCGDiff
from invdiff.solvers.mmps import MMPS
from invdiff.solvers.particles import Particles
from invdiff.solvers.pigdm import PiGDM
from invdiff.solvers.pnpdm import PnPDM
from invdiff.solvers.preset import is_preset, presets, read, with_settings
from invdiff.solvers.reddiff import REDDiff
from invdiff.solvers.spectral import DDNM, DDRM, DDNMPlus
from invdiff.solvers.tds import TDS
from invdiff.solvers.tmpd import TMPD

__all__ = [
    "AFDPS",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "FK",
    "FPS",
    "MCG",
    "MMPS",
    "TDS",
    "TMPD",
    "DDNMPlus",
    "DiffPIR",
    "Guided",
    "MCGDiff",
    "Particles",
    "PiGDM",
    "PnPDM",
    "REDDiff",
    "Strategy",
    "Tweedie",
    "choose",
    "get",
    "names",
    "presets",
]

STRATEGIES: dict[str, type[Strategy]] = {
    "dps": DPS,
    "mcg": MCG,
    "pigdm": PiGDM,
    "tmpd": TMPD,
    "mmps": MMPS,
    "ddnm": DDNM,
    "ddnm+": DDNMPlus,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "reddiff": REDDiff,
    "daps": DAPS,
    "pnpdm": PnPDM,
    "tds": TDS,
    "mcgdiff": MCGDiff,
    "fps": FPS,
    "afdps": AFDPS,
    "fk": FK,
}


def names() -> list[str]:
    """Names that ``solve(..., solver=name)`` knows."""
    return list(STRATEGIES)


def get(name: str | Strategy) -> Strategy:
    """The strategy of that name with its default settings (a strategy is handed back as it is).

    A preset, by its name (``presets()`` lists them: ``"diffpir@superres"``) or by the path of its file, gives the strategy with its
    settings. An unknown name raises ``ValueError`` with the list, anything else ``TypeError``.
    """
    if isinstance(name, Strategy):
        return name
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name or a strategy such as DPS(steps=50), got {name!r}")
    if is_preset(name):
        found = read(name)
        try:
            return with_settings(get(found["solver"]), found["settings"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"preset {name}: {error}") from None
    if name.lower() not in STRATEGIES:
        raise ValueError(f"unknown solver {name!r}; known: auto, {', '.join([*names(), *presets()])}")
    return STRATEGIES[name.lower()]()

