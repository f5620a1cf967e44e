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


def coil_maps(*shape: int) -> torch.Tensor:
    """Random complex sensitivities with ``sum |S|^2 = 1``."""
    maps = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(5))
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def line_masks() -> torch.Tensor:
    """One k-space mask for each of three images."""
    return torch.stack([ops.random_lines_mask((16, 13), 2, seed=s)[None] for s in range(3)])


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
    "decoded": lambda: (ops.Decoded(ops.Denoising(0.05), torch.nn.PixelShuffle(2), (4, 8, 7)), (4, 8, 7)),
    "decoded-masks": lambda: (
        ops.Decoded(
            ops.Inpainting(torch.stack([ops.random_mask((16, 14), 0.6, s)[None] for s in range(3)]), 0.05),
            torch.nn.PixelShuffle(2),
            (4, 8, 7),
        ),
        (4, 8, 7),
    ),
    # computed tomography
    "tomography": lambda: (ops.Tomography(12, 40, noise=0.05), (2, 12, 12)),
    "tomography-sparse": lambda: (ops.Tomography(15, 5, noise=0.05), (1, 15, 15)),
    "tomography-fan": lambda: (ops.Tomography(12, 40, "fan", 0.05), (1, 12, 12)),
    "tomography-uneven": lambda: (
        ops.Tomography(12, [0.0, 31.0, 77.0, 102.5], detectors=14, center=1.3, pitch=1.4),
        (1, 12, 12),
    ),
    # magnetic resonance
    "mri": lambda: (ops.MRI(ops.equispaced_mask((16, 13), 3), 0.05), (2, 16, 13)),
    "mri-masks": lambda: (ops.MRI(line_masks()), (2, 16, 13)),
    "mri-multicoil": lambda: (ops.MultiCoilMRI(ops.radial_mask((16, 13), 6), coil_maps(4, 16, 13), 0.05), (2, 16, 13)),
    "mri-multicoil-maps": lambda: (ops.MultiCoilMRI(line_masks(), coil_maps(3, 4, 16, 13), 0.05), (2, 16, 13)),
    # nonlinear
    "phase-retrieval": lambda: (ops.PhaseRetrieval((1, 16, 13), 2.0, 0.05), (1, 16, 13)),
    "phase-retrieval-uneven": lambda: (ops.PhaseRetrieval((3, 16, 13), 1.45), (3, 16, 13)),
    "saturation": lambda: (ops.Saturation(2.0, 0.05), (3, 16, 13)),
    "gamma-quantisation": lambda: (ops.GammaQuantisation(2.2, 6, 0.05), (3, 16, 13)),
    "nonlinear-blur": lambda: (ops.NonlinearBlur(uneven_kernel(4, 5), noise=0.05), (3, 16, 13)),
    "nonlinear-blur-kernels": lambda: (ops.NonlinearBlur(uneven_kernel(3, 1, 4, 5), noise=0.05), (3, 16, 13)),
}
