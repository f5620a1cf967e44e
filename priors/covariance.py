"""Covariance matrices of images that can be inverted at every noise level.

Notation: ``C`` is the covariance of an image of ``N = C H W`` pixels; ``C = Q diag(lambda) Q^T``. Each kind below only
says how to get an image's coefficients ``Q^T v``, how to come back, and what the eigenvalues are; a function of
the matrix is then ``f(C) v = Q f(lambda) Q^T v``, whether it is a square root, an inverse or a denoiser.

==================  ===================================  ==================
class               C                                    cost of ``f(C) v``
==================  ===================================  ==================
``Diagonal``        ``diag(variance)``                   N
``Stationary``      periodic, a power spectrum           N log N
``LowRank``         ``W W^T + floor I``, rank K          N K
``Dense``           any matrix                           N^2
==================  ===================================  ==================

Images are (B, C, H, W); ``sigma`` is a float or a tensor (B,). Everything computes in the image's dtype, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Size = tuple[int, int, int]


class Covariance(nn.Module):
    """Base class: a subclass gives ``img_size``, ``eigenvalues`` (E,), :meth:`transform` and :meth:`inverse`.

    The transform may be redundant; then ``multiplicity`` (E,) says how many eigenvalues of the matrix each entry is.
    """

    eigenvalues: Tensor
    multiplicity: Tensor

    def __init__(self, img_size: Size, eigenvalues: Tensor, multiplicity: Tensor | None = None) -> None:
        super().__init__()
        self.img_size: Size = img_size
        lowest, largest = float(eigenvalues.min()), float(eigenvalues.max())
        if not (math.isfinite(largest) and lowest >= -1e-6 * largest):
            raise ValueError(
                "a covariance is finite and positive semidefinite; "
                f"this one has eigenvalues from {lowest:.3g} to {largest:.3g}"
            )
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0))
        self.register_buffer("multiplicity", torch.ones_like(eigenvalues) if multiplicity is None else multiplicity)

    def transform(self, v: Tensor) -> Tensor:
        """Coefficients ``Q^T v`` of shape (B, E)."""
        raise NotImplementedError

    def inverse(self, c: Tensor) -> Tensor:
        """The image ``Q c`` of shape (B, C, H, W)."""
        raise NotImplementedError

    def check(self, v: Tensor) -> None:
        """Raise ``ValueError`` unless ``v`` holds images of this covariance's size."""
        if v.ndim != 4 or tuple(v.shape[1:]) != self.img_size:
            wanted = ", ".join(map(str, self.img_size))
            raise ValueError(f"this prior takes images of shape (B, {wanted}), got {tuple(v.shape)}")

    def function(self, f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """``f(C) v``; ``f`` maps the eigenvalues (E,) to values (E,) or, one row an image, (B, E)."""
        self.check(v)
        return self.inverse(f(self.eigenvalues.to(v)) * self.transform(v))

    def matmul(self, v: Tensor) -> Tensor:
        """``C v``."""
        return self.function(lambda values: values, v)

    def sqrt(self, v: Tensor) -> Tensor:
        """``C^(1/2) v``: a draw of N(0, C) if ``v`` is white noise."""
        return self.function(torch.sqrt, v)

    def solve(self, v: Tensor, sigma: float | Tensor) -> Tensor:
        """``(C + sigma^2 I)^{-1} v``."""
        s2 = _variance(v, sigma)
        return self.function(lambda values: 1 / (values + s2), v)

    def shrink(self, v: Tensor, sigma: float | Tensor) -> Tensor:
        """``C (C + sigma^2 I)^{-1} v``, the Wiener filter of a zero-mean image in white noise."""
        s2, tiny = _variance(v, sigma), torch.finfo(v.dtype).tiny  # 0 / 0, a fixed pixel without noise, is 0
        return self.function(lambda values: values / (values + s2).clamp(min=tiny), v)

    def log_density(self, v: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``log N(v; 0, C + sigma^2 I)`` of each image, shape (B,)."""
        values = self.eigenvalues.to(v) + _variance(v, sigma)
        if float(values.detach().min()) <= 0:
            raise ValueError("a singular covariance has no density at sigma = 0; ask for it at sigma > 0")
        distance = (v * self.solve(v, sigma)).flatten(1).sum(1)
        return -(distance + (self.multiplicity.to(v) * (2 * math.pi * values).log()).sum(1)) / 2

    def matrix(self) -> Tensor:
        """``C`` as a matrix (N, N), pixels in the order of ``image.flatten()``."""
        n = math.prod(self.img_size)
        identity = torch.eye(n, dtype=self.eigenvalues.dtype, device=self.eigenvalues.device)
        return self.matmul(identity.view(n, *self.img_size)).flatten(1)

    def variance(self) -> Tensor:
        """The diagonal of ``C``, shaped (C, H, W)."""
        return self.matrix().diagonal().reshape(self.img_size)

    def trace(self) -> float:
        """The sum of the variances of all pixels."""
        return float((self.multiplicity * self.eigenvalues).sum())


def _variance(v: Tensor, sigma: float | Tensor) -> Tensor:
    """``sigma^2`` as a column (B, 1) in the dtype of ``v``."""
    return torch.as_tensor(sigma, dtype=v.dtype, device=v.device).reshape(-1).expand(len(v))[:, None] ** 2


class Diagonal(Covariance):
    """Independent pixels; ``variance`` has shape (C, H, W)."""

    def __init__(self, variance: Tensor) -> None:
        super().__init__(_size(variance), variance.flatten())

    def transform(self, v: Tensor) -> Tensor:
        return v.flatten(1)

    def inverse(self, c: Tensor) -> Tensor:
        return c.view(-1, *self.img_size)


class Stationary(Covariance):
    """Periodic stationary images with independent channels: ``C`` is diagonal in the Fourier basis.

    ``spectrum`` (C, H, W) is the power on the grid of ``torch.fft.fft2`` (zero frequency first), scaled so that its
    mean over the grid is the variance of a pixel; ``S(-k) = S(k)``, since images are real.
    """

    def __init__(self, spectrum: Tensor) -> None:
        size = _size(spectrum)
        mirrored = spectrum.flip(1, 2).roll((1, 1), (1, 2))
        if not torch.allclose(spectrum, mirrored, rtol=1e-4, atol=1e-6 * float(spectrum.max())):
            raise ValueError("the power spectrum of real images is symmetric, S(-k) = S(k), zero frequency first")
        super().__init__(size, spectrum.flatten())

    @classmethod
    def from_kernel(cls, kernel: Callable[[Tensor], Tensor], img_size: Size) -> Stationary:
        """Covariance ``kernel(r)`` of two pixels at distance ``r`` (in pixels), wrapped round the edges.

        Wrapping sums over four periods to each side, so the variance of a pixel is ``kernel(0)`` plus what is left of
        the kernel one image width away, and the kernel has to have died out after four.
        """
        (height, width), periods = img_size[1:], range(-4, 5)
        dy, dx = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
        shifted = (kernel(torch.hypot(dy + i * height, dx + j * width)) for i in periods for j in periods)
        return cls(torch.fft.fft2(sum(shifted, torch.zeros(height, width))).real.expand(img_size))

    def transform(self, v: Tensor) -> Tensor:
        return torch.fft.fft2(v, norm="ortho").flatten(1)

    def inverse(self, c: Tensor) -> Tensor:
        return torch.fft.ifft2(c.view(-1, *self.img_size), norm="ortho").real

    def variance(self) -> Tensor:
        return self.eigenvalues.view(self.img_size).mean((1, 2), keepdim=True).expand(self.img_size)


class LowRank(Covariance):
    """``C = W W^T + floor I`` with ``factor = W^T`` of shape (K, C, H, W): K images, e.g. principal components."""

    basis: Tensor

    def __init__(self, factor: Tensor, floor: float) -> None:
        if factor.ndim != 4:
            raise ValueError(f"the factor holds K images, shape (K, C, H, W); got {tuple(factor.shape)}")
        rows = factor.flatten(1).double()
        _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
        n, rank = rows.shape[1], len(singular)
        # The coefficients are those in the basis, followed by the part of the image outside of its span.
        values = torch.cat([singular**2 + floor, torch.full((n,), floor, dtype=torch.float64, device=rows.device)])
        multiplicity = torch.ones_like(values)
        multiplicity[rank:] = (n - rank) / n
        super().__init__(_size(factor[0]), values, multiplicity)
        self.register_buffer("basis", basis)

    def transform(self, v: Tensor) -> Tensor:
        basis, flat = self.basis.to(v), v.flatten(1)
        c = flat @ basis.T
        return torch.cat([c, flat - c @ basis], 1)

    def inverse(self, c: Tensor) -> Tensor:
        basis = self.basis.to(c)
        return (c[:, : len(basis)] @ basis + c[:, len(basis) :]).view(-1, *self.img_size)


class Dense(Covariance):
    """Any covariance ``matrix`` (N, N) of images ``img_size``; its eigenvectors are computed once, in float64."""

    basis: Tensor

    def __init__(self, matrix: Tensor, img_size: Size) -> None:
        n = math.prod(img_size)
        if tuple(matrix.shape) != (n, n):
            raise ValueError(
                f"images {img_size} have a covariance matrix of shape ({n}, {n}), got {tuple(matrix.shape)}"
            )
        if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(matrix.abs().max())):
            raise ValueError("a covariance matrix is symmetric; the one given is not")
        values, basis = torch.linalg.eigh(matrix.double())
        super().__init__(img_size, values)
        self.register_buffer("basis", basis)

    @classmethod
    def from_kernel(cls, kernel: Callable[[Tensor], Tensor], img_size: Size) -> Dense:
        """Covariance ``kernel(r)`` of two pixels at distance ``r`` (in pixels), independent channels, no wrapping."""
        channels, height, width = img_size
        places = torch.cartesian_prod(torch.arange(height).double(), torch.arange(width).double()).view(-1, 2)
        one = kernel(torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist"))
        return cls(torch.block_diag(*[one] * channels), img_size)

    def transform(self, v: Tensor) -> Tensor:
        return v.flatten(1) @ self.basis.to(v)

    def inverse(self, c: Tensor) -> Tensor:
        return (c @ self.basis.to(c).T).view(-1, *self.img_size)


def _size(image: Tensor) -> Size:
    if image.ndim != 3:
        raise ValueError(f"expected a tensor of shape (C, H, W), got {tuple(image.shape)}")
    return image.shape[0], image.shape[1], image.shape[2]


def as_covariance(covariance: float | Tensor | Covariance, img_size: Size) -> Covariance:
    """A float or a tensor (C, H, W) is a variance, a tensor (N, N) a matrix."""
    if isinstance(covariance, (float, int)):
        covariance = Diagonal(torch.full(img_size, float(covariance), dtype=torch.float64))
    elif isinstance(covariance, Tensor):
        covariance = Dense(covariance, img_size) if covariance.ndim == 2 else Diagonal(covariance)
    if not isinstance(covariance, Covariance):
        raise TypeError(
            f"a covariance is a float, a tensor (C, H, W) or (N, N), or a Covariance; got {type(covariance).__name__}"
        )
    if covariance.img_size != img_size:
        raise ValueError(f"the covariance is of images {covariance.img_size}, the mean is of shape {img_size}")
    return covariance
