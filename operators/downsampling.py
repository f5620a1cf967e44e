"""Downsampling (super-resolution), with everything in closed form."""

from __future__ import annotations

from typing import Any

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Spectral
from invdiff.operators.blur import Convolution, hartley


class Downsampling(Convolution, Spectral):
    """``y = (k * x)[every factor-th pixel] + noise``: circular blur against aliasing, then decimation.

    The pixels of ``y`` (B, C, H / factor, W / factor) are the centres of blocks of ``x``, so that nothing is shifted by
    half a pixel: "average" is ``avg_pool2d``, and "bicubic", away from the border, torch's (and Pillow's) antialiased
    bicubic resize.

    Args:
        factor: an integer, at least 1; the sides of the image must be multiples of it.
        kernel: "average" (the mean of each block), "bicubic" (``a = -0.5``, stretched by the factor), or a kernel
            (h, w) or (B, C, h, w), as in :class:`~invdiff.operators.Blur`. Its sides must be even where the factor is
            even and odd where it is odd, so that its centre can lie on the centre of a block.
        noise: level (standard deviation, unit of the image) or a noise model.

    ``A A^T`` is a convolution of the small image; its eigenvalues are the means, over the ``factor^2`` frequencies
    that alias to one, of ``|K|^2`` (Zhao et al. 2016, "Fast Single Image Super-Resolution Using a New Analytical
    Solution for l2-l2 Problems"). So ``U`` is the Hartley transform of the small image, real and orthonormal, ``mask`` the
    roots of those means, (1, 1, H / factor, W / factor), and ``V = A^T U / mask``.

    Raises:
        ValueError: kernel, factor and image size do not go together.
    """

    def __init__(
        self, factor: int, kernel: str | Tensor = "average", noise: float | Tensor | dinv.NoiseModel | None = None
    ) -> None:
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"factor is a whole number, at least 1, got {factor}")
        if isinstance(kernel, str):
            if kernel not in ("average", "bicubic"):
                raise ValueError(f'kernel is "average", "bicubic" or a tensor, got "{kernel}"')
            line = torch.ones(factor) if kernel == "average" else _bicubic(factor)
            kernel = line[:, None] * line
        super().__init__(kernel, noise)
        h, w = self.kernel.shape[-2:]
        if (h - factor) % 2 or (w - factor) % 2:
            raise ValueError(
                f"a kernel of {h}x{w} would shift the image by half a pixel at factor {factor}; "
                f"give it {'odd' if factor % 2 else 'even'} sides, e.g. gaussian_kernel(sigma, size={2 * factor})"
            )
        self.factor, self.centre = factor, ((h + factor) // 2 - 1, (w + factor) // 2 - 1)

    def _singular_values(self, spectrum: Tensor) -> Tensor:
        f, (h, w) = self.factor, spectrum.shape[-2:]
        s = spectrum.abs().square().view(*spectrum.shape[:2], f, h // f, f, w // f).mean((-4, -2)).sqrt()
        return torch.where(s > 1e-6 * s.amax((-2, -1), keepdim=True), s, 0.0)

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h, w = x.shape[-2:]
        if h % self.factor or w % self.factor:
            raise ValueError(f"the sides of the image, {h}x{w}, must be multiples of the factor {self.factor}; crop it")
        return self._convolve(x)[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        f, (h, w) = self.factor, y.shape[-2:]
        x = y.new_zeros(*y.shape[:-2], h * f, w * f)
        x[..., ::f, ::f] = y
        return self._correlate(x)

    def U(self, x: Tensor) -> Tensor:
        return hartley(x)

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        self._transfer((x.shape[-2] * self.factor, x.shape[-1] * self.factor), x.dtype)
        return hartley(x)

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.A_adjoint(hartley(self._whitened(x)))

    def V_adjoint(self, x: Tensor) -> Tensor:
        return self._whitened(self.U_adjoint(self.A(x)))

    def _whitened(self, c: Tensor) -> Tensor:
        return torch.where(self.mask > 0, c / self.mask, 0.0)


def _bicubic(factor: int) -> Tensor:
    """Keys' cubic convolution with a = -0.5, stretched by the factor, at the distances of pixels from a block's centre."""
    n = 4 * factor - factor % 2
    t = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / factor).abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0)).float()
