"""Who takes part: the strategies of this package, classical baselines, and other libraries (:mod:`invdiff.bench.foreign`).

A contestant of your own is a strategy (a subclass of ``Strategy``), or a function of a :class:`~invdiff.bench.case.Case` that
returns an :class:`~invdiff.bench.case.Outcome`; its further arguments are settings of the suite. It raises ``ValueError`` or ``TypeError`` where it cannot treat the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Literal

import torch
from deepinv.physics import Denoising, Physics
from torch.nn import functional as F

from invdiff import operators, samplers, solvers
from invdiff.baseline import best_tv
from invdiff.bench import foreign
from invdiff.bench.case import Case, Outcome
from invdiff.bench.components import (
    Component,
    Room,
    bound,
    build,
    find,
    of_dataclass,
    room_of,
    split,
    text,
    with_defaults,
)
from invdiff.operators import Noise
from invdiff.solvers import Strategy
from invdiff.solvers.auto import Budget
from invdiff.solvers.preset import is_preset
from invdiff.solving import solve

Contestant = Callable[[Case], Outcome]


# Classical baselines: they know no prior


def measurement(case: Case) -> Outcome:
    """What was recorded, enlarged to the size of the image where it is smaller: what the others have to improve on."""
    if case.y.shape == case.truth.shape:
        return Outcome(case.y)
    if case.y.ndim != 4 or case.y.shape[1] != case.truth.shape[1]:
        raise ValueError("this measurement is no picture; take fbp or zero_filled")
    return Outcome(F.interpolate(case.y, case.truth.shape[-2:], mode="bicubic", align_corners=False))


def total_variation(case: Case, weights: Sequence[float] | None = None, iterations: int = 150) -> Outcome:
    """Total variation at the weight that is best for the truth, refined from ``weights`` (by default noise * 2^-5 to 2^0)."""
    if not hasattr(case.A, "prox_l2"):
        raise ValueError("total variation needs a linear operator")
    tries = [_level(case) * 2.0**k for k in range(-5, 1)] if weights is None else weights
    box = bool(case.truth.min() >= 0 and case.truth.max() <= 1)
    return Outcome(best_tv(case.y, case.A, case.truth, tries, iterations=iterations, box=box).x)


def wavelets(case: Case, method: str = "BayesShrink") -> Outcome:
    """scikit-image's wavelet denoising, of what is only noisy. Needs PyWavelets (extra ``bench``)."""
    from skimage.restoration import denoise_wavelet

    _only_noisy(case, "wavelets")
    image = case.y[0].cpu().numpy()
    x = denoise_wavelet(image, sigma=_level(case), method=method, mode="soft", rescale_sigma=True, channel_axis=0)
    return Outcome(torch.from_numpy(x)[None].to(case.y))


def bm3d(case: Case) -> Outcome:
    """Block matching and 3-D filtering, of what is only noisy. Needs the package bm3d (its own terms: not for commercial use)."""
    from bm3d import bm3d as filtered
    from bm3d import bm3d_rgb  # matches blocks by luminance: CBM3D

    _only_noisy(case, "bm3d")
    image = case.y[0].permute(1, 2, 0).cpu().numpy()
    x = torch.from_numpy((bm3d_rgb if image.shape[-1] == 3 else filtered)(image, _level(case))).view(*image.shape)
    return Outcome(x.permute(2, 0, 1)[None].to(case.y))


def fbp(case: Case, window: Literal["ramp", "hann"] = "hann") -> Outcome:
    """Filtered back-projection."""
    if not isinstance(case.A, operators.Tomography):
        raise TypeError("filtered back-projection needs tomography")
    return Outcome(case.A.fbp(case.y, window))


def zero_filled(case: Case) -> Outcome:
    """The adjoint: of MRI, the inverse transform with zeros where nothing was sampled, coils combined."""
    if not hasattr(case.A, "A_adjoint"):
        raise ValueError("the adjoint needs a linear operator")
    return Outcome(case.A.A_adjoint(case.y))


def pseudo_inverse(case: Case) -> Outcome:
    """Least squares of smallest norm; of MRI with several coils, SENSE."""
    if not hasattr(case.A, "A_dagger"):
        raise ValueError("the pseudo-inverse needs a linear operator")
    return Outcome(case.A.A_dagger(case.y))


def _level(case: Case) -> float:
    return float(torch.as_tensor(case.noise.sigma).max())


def _only_noisy(case: Case, name: str) -> None:
    if not isinstance(case.A, (operators.Denoising, Denoising)):
        raise TypeError(f"{name} only removes noise; this task does more than add it")


# The prior alone


def denoiser(case: Case) -> Outcome:
    """One evaluation of the prior at the noise level, ``E[x0 | y]``: how well it denoises what is only noisy."""
    _only_noisy(case, "one evaluation of the prior")
    return Outcome(case.prior(case.y, _level(case)))


# All of them


CLASSICAL: Room = {f.__name__: f for f in (measurement, total_variation, wavelets, bm3d, fbp, zero_filled, pseudo_inverse)}
_OURS = {
    name: kind
    for module, names in ((samplers, vars(samplers)), (solvers, solvers.__all__))
    for name, kind in room_of(module, names).items()
    if isinstance(kind, type) and is_dataclass(kind)
}  # strategies, and what their settings are made of
_NAMES: dict[type, str] = {kind: name for name, kind in _OURS.items()}
CONTESTANTS: Room = {**solvers.STRATEGIES, **_OURS, **CLASSICAL, **foreign.METHODS, "together": foreign.together, "denoiser": denoiser}


def complete(component: Component) -> Component:
    """A contestant with all its settings written out, so that a change of defaults does not change it.

    ``ValueError`` or ``TypeError`` for one that does not exist, or does not take these settings. "auto" is completed by :func:`chosen`.
    """
    if is_auto(component):
        return with_defaults(component, {"auto": _auto})
    if isinstance(component, str) and is_preset(component):
        return of_dataclass(solvers.get(component), _NAMES)
    if is_strategy(component):
        return of_dataclass(build(component, CONTESTANTS), _NAMES)
    name, _ = split(component)
    if isinstance(find(name, CONTESTANTS), type):
        raise TypeError(f"{name} is no contestant: a strategy, or a function of a case, is needed")
    bound(component, CONTESTANTS, {}, ("case",))
    return with_defaults(component, CONTESTANTS)


def is_auto(component: Component) -> bool:
    """Whether this is "auto", or {"auto": {"budget": ...}}: to be replaced by what it takes."""
    return split(component)[0] == "auto"


def _auto(budget: Budget = "balanced") -> None:
    """What "auto" may be told."""


def chosen(component: Component, A: Physics, law: Noise, samples: int | None) -> tuple[Component, int]:
    """What ``solver="auto"`` takes for an operator, and how many samples."""
    strategy, count, _ = solvers.choose(A, law, samples, **split(component)[1])
    return of_dataclass(strategy, _NAMES), count


def is_strategy(component: Component) -> bool:
    target = find(split(component)[0], CONTESTANTS)
    return isinstance(target, type) and issubclass(target, Strategy)


def settings(component: Component) -> str:
    """A completed contestant as a line of text: a strategy as it prints itself."""
    return repr(build(component, CONTESTANTS)) if is_strategy(component) else text(component)


def contestant(component: Component) -> Contestant:
    """The function that treats a case."""
    if is_strategy(component):
        return partial(_solve, build(component, CONTESTANTS))
    function, arguments = bound(component, CONTESTANTS, {}, ("case",))
    return partial(function, **arguments)


def _solve(strategy: Strategy, case: Case) -> Outcome:
    result = solve(case.y, case.A, case.prior, strategy, samples=case.samples, seed=case.seed)
    several = len(result.samples) > 1
    samples = result.equal() if several else None  # scores weigh samples equally
    ess, ancestors = (None if v is None else float(v) for v in (result.ess, result.ancestors))
    return Outcome(result.x, samples, result.std if several else None, ess, ancestors)
