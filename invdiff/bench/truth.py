"""Posteriors that are known: the problems of the suite ``truth``, and the judge that holds samples to them.

    prior: {"invdiff.bench.truth:correlated": {side: 8}}
    judge: "invdiff.bench.truth:judge"                                  # reads the law off the prior, or
    judge: {"invdiff.bench.truth:judge": {law: {"invdiff.bench.truth:correlated": {side: 8}}}}    # is told it

The second is for a denoiser that is not one of ours: it runs in the same problems, and is held to the law that it should know.
Whatever differs from the posterior is then the doing of the strategy, or of the denoiser.

Priors look like images to strategies: values about 0.5, spread 0.15 to 0.25. Notation: an image has N values, a run K samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from deepinv import physics as dinv
from torch import Tensor
from torch.nn.functional import pad

from invdiff.bench.case import Case, Outcome
from invdiff.operators import Spectral
from invdiff.priors import Gaussian, GaussianMixture, Stationary
from invdiff.priors import sample as draw
from invdiff.seeds import seeded

DRAWS, DIRECTIONS, REPEATS = 8192, 32, 8  # of the posterior, that samples are compared with; of the sliced distance; of exact samples
GRID = 600  # points a side, over 6 spreads of the prior to each side

# Priors


def dense(size: list[int], decades: float = 2.0, spread: float = 0.15, seed: int = 0) -> Gaussian:
    """``N(0.5, Q diag(v) Q^T)`` on images ``size`` (C, H, W): ``Q`` a random rotation, ``v`` even in log over ``decades``."""
    n = int(np.prod(size))
    rotation, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))
    values = 10 ** -torch.linspace(0, decades, n, dtype=torch.float64)
    return Gaussian(torch.full(tuple(size), 0.5), rotation * (spread**2 * values / values.mean()) @ rotation.T)


def correlated(side: int, spread: float = 0.15, length: float = 3.0) -> Gaussian:
    """``N(0.5, spread^2 exp(-distance / length))`` on side x side pixels, the distance in pixels, round the edges."""
    covariance = Stationary.from_kernel(lambda r: spread**2 * torch.exp(-r / length), (1, side, side))
    return Gaussian(torch.full((1, side, side), 0.5), covariance)


def pair(correlation: float = 0.6, spread: float = 0.2) -> Gaussian:
    """``N(0.5, spread^2 (1, c; c, 1))`` of two values."""
    c = spread**2 * torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)
    return Gaussian(torch.full((1, 1, 2), 0.5), c)


def four_modes(scale: float = 0.2) -> GaussianMixture:
    """Four modes in the plane, weights 0.4, 0.1, 0.3 and 0.2, each 0.25 wide; ``0.5 + scale u`` of that."""
    means = torch.tensor([[1.0, -1.0], [-0.5, 1.5], [2.0, 1.0], [-1.5, -1.0]])
    return GaussianMixture([0.4, 0.1, 0.3, 0.2], 0.5 + scale * means.view(4, 1, 1, 2), (0.25 * scale) ** 2)


def many_modes(size: list[int], scale: float = 0.02, seed: int = 0) -> GaussianMixture:
    """25 modes at ``(8i, 8j, 8i, 8j, ...)``, i and j from -2 to 2, each 1 wide, of random weights; ``0.5 + scale u`` of that.

    The prior of Cardoso et al. 2024, "Monte Carlo Guided Denoising Diffusion Models for Bayesian Linear Inverse Problems",
    section 4, whose spread is 11, at the scale of images.
    """
    n = int(np.prod(size))
    corners = 8.0 * torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    weights = torch.randn(25, generator=seeded(seed)).square()
    return GaussianMixture(weights, 0.5 + scale * corners.repeat(1, n // 2).view(25, *size), scale**2)


# Operators


class Matrix(Spectral):
    """``y = M x + noise``, ``M`` (m, N), m <= N, applied to the values of an image of shape ``size``; y is a vector (B, m).

    There are N singular values, those beyond m zero: deepinv's DDRM draws what has none at all as zero.
    """

    img_size: tuple[int, ...]

    def __init__(self, matrix: Tensor | list[list[float]], size: list[int], noise: float | dinv.NoiseModel | None = None) -> None:
        u, a, vt = torch.linalg.svd(torch.as_tensor(matrix, dtype=torch.float64))
        beyond = (0, len(vt) - len(a))
        super().__init__(noise, mask=pad(a, beyond).float()[None])
        self.img_size = tuple(size)
        self.register_buffer("left", pad(u, beyond).float(), persistent=False)
        self.register_buffer("right", vt.float(), persistent=False)

    def V_adjoint(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.right.to(x).T

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        return (x @ self.right.to(x)).view(-1, *self.img_size)

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x @ self.left.to(x)

    def U(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x @ self.left.to(x).T


def random_matrix(rows: int, size: list[int], seed: int = 0) -> Tensor:
    """``rows`` x N normal numbers of variance 1/N: a measured number spreads as much as a value of a white image."""
    n = int(np.prod(size))
    return torch.randn(rows, n, generator=seeded(seed), dtype=torch.float64) / n**0.5


def box(side: int) -> Tensor:
    """The kernel of a mean over side x side pixels."""
    return torch.full((side, side), 1 / side**2)


def radius() -> Callable[[Tensor], Tensor]:
    """``|x - 0.5|``, one number (B, 1): how far the image is from gray."""
    return lambda x: (x - 0.5).flatten(1).norm(dim=1, keepdim=True)


# What is known of a posterior


@dataclass(frozen=True, eq=False)
class Reference:
    """A posterior: ``sample(n, seed)`` draws (n, N), ``mean`` and ``std`` are (N,), all float64.

    ``seen`` and ``unseen``: directions (N, r) that the operator measures and those that it does not, with the posterior variance
    of an image along them; None where this says nothing. ``weights``: of the modes (k,), those of ``law``. ``atoms``: values like the
    black of a digit are so likely that intervals of samples cannot hold a given share.
    """

    sample: Callable[[int, int], Tensor]
    mean: Tensor
    std: Tensor
    seen: tuple[Tensor, float] | None = None
    unseen: tuple[Tensor, float] | None = None
    law: GaussianMixture | None = None
    weights: Tensor | None = None
    atoms: bool = False

    @cached_property
    def draws(self) -> Tensor:
        """Exact samples (DRAWS, N), a quarter of them for large images."""
        return self.sample(DRAWS if len(self.mean) <= 256 else DRAWS // 4, 0).float()

    def projected(self, x: Tensor) -> Tensor:
        """Quantiles of samples (K, N) along random directions, in posterior standard deviations: (as many as draws, DIRECTIONS)."""
        directions = torch.randn(len(self.mean), DIRECTIONS, generator=seeded(0), dtype=torch.float64)
        units = ((x.double() - self.mean) / self.std) @ (directions / directions.norm(dim=0))
        places = torch.arange(len(self.draws)) * len(x) // len(self.draws)
        return units.sort(0).values[places]

    @cached_property
    def _projected_draws(self) -> Tensor:
        return self.projected(self.draws)

    def distance(self, x: Tensor) -> float:
        """Sliced Wasserstein-2 distance of samples (K, N) from the posterior, in posterior standard deviations."""
        return float((self.projected(x) - self._projected_draws).square().mean().sqrt())

    @cache  # noqa: B019 (a reference lives as long as the process)
    def distance_of_exact(self, count: int) -> float:
        """The same of ``count`` exact samples, root mean square over REPEATS."""
        return float(np.sqrt(np.mean([self.distance(self.sample(count, 1 + k)) ** 2 for k in range(REPEATS)])))


def closed_form(case: Case, law: Gaussian | GaussianMixture) -> Reference:
    """The posterior of a Gaussian or a mixture under a linear operator and white noise."""
    found: Any = law.posterior(case.y, case.A, case.noise)

    def sample(n: int, seed: int) -> Tensor:
        return found.sample(n, seed)[:, 0].flatten(1).double().cpu()

    mean, std = found.mean.flatten().double().cpu(), found.std.flatten().double().cpu()
    if isinstance(law, GaussianMixture):
        return Reference(sample, mean, std, law=law, weights=found.weights[0].cpu())
    covariance = found.covariance.double().cpu()
    seen, unseen = (None if v is None else (v, float((v * (covariance @ v)).sum(0).mean())) for v in directions(case))
    return Reference(sample, mean, std, seen, unseen)


def directions(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """Right singular vectors of the operator, as columns: those that it measures and the others; None for no such ones."""
    n = case.truth.numel()
    pixels = torch.eye(n).to(case.truth).view(n, *case.truth.shape[1:])
    _, a, vt = torch.linalg.svd(case.A.A(pixels).flatten(1).T.double().cpu())
    rank = int((a > 1e-4 * a.max()).sum())
    return vt[:rank].T, vt[rank:].T if rank < n else None


def on_grid(case: Case, law: Any) -> Reference:
    """The posterior of an image of two values, ``p(x) p(y | A(x))`` on a fine grid; ``law`` has a ``log_density``."""
    if case.truth.numel() != 2:
        raise ValueError(f"without a linear operator posteriors are known of images of two values, not {tuple(case.truth.shape[1:])}")
    axis = torch.linspace(-6, 6, GRID, dtype=torch.float64) * law.std
    points = law.mean.double() + torch.cartesian_prod(axis, axis).view(-1, *case.truth.shape[1:]).to(case.y.device)
    density = (law.log_density(points) + case.noise.log_likelihood(case.y.double(), case.A.A(points))).softmax(0).cpu()
    flat, step = points.flatten(1).cpu(), float(axis[1] - axis[0])

    def sample(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        chosen = torch.multinomial(density, n, replacement=True, generator=generator)
        return flat[chosen] + step * (torch.rand(n, 2, generator=generator, dtype=torch.float64) - 0.5)

    mean = density @ flat
    std = (density @ (flat - mean).square()).sqrt()
    if isinstance(law, GaussianMixture):
        return Reference(sample, mean, std, law=law, weights=density @ law.responsibilities(points).cpu())
    return Reference(sample, mean, std)


_known: dict[str, Reference] = {}


def reference(case: Case, law: Any = None) -> Reference:
    """The posterior of a case under ``law``, by default its prior; kept, since every method of a task needs it.

    A law that is not one of :mod:`invdiff.priors` finds it itself, ``law(case)``, as :class:`invdiff.bench.truth_digits.Stored` does.
    """
    if law is None and not hasattr(case.prior, "posterior"):
        raise ValueError("no posterior under this prior is known; give the law")
    law = case.prior if law is None else law
    facts = [case.y, case.A.A(case.truth), torch.as_tensor(getattr(law, "mean", 0.0))]
    facts += [torch.tensor([getattr(law, "std", 0.0), float(case.noise.sigma)])]
    key = hashlib.sha256(b"".join(t.detach().cpu().double().numpy().tobytes() for t in facts)).hexdigest()
    if key not in _known:
        if not hasattr(law, "posterior"):
            _known[key] = law(case)
        else:
            _known[key] = (closed_form if isinstance(case.A, dinv.LinearPhysics) else on_grid)(case, law)
    return _known[key]


# Scores


def judge(outcome: Outcome, case: Case, law: Any = None) -> dict[str, float]:
    """How far the samples of a run are from the posterior. For exact independent samples:

    * ``bias``: error of their mean in posterior standard deviations, root mean square over values; about ``1 / sqrt(K)``;
    * ``spread_measured``, ``spread_unmeasured``: their standard deviation over the posterior's, along the right singular vectors
      with and without a singular value (Gaussian posteriors); 1;
    * ``weights_error``: largest error of the weight of a mode (mixtures); about ``sqrt(w (1 - w) / K)``;
    * ``sliced_w2_ratio``: sliced Wasserstein-2 distance from the posterior over that of K exact samples; 1;
    * ``coverage_50``, ``coverage_90``: posterior probability of the central intervals of each value, their mean; 0.5 and 0.9;
    * ``ess``, ``ancestors`` of particles, as the outcome says them.
    """
    known = reference(case, law)
    x = (outcome.x[None] if outcome.samples is None else outcome.samples).detach().cpu().double().flatten(2)[:, 0]
    scores = {"bias": float(((x.mean(0) - known.mean) / known.std).square().mean().sqrt())}
    if len(x) < 2:
        return scores
    scores |= {name: value for name in ("ess", "ancestors") if (value := getattr(outcome, name)) is not None}
    for name, part in (("spread_measured", known.seen), ("spread_unmeasured", known.unseen)):
        if part is not None:
            scores[name] = float((((x - x.mean(0)) @ part[0]).var(0).mean() / part[1]).sqrt())
    if known.law is not None and known.weights is not None:
        images = x.view(-1, *case.truth.shape[1:]).to(known.law.means.device)
        shares = known.law.responsibilities(images).mean(0).cpu()
        scores["weights_error"] = float((shares - known.weights).abs().max())
    scores["sliced_w2_ratio"] = known.distance(x) / known.distance_of_exact(len(x))
    for percent in () if known.atoms else (50, 90):
        tail = 0.5 - percent / 200  # "weibull": the quantiles that exact samples put the right mass between, on average
        low, high = np.quantile(x.numpy(), (tail, 1 - tail), axis=0, method="weibull")
        inside = (known.draws >= torch.from_numpy(low)) & (known.draws <= torch.from_numpy(high))
        scores[f"coverage_{percent}"] = float(inside.double().mean())
    return scores


# The two ends of the scale, as contestants


def exact(case: Case, law: Any = None) -> Outcome:
    """Samples of the posterior itself: what is left to chance."""
    x = reference(case, law).sample(case.samples or 1, _seed(case))
    return Outcome.of(x.view(-1, *case.truth.shape).to(case.truth))


def ignorant(case: Case, law: Any = None) -> Outcome:
    """Samples of the prior, which ignore the measurement."""
    count, seed, law = case.samples or 1, _seed(case), case.prior if law is None else law
    x = law.sample(count, seed=seed) if hasattr(law, "posterior") else draw(law, (count, *case.truth.shape[1:]), seed=seed)  # type: ignore[arg-type]
    return Outcome.of(x[:, None].to(case.truth))


def _seed(case: Case) -> int:
    """A seed of its own for every measurement, so that their scores are independent."""
    facts = case.y.detach().cpu().double().numpy().tobytes() + bytes(str(case.seed), "ascii")
    return int.from_bytes(hashlib.sha256(facts).digest()[:4], "big")
