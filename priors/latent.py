"""Priors of the latent images of an autoencoder, as of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from invdiff.priors.patches import blend, check_tiles, recomputed, scaled, tiles
from invdiff.priors.wrap import Outer, as_prior


class LatentPrior(Outer):
    """A denoiser of latents ``z`` with the autoencoder that made them: ``x = decode(z)``, ``z = encode(x)``.

    It is no denoiser of images, and cannot be called as one. ``solve(y, A, latent)`` draws latents under the measurement
    ``y = A(decode(z)) + noise``, which is nonlinear whatever ``A`` is (so the strategy is DPS or another for any
    operator), and decodes them: samples, mean and spread are of images. With DPS that is latent DPS.

    Args:
        denoiser: prior of latents, ``denoiser(z, sigma)``, variance exploding as all priors; where it does not say its
            ``mean`` and ``std``, 0 and 1 are taken.
        encode: images (B, C, H, W) in [0, 1] to latents (B, c, H / factor, W / factor), such as the mean of a VAE's encoder, in
            the unit of the denoiser.
        decode: latents to images in [0, 1], differentiable.
        channels: c, those of a latent.
        factor: pixels of the image along a side of a latent one.
        tile: side in pixels of the tiles in which larger images are encoded and decoded, to bound the memory; None for whole
            images. A multiple of the factor.
        overlap: pixels that neighbouring tiles share, a multiple of the factor, at most half a tile and by default a quarter; blended
            as in :class:`~invdiff.priors.Patched`. Both can be changed later (:meth:`set_tiles`).

    Raises:
        ValueError: numbers out of range.

    ``encode`` and ``decode`` that are modules move with ``.to(device)``; methods of one move if it is moved.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Rout et al. 2023, "Solving
    Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models", section 3 (latent DPS).
    """

    denoiser: Any
    autoencoder: Any  # set where encode and decode are its methods, to be moved and saved with the prior
    mean, std = 0.5, 0.25  # of images in [0, 1], by which ``solve`` checks the measurement

    def __init__(
        self,
        denoiser: Any,
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
        *,
        channels: int = 4,
        factor: int = 8,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or factor < 1:
            raise ValueError(f"channels and factor are at least 1, got {channels} and {factor}")
        unknown = {k: v for k, v in {"mean": 0.0, "std": 1.0}.items() if not hasattr(denoiser, k)}
        self.denoiser = as_prior(denoiser, **unknown)
        self._encode, self._decode = encode, decode
        self.channels, self.factor = channels, factor
        self.set_tiles(tile, overlap)

    def set_tiles(self, tile: int | None, overlap: int | None = None) -> None:
        """Encode and decode in tiles of ``tile`` pixels a side that share ``overlap``, by default a quarter; None: whole images.

        ``ValueError`` unless both are multiples of the factor and the overlap is at most half the tile. Setting the attribute ``tile``
        does the same.
        """
        if tile is None:
            if overlap is not None:
                raise ValueError(f"an overlap is of tiles, got overlap={overlap} and no tile; give both, or leave both out")
        else:
            check_tiles(tile, 0)
            overlap = (tile // self.factor + 2) // 4 * self.factor if overlap is None else overlap  # a quarter, rounded
            if tile % self.factor or overlap % self.factor:
                raise ValueError(f"tile and overlap are multiples of the factor {self.factor}, got {tile} and {overlap}")
            check_tiles(tile, overlap)
        self._tile, self._overlap = tile, overlap

    @property
    def tile(self) -> int | None:
        """Pixels along a side of a tile; None where images are encoded and decoded whole."""
        return self._tile

    @tile.setter
    def tile(self, tile: int | None) -> None:
        self.set_tiles(tile)

    @property
    def overlap(self) -> int | None:
        """Pixels that neighbouring tiles share."""
        return self._overlap

    @overlap.setter
    def overlap(self, overlap: int | None) -> None:
        self.set_tiles(self.tile, overlap)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(c, h, w) of the latent of an image of ``shape`` (..., H, W), rounded up."""
        return self.channels, -(-shape[-2] // self.factor), -(-shape[-1] // self.factor)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images (B, C, H, W); sides that are no multiple of the factor are extended by repeating the border."""
        x = F.pad(x, (0, -x.shape[-1] % self.factor, 0, -x.shape[-2] % self.factor), mode="replicate")
        _, height, width = self.latent_shape(x.shape)
        return self._tiled(self._encode, x, height, width, self.factor, 1)

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images of latents (B, c, h, w), cut to ``size`` (H, W) where that is no multiple of the factor."""
        x = self._tiled(self._decode, z, z.shape[-2], z.shape[-1], 1, self.factor)
        return x if size is None else x[..., : size[0], : size[1]]

    def project(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``: near the image ``x``, one that the autoencoder can show."""
        return self.decode(self.encode(x), (x.shape[-2], x.shape[-1]))

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        raise TypeError(
            "a LatentPrior is no denoiser of images; give it to solve, or call its .denoiser on latents, .encode(images)"
        )

    def _tiled(self, f: Callable[[Tensor], Tensor], x: Tensor, height: int, width: int, a: int, b: int) -> Tensor:
        """``f``, tile by tile where there are several; in latent pixels it maps ``a`` to ``b`` image pixels a side."""
        if self.tile is None or self.overlap is None or max(height, width) * self.factor <= self.tile:
            return f(x)
        boxes = tiles(height, width, self.tile // self.factor, self.overlap // self.factor)
        places = [scaled(box, a) for box in boxes]
        parts: Iterator[Tensor] = (recomputed(f, x[..., rows, columns]) for rows, columns in places)
        return blend(parts, [scaled(box, b) for box in boxes], self.overlap // self.factor * b)
