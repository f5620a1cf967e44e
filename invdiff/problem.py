"""What a strategy is given: measurement, operator, prior, noise and randomness, one row a sample.

A *row* is one sample of one image. Rows never influence one another, whatever is computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from deepinv.physics import DecomposablePhysics, LinearPhysics, Physics
from torch import Tensor

from invdiff.operators import Decoded, Gaussian, Noise


class RowNoise:
    """Unit normal numbers, each row from a generator of its own, derived from (seed, sample // 2, image).

    So a row is the same alone, in a batch, in chunks, and however many samples are asked for. An odd sample gets the
    numbers of the one before with their signs turned: each alone is as random as any other, but in the mean of such an
    *antithetic pair* all that is odd in the noise cancels, so that where
    most of the variation is odd, as measured on photographs, the mean of few samples is nearer to that of many.

    Source: Hammersley & Morton 1956, "A new Monte Carlo technique: antithetic variates".
    """

    def __init__(
        self, seed: int, rows: Sequence[tuple[int, int]], shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self.device, self.dtype = tuple(shape), device, dtype
        self.generators = []
        self.signs = torch.tensor([1 - 2 * (sample % 2) for sample, _ in rows], device=device, dtype=dtype)
        for sample, image in rows:
            state = int(np.random.SeedSequence((seed, sample // 2, image)).generate_state(1, np.uint64)[0])
            self.generators.append(torch.Generator(device).manual_seed(state >> 1))

    def __call__(self, shape: Sequence[int] | None = None) -> Tensor:
        """Draw a tensor of shape (rows, C, H, W), or (rows, *shape)."""
        shape = self.shape if shape is None else shape
        out = torch.empty((len(self.generators), *shape), device=self.device, dtype=self.dtype)
        for row, generator in zip(out, self.generators):
            row.normal_(generator=generator)
        return self.signs.view(-1, *[1] * len(shape)) * out


class EnsembleNoise(RowNoise):
    """The same for the particles of one image, from one generator, derived from (seed, image): all rows are drawn together.

    No antithetic pairs: the first resampling would part them, and what is known of the error of weighted particles holds for
    independent ones.
    """

    def __init__(
        self, seed: int, image: int, rows: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(seed, [(0, image)], shape, device, dtype)
        self.rows = rows

    def __call__(self, shape: Sequence[int] | None = None, rows: int | None = None) -> Tensor:
        size = (self.rows if rows is None else rows, *(self.shape if shape is None else shape))
        return torch.randn(size, generator=self.generators[0], device=self.device, dtype=self.dtype)

    def uniform(self, n: int = 1) -> Tensor:
        """``n`` numbers in [0, 1)."""
        return torch.rand(n, generator=self.generators[0], device=self.device, dtype=torch.float64)


@dataclass
class Problem:
    """One chunk of rows of a call of :func:`invdiff.solve`; for particle strategies all rows of one image.

    ``y`` holds one measurement a row, ``denoise`` is the prior with its evaluations counted (``nfe``), ``linearize`` the same
    with its backward passes counted too (``backward``), ``randn`` draws unit noise of the state's shape, ``tick`` reports a
    finished step; ``condition`` is what the prior is told, one entry a row, or None. ``at_once`` is how many rows memory allows the
    prior together where there are more (:meth:`in_slices`), ``report`` what a strategy says beside its samples, ``begin`` the images
    to start from, one a row, or None.

    What is one number a row has shape (rows, 1, 1, 1); for volumes (C, D, H, W) there is one more 1.
    """

    y: Tensor
    A: Physics
    prior: Any
    noise: Noise
    randn: RowNoise
    tick: Callable[[], None] = lambda: None
    condition: Any = None
    nfe: int = 0
    backward: int = 0
    cache: dict[str, Tensor] = field(default_factory=dict)
    at_once: int | None = None
    report: dict[str, Tensor] = field(default_factory=dict)
    begin: Tensor | None = None

    def in_slices(self, f: Callable[[Problem, Tensor], dict[str, Tensor]], x: Tensor) -> dict[str, Tensor]:
        """``f(rows of the problem, rows of x)`` for at most ``at_once`` rows at a time, put together again.

        Halved and tried again when memory runs out. The evaluations of one slice are counted: those of a row.
        """
        n = min(self.at_once or len(x), len(x))
        while True:
            try:
                parts = [self._rows(slice(i, i + n)) for i in range(0, len(x), n)]
                found = [f(part, x[i * n : (i + 1) * n]) for i, part in enumerate(parts)]
                break
            except (RuntimeError, MemoryError) as error:
                if n == 1 or not out_of_memory(error):
                    raise
            n = self.at_once = n // 2
        self.nfe, self.backward = parts[0].nfe, parts[0].backward
        return {k: torch.cat([rows[k] for rows in found]) for k in found[0]}

    def _rows(self, rows: slice) -> Problem:
        """These rows of the problem of one image, which share its operator."""
        condition = None if self.condition is None else self.condition[rows]
        cache = {k: v[rows] if v.ndim and len(v) == len(self.y) else v for k, v in self.cache.items()}
        return replace(self, y=self.y[rows], condition=condition, cache=cache)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The prior's E[x0 | x], counted: one that evaluates networks several times says how often in ``evaluations``."""
        self.nfe += getattr(self.prior, "evaluations", 1)
        return self.prior(x, sigma) if self.condition is None else self.prior(x, sigma, condition=self.condition)

    def linearize(self, x: Tensor, sigma: float, products: int | None = 1) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """``x0 = denoise(x, sigma)`` and ``v -> J^T v``, ``J = d x0 / d x``: one backward pass a call, counted.

        After ``products`` calls the graph is freed; ``None`` keeps it for as long as the function lives.
        """
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            x0 = self.denoise(state, sigma)
        left = math.inf if products is None else products

        def vjp(v: Tensor) -> Tensor:
            nonlocal left
            left -= 1
            self.backward += getattr(self.prior, "evaluations", 1)
            return torch.autograd.grad(x0, state, v, retain_graph=left > 0)[0]

        return x0.detach(), vjp

    @property
    def linear(self) -> bool:
        """Whether the operator has an adjoint."""
        return isinstance(self.A, LinearPhysics)

    @property
    def spectral(self) -> bool:
        """Whether the operator has a singular value decomposition."""
        return isinstance(self.A, DecomposablePhysics)

    @property
    def gaussian(self) -> bool:
        """Whether the noise is white and Gaussian."""
        return isinstance(self.noise, Gaussian)

    @property
    def sigma_y(self) -> Tensor:
        """Noise level, shape (rows, 1, 1, 1) or (1, 1, 1, 1), never under ``1e-3`` of the images' spread.

        A noise of exactly zero would ask for infinite weights; the floor is far under what float32 sampling resolves.
        """
        level = torch.as_tensor(self.noise.sigma, dtype=self.y.dtype, device=self.y.device)
        spread = self.A.std if isinstance(self.A, Decoded) else self.prior.std
        return level.reshape(-1, *[1] * len(self.randn.shape)).clamp(min=1e-3 * spread)

    @property
    def size(self) -> Tensor:
        """How many numbers of ``y`` are measured, a row: for a linear ``A``, those that depend on the image.

        Shape (rows, 1, 1, 1).
        """
        if "size" not in self.cache:
            self.cache["size"] = per_row(self.measured.to(self.y.dtype), self.sigma_y.ndim).clamp(min=1)
        return self.cache["size"]

    @property
    def measured(self) -> Tensor:
        """Which numbers of ``y`` depend on the image, shaped like ``y``; of a nonlinear operator all are taken to."""
        if "measured" not in self.cache:
            A = self.A.inner if isinstance(self.A, Decoded) else self.A  # what it drops is known without a decoder
            found = self._probe(A) != 0 if isinstance(A, LinearPhysics) else torch.ones_like(self.y, dtype=torch.bool)
            self.cache["measured"] = found
        return self.cache["measured"]

    @property
    def gain(self) -> Tensor:
        """Mean square of a measured number when the image is white unit noise, a row. Shape (rows, 1, 1, 1)."""
        if "gain" not in self.cache:
            self.cache["gain"] = per_row(self._probe(self.A).square(), self.sigma_y.ndim) / self.size
        return self.cache["gain"]

    @property
    def noise_left(self) -> Tensor:
        """Share of the noise's variance that is left in ``y``, from which ``solve`` takes what lies in directions that ``A`` never measures.

        Shape (rows, 1, 1, 1).
        """
        if "noise_left" not in self.cache:
            share = torch.ones_like(self.size)
            if self.spectral and bool((self.A.mask == 0).any()):
                e = torch.randn(self.y.shape[1:], generator=torch.Generator().manual_seed(0), dtype=self.y.dtype).to(self.y.device)
                e = torch.where(self.measured, e, 0.0)
                inside = self.A.U(torch.where(self.A.mask != 0, self.A.U_adjoint(e), 0.0))
                share = per_row(inside.square(), self.sigma_y.ndim) / per_row(e.square(), self.sigma_y.ndim)
            self.cache["noise_left"] = share
        return self.cache["noise_left"]

    def _probe(self, A: Physics) -> Tensor:
        """``A`` of one fixed image of white noise, the same for every row."""
        shape = A.A_adjoint(self.y).shape[1:] if isinstance(A, LinearPhysics) else self.randn.shape
        u = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0), dtype=self.y.dtype)
        return A.A(u.to(self.y.device).expand(len(self.y), *shape))

    def levels(self, sigma_max: float | None, sigma_min: float | None) -> tuple[float, float]:
        """Ends of the ladder in units of the image; ``None`` chooses them from the prior and the noise."""
        high = min(4 * self.prior.std, self.prior.sigma_max) if sigma_max is None else sigma_max
        low = float(self.sigma_y.min()) * 0.3
        low = min(max(low, 0.02 * self.prior.std), 0.08 * self.prior.std) if sigma_min is None else sigma_min
        return high, max(low, self.prior.sigma_min)

    def start(self, sigma: float) -> Tensor:
        """A state at level ``sigma``: noise around the posterior mean under the prior's own mean and spread.

        ``m = argmin |A x - y|^2 / (2 sigma_y^2) + |x - mean|^2 / (2 std^2)`` for a linear operator, the prior's mean
        otherwise; at high noise the posterior is near Gaussian, and this is its centre. Where there are images to begin from, noise
        around these: if they are posterior samples, the state has exactly the law it should.
        """
        if self.begin is not None:
            return self.begin + sigma * self.randn()
        mean = torch.as_tensor(self.prior.mean, dtype=self.y.dtype, device=self.y.device)
        centre = mean.expand(len(self.y), *self.randn.shape)
        if self.linear and self.gaussian:
            centre = prox(self, centre, (self.prior.std / self.sigma_y) ** 2)
        return centre + sigma * self.randn()


def prox(p: Problem, x: Tensor, gamma: Tensor) -> Tensor:
    """``argmin_z gamma |A z - y|^2 + |z - x|^2``, with ``gamma`` of shape (rows or 1, 1, 1, 1)."""
    return p.A.prox_l2(x, p.y, gamma.expand(len(x), *gamma.shape[1:]))


def per_row(values: Tensor, ndim: int = 4) -> Tensor:
    """Sum of all but the first axis, kept for broadcasting against images of ``ndim`` axes: shape (rows, 1, 1, 1).

    Row by row: summed together, the rounding would depend on how many rows there are, and 16-bit networks amplify it.
    """
    return torch.stack([row.sum() for row in values]).view(-1, *[1] * (ndim - 1))


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises where memory runs out."""
    words = str(error).lower()
    known = ("not enough memory", "allocate memory")  # what torch says on a CPU, by platform
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in words for text in known)
