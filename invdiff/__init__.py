"""Imaging inverse problems with diffusion priors: ``solve(y, A, prior)``.

    from invdiff import solve, operators, priors
    A = operators.Inpainting(mask=mask, noise=0.05)
    result = solve(y, A, priors.load("natural"))
    result.x, result.std

``A`` is the forward operator (any deepinv ``Physics``, or a plain callable), ``prior`` a denoiser
``prior(x, sigma) = E[x0 | x0 + sigma n = x]``, ``y`` the measurement, batch first. Images are floats, nominally in
[0, 1]; noise levels are in the same unit. Names are loaded when first used, so that importing costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a source checkout `operators/` and `priors/` lie beside this folder; find them there even where the project is
# not installed, or is installed elsewhere.
_root = Path(__file__).resolve().parent
if not (_root / "operators").is_dir():
    __path__.append(str(_root.parent))

if TYPE_CHECKING:
    from invdiff import operators, priors, solvers
    from invdiff.result import Result, citation
    from invdiff.solving import solve

__all__ = ["Result", "citation", "operators", "priors", "solve", "solvers"]

_ATTRIBUTES = {"solve": "invdiff.solving", "Result": "invdiff.result", "citation": "invdiff.result"}


def __getattr__(name: str) -> Any:
    if name in ("operators", "priors", "solvers"):
        return import_module(f"invdiff.{name}")
    if name in _ATTRIBUTES:
        return getattr(import_module(_ATTRIBUTES[name]), name)
    raise AttributeError(f"module 'invdiff' has no attribute {name!r}")
