"""Blur by a kernel (point spread function), and kernels to blur with.

A kernel is the image of a point source: ``(k * x)[n] = sum_j k[j] x[n - j + c]`` with the centre ``c = (h // 2, w // 2)``.
Every operator divides its kernel by its sum, so that brightness is kept. The makers return kernels of shape (h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv import physics as dinv
from PIL import Image
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from invdiff.operators.base import Linear, Spectral
from invdiff.operators.border import extend


def hartley(x: Tensor) -> Tensor:
    """Orthonormal Hartley transform of the last two axes: the Fourier transform's real, self-inverse sibling."""
    f = torch.fft.fft2(x, norm="ortho")
    return f.real - f.imag


class Convolution(Linear):
    """Base of the operators built on a circular convolution, computed in Fourier for the image size at hand."""

    per_image = ("kernel",)
    kernel: Tensor
    centre: tuple[int, int]  # the pixel of the kernel that falls on the pixel of the image; subclasses set it

    def __init__(self, kernel: Tensor, noise: Any) -> None:
        super().__init__(noise)
        self.register_buffer("kernel", _normalised(kernel))
        self.register_buffer("mask", torch.tensor(math.nan), persistent=False)  # set once an image size is known
        self._cached: tuple[Any, ...] = ()

    def _singular_values(self, spectrum: Tensor) -> Tensor:
        """Singular values, given the Fourier transform of the kernel on the grid of the image."""
        return spectrum.abs()

    def _transfer(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Fourier transform (half, as of ``rfft2``) of the kernel in an image of ``size``; also sets ``mask``."""
        kernel, key = self.kernel, (self.kernel._version, size, dtype)
        if self._cached and self._cached[0] is kernel and self._cached[1] == key:
            return self._cached[2]
        _check_fit(kernel, *size)
        padded = F.pad(kernel.to(dtype), (0, size[1] - kernel.shape[-1], 0, size[0] - kernel.shape[-2]))
        spectrum = torch.fft.fft2(padded.roll((-self.centre[0], -self.centre[1]), (-2, -1)))
        transfer = spectrum[..., : size[1] // 2 + 1]
        self.mask = self._singular_values(spectrum)
        self._cached = () if kernel.requires_grad else (kernel, key, transfer)
        return transfer

    def _filter(self, x: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply the Fourier transform of ``x`` by ``response(transfer function)``."""
        size = (x.shape[-2], x.shape[-1])
        return torch.fft.irfft2(torch.fft.rfft2(x) * response(self._transfer(size, x.dtype)), s=size)

    def _convolve(self, x: Tensor) -> Tensor:
        return self._filter(x, lambda t: t)

    def _correlate(self, x: Tensor) -> Tensor:
        return self._filter(x, torch.conj)


def _check_fit(kernel: Tensor, height: int, width: int) -> None:
    h, w = kernel.shape[-2:]
    if h > height or w > width:
        raise ValueError(f"a kernel of {h}x{w} does not fit an image of {height}x{width}; crop the kernel")


def _normalised(kernel: Tensor) -> Tensor:
    if not isinstance(kernel, Tensor) or kernel.ndim not in (2, 4) or not kernel.is_floating_point():
        given = f"shape {tuple(kernel.shape)}, {kernel.dtype}" if isinstance(kernel, Tensor) else type(kernel).__name__
        raise ValueError(f"a kernel is a float tensor (h, w) or (B, C, h, w) with B or C 1 where shared, got {given}")
    kernel = kernel[(None,) * (4 - kernel.ndim)]
    total = kernel.sum((-2, -1), keepdim=True)
    if not bool(torch.isfinite(kernel).all()) or not bool((total.abs() > 1e-6 * kernel.abs().amax()).all()):
        raise ValueError("a kernel must be finite and have a sum other than zero, since it is divided by its sum")
    return kernel / total


class Blur(Convolution):
    """``y = k * x + noise``.

    Args:
        kernel: (h, w), or (B, C, h, w) with one kernel an image or channel (B or C may be 1); divided by its sum.
        noise: level (standard deviation, unit of the image) or a noise model.
        boundary: what lies beyond the border of the image.
            "circular": the image goes on from its other side. Has an SVD and closed forms.
            "valid": nothing is assumed; ``y`` has only the pixels that see no border, (H - h + 1, W - w + 1). What a
            camera records; ``x`` is larger than ``y``.
            "reflect": the image is mirrored at its border pixels.

    One operator takes images of any size, odd ones too, if ``y`` is no smaller than the kernel. In "circular",
    ``A = U |K| V^T`` where ``K`` is the Fourier transform of the kernel, ``V`` the Hartley transform, real and
    orthonormal, and ``U`` the Hartley transform followed by a filter with the phase of ``K``; the singular values
    ``mask`` are those of the image size last seen.

    Raises:
        ValueError: kernel with NaN or of sum zero, of a wrong shape, or larger than ``y``.
    """

    def __new__(
        cls, kernel: Tensor, noise: float | Tensor | dinv.NoiseModel | None = None, boundary: str = "circular"
    ) -> Any:
        kinds = {"circular": CircularBlur, "valid": ValidBlur, "reflect": ReflectBlur}
        if boundary not in kinds:
            raise ValueError(f'boundary is one of {", ".join(kinds)}, got "{boundary}"')
        return super().__new__(kinds[boundary], kernel, noise, boundary=boundary)

    def __init__(
        self, kernel: Tensor, noise: float | Tensor | dinv.NoiseModel | None = None, boundary: str = "circular"
    ) -> None:
        super().__init__(kernel, noise)
        h, w = self.kernel.shape[-2:]  # without a circle, y begins where the kernel lies on the image as a whole
        self.centre = (h // 2, w // 2) if boundary == "circular" else (h - 1, w - 1)
        self.boundary = boundary


class CircularBlur(Blur, Spectral):
    """:class:`Blur` with ``boundary="circular"``."""

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._convolve(x)

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._correlate(y)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As in :class:`Spectral`, with half the transforms: the Fourier transform of the normal equations."""
        start = torch.zeros_like(y) + (0.0 if z is None else z)
        t = self._transfer((y.shape[-2], y.shape[-1]), y.dtype)
        g = torch.as_tensor(gamma, dtype=y.dtype, device=y.device)
        g = g.reshape(-1, 1, 1, 1) if g.ndim else g
        right = g * t.conj() * torch.fft.rfft2(y) + torch.fft.rfft2(start)
        return torch.fft.irfft2(right / (g * t.abs().square() + 1), s=y.shape[-2:])

    def A_dagger(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As in :class:`Spectral`, with half the transforms."""

        def inverse(t: Tensor) -> Tensor:
            size = t.abs()
            return torch.where(size > 1e-4 * size.amax((1, 2, 3), keepdim=True), 1 / t, 0.0)

        return self._filter(y, inverse)

    def U(self, x: Tensor) -> Tensor:
        return self._filter(hartley(x), torch.sgn)

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        return hartley(self._filter(x, lambda t: torch.sgn(t).conj()))

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        return hartley(x)

    def V_adjoint(self, x: Tensor) -> Tensor:
        self._transfer((x.shape[-2], x.shape[-1]), x.dtype)
        return hartley(x)


class ValidBlur(Blur):
    """:class:`Blur` with ``boundary="valid"``: the part of a circular blur that sees no border.

    The image lies in the corner of a torus of a size that is fast to transform, and ``y`` in the corner of its blur.
    """

    def _on_torus(self, x: Tensor) -> Tensor:
        (height, width), (h, w) = x.shape[-2:], self.kernel.shape[-2:]
        rows, columns = max(height - h + 1, 0), max(width - w + 1, 0)
        if h > rows or w > columns:  # most of such an image would be invention, and its proximal step slow
            raise ValueError(
                f"a kernel of {h}x{w} does not fit an image of {height}x{width}, of which it leaves {rows}x{columns} "
                "measured pixels, fewer than its own; crop the kernel"
            )
        return F.pad(x, (0, next_fast_len(width, True) - width, 0, next_fast_len(height, True) - height))

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h, w = self.kernel.shape[-2:]
        return self._convolve(self._on_torus(x))[..., : x.shape[-2] - h + 1, : x.shape[-1] - w + 1]

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h, w = self.kernel.shape[-2:]
        x = F.pad(y, (0, w - 1, 0, h - 1))
        return self._correlate(self._on_torus(x))[..., : x.shape[-2], : x.shape[-1]]

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As that of a circular blur, once the misfit is extended to where nothing is measured (:func:`extend`)."""
        h, w = self.kernel.shape[-2:]
        x = torch.zeros_like(F.pad(y, (0, w - 1, 0, h - 1))) + (0.0 if z is None else z)
        height, width = self._on_torus(x).shape[-2:]
        g = torch.as_tensor(gamma, dtype=x.dtype, device=x.device)
        g = g.reshape(-1, 1, 1, 1) if g.ndim else g
        damping = 1 / (1 + g * self._transfer((height, width), x.dtype).abs().square())
        misfit = extend(y - self.A(x), damping, (height, width))
        return x + self._filter(misfit, lambda t: g * damping * t.conj())[..., : x.shape[-2], : x.shape[-1]]

    def A_dagger(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Pseudo-inverse, as the limit of the proximal step; singular values well under 1e-3 count as zero."""
        return self.prox_l2(None, y, 1e6)


class ReflectBlur(ValidBlur):
    """:class:`Blur` with ``boundary="reflect"``: a valid blur of the mirrored image."""

    prox_l2 = Linear.prox_l2  # by conjugate gradients: the mirrored pixels are no unknowns, so no circle helps
    A_dagger = Linear.A_dagger

    def _source(self, n: int, axis: int) -> Tensor:
        """Which pixel of an axis of ``n`` each pixel of the mirrored axis shows."""
        size = self.kernel.shape[axis]
        if size > n:
            raise ValueError(f"a kernel of {size} pixels does not fit an image of {n} (axis {axis}); crop the kernel")
        i = torch.arange(size // 2 + 1 - size, n + size // 2, device=self.kernel.device).abs()
        return torch.where(i < n, i, 2 * n - 2 - i)

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, columns = self._source(x.shape[-2], -2), self._source(x.shape[-1], -1)
        return super().A(x[..., rows, :][..., columns])

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, columns = self._source(y.shape[-2], -2), self._source(y.shape[-1], -1)
        x = super().A_adjoint(y)
        x = x.new_zeros(*x.shape[:-1], y.shape[-1]).index_add(-1, columns, x)
        return x.new_zeros(*x.shape[:-2], *y.shape[-2:]).index_add(-2, rows, x)


LARGEST = 1025  # side of a kernel that is made here, in pixels


def _side(reach: float) -> int:
    """Odd side of a kernel that reaches ``reach`` pixels from its centre."""
    if not reach <= LARGEST // 2:
        raise ValueError(f"a kernel reaches at most {LARGEST // 2} pixels from its centre, got {reach:g}")
    return 2 * math.ceil(reach) + 1


def gaussian_kernel(sigma: float, size: int | None = None) -> Tensor:
    """Gaussian of standard deviation ``sigma`` pixels, sampled on ``size`` x ``size`` pixels, by default to 4 sigma."""
    if not sigma > 0:
        raise ValueError(f"sigma is a positive number of pixels, got {sigma}")
    n = _side(4 * sigma) if size is None else size
    if not 1 <= n <= LARGEST:
        raise ValueError(f"size is a side between 1 and {LARGEST} pixels, got {size}")
    i = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    line = torch.exp(-(i**2) / (2 * sigma**2))
    kernel = line[:, None] * line
    return (kernel / kernel.sum()).float()


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """Uniform straight motion over ``length`` pixels, ``angle`` degrees counter-clockwise from the rows."""
    if not length >= 1:
        raise ValueError(f"length is a number of pixels, at least 1, got {length}")
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return _drawn(
        math.hypot(length, 1) / 2, lambda y, x: ((c * x - s * y).abs() <= length / 2) & ((s * x + c * y).abs() <= 0.5)
    )


def disk_kernel(radius: float) -> Tensor:
    """Uniform disk of ``radius`` pixels: a lens out of focus."""
    if not radius > 0:
        raise ValueError(f"radius is a positive number of pixels, got {radius}")
    return _drawn(radius, lambda y, x: x**2 + y**2 <= radius**2)


def _drawn(reach: float, inside: Callable[[Tensor, Tensor], Tensor], fine: int = 16) -> Tensor:
    """The part of each pixel that lies inside a shape around the central pixel, by counting points of a fine grid."""
    n = _side(reach - 0.5)
    i = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine - n / 2
    # row by row: the fine grid as a whole would fill the memory
    rows = [inside(row[:, None], i).double().view(fine, n, fine).mean((0, 2)) for row in i.view(n, fine)]
    kernel = torch.stack(rows)
    return (kernel / kernel.sum()).float()


def kernel_from_image(path: str | PathLike[str]) -> Tensor:
    """Read a kernel from the grey values of an image file; ``ValueError`` if it cannot be read or is black."""
    try:
        with Image.open(path) as image:
            return _normalised(torch.from_numpy(np.array(image.convert("F"))))[0, 0]
    except (OSError, ValueError) as error:
        raise ValueError(f"no kernel in the file {path}: {error}") from None


def parse_kernel(text: str) -> Tensor:
    """Make a kernel of a text: "gaussian:SIGMA", "motion:LENGTH,ANGLE", "disk:RADIUS" or the path of an image."""
    makers: dict[str, Callable[..., Tensor]] = {
        "gaussian": gaussian_kernel, "motion": motion_kernel, "disk": disk_kernel,
    }  # fmt: skip
    name, _, numbers = text.partition(":")
    if name not in makers:
        if not Path(text).is_file():
            raise ValueError(
                f'"{text}" is no kernel; give gaussian:SIGMA, motion:LENGTH,ANGLE, disk:RADIUS or a picture file'
            )
        return kernel_from_image(text)
    try:
        values = [float(n) for n in numbers.split(",")]
        if len(values) > (2 if name == "motion" else 1):
            raise ValueError("too many numbers")
    except ValueError as error:
        raise ValueError(f'"{text}" is no kernel ({error}); write e.g. gaussian:2.0, motion:15,30 or disk:3') from None
    return makers[name](*values)
