"""Drawing from a prior, without any measurement, and laying the images out on a sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invdiff.priors.condition import Condition, select, told
from invdiff.priors.latent import LatentPrior
from invdiff.priors.wrap import as_prior
from invdiff.samplers import DPMSolver2M, Estimate, Sampler, ladder, reverse
from invdiff.seeds import seeded

SAMPLER = DPMSolver2M()
TOGETHER = 2**18  # pixels computed at a time


def sample(
    prior: Any,
    shape: tuple[int, int, int, int],
    *,
    seed: int = 0,
    steps: int = 40,
    sampler: Sampler = SAMPLER,
    condition: Condition = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Draw images of ``shape`` (n, C, H, W) from ``prior``.

    The reverse process runs from ``mean + sqrt(sigma_max^2 + std^2) z`` down ``steps`` levels evenly spaced in log sigma, to
    ``prior.sigma_min``, and then to 0. Image ``i`` depends on (seed, i) alone, however many are drawn and on whatever device;
    to rounding. ``progress(share)`` is called after every level.

    :param prior: any denoiser ``prior(x, sigma)``; where it does not say its pixels' ``mean`` and ``std`` and its noise range, those of
        :func:`~invdiff.priors.as_prior` are taken. Of a ``LatentPrior`` latents are drawn and decoded; how many channels the
        images have is then up to its decoder.
    :param condition: what the prior is told of the images, one for all or one an image, as in ``solve``.
    :raises ValueError: the shape is not four positive whole numbers, ``steps`` no whole number or under 1, ``seed`` not from 0 to 2^32 - 1, or the condition is of another number of images.
    :raises TypeError: the prior is no denoiser of images, or takes no condition and there is one.
    """
    if not isinstance(shape, Sequence) or len(shape) != 4 or not all(_positive(n) for n in shape):
        raise ValueError(f"shape is (n, C, H, W), four positive whole numbers, got {shape!r}")
    if not _positive(steps):
        raise ValueError(f"steps is a whole number, at least 1, got {steps!r}")
    if isinstance(prior, LatentPrior):
        latents = (shape[0], *prior.latent_shape(shape[1:]))
        z = sample(
            prior.denoiser, latents, seed=seed, steps=steps, sampler=sampler, condition=condition, progress=progress
        )
        return decoded(prior, z, shape[2:])
    prior = as_prior(prior)
    device = device_of(prior)
    rows = told(prior, condition, shape[0], device)
    levels = ladder(steps, float(prior.sigma_max), float(prior.sigma_min))
    mean = torch.as_tensor(prior.mean, dtype=torch.float32, device=device)
    width = math.sqrt(float(prior.sigma_max) ** 2 + float(prior.std) ** 2)
    chunk = max(1, TOGETHER // (shape[2] * shape[3]))
    parts, done = [], 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done / (steps * math.ceil(shape[0] / chunk)))

    for first in range(0, shape[0], chunk):
        images = range(first, min(first + chunk, shape[0]))
        given = {} if rows is None else {"condition": select(rows, images)}
        generators = [seeded(seed, i) for i in images]

        def randn(generators: list[torch.Generator] = generators) -> Tensor:
            return torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).to(device)

        def denoise(x: Tensor, s: float, given: dict[str, Any] = given) -> Estimate:
            x0 = prior(x, s, **given)
            if not isinstance(x0, Tensor) or x0.shape != x.shape:
                found = f"a tensor of shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
                raise TypeError(f"a prior maps noisy images (B, C, H, W) to clean ones of the same shape; of {tuple(x.shape)} this one made {found}")
            return Estimate(x0, (x - x0) / s)

        memory: dict[str, Tensor] = {}
        with torch.no_grad():
            x = reverse(
                lambda x, s, t, randn=randn, memory=memory: sampler.step(denoise, x, s, t, randn, memory),  # type: ignore[misc]
                mean + width * randn(),
                levels,
                tick,
            )
        parts.append(x.cpu())
    return torch.cat(parts)


def _positive(n: Any) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0


@torch.no_grad()
def decoded(prior: LatentPrior, z: Tensor, size: tuple[int, int]) -> Tensor:
    """The images (n, C, H, W) of latents (n, c, h, w), some at a time on the prior's device, and brought back."""
    chunk = max(1, TOGETHER // (size[0] * size[1]))
    return torch.cat([prior.decode(part.to(device_of(prior)), size).to(z.device) for part in z.split(chunk)])


def device_of(prior: nn.Module) -> torch.device:
    """The device of a prior's parameters and buffers; the CPU for one without."""
    return next((p.device for p in chain(prior.parameters(), prior.buffers())), torch.device("cpu"))


def shown(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as one looks at them: of complex ones (C = 2) the magnitude, clipped to [0, 1]."""
    return (torch.linalg.vector_norm(images, dim=1, keepdim=True) if images.shape[1] == 2 else images).clamp(0, 1)


def sheet(images: Tensor, columns: int | None = None) -> Tensor:
    """Images (B, C, H, W) in rows, on white, as one picture (1, C, H', W'); by default about as many rows as columns."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    tiles = F.pad(shown(images), (2, 2, 2, 2), value=1.0)
    rows = math.ceil(len(tiles) / columns)
    blank = torch.ones(rows * columns - len(tiles), *tiles.shape[1:])
    grid = torch.cat([tiles, blank]).view(rows, columns, *tiles.shape[1:]).permute(2, 0, 3, 1, 4)
    return grid.reshape(1, grid.shape[0], grid.shape[1] * grid.shape[2], -1)
