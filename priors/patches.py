"""Priors of images applied to parts of something larger: patches of a large image, slices of a volume.

Parts are evaluated some at a time, so that the memory of the network does not grow with the whole, also where the result is
differentiated: there each is computed again in the backward pass. ``result.nfe`` counts a whole, of however many parts, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invdiff.priors.condition import Rows, select
from invdiff.priors.wrap import Prior, as_prior

Box = tuple[slice, slice]  # rows and columns
recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # priors draw no random numbers


class Patched(Prior):
    """A prior on overlapping square patches, for images larger than it can or should see at once.

    Patches of ``size`` begin every ``size - overlap`` pixels, and the last ones end with the image; an axis shorter than
    ``size`` is taken whole. They are blended by smooth weights over the inner half of the overlap; the outer
    quarters only give context. So where a pixel of the prior's output depends on no more than ``overlap / 4`` pixels
    around it, the result is that of the prior on the whole image. (A network that halves the resolution must find
    its patches on its grid too: ``size - overlap`` has to be a multiple of ``net.multiple``, and the last patches differ
    a little unless the image is also.) What spans more than a patch, the prior does not see.

    Args:
        prior: for images (B, C, H, W).
        size: side of a patch, in pixels.
        overlap: pixels that neighbours share, from 0 to half the size.
        at_once: patches in one call of the network, which bounds its memory.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(self, prior: Any, size: int, overlap: int, at_once: int = 16) -> None:
        super().__init__(as_prior(prior))
        check_tiles(size, overlap, at_once)
        self.size, self.overlap, self.at_once = size, overlap, at_once
        if isinstance(self.mean, Tensor) and self.mean.ndim:  # of a patch; an image has one number a channel
            self.mean = self.mean.mean((-2, -1), keepdim=True)

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Rows | None = None, **kwargs: Any) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"a prior of patches takes images of shape (B, C, H, W), got {tuple(x.shape)}")
        boxes = tiles(x.shape[-2], x.shape[-1], self.size, self.overlap)
        patches = torch.cat([x[..., rows, columns] for rows, columns in boxes])
        owners = list(range(len(x))) * len(boxes)
        out = _evaluate(self.denoiser, patches, owners, sigma, condition, self.at_once, **kwargs)
        return blend(out.split(len(x)), boxes, self.overlap)


class Slices(Prior):
    """A prior of images on the slices of volumes (B, C, D, H, W), each by itself.

    ``axis`` says which of D, H, W counts the slices: 0, 1 or 2. Slices know nothing of each other, so samples are
    independent from slice to slice wherever the measurement does not tie them; a geometric mean over the three axes ties them:
    ``Product([Slices(prior, axis) for axis in range(3)], weights=[1 / 3] * 3)``.

    ``at_once`` slices are in one call of the network, which bounds its memory. ``ValueError`` for another axis or shape.

    Source: Lee et al. 2023, "Improving 3D Imaging with Pre-Trained Perpendicular 2D Diffusion Models" (several axes).
    """

    def __init__(self, prior: Any, axis: int = 0, at_once: int = 16) -> None:
        super().__init__(as_prior(prior))
        if axis not in (0, 1, 2) or at_once < 1:
            raise ValueError(f"axis is 0, 1 or 2 for D, H, W, and at_once at least 1; got {axis} and {at_once}")
        self.axis, self.at_once = axis, at_once
        if isinstance(self.mean, Tensor) and self.mean.ndim:
            self.mean = self.mean.unsqueeze(1 + axis)

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Rows | None = None, **kwargs: Any) -> Tensor:
        if x.ndim != 5:
            raise ValueError(f"a prior of slices takes volumes of shape (B, C, D, H, W), got {tuple(x.shape)}")
        stack = x.movedim(2 + self.axis, 1)
        count = stack.shape[1]
        owners = [row for row in range(len(x)) for _ in range(count)]
        out = _evaluate(self.denoiser, stack.flatten(0, 1), owners, sigma, condition, self.at_once, **kwargs)
        return out.unflatten(0, (len(x), count)).movedim(1, 2 + self.axis)


def _evaluate(
    prior: Any,
    parts: Tensor,
    owners: Sequence[int],
    sigma: float | Tensor,
    condition: Rows | None,
    at_once: int,
    **kwargs: Any,
) -> Tensor:
    """``prior`` on ``parts`` (N, C, h, w), ``at_once`` a call, each with noise level and condition of the row that owns it."""
    if not len(parts):
        raise ValueError("no images: a prior on parts of images takes a batch (B, C, ...) of at least one, with no empty side")
    rows = 1 + max(owners)
    out = []
    for begin in range(0, len(parts), at_once):
        mine = list(owners[begin : begin + at_once])
        level = sigma.reshape(-1).expand(rows)[mine] if isinstance(sigma, Tensor) else sigma
        given = {} if condition is None else {"condition": select(condition, mine)}
        out.append(recomputed(prior, parts[begin : begin + at_once], level, **given, **kwargs))
    return torch.cat(out)


def check_tiles(size: int, overlap: int, at_once: int = 1) -> None:
    """``ValueError`` unless tiles of this size and overlap cover an image."""
    whole = all(isinstance(value, Integral) for value in (size, overlap, at_once))
    if not whole or size < 1 or not 0 <= 2 * overlap <= size or at_once < 1:
        raise ValueError(
            "patches have a size of at least 1, an overlap from 0 to half of it, and at least 1 at once, all whole numbers; "
            f"got size={size}, overlap={overlap}, at_once={at_once}"
        )


def tiles(height: int, width: int, size: int, overlap: int) -> list[Box]:
    """Overlapping squares of ``size`` that cover an image; the last one is at its lower right corner."""
    axes = []
    for n in (height, width):
        count = 1 + max(0, math.ceil((n - size) / (size - overlap)))
        starts = [max(0, min(i * (size - overlap), n - size)) for i in range(count)]
        axes.append([slice(start, min(n, start + size)) for start in starts])
    return list(product(*axes))


def scaled(box: Box, factor: int) -> Box:
    """The tile of an image ``factor`` times as large."""
    rows, columns = (slice(s.start * factor, s.stop * factor) for s in box)
    return rows, columns


def blend(parts: Iterable[Tensor], boxes: Sequence[Box], overlap: int) -> Tensor:
    """The images (B, C, H, W) whose tiles :func:`tiles` ``boxes`` are ``parts``, each (B, C, h, w)."""
    height, width = boxes[-1][0].stop, boxes[-1][1].stop
    total = weight = torch.zeros(())
    for i, (part, (rows, columns)) in enumerate(zip(parts, boxes)):
        if i == 0:
            total = part.new_zeros(*part.shape[:2], height, width)
            weight = part.new_zeros(height, width)
        window = _ramp(rows, height, overlap).to(part)[:, None] * _ramp(columns, width, overlap).to(part)
        total[..., rows, columns] += window * part
        weight[rows, columns] += window
    return total / weight


def _ramp(span: slice, n: int, overlap: int) -> Tensor:
    """Weights along one axis of a tile: 0 in the outer quarter of an overlap, sin^2 over its half, 1 inside.

    Those of two neighbours sum to 1. There is no ramp at the border of the image, of ``n`` pixels.
    """
    i = torch.arange(span.start, span.stop, dtype=torch.float64) + 0.5
    distance = torch.full_like(i, math.inf)
    if span.start > 0:
        distance = i - span.start
    if span.stop < n:
        distance = torch.minimum(distance, span.stop - i)
    return (math.pi / 2 * ((distance - overlap / 4) / max(overlap / 2, 1e-3)).clamp(0, 1)).sin().square()
