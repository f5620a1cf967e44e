"""The strategies, one file each; ``names()`` lists them, ``get(name)`` gives one with its defaults."""

from __future__ import annotations

from deepinv.physics import LinearPhysics, Physics

from invdiff.operators import Gaussian, Noise
from invdiff.solvers.base import Guided, Strategy
from invdiff.solvers.diffpir import DiffPIR
from invdiff.solvers.dps import DPS
from invdiff.solvers.mcg import MCG
from invdiff.solvers.pigdm import PiGDM
from invdiff.solvers.reddiff import REDDiff
from invdiff.solvers.spectral import DDNM, DDRM, DDNMPlus

__all__ = ["DDNM", "DDRM", "DPS", "MCG", "DDNMPlus", "DiffPIR", "Guided", "PiGDM", "REDDiff", "Strategy", "choose", "get", "names"]

STRATEGIES: dict[str, type[Strategy]] = {
    "dps": DPS,
    "mcg": MCG,
    "pigdm": PiGDM,
    "ddnm": DDNM,
    "ddnm+": DDNMPlus,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "reddiff": REDDiff,
}


def names() -> list[str]:
    """Names that ``solve(..., solver=name)`` knows."""
    return list(STRATEGIES)


def get(name: str) -> Strategy:
    """The strategy of that name with its default settings; an unknown name raises ``ValueError`` with the list."""
    if name.lower() not in STRATEGIES:
        raise ValueError(f"unknown solver {name!r}; known: auto, {', '.join(names())}")
    return STRATEGIES[name.lower()]()


def choose(A: Physics, noise: Noise) -> Strategy:
    """The strategy of ``solver="auto"``: DiffPIR where the operator is linear and the noise Gaussian, else DPS.

    DiffPIR has the best image quality of the gradient-free strategies in the table of ``docs/strategies.md``; DPS asks
    for nothing but a differentiable operator and a likelihood.
    """
    return DiffPIR() if isinstance(A, LinearPhysics) and isinstance(noise, Gaussian) else DPS()
