"""Magnetic resonance imaging: undersampled Fourier measurements of complex images, and k-space masks.

A complex image is two channels, real and imaginary part: (B, 2, H, W). ``F`` is the centred orthonormal Fourier
transform ``fftshift(fft2(ifftshift(x)))``, with frequency zero at ``(H // 2, W // 2)``, as in fastMRI and deepinv.
Noise is white: its level is the standard deviation of the real part and of the imaginary part, each. Where the mask
leaves k-space out, measurements are zero, as in recorded data.

A mask is 1 where k-space is sampled. The makers return masks of shape (H, W); of their argument ``shape`` only the
last two axes count. Lines are columns: they run along the fully sampled first axis (readout).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Linear, Spectral
from invdiff.seeds import seeded


class MRI(Spectral):
    """Single coil: ``y = mask * F x + noise``, images and k-space (B, 2, H, W).

    The singular value decomposition is ``U = identity``, the mask as singular values, and ``V^T = F``.

    Args:
        mask: 0 and 1, (H, W), (1, 1, H, W) or (B, 1, H, W).
        noise: level (standard deviation of each part) or a noise model.

    Raises:
        ValueError: the mask has other values or no sample, or the image does not fit it.
    """

    per_image = ("mask",)

    def __init__(self, mask: Tensor, noise: float | Tensor | dinv.NoiseModel | None = None) -> None:
        mask = _checked_mask(mask)
        super().__init__(noise, mask=mask)
        self.img_size = (2, *mask.shape[-2:])

    def measure(self, x: Tensor, seed: int = 0) -> Tensor:
        return self.mask * super().measure(x, seed)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.mask * super().noise(x, **kwargs)

    def V_adjoint(self, x: Tensor) -> Tensor:
        _check(x, (2,), self.mask, "image (B, 2, H, W)")
        return _channels(_fourier(_complex(x)))

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        return _channels(_inverse_fourier(_complex(x)))

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        _check(x, (2,), self.mask, "k-space (B, 2, H, W)")
        return x


class MultiCoilMRI(Linear):
    """Parallel imaging: ``y_c = mask * F (S_c x) + noise`` for every coil c, k-space (B, 2, coils, H, W).

    With maps normalised to ``sum_c |S_c|^2 = 1`` the norm of ``A`` is at most 1, and the combination
    ``A_adjoint(y)`` of fully sampled data is the image.

    Args:
        mask: 0 and 1, (H, W), (1, 1, H, W) or (B, 1, H, W), the same for all coils.
        coil_maps: complex sensitivities S, (coils, H, W), (1, coils, H, W) or (B, coils, H, W).
        noise: level (standard deviation of each part) or a noise model.

    Raises:
        ValueError: the mask has other values or no sample, the maps are not complex and finite, or shapes do not fit.

    Source: K. P. Pruessmann et al., "SENSE: sensitivity encoding for fast MRI", Magn. Reson. Med. 42 (1999).
    """

    per_image = ("mask", "coil_maps")
    mask: Tensor
    coil_maps: Tensor

    def __init__(self, mask: Tensor, coil_maps: Tensor, noise: float | Tensor | dinv.NoiseModel | None = None) -> None:
        mask = _checked_mask(mask)
        if not isinstance(coil_maps, Tensor) or not coil_maps.is_complex() or coil_maps.ndim not in (3, 4):
            given = f"{coil_maps.dtype}, {tuple(coil_maps.shape)}" if isinstance(coil_maps, Tensor) else type(coil_maps)
            raise ValueError(f"coil_maps is a complex tensor (coils, H, W) or (B, coils, H, W), got {given}")
        if coil_maps.shape[-2:] != mask.shape[-2:] or not bool(torch.isfinite(coil_maps).all()):
            raise ValueError(
                f"coil_maps must be finite and of the size of the mask, {tuple(mask.shape[-2:])}, "
                f"got {tuple(coil_maps.shape)}"
            )
        super().__init__(noise)
        self.register_buffer("mask", mask)
        self.register_buffer("coil_maps", coil_maps[(None,) * (4 - coil_maps.ndim)])
        self.img_size = (2, *mask.shape[-2:])

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _check(x, (2,), self.mask, "image (B, 2, H, W)")
        return self.mask[:, :, None] * _channels(_fourier(self.coil_maps * _complex(x)[:, None]))

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _check(y, (2, self.coil_maps.shape[1]), self.mask, "k-space (B, 2, coils, H, W)")
        images = _inverse_fourier(_complex(self.mask[:, :, None] * y))
        return _channels((self.coil_maps.conj() * images).sum(1))

    def measure(self, x: Tensor, seed: int = 0) -> Tensor:
        return self.mask[:, :, None] * super().measure(x, seed)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.mask[:, :, None] * super().noise(x, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # ``.to(torch.float64)`` would drop the imaginary part of a complex buffer: let it see both parts as reals
        def on_parts(t: Tensor) -> Tensor:
            return torch.view_as_complex(fn(torch.view_as_real(t))) if t.is_complex() else fn(t)

        return super()._apply(on_parts, recurse)


def _complex(x: Tensor) -> Tensor:
    """(B, 2, ...) to complex (B, ...)."""
    return torch.complex(x[:, 0], x[:, 1])


def _channels(z: Tensor) -> Tensor:
    """Complex (B, ...) to (B, 2, ...)."""
    return torch.stack([z.real, z.imag], 1)


def _fourier(z: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(z, (-2, -1)), norm="ortho"), (-2, -1))


def _inverse_fourier(z: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(z, (-2, -1)), norm="ortho"), (-2, -1))


def _checked_mask(mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"a k-space mask is a tensor (H, W), (1, 1, H, W) or (B, 1, H, W), got {given}")
    if not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any()):
        raise ValueError("a k-space mask holds 0 (not sampled) and 1 (sampled) only, and at least one 1")
    return mask[(None,) * (4 - mask.ndim)].to(torch.float64 if mask.dtype == torch.float64 else torch.float32)


def _check(x: Tensor, channels: tuple[int, ...], mask: Tensor, what: str) -> None:
    size = tuple(mask.shape[-2:])
    if tuple(x.shape[1:]) != (*channels, *size) or len(mask) not in (1, len(x)):
        raise ValueError(
            f"expected {what} with {channels[-1]} {'parts' if len(channels) == 1 else 'coils'}, size {size} and a batch "
            f"that fits the mask's {len(mask)}, got {tuple(x.shape)}; a real image becomes complex by "
            "torch.cat([x, torch.zeros_like(x)], 1)"
        )


def equispaced_mask(shape: tuple[int, ...], acceleration: float, acs: int | None = None, seed: int = 0) -> Tensor:
    """Sample ``round(W / acceleration)`` lines: ``acs`` at the centre, the others evenly spaced from a random start.

    ``acs`` counts the central lines (autocalibration signal); by default 0.32 W / acceleration, as in fastMRI (8 % of
    all at 4x, 4 % at 8x). The spacing is even up to rounding, so that the acceleration is the one asked for.
    Raises ``ValueError`` when acceleration is under 1 or the centre alone has too many lines.
    """
    centre, outside, n = _split_lines(shape, acceleration, acs)
    start = torch.rand((), generator=seeded(seed), dtype=torch.float64)
    steps = (torch.arange(n) + start) * (len(outside) / max(n, 1))
    return _line_mask(shape, centre, outside[steps.long()])


def random_lines_mask(shape: tuple[int, ...], acceleration: float, acs: int | None = None, seed: int = 0) -> Tensor:
    """Sample ``round(W / acceleration)`` lines: ``acs`` at the centre (see :func:`equispaced_mask`), others at random."""
    centre, outside, n = _split_lines(shape, acceleration, acs)
    order = torch.randperm(len(outside), generator=seeded(seed))
    return _line_mask(shape, centre, outside[order[:n]])


def poisson_disc_mask(shape: tuple[int, ...], acceleration: float, acs: int | None = None, seed: int = 0) -> Tensor:
    """Sample ``round(H W / acceleration)`` points at random, none close to another, more densely at the centre.

    For two phase-encoded axes. The least distance grows linearly from the centre, threefold to the middle of an edge.
    A square of side ``acs`` at the centre is fully sampled; by default it has a tenth of the samples.
    Raises ``ValueError`` when acceleration is under 1 or the centre alone has too many points.

    Source: R. L. Cook, "Stochastic sampling in computer graphics", ACM Trans. Graphics 5 (1986): dart throwing.
    """
    h, w = shape[-2:]
    total = _samples(h * w, acceleration)
    acs = round(math.sqrt(total / 10)) if acs is None else acs
    if not 0 <= acs <= min(h, w) or acs**2 > total:
        raise ValueError(f"acs is the side of a square in {h}x{w} with at most {total} points, got {acs}")
    mask = torch.zeros(h, w)
    mask[_centre(h, acs), _centre(w, acs)] = 1
    n, outside = total - acs**2, (mask == 0).flatten()
    order = torch.randperm(h * w, generator=seeded(seed))
    low, high, darts = 0.0, 2 * math.sqrt(acceleration), order[outside[order]].tolist()
    best = darts  # at distance 0 every point fits
    for _ in range(20):
        middle = (low + high) / 2
        thrown = _throw(darts, (h, w), middle, most=n + n // 50)
        if len(thrown) < n:
            high = middle
        else:
            low, best = middle, thrown
            if len(thrown) < n + n // 50:
                break
    mask.view(-1)[best[:n]] = 1
    return mask


def radial_mask(shape: tuple[int, ...], spokes: int) -> Tensor:
    """Sample the grid points nearest to ``spokes`` diameters of k-space, evenly spaced over 180 degrees.

    On a square grid of side N the acceleration is about ``N / (spokes - spokes^2 / (4 N))`` up to N spokes: each spoke
    has N points, and they share those at the centre.
    """
    h, w = shape[-2:]
    if spokes < 1:
        raise ValueError(f"spokes is a number of diameters, at least 1, got {spokes}")
    angle = torch.arange(spokes, dtype=torch.float64)[:, None] * (math.pi / spokes)
    across, down = torch.cos(angle) * w, torch.sin(angle) * h  # in grid points; the same band on both axes
    longest = torch.maximum(across.abs(), down.abs())
    step = torch.arange(-max(h, w), max(h, w) + 1) / longest  # one grid point at a time along the longer axis
    row, column = (down * step).round().long() + h // 2, (across * step).round().long() + w // 2
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    mask = torch.zeros(h, w)
    mask[row[inside], column[inside]] = 1
    return mask


def _samples(available: int, acceleration: float) -> int:
    if not 1 <= acceleration <= available:
        raise ValueError(f"acceleration is between 1 and {available} here, got {acceleration}")
    return round(available / acceleration)


def _centre(n: int, width: int) -> slice:
    """The ``width`` frequencies of ``n`` around zero, which is number ``n // 2``."""
    return slice(n // 2 - width // 2, n // 2 - width // 2 + width)


def _split_lines(shape: tuple[int, ...], acceleration: float, acs: int | None) -> tuple[Tensor, Tensor, int]:
    """Central lines, the other lines, and how many of these to sample."""
    w = shape[-1]
    total = _samples(w, acceleration)
    acs = round(0.32 * w / acceleration) if acs is None else acs
    if not 0 <= acs <= total:
        raise ValueError(f"acs is between 0 and the {total} lines that acceleration {acceleration} leaves, got {acs}")
    lines = torch.arange(w)
    centre = lines[_centre(w, acs)]
    return centre, lines[~torch.isin(lines, centre)], total - acs


def _line_mask(shape: tuple[int, ...], *lines: Tensor) -> Tensor:
    mask = torch.zeros(shape[-2:])
    mask[:, torch.cat(lines)] = 1
    return mask


def _throw(darts: list[int], size: tuple[int, int], distance: float, most: int) -> list[int]:
    """Keep each dart that no kept one is close to, up to ``most``; the distance is the kept dart's."""
    h, w = size
    row, column = np.arange(h)[:, None], np.arange(w)[None, :]
    reach = distance * (1 + 2 * np.hypot(2 * row / h - 1, 2 * column / w - 1))
    free, kept = np.ones(size, bool), []
    for dart in darts:
        i, j = divmod(dart, w)
        if free[i, j]:
            kept.append(dart)
            if len(kept) == most:
                break
            k, r2 = int(reach[i, j]), reach[i, j] ** 2
            box = slice(max(0, i - k), i + k + 1), slice(max(0, j - k), j + k + 1)
            free[box] &= (row[box[0]] - i) ** 2 + (column[:, box[1]] - j) ** 2 >= r2
    return kept
