"""Turn any denoiser into a prior: the call ``prior(x, sigma)`` plus the four numbers that solvers ask for."""

from __future__ import annotations

from typing import Any

from deepinv.models import Denoiser
from torch import Tensor

DEFAULTS = {"mean": 0.5, "std": 0.25, "sigma_min": 0.002, "sigma_max": 20.0}  # photographs in [0, 1]


class Prior(Denoiser):
    """A denoiser with metadata: ``mean`` and ``std`` of the pixels, ``sigma_min`` and ``sigma_max`` of its range.

    What the wrapped object has under these names is kept; the rest are the values for photographs in [0, 1].
    The noise level is handed on as a float where all images share one, since ``x / (1 + sigma**2)`` in
    a plain function fails with a tensor (B,).
    """

    mean: float | Tensor
    std: float
    sigma_min: float
    sigma_max: float

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        for name, default in DEFAULTS.items():
            value = getattr(denoiser, name, default)
            setattr(self, name, value if isinstance(value, (float, int, Tensor)) else default)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        if isinstance(sigma, Tensor) and bool((sigma == sigma.reshape(-1)[0]).all()):
            sigma = float(sigma.reshape(-1)[0])
        return self.denoiser(x, sigma, **kwargs)


def as_prior(obj: Any) -> Denoiser:
    """``obj`` itself if it is a denoiser with the metadata of :class:`Prior`, else ``obj`` wrapped in one.

    ``obj`` is a deepinv ``Denoiser``, another ``nn.Module`` or a function, called as ``obj(x, sigma)``: images
    (B, C, H, W) in [0, 1] plus noise of standard deviation ``sigma`` in, an estimate of the clean images out.
    """
    if isinstance(obj, type) or not callable(obj):
        given = f"the class {obj.__name__}; give an instance of it" if isinstance(obj, type) else f"{obj!r}"
        raise TypeError(
            "a prior is a denoiser called as prior(x, sigma): a deepinv Denoiser, an nn.Module or a function; "
            f"got {given}. priors.load(name) loads one of those that ship"
        )
    complete = isinstance(obj, Denoiser) and all(hasattr(obj, name) for name in DEFAULTS)
    return obj if complete else Prior(obj)
