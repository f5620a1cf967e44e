"""The strategies, one file each; ``names()`` lists them, ``get(name)`` gives one with its defaults."""

from __future__ import annotations

from invdiff.solvers.auto import Tweedie, choose
from invdiff.solvers.base import Guided, Strategy
from invdiff.solvers.diffpir import DiffPIR
from invdiff.solvers.dps import DPS
from invdiff.solvers.mcg import MCG
from invdiff.solvers.mmps import MMPS
from invdiff.solvers.pigdm import PiGDM
from invdiff.solvers.reddiff import REDDiff
from invdiff.solvers.spectral import DDNM, DDRM, DDNMPlus
from invdiff.solvers.tmpd import TMPD

__all__ = ["DDNM", "DDRM", "DPS", "MCG", "MMPS", "TMPD", "DDNMPlus", "DiffPIR", "Guided", "PiGDM", "REDDiff", "Strategy", "Tweedie", "choose", "get", "names"]

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
}


def names() -> list[str]:
    """Names that ``solve(..., solver=name)`` knows."""
    return list(STRATEGIES)


def get(name: str | Strategy) -> Strategy:
    """The strategy of that name with its default settings (a strategy is handed back as it is).

    An unknown name raises ``ValueError`` with the list, anything else ``TypeError``.
    """
    if isinstance(name, Strategy):
        return name
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name or a strategy such as DPS(steps=50), got {name!r}")
    if name.lower() not in STRATEGIES:
        raise ValueError(f"unknown solver {name!r}; known: auto, {', '.join(names())}")
    return STRATEGIES[name.lower()]()

