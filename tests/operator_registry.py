"""Every operator under test: name -> a factory of (operator, image shape (C, H, W)).

An operator that is registered here gets all the laws of ``invdiff.operators.check`` as tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv import physics as dinv

from invdiff import operators as ops

Shape = tuple[int, int, int]


def uneven_kernel(*shape: int) -> torch.Tensor:
    """A kernel without any symmetry, so that flips, shifts and swapped axes show."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1


def smooth_cube(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 * x**3


REGISTRY: dict[str, Callable[[], tuple[dinv.Physics, Shape]]] = {
    # images: masks, blur, downsampling and the simple ones
    "denoising": lambda: (ops.Denoising(0.1), (3, 16, 13)),
    "denoising-poisson": lambda: (ops.Denoising(ops.Poisson(0.05)), (1, 16, 13)),
    "denoising-poisson-gaussian": lambda: (ops.Denoising(ops.PoissonGaussian(0.05, 0.1)), (1, 16, 13)),
    "inpainting": lambda: (ops.Inpainting(ops.random_mask((16, 13)), 0.05), (3, 16, 13)),
    "inpainting-box": lambda: (ops.Inpainting(ops.box_mask((16, 13), 5)), (3, 16, 13)),
    "inpainting-masks": lambda: (
        ops.Inpainting(torch.stack([ops.random_mask((1, 16, 13), 0.6, s)[None] for s in range(3)]), 0.05),
        (2, 16, 13),
    ),
    "decolorize": lambda: (ops.Decolorize(0.05), (3, 16, 13)),
    "decolorize-mean": lambda: (ops.Decolorize(0.05, weights="mean"), (3, 16, 13)),
    "compressed-sensing": lambda: (ops.CompressedSensing((2, 16, 13), 0.4, noise=0.05), (2, 16, 13)),
    "blur-circular": lambda: (ops.Blur(uneven_kernel(4, 5), 0.05), (3, 18, 15)),
    "blur-gaussian": lambda: (ops.Blur(ops.gaussian_kernel(1.2), 0.05), (1, 18, 15)),
    "blur-kernels": lambda: (ops.Blur(uneven_kernel(3, 1, 4, 5), 0.05), (3, 18, 15)),
    "blur-valid": lambda: (ops.Blur(uneven_kernel(4, 5), 0.05, boundary="valid"), (3, 18, 15)),
    "blur-reflect": lambda: (ops.Blur(uneven_kernel(4, 5), 0.05, boundary="reflect"), (3, 18, 15)),
    "downsampling-average": lambda: (ops.Downsampling(4, noise=0.05), (3, 16, 24)),
    "downsampling-odd": lambda: (ops.Downsampling(3, "bicubic", 0.05), (1, 15, 27)),
    "downsampling-bicubic": lambda: (ops.Downsampling(4, "bicubic", 0.05), (3, 16, 24)),
    "downsampling-kernel": lambda: (ops.Downsampling(2, uneven_kernel(4, 6), 0.05), (3, 16, 14)),
    "downsampling-kernels": lambda: (ops.Downsampling(2, uneven_kernel(3, 1, 4, 6), 0.05), (3, 16, 14)),
    "callable": lambda: (ops.from_callable(smooth_cube, 0.05), (1, 16, 13)),
    # computed tomography: entries go here
    # magnetic resonance: entries go here
    # nonlinear: entries go here
}
