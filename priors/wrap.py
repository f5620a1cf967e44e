"""Turn any denoiser into a prior: the call ``prior(x, sigma)`` plus the four numbers that solvers ask for."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

DEFAULTS = {"mean": 0.5, "std": 0.25, "sigma_min": 0.002, "sigma_max": 20.0}  # photographs in [0, 1]


class Outer(nn.Module):
    """A module whose work is done by others inside: ``compile`` compiles those, in place, by ``torch.compile``.

    Only they are compiled: what is around them would be compiled anew for every noise level. Shapes are dynamic unless ``dynamic=`` says
    otherwise. Functions are left as they are. ``TypeError`` where there are only functions.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        inner = _inner(self)
        if not inner:
            raise TypeError(f"this {type(self).__name__} is made of functions, with no module to compile; give it torch.compile(function)")
        for module in inner:
            module.compile(*args, **{"dynamic": True, **kwargs})


def _inner(outer: nn.Module) -> list[nn.Module]:
    """What is to be compiled: modules inside that are not themselves made of others."""
    return [m for child in outer.children() for m in (_inner(child) if isinstance(child, (Outer, nn.ModuleList)) else [child])]


class Prior(Outer, Denoiser):
    """A denoiser with metadata: ``mean`` and ``std`` of the pixels, ``sigma_min`` and ``sigma_max`` of its range.

    Numbers given here come first, then what the wrapped object has under these names, then the values for photographs
    in [0, 1]. ``evaluations`` is how many network evaluations of an image one call takes, 1 unless the wrapped object
    says otherwise; ``result.nfe`` is their sum. The noise level is handed on as a float where all images share one, since
    ``x / (1 + sigma**2)`` in a plain function fails with a tensor (B,).
    """

    mean: float | Tensor
    std: float
    sigma_min: float
    sigma_max: float
    evaluations: int

    def __init__(self, denoiser: Any, **given: float | Tensor | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        for name, default in DEFAULTS.items():
            value = getattr(denoiser, name, default)
            value = value if given.get(name) is None else given[name]
            setattr(self, name, value if isinstance(value, (float, int, Tensor)) else default)
        self.evaluations = getattr(denoiser, "evaluations", 1)
        if not (torch.as_tensor(self.std).gt(0).all() and 0 < self.sigma_min < self.sigma_max):
            raise ValueError(
                "a prior has std > 0 and 0 < sigma_min < sigma_max, "
                f"got {self.std}, {self.sigma_min} and {self.sigma_max}"
            )

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        if isinstance(sigma, Tensor) and sigma.numel() and bool((sigma == sigma.reshape(-1)[0]).all()):
            sigma = float(sigma.reshape(-1)[0])
        return self.denoiser(x, sigma, **kwargs)


def as_prior(
    obj: Any,
    *,
    mean: float | Tensor | None = None,
    std: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Denoiser:
    """``obj`` itself if it is a denoiser with the metadata of :class:`Prior`, else ``obj`` wrapped in one.

    ``obj`` is a deepinv ``Denoiser``, another ``nn.Module`` or a function, called as ``obj(x, sigma)``: images
    (B, C, H, W) in [0, 1] plus noise of standard deviation ``sigma`` in, an estimate of the clean images out.
    ``mean`` and ``std`` of the pixels and the range ``sigma_min`` to ``sigma_max`` of noise levels, where given, replace
    what it says of itself. ``TypeError`` if it cannot be called, ``ValueError`` for numbers out of range.
    """
    if isinstance(obj, type) or not callable(obj):
        what = f"the class {obj.__name__}; give an instance of it" if isinstance(obj, type) else f"{obj!r}"
        raise TypeError(
            "a prior is a denoiser called as prior(x, sigma): a deepinv Denoiser, an nn.Module or a function; "
            f"got {what}. priors.load(name) loads one of those that ship"
        )
    given = {"mean": mean, "std": std, "sigma_min": sigma_min, "sigma_max": sigma_max}
    if any(value is not None for value in given.values()):
        return Prior(obj, **given)
    complete = isinstance(obj, Denoiser) and all(hasattr(obj, name) for name in DEFAULTS)
    return obj if complete else Prior(obj)
