"""Operators with a decomposition that fits on one line, and any function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Nonlinear, Spectral
from invdiff.operators.blur import hartley
from invdiff.operators.noise import as_noise
from invdiff.seeds import seeded


class Denoising(Spectral):
    """``y = x + noise``; ``noise`` is a level (standard deviation, unit of the image) or a noise model."""

    def __init__(self, noise: float | Tensor | dinv.NoiseModel | None) -> None:
        super().__init__(noise, mask=torch.ones(1, 1, 1, 1))


class Decolorize(Spectral):
    """``y = sum_c w_c x_c + noise``: colour (B, 3, H, W) to grey (B, 1, H, W).

    Args:
        noise: level (standard deviation, unit of the image) or a noise model.
        weights: "luminance" (0.299, 0.587, 0.114; ITU-R BT.601) or "mean" (1/3 each).

    One singular value, ``|w|``; ``A A^T = |w|^2``.
    """

    def __init__(self, noise: float | Tensor | dinv.NoiseModel | None = None, weights: str = "luminance") -> None:
        choices = {"luminance": (0.299, 0.587, 0.114), "mean": (1 / 3, 1 / 3, 1 / 3)}
        if weights not in choices:
            raise ValueError(f"weights are one of {', '.join(choices)}, got {weights!r}")
        w = torch.tensor(choices[weights], dtype=torch.float64).view(1, 3, 1, 1)
        super().__init__(noise, mask=w.norm().float().view(1, 1, 1, 1))
        self.register_buffer("direction", (w / w.norm()).float(), persistent=False)

    def V_adjoint(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"Decolorize takes images of shape (B, 3, H, W), got {tuple(x.shape)}")
        return (self.direction * x).sum(1, keepdim=True)

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.direction * x


class CompressedSensing(Spectral):
    """``y = R F D x + noise``: ``m`` random projections of an image, as a vector (B, m).

    ``D`` flips the sign of random pixels, ``F`` is the orthonormal Hartley transform (real, by FFT) of each channel, and
    ``R`` keeps ``m`` random coefficients of the C H W there are. The rows are orthonormal, ``A A^T = 1``, and nothing
    of the size of a matrix is stored (Do et al. 2012, "Fast and Efficient Compressive Sensing Using Structurally
    Random Matrices").

    Args:
        image_shape: (C, H, W).
        fraction: ``m / (C H W)``, above 0 and at most 1 (``m`` is rounded, and at least 1).
        seed: draws the signs and the rows.
        noise: level (standard deviation, unit of ``y``, in which coefficients are as large as pixels) or a noise model.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        fraction: float,
        seed: int = 0,
        noise: float | Tensor | dinv.NoiseModel | None = None,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is m / (C H W), above 0 and at most 1, got {fraction}")
        super().__init__(noise, mask=torch.ones(1, 1))
        self.img_size = tuple(image_shape)
        size = torch.Size(image_shape).numel()
        generator = seeded(seed)
        signs = 2.0 * torch.randint(2, self.img_size, generator=generator) - 1
        rows = torch.randperm(size, generator=generator)[: max(1, round(fraction * size))]
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def V_adjoint(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.img_size:
            raise ValueError(f"this operator measures images of shape (B, *{self.img_size}), got {tuple(x.shape)}")
        return hartley(self.signs * x).flatten(1)[:, self.rows]

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        full = x.new_zeros(len(x), self.signs.numel()).index_copy(1, self.rows, x)
        return self.signs * hartley(full.view(-1, *self.signs.shape))


class FromCallable(Nonlinear):
    """``y = f(x) + noise`` for any differentiable function; see :func:`from_callable`."""

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        noise: float | Tensor | dinv.NoiseModel | None = None,
        img_size: tuple[int, ...] | None = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"an operator is a function of an image batch (B, C, H, W), got {type(f).__name__}")
        super().__init__(A=f, noise_model=as_noise(noise))
        self.img_size = img_size


class Decoded(Nonlinear):
    """``y = A(decode(z)) + noise``: an operator as it acts on the latent images of an autoencoder.

    It counts as nonlinear, whatever ``A`` is: it has ``A`` and ``A_vjp`` (through the decoder), and no adjoint.
    :func:`invdiff.solve` makes one where the prior is a ``LatentPrior``.

    Args:
        A: operator of images; its noise is this one's too.
        decode: differentiable, from latents (B, c, h, w) to images (B, C, H, W).
        img_size: (c, h, w) of the latents.
    """

    std = 0.25  # of the images, in [0, 1]

    def __init__(self, A: dinv.Physics, decode: Callable[[Tensor], Tensor], img_size: tuple[int, ...]) -> None:
        super().__init__(noise_model=A.noise_model)
        self.inner, self.decode, self.img_size = A, decode, tuple(img_size)

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.inner.A(self.decode(x))


def from_callable(
    f: Callable[[Tensor], Tensor],
    noise: float | Tensor | dinv.NoiseModel | None = None,
    img_size: tuple[int, ...] | None = None,
) -> FromCallable:
    """Make an operator of a differentiable function ``f``, which maps (B, C, H, W) to (B, ...) image by image.

    It counts as nonlinear: it has ``A`` and ``A_vjp``, and no adjoint. ``img_size`` (C, H, W) says which images it
    takes, where only some will do. It can be pickled if ``f`` can (a lambda cannot).
    """
    return FromCallable(f, noise, img_size)
