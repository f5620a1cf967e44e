"""Denoisers that another library has built: EDM's and k-diffusion's, azula's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.priors.schedule import ConvertedPrior


class KarrasPrior(ConvertedPrior):
    """A denoiser called as ``model(z, sigma)``, ``sigma`` of shape (B,), images in ``pixels``: EDM's and k-diffusion's.

    ``priors.load("edm:FILE.pkl")`` makes one of EDM's own files (:mod:`invdiff.priors.from_edm`). ``sigmas`` is the trained range in
    the network's unit. Keywords of the call, such as ``class_labels``, go to the model.
    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        pixels: tuple[float, float] = (-1.0, 1.0),
        sigmas: tuple[float, float] = (0.002, 80.0),
        **about: Any,
    ) -> None:
        super().__init__(pixels, sigmas, **about)
        self.model = model

    def denoise(self, z: Tensor, level: Tensor, **kwargs: Any) -> Tensor:
        dtype = next((p.dtype for p in self.parameters()), z.dtype)
        if dtype in (torch.bfloat16, torch.float16):  # the model scales image and level itself, which 16 bits are too few for
            with torch.autocast(z.device.type, dtype):
                return self.model(z, level.to(z), **kwargs)
        return self.model(z.to(dtype), level.to(dtype), **kwargs)


class AzulaPrior(ConvertedPrior):
    """A denoiser of azula: ``denoiser(x_t, t).mean`` with ``x_t = alpha_t z0 + sigma_t n``, ``t`` in [0, 1].

    ``alpha_t, sigma_t = denoiser.schedule(t)`` may be any of azula's schedules; the time of a level is found by bisection of
    ``log(sigma_t / alpha_t)``, which ascends. Levels outside the schedule are clamped; below it the score is that of its
    lowest level (as in :class:`invdiff.priors.schedule.Schedule`), so that the answer tends to ``z`` as sigma tends to 0.
    """

    def __init__(self, denoiser: Any, pixels: tuple[float, float] = (-1.0, 1.0), **about: Any) -> None:
        alpha, sigma = denoiser.schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
        low, high = (sigma / alpha).tolist()
        super().__init__(pixels, (low, high), **about)
        self.denoiser = denoiser
        self.lowest = low

    def denoise(self, z: Tensor, level: Tensor, **kwargs: Any) -> Tensor:
        begin, end = torch.zeros_like(level), torch.ones_like(level)
        for _ in range(50):
            t = (begin + end) / 2
            alpha, sigma = self.denoiser.schedule(t)
            below = sigma < level * alpha
            begin, end = torch.where(below, t, begin), torch.where(below, end, t)
        axes = (-1,) + (1,) * (z.ndim - 1)
        mean = self.denoiser(alpha.to(z).view(axes) * z, t.to(z), **kwargs).mean
        return z + (level / self.lowest).clamp(max=1).square().to(z).view(axes) * (mean - z)
