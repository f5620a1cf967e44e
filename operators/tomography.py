"""Computed tomography: line integrals of a square image, parallel or fan beam, and filtered back-projection.

Coordinates are in pixels, x to the right, y upwards, from the image's centre, at ``(N - 1) / 2`` for odd and even N.
A line is ``x cos(phi) + y sin(phi) = offset``. A view at angle ``theta`` looks along ``(-sin theta, cos theta)`` on a
detector laid along ``(cos theta, sin theta)``; a parallel ray has ``phi = theta`` and meets the detector at ``offset``.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Linear

CACHE_BYTES = 2 * 2**30  # all stored system matrices together; a geometry that needs more is projected view by view


class Tomography(Linear):
    """Line integrals of square images: ``y[v, d] = 1/N * integral of x along the ray of view v and detector d``.

    The unit of length is the image's side: an image of ones gives 1 along a row, whatever its size, so that a noise
    level means the same at every size. Multiply ``y`` by N for lengths in pixels; measured line integrals of an
    attenuation in 1/mm are those of ``x = attenuation * N * pixel size in mm``.

    Rays are discretised by Joseph's method (steps of one row or column, linear interpolation between the two nearest
    pixels), as a sparse matrix that is stored with its transpose, so adjoint and gradient are exact and fast. Matrices
    are shared by all operators of one geometry, the least recently used being dropped beyond ``CACHE_BYTES``; a
    geometry that would not fit alone is computed view by view at each call: slow, but in little memory.

    Args:
        size: N, the side of the images, (B, C, N, N); the measurement is (B, C, views, detectors).
        angles: a number of views, spread evenly over 180 (parallel) or 360 degrees (fan), or the angles in degrees.
        geometry: "parallel" or "fan" (flat detector).
        noise: level (standard deviation, unit of ``y``) or a noise model.
        detectors: number of detector elements; by default enough to see the whole image.
        center: where the rotation axis falls on the detector, in elements from its middle, ``(detectors - 1) / 2``.
        pitch: distance between elements in pixels; by default one pixel at the rotation axis.
        source_distance, detector_distance: from the rotation axis, in pixels, fan beam only; by default 2 N and N.

    Raises:
        ValueError: impossible geometry, or an image or measurement of another size.
        TypeError: neither float32 nor float64.

    Source: P. M. Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE Trans. Medical
    Imaging 1 (1982); A. C. Kak, M. Slaney, "Principles of Computerized Tomographic Imaging" (1988), chapter 3.
    """

    def __init__(
        self,
        size: int,
        angles: int | Sequence[float] | Tensor,
        geometry: Literal["parallel", "fan"] = "parallel",
        noise: float | Tensor | dinv.NoiseModel | None = None,
        *,
        detectors: int | None = None,
        center: float = 0.0,
        pitch: float | None = None,
        source_distance: float | None = None,
        detector_distance: float | None = None,
    ) -> None:
        super().__init__(noise=noise)
        if geometry not in ("parallel", "fan"):
            raise ValueError(f'geometry is "parallel" or "fan", got {geometry!r}')
        if size < 2:
            raise ValueError(f"size is the side of the image in pixels, at least 2, got {size}")
        fan, radius = geometry == "fan", size / math.sqrt(2)
        if not fan and (source_distance is not None or detector_distance is not None):
            raise ValueError('source_distance and detector_distance belong to geometry="fan"')
        source = math.inf if not fan else 2.0 * size if source_distance is None else float(source_distance)
        behind = 0.0 if not fan else float(size) if detector_distance is None else float(detector_distance)
        if source <= radius or behind < 0:
            raise ValueError(
                f"the source must be outside the image (distance over {radius:.1f} pixels) and the detector behind the "
                f"axis (distance at least 0), got {source_distance} and {detector_distance}"
            )
        magnification = 1 + behind / source
        pitch = magnification if pitch is None else float(pitch)
        if not pitch > 0:
            raise ValueError(f"pitch is the distance between detector elements in pixels, over 0, got {pitch}")
        if detectors is None:  # the shadow of the circle around the image, with the parity of the image
            shadow = radius * magnification / math.sqrt(1 - (radius / source) ** 2)
            detectors = size + 2 * max(0, math.ceil(shadow / pitch + abs(center) - size / 2))
        if detectors < 1:
            raise ValueError(f"detectors is a number of elements, at least 1, got {detectors}")
        degrees = _degrees(angles, 360.0 if fan else 180.0)
        self.img_size = (1, size, size)  # any number of channels will do
        self.geometry = Geometry(int(size), degrees, int(detectors), float(center), pitch, source, behind)
        self.register_buffer("angles", torch.tensor(degrees, dtype=torch.float64), persistent=False)

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        g = self.geometry
        self._check(x, (g.size, g.size), "image")
        columns = _Apply.apply(x.flatten(2).flatten(0, 1).T, *_projectors(g, x.dtype, x.device))
        # contiguous, since sums over another memory layout round differently, alone or in a batch
        return columns.T.contiguous().view(*x.shape[:2], len(g.degrees), g.detectors)

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        g = self.geometry
        self._check(y, (len(g.degrees), g.detectors), "measurement")
        project, backproject = _projectors(g, y.dtype, y.device)
        columns = _Apply.apply(y.flatten(2).flatten(0, 1).T, backproject, project)
        return columns.T.contiguous().view(*y.shape[:2], g.size, g.size)

    def fbp(self, y: Tensor, window: Literal["ramp", "hann"] = "ramp") -> Tensor:
        """Filtered back-projection of ``y``, (B, C, views, detectors): an approximate inverse, (B, C, N, N).

        ``window`` is "ramp" (sharpest) or "hann" (smoother, for noisy data). Views count by the angle they stand for
        and need not be evenly spaced; a missing wedge stays missing. Raises ``ValueError`` when a fan beam does not
        go all the way round, since the rays are then not seen twice as the formula has it.
        """
        if window not in ("ramp", "hann"):
            raise ValueError(f'window is "ramp" or "hann", got {window!r}')
        g = self.geometry
        self._check(y, (len(g.degrees), g.detectors), "measurement")
        weights, pitch = g.view_weights(), g.pitch * g.scale  # seen at the axis
        s = g.positions().to(y) * g.scale
        cosine = 1 / torch.sqrt(1 + (s / g.source) ** 2)  # of the angle to the central ray; 1 for a parallel beam
        filtered = g.size * _ramp_filter(y * cosine, pitch, window).flatten(0, 1)
        filtered = torch.nn.functional.pad(filtered, (1, 1)).movedim(0, -1).contiguous()  # zero beyond the detector

        axis = torch.arange(g.size, dtype=y.dtype, device=y.device) - (g.size - 1) / 2
        px, py = axis.repeat(g.size), -axis.repeat_interleave(g.size)
        x = torch.zeros(g.size**2, filtered.shape[-1], dtype=y.dtype, device=y.device)
        for q, degrees, weight in zip(filtered, g.degrees, weights):
            c, sn = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            depth = 1 + (py * c - px * sn) / g.source  # distance from the source over that of the axis
            u = (px * c + py * sn) / depth / pitch + (g.detectors - 1) / 2 + g.center + 1
            u = u.clamp(0, g.detectors + 1)
            low = u.long().clamp(max=g.detectors)
            x = x + (weight / depth**2)[:, None] * torch.lerp(q[low], q[low + 1], (u - low)[:, None])
        return x.T.reshape(*y.shape[:2], g.size, g.size)

    def _check(self, x: Tensor, shape: tuple[int, int], what: str) -> None:
        if x.ndim != 4 or tuple(x.shape[2:]) != shape:
            raise ValueError(f"the {what} is (B, C, {shape[0]}, {shape[1]}) here, got {tuple(x.shape)}")
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"tomography works in float32 and float64, got {x.dtype}; convert the {what} first")


@dataclass(frozen=True)
class Geometry:
    """Where the rays are; hashable, the key of the stored matrices. ``source`` is infinite for a parallel beam."""

    size: int
    degrees: tuple[float, ...]
    detectors: int
    center: float
    pitch: float
    source: float
    behind: float

    @property
    def scale(self) -> float:
        """Length at the rotation axis of one unit of length on the detector."""
        return 1 / (1 + self.behind / self.source)

    def positions(self) -> Tensor:
        """Positions of the detector elements along the detector, from the shadow of the rotation axis."""
        elements = torch.arange(self.detectors, dtype=torch.float64)
        return (elements - (self.detectors - 1) / 2 - self.center) * self.pitch

    def rays(self, view: int) -> tuple[Tensor, Tensor]:
        """Angle ``phi`` in radians and offset of the rays of one view."""
        s = self.positions() * self.scale
        gamma = torch.atan(s / self.source)
        return math.radians(self.degrees[view]) - gamma, s * torch.cos(gamma)

    def joseph(self, view: int) -> tuple[Tensor, Tensor]:
        """Pixel numbers and weights of the rays of one view, each (detectors, 2 N); weight 0 beyond the image."""
        n, c = self.size, (self.size - 1) / 2
        phi, offset = (v[:, None] for v in self.rays(view))
        across, down = torch.cos(phi), -torch.sin(phi)  # across * (column - c) + down * (row - c) = offset
        steep = across.abs() >= down.abs()  # the ray crosses every row once; otherwise every column
        major, minor = torch.where(steep, across, down), torch.where(steep, down, across)
        step = torch.arange(n)
        u = c + (offset - minor * (step - c)) / major
        low = u.floor()
        index = torch.stack([low, low + 1], -1).long()
        weight = torch.stack([low + 1 - u, u - low], -1) / (n * major.abs()[..., None])
        weight = weight * ((index >= 0) & (index < n))
        index = index.clamp(0, n - 1)
        pixel = torch.where(steep[..., None], step[:, None] * n + index, index * n + step[:, None])
        return pixel.flatten(1), weight.flatten(1)

    def view_weights(self) -> list[float]:
        """Angle in radians that each view stands for: half-way to its neighbours, half as much for a fan beam."""
        period = 180.0 if math.isinf(self.source) else 360.0
        angles = np.mod(self.degrees, period)
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order[0]] + period)  # from each view to the next
        wedge = gaps > 3 * np.median(gaps)
        if period == 360.0 and wedge.any():
            raise ValueError(
                f"fan-beam filtered back-projection needs views all the way round, but {gaps.max():.1f} degrees are "
                "missing; use A_dagger or a solver"
            )
        gaps = np.where(wedge, np.median(gaps), gaps)
        weights = np.empty(len(angles))
        weights[order] = np.radians(gaps + np.roll(gaps, 1)) / 2 * (180.0 / period)
        return weights.tolist()


Operator = Callable[[Tensor], Tensor]


class _Apply(torch.autograd.Function):
    """A linear map of columns whose gradient is its transpose; torch's own gradient of a sparse product is slow."""

    @staticmethod
    def forward(x: Tensor, apply: Operator, transpose: Operator) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.map, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Apply.apply(grads[0], ctx.transpose, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Apply.apply(tangents[0], ctx.map, ctx.transpose)


_matrices: OrderedDict[tuple[Geometry, torch.dtype, torch.device], tuple[Tensor, Tensor, int]] = OrderedDict()
_lock = threading.Lock()


def _projectors(g: Geometry, dtype: torch.dtype, device: torch.device) -> tuple[Operator, Operator]:
    """The system matrix and its transpose as functions of columns, (pixels, images) and (rays, images)."""
    entries = 2 * g.size * g.detectors * len(g.degrees)  # at most
    if 2 * entries * (4 + dtype.itemsize) > CACHE_BYTES:
        return lambda x: _project(g, x), lambda y: _backproject(g, y)
    key = (g, dtype, device)
    with _lock:
        if key not in _matrices:
            _matrices[key] = _build(g, dtype, device)
        _matrices.move_to_end(key)
        while sum(size for _, _, size in _matrices.values()) > CACHE_BYTES:
            _matrices.popitem(last=False)
        matrix, transpose, _ = _matrices[key]
    return lambda x: matrix @ x.contiguous(), lambda y: transpose @ y.contiguous()


def _build(g: Geometry, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The system matrix, its transpose, and their size in bytes."""
    pixels, values, counts = [], [], [np.zeros(1, np.int32)]
    for view in range(len(g.degrees)):
        pixel, weight = g.joseph(view)
        seen = weight > 0
        pixels.append(pixel[seen].to(torch.int32).numpy())
        values.append(weight[seen].to(dtype).numpy())
        counts.append(seen.sum(1).to(torch.int32).numpy())
    rows = np.cumsum(np.concatenate(counts), dtype=np.int32)
    shape = (len(rows) - 1, g.size**2)
    matrix = scipy.sparse.csr_matrix((np.concatenate(values), np.concatenate(pixels), rows), shape)
    return _to_torch(matrix, device), _to_torch(matrix.T.tocsr(), device), 2 * matrix.nnz * (4 + dtype.itemsize)


def _to_torch(m: scipy.sparse.csr_matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch calls its CSR support beta
        rows, columns, values = (torch.from_numpy(a) for a in (m.indptr, m.indices, m.data))  # 32-bit: 3 times faster
        return torch.sparse_csr_tensor(rows, columns, values, m.shape, check_invariants=False).to(device)


def _project(g: Geometry, x: Tensor) -> Tensor:
    views = []
    for view in range(len(g.degrees)):
        pixel, weight = (t.to(x.device) for t in g.joseph(view))
        views.append((weight.to(x.dtype)[..., None] * x[pixel]).sum(1))
    return torch.cat(views)


def _backproject(g: Geometry, y: Tensor) -> Tensor:
    x = torch.zeros(g.size**2, y.shape[1], dtype=y.dtype, device=y.device)
    for view, rays in enumerate(y.split(g.detectors)):
        pixel, weight = (t.to(y.device) for t in g.joseph(view))
        x.index_add_(0, pixel.flatten(), (weight.to(y.dtype)[..., None] * rays[:, None]).flatten(0, 1))
    return x


def _ramp_filter(y: Tensor, pitch: float, window: str) -> Tensor:
    """Convolve the last axis with the sampled band-limited ramp, whose mean is right, unlike ``|frequency|``."""
    n = 2 ** math.ceil(math.log2(2 * y.shape[-1]))  # zero padding: no wrap-around
    lag = torch.fft.fftfreq(n, 1 / n, dtype=y.dtype, device=y.device)
    ramp = torch.where(lag % 2 == 1, -1 / (math.pi * lag * pitch) ** 2, 0.0)
    ramp[0] = 1 / (4 * pitch**2)
    response = pitch * torch.fft.rfft(ramp).real
    if window == "hann":
        response = response * torch.cos(math.pi * torch.fft.rfftfreq(n, dtype=y.dtype, device=y.device)) ** 2
    return torch.fft.irfft(torch.fft.rfft(y, n) * response, n)[..., : y.shape[-1]]


def _degrees(angles: int | Sequence[float] | Tensor, span: float) -> tuple[float, ...]:
    if isinstance(angles, int):
        degrees = torch.arange(angles, dtype=torch.float64) * (span / max(angles, 1))
    else:
        degrees = torch.as_tensor(angles, dtype=torch.float64).flatten().cpu()
    if len(degrees) == 0 or not bool(torch.isfinite(degrees).all()):
        raise ValueError(f"angles is a number of views, at least 1, or a list of finite degrees, got {angles}")
    return tuple(degrees.tolist())
