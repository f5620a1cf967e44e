"""Inpainting, and masks to inpaint with.

A mask is 1 where a pixel is known and 0 where it is not. The makers return masks of shape (H, W), one mask for all
channels; their argument ``shape`` is the shape of the image, of which only the last two axes count.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from deepinv import physics as dinv
from PIL import Image
from torch import Tensor

from invdiff.operators.base import Spectral
from invdiff.seeds import seeded


class Inpainting(Spectral):
    """``y = mask * x + noise``: the known pixels of ``x`` with noise, and zeros elsewhere.

    Args:
        mask: 1 or True where a pixel is known, 0 or False where not; shape (H, W), (C, H, W) or (B, C, H, W), where
            C and B may be 1 (the same mask for every channel or image).
        noise: level (standard deviation, unit of the image) or a noise model; unknown pixels stay zero.

    The singular value decomposition is the mask itself, with ``U = V = identity``.

    Raises:
        ValueError: the mask has other values than 0 and 1, knows no pixel, or does not fit the image.
    """

    per_image = ("mask",)

    def __init__(self, mask: Tensor, noise: float | Tensor | dinv.NoiseModel | None = None) -> None:
        if not isinstance(mask, Tensor) or not 2 <= mask.ndim <= 4:
            raise ValueError(f"a mask is a tensor (H, W), (C, H, W) or (B, C, H, W), got {_describe(mask)}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("a mask holds 0 (unknown) and 1 (known) only; threshold it first, e.g. mask > 0.5")
        if not bool(mask.any()):
            raise ValueError("the mask is zero everywhere, so that nothing is measured; 1 means known")
        mask = mask[(None,) * (4 - mask.ndim)]
        super().__init__(noise, mask=mask.double() if mask.dtype == torch.float64 else mask.float())
        self.img_size = tuple(mask.shape[1:]) if mask.shape[1] > 1 else None

    def measure(self, x: Tensor, seed: int = 0) -> Tensor:
        return self.mask * super().measure(x, seed)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.mask * super().noise(x, **kwargs)

    def V_adjoint(self, x: Tensor) -> Tensor:
        try:
            fits = torch.broadcast_shapes(x.shape, self.mask.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"an image of shape {tuple(x.shape)} does not fit the mask of shape {tuple(self.mask.shape)}; "
                "height and width must agree, batch and channels too unless the mask has 1 there"
            )
        return x

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.V_adjoint(x)


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def random_mask(shape: tuple[int, ...], keep: float = 0.5, seed: int = 0) -> Tensor:
    """Know ``round(keep * H * W)`` pixels (at least one), drawn at random; ``0 < keep <= 1``."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction of known pixels, above 0 and at most 1, got {keep}")
    h, w = shape[-2:]
    order = torch.randperm(h * w, generator=seeded(seed))
    return (order < max(1, round(keep * h * w))).float().view(h, w)


def box_mask(shape: tuple[int, ...], size: int | tuple[int, int], where: tuple[int, int] | str = "center") -> Tensor:
    """Know everything but a box of ``size`` (height, width) pixels, whose top left corner is at ``where``."""
    h, w = shape[-2:]
    bh, bw = (size, size) if isinstance(size, int) else size
    if isinstance(where, str) and where != "center":
        raise ValueError(f'where is (top, left) or "center", got "{where}"')
    top, left = ((h - bh) // 2, (w - bw) // 2) if isinstance(where, str) else where
    if min(bh, bw) < 1 or min(top, left) < 0 or top + bh > h or left + bw > w:
        raise ValueError(f"a box of {bh}x{bw} at {(top, left)} does not lie inside an image of {h}x{w}")
    mask = torch.ones(h, w)
    mask[top : top + bh, left : left + bw] = 0
    return mask


def line_mask(shape: tuple[int, ...], every: int = 2, columns: bool = False) -> Tensor:
    """Know one row of ``every`` (or one column), beginning with the first."""
    h, w = shape[-2:]
    if not 1 <= every <= (w if columns else h):
        raise ValueError(f"every is between 1 and the number of lines, {w if columns else h}, got {every}")
    mask = torch.zeros(h, w)
    (mask.T if columns else mask)[::every] = 1
    return mask


def mask_from_image(path: str | PathLike[str]) -> Tensor:
    """Read a free-form mask: known where the image file is brighter than mid-grey (white), unknown where black."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("L")) > 127).float()
