"""Gaussian and Gaussian-mixture priors: exact denoisers whose posteriors are known in closed form.

They are the yardstick of every solver: with a linear operator and white Gaussian noise, ``posterior(y, A)`` is the
law that a solver given the same prior ought to sample from.

Notation: ``x0 ~ N(mu, C)``; ``x = x0 + sigma n`` the noisy image; ``y = A x0 + sigma_y e`` the measurement; ``n`` and
``e`` white noise of unit size; ``N`` the number of values in an image (C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from deepinv.models import Denoiser
from deepinv.physics import LinearPhysics, NoiseModel, Physics
from torch import Tensor, nn

from invdiff.priors.covariance import Covariance, Dense, Size, Stationary, as_covariance
from invdiff.seeds import check_seed

LARGEST = 4096  # values in an image beyond which dense matrices take minutes
_PRIOR, _POSTERIOR = 1, 2  # the first key of the generators, so that the two never draw the same noise


class Gaussian(Denoiser):
    """Gaussian prior ``N(mu, C)``: ``D(x, sigma) = mu + C (C + sigma^2 I)^{-1} (x - mu)``, the Wiener filter.

    ``mean`` is a float or a tensor (C, H, W); ``covariance`` a :class:`Covariance`, a variance (float, or one a pixel,
    shape (C, H, W)) or a matrix (N, N). One of the two has to fix the image size. Units are those of the image.

    Attributes: ``img_size``; ``std``, the root mean square of the pixels' standard deviations; ``sigma_min`` and
    ``sigma_max``, a useful range of noise levels (the denoiser is exact at every level).

    Source: Efron 2011, "Tweedie's Formula and Selection Bias" (the denoiser); Bishop 2006, "Pattern Recognition
    and Machine Learning", eqs. 2.113 to 2.117 (the posterior).
    """

    mean: Tensor
    covariance: Covariance

    def __init__(self, mean: float | Tensor, covariance: float | Tensor | Covariance) -> None:
        super().__init__()
        mean = _image_mean(mean, covariance)
        self.register_buffer("mean", mean)
        self.img_size: Size = (mean.shape[0], mean.shape[1], mean.shape[2])
        self.covariance = as_covariance(covariance, self.img_size)
        self.std = math.sqrt(self.covariance.trace() / mean.numel())
        self.sigma_min, self.sigma_max = _levels(self.std, float(self.covariance.eigenvalues.max()))

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: object) -> Tensor:
        return _denoise(self.mean, self.covariance, x, sigma)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``log p_sigma(x)`` of each image, shape (B,), where ``p_sigma`` is the law of ``x0 + sigma n``."""
        return _log_density(self.mean, self.covariance, x, sigma)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw ``n`` images, (n, C, H, W); image ``i`` depends on (seed, i) alone."""
        _, white = _draw(n, self.mean, _PRIOR, seed)
        return self.mean + self.covariance.sqrt(white)

    def posterior(self, y: Tensor, A: Physics, noise: float | Tensor | NoiseModel | None = None) -> GaussianPosterior:
        """The law of ``x0`` given ``y``, with ``noise`` a level in place of the operator's own.

            mean = mu + C A^T (A C A^T + sigma_y^2 I)^{-1} (y - A mu),   cov = C - C A^T (...)^{-1} A C

        ``A`` is a deepinv ``LinearPhysics``, the same for all images of the batch. Up to 4096 values an image it is
        written out as a matrix; beyond, the prior has to be :class:`Stationary` and ``A`` a periodic convolution.
        Raises ``TypeError`` for other operators, ``ValueError`` for noise that is not Gaussian of one level.
        """
        sigma, mean = _noise_level(A, noise), self.mean.double()
        transfer = _transfer(A, y, self.img_size) if isinstance(self.covariance, Stationary) else None
        if transfer is not None:
            shift, covariance = _condition_fourier(mean, self.covariance, transfer, y, sigma)
        else:
            shift, covariance, _ = _condition(mean, self.covariance, _matrix(A, y, self.img_size), y, sigma)
        return GaussianPosterior((mean + shift).to(y), covariance)


class GaussianPosterior:
    """``N(mean, covariance)``, one mean an image of the batch: ``mean`` is (B, C, H, W).

    All images share ``covariance`` (N, N) and ``std`` (C, H, W), the standard deviation of each pixel.
    """

    def __init__(self, mean: Tensor, law: Covariance) -> None:
        self.mean, self.law = mean, law
        self.std = law.variance().clamp(min=0).sqrt().to(mean)

    @property
    def covariance(self) -> Tensor:
        """The matrix (N, N), pixels in the order of ``image.flatten()``."""
        _check_size(self.law.img_size)
        return self.law.matrix()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``E[x0 | x, y]`` for a noisy image ``x = x0 + sigma n`` of each image of the batch: the exact guidance."""
        return _denoise(self.mean, self.law, x, sigma)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``log p_sigma(x | y)``, shape (B,); at ``sigma = 0`` it exists only where all pixels are uncertain."""
        return _log_density(self.mean, self.law, x, sigma)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw ``n`` images for each of the batch, (n, B, C, H, W); draw ``i`` of image ``b`` has its own generator."""
        draws = [_draw(n, mean, _POSTERIOR, seed, b)[1] for b, mean in enumerate(self.mean)]
        return torch.stack([mean + self.law.sqrt(white) for mean, white in zip(self.mean, draws)], 1)


class GaussianMixture(Denoiser):
    """Mixture prior ``sum_k w_k N(mu_k, C_k)``; its denoiser weighs those of the components by how likely each is:

        D(x, sigma) = sum_k r_k(x) D_k(x, sigma),   r_k(x) proportional to w_k N(x; mu_k, C_k + sigma^2 I)

    ``weights`` are K numbers that are not negative (normalised here), ``means`` a tensor (K, C, H, W), ``covariances``
    one of the kinds of :class:`Gaussian`, shared, or a list of K. Attributes as there; ``mean`` and ``std``
    are those of the whole mixture. The densities are compared as logarithms in float64, so that the denoiser is
    finite at small noise and far from every component.
    """

    mean: Tensor
    means: Tensor
    weights: Tensor

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Tensor,
        covariances: float | Tensor | Covariance | Sequence[float | Tensor | Covariance],
    ) -> None:
        super().__init__()
        w = torch.as_tensor(weights, dtype=torch.float64, device=means.device)
        if means.ndim != 4 or w.shape != means.shape[:1]:
            raise ValueError(
                f"K weights need means of shape (K, C, H, W); got {tuple(w.shape)} and {tuple(means.shape)}"
            )
        if not (bool((w >= 0).all()) and 0 < float(w.sum()) < math.inf):
            raise ValueError(f"weights are finite, not negative and not all zero; got {w.tolist()}")
        self.img_size: Size = (means.shape[1], means.shape[2], means.shape[3])
        if isinstance(covariances, (float, int, Tensor, Covariance)):
            covariances = [as_covariance(covariances, self.img_size)] * len(means)
        if len(covariances) != len(means):
            raise ValueError(
                f"give one covariance for all, or one each of the {len(means)} means; got {len(covariances)}"
            )
        w = w / w.sum()
        self.register_buffer("weights", w)
        self.register_buffer("means", means)
        self.register_buffer("mean", (w.view(-1, 1, 1, 1) * means).sum(0).to(means))
        self.components = nn.ModuleList(as_covariance(c, self.img_size) for c in covariances)
        offset = (means - self.mean).double().square().flatten(1).sum(1)
        trace = torch.tensor([c.trace() for c in self.covariances], dtype=torch.float64, device=means.device)
        self.std = math.sqrt(float((w * (offset + trace)).sum()) / self.mean.numel())
        reach = [float(c.eigenvalues.max()) + float(d) for c, d in zip(self.covariances, offset)]
        self.sigma_min, self.sigma_max = _levels(self.std, max(reach))

    @property
    def covariances(self) -> list[Covariance]:
        """The covariance of each component."""
        return list(self.components)  # type: ignore[arg-type]

    def _parts(self) -> list[tuple[Tensor, Covariance]]:
        return list(zip(self.means, self.covariances))

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: object) -> Tensor:
        return _mixture_denoise(self.weights.log(), self._parts(), x, sigma)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``log p_sigma(x)`` of each image, shape (B,), where ``p_sigma`` is the law of ``x0 + sigma n``."""
        return _joint(self.weights.log(), self._parts(), x, sigma).logsumexp(1).to(x.dtype)

    def responsibilities(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``r_k(x)``, (B, K) in float64; at ``sigma = 0`` its mean over posterior samples is the posterior's weights."""
        return _joint(self.weights.log(), self._parts(), x, sigma).softmax(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw ``n`` images, (n, C, H, W); image ``i`` depends on (seed, i) alone."""
        uniform, white = _draw(n, self.mean, _PRIOR, seed)
        return _mixture_draw(self.weights, self._parts(), uniform, white)

    def posterior(self, y: Tensor, A: Physics, noise: float | Tensor | NoiseModel | None = None) -> MixturePosterior:
        """The law of ``x0`` given ``y``: a mixture of the components' posteriors, with weights proportional to
        ``w_k N(y; A mu_k, A C_k A^T + sigma_y^2 I)``. Arguments and errors as :meth:`Gaussian.posterior`, up to
        4096 values an image; the noise must not be zero."""
        sigma = _noise_level(A, noise)
        if sigma == 0:
            raise ValueError("the posterior weights of a mixture need noise; give a small level, such as noise=1e-3")
        matrix = _matrix(A, y, self.img_size)
        components, evidence = [], []
        for mu, prior in self._parts():
            shift, covariance, log_evidence = _condition(mu.double(), prior, matrix, y, sigma)
            components.append(GaussianPosterior((mu.double() + shift).to(y), covariance))
            evidence.append(log_evidence)
        return MixturePosterior((self.weights.log() + torch.stack(evidence, 1)).softmax(1), components)


class MixturePosterior:
    """``sum_k weights_k N(means_k, covariances_k)`` for each image of a batch.

    ``weights`` is (B, K) in float64, ``means`` (K, B, C, H, W), ``covariances`` (K, N, N); ``mean`` and ``std``
    (B, C, H, W) are those of the whole mixture.
    """

    def __init__(self, weights: Tensor, components: list[GaussianPosterior]) -> None:
        self.weights, self.components = weights, components
        self.means = torch.stack([c.mean for c in components])
        w = weights.T[:, :, None, None, None].to(self.means)
        self.mean = (w * self.means).sum(0)
        spread = torch.stack([c.std for c in components])[:, None] ** 2
        self.std = (w * (spread + (self.means - self.mean) ** 2)).sum(0).sqrt()

    @property
    def covariances(self) -> Tensor:
        """The matrices (K, N, N), pixels in the order of ``image.flatten()``."""
        return torch.stack([c.covariance for c in self.components])

    def _parts(self) -> list[tuple[Tensor, Covariance]]:
        return [(c.mean, c.law) for c in self.components]

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``E[x0 | x, y]`` for a noisy image ``x = x0 + sigma n`` of each image of the batch: the exact guidance."""
        return _mixture_denoise(self.weights.log(), self._parts(), x, sigma)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """``log p_sigma(x | y)``, shape (B,)."""
        return _joint(self.weights.log(), self._parts(), x, sigma).logsumexp(1).to(x.dtype)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw ``n`` images for each of the batch, (n, B, C, H, W); draw ``i`` of image ``b`` has its own generator."""
        images = []
        for b, weights in enumerate(self.weights):
            uniform, white = _draw(n, self.mean[b], _POSTERIOR, seed, b)
            images.append(_mixture_draw(weights, [(c.mean[b], c.law) for c in self.components], uniform, white))
        return torch.stack(images, 1)


def _image_mean(mean: float | Tensor, covariance: float | Tensor | Covariance) -> Tensor:
    """``mean`` as a tensor (C, H, W); a float takes its size from the covariance."""
    if isinstance(mean, Tensor) and mean.ndim == 3:
        return mean
    size = covariance.img_size if isinstance(covariance, Covariance) else getattr(covariance, "shape", ())
    if isinstance(mean, Tensor) or len(size) != 3:
        given = tuple(mean.shape) if isinstance(mean, Tensor) else mean
        raise ValueError(f"the image size is not known: give a mean of shape (C, H, W); got {given}")
    return torch.full(tuple(size), float(mean))


def _levels(std: float, largest: float) -> tuple[float, float]:
    """From 0.1 % of the spread to where noise hides all structure: 20 times the widest direction's spread."""
    return 1e-3 * std, 20 * math.sqrt(largest)


def _draw(n: int, like: Tensor, kind: int, seed: int, *part: int) -> tuple[Tensor, Tensor]:
    """A uniform number and white noise for each of ``n`` draws; draw ``i`` has its own generator, from (kind, seed, part, i)."""
    check_seed(seed)
    uniform, white = np.empty(n), np.empty((n, *like.shape))
    for i in range(n):
        generator = np.random.default_rng((kind, seed, *part, i))
        uniform[i], white[i] = generator.random(), generator.standard_normal(like.shape)
    return torch.from_numpy(uniform), torch.from_numpy(white).to(like)


def _denoise(mean: Tensor, covariance: Covariance, x: Tensor, sigma: float | Tensor) -> Tensor:
    covariance.check(x)
    return mean.to(x) + covariance.shrink(x - mean.to(x), sigma)


def _log_density(mean: Tensor, covariance: Covariance, x: Tensor, sigma: float | Tensor) -> Tensor:
    covariance.check(x)
    return covariance.log_density(x - mean.to(x), sigma)


def _joint(log_weights: Tensor, parts: list[tuple[Tensor, Covariance]], x: Tensor, sigma: float | Tensor) -> Tensor:
    """``log w_k + log N(x; mu_k, C_k + sigma^2 I)``, shape (B, K), in float64."""
    shared, s, x = _shared(parts), torch.as_tensor(sigma), x.double()
    if shared is None or s.numel() > 1:
        logs = torch.stack([_log_density(mu, c, x, sigma) for mu, c in parts], 1)
    else:  # all at once: N(x; mu_k) is N(x; mu_0) times an exponential that is linear in x
        first, d = parts[0][0].to(x), torch.stack([mu.to(x) - parts[0][0].to(x) for mu, _ in parts])
        tilt = shared.solve(d, s).flatten(1)
        linear = (x - first).flatten(1) @ tilt.T - (d.flatten(1) * tilt).sum(1) / 2
        logs = _log_density(first, shared, x, s)[:, None] + linear
    return log_weights.to(logs) + logs


def _mixture_denoise(
    log_weights: Tensor, parts: list[tuple[Tensor, Covariance]], x: Tensor, sigma: float | Tensor
) -> Tensor:
    r = _joint(log_weights, parts, x, sigma).softmax(1).to(x.dtype)[:, :, None, None, None]
    if (shared := _shared(parts)) is not None:  # the filter is linear: that of the mean of their means
        means = torch.stack([mu.to(x) for mu, _ in parts])
        return _denoise((r.flatten(1) @ means.flatten(1)).view_as(x), shared, x, sigma)
    return (r * torch.stack([_denoise(mu, c, x, sigma) for mu, c in parts], 1)).sum(1)


def _shared(parts: list[tuple[Tensor, Covariance]]) -> Covariance | None:  # of all components, where a prior has one
    return parts[0][1] if parts[0][0].ndim == 3 and all(c is parts[0][1] for _, c in parts) else None


def _mixture_draw(weights: Tensor, parts: list[tuple[Tensor, Covariance]], uniform: Tensor, white: Tensor) -> Tensor:
    edges = weights.double().cumsum(0).cpu()
    chosen = torch.searchsorted(edges, uniform * edges[-1], right=True)
    x = torch.empty_like(white)
    for k, (mu, covariance) in enumerate(parts):
        if bool((chosen == k).any()):  # some FFTs refuse an empty batch
            x[chosen == k] = mu + covariance.sqrt(white[chosen == k])
    return x


def _noise_level(A: Physics, noise: float | Tensor | NoiseModel | None) -> float:
    """The standard deviation of white Gaussian noise, or an error that says why there is none."""
    from invdiff.operators.noise import Gaussian as GaussianNoise
    from invdiff.operators.noise import as_noise

    if not isinstance(A, LinearPhysics):
        raise TypeError(f"a closed-form posterior needs a linear operator (LinearPhysics), got {type(A).__name__}")
    model = as_noise(getattr(A, "noise_model", None) if noise is None else noise)
    if not isinstance(model, GaussianNoise) or torch.as_tensor(model.sigma).numel() != 1:
        raise ValueError(
            f"a closed-form posterior needs Gaussian noise of one level, got {model}; override it with noise="
        )
    return float(model.sigma)


def _check_size(img_size: Size) -> None:
    n = math.prod(img_size)
    if n > LARGEST:
        raise ValueError(
            f"images {img_size} have {n} values, and dense matrices are made up to {LARGEST}; use smaller images, or "
            "a Gaussian prior with a Stationary covariance and an operator that is a periodic convolution"
        )


def _matrix(A: Physics, y: Tensor, img_size: Size) -> Tensor:
    """``A`` as a matrix (M, N) in float64, one column an image of the standard basis."""
    _check_size(img_size)
    n = math.prod(img_size)
    basis = torch.eye(n, dtype=y.dtype, device=y.device).view(n, *img_size)
    matrix = torch.cat([A.A(part).flatten(1) for part in basis.split(256)]).double().T
    if matrix.shape[0] != y[0].numel():
        raise ValueError(f"y has {y[0].numel()} values an image, A.A of an image {img_size} has {matrix.shape[0]}")
    return matrix


def _transfer(A: Physics, y: Tensor, img_size: Size) -> Tensor | None:
    """The transfer function (C, H, W) of ``A`` if it is a convolution, periodic and channel by channel, else None."""
    point = torch.zeros(1, *img_size, dtype=y.dtype, device=y.device)
    point[..., 0, 0] = 1
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *img_size))).to(point)
    response, measured = A.A(point), A.A(probe)
    if response.shape != point.shape or response.shape[1:] != y.shape[1:]:
        return None
    transfer = torch.fft.fft2(response.double())
    difference = torch.fft.ifft2(transfer * torch.fft.fft2(probe.double())).real - measured
    return transfer[0] if float(difference.abs().max()) < 1e-5 * float(measured.abs().max()) else None


def _condition_fourier(
    mean: Tensor, prior: Covariance, transfer: Tensor, y: Tensor, sigma: float
) -> tuple[Tensor, Covariance]:
    """As :func:`_condition`, frequency by frequency."""
    spectrum = prior.eigenvalues.to(mean).view(prior.img_size)
    signal = spectrum * transfer.abs() ** 2
    total = (signal + sigma**2).clamp(min=torch.finfo(mean.dtype).tiny)
    residual = torch.fft.fft2(y.double()) - transfer * torch.fft.fft2(mean)
    shift = torch.fft.ifft2(spectrum * transfer.conj() / total * residual).real
    return shift, Stationary(spectrum * (1 - signal / total))


def _condition(
    mean: Tensor, prior: Covariance, matrix: Tensor, y: Tensor, sigma: float
) -> tuple[Tensor, Covariance, Tensor]:
    """Shift of the mean (B, C, H, W), posterior covariance and ``log p(y)`` (B,) under one Gaussian; all float64.
    Without noise ``y`` has no density, and the last is nan.

    In white coordinates ``x0 = mu + R t``, ``R = C^(1/2)``, the operator is ``B = A R``. With
    ``B^T B = V diag(s2) V^T`` the covariance of ``t | y`` is ``V diag(sigma^2 / (s2 + sigma^2)) V^T``: positive
    semidefinite whatever the rounding, and with the right limit without noise.
    """
    n = mean.numel()
    identity = torch.eye(n, dtype=torch.float64, device=mean.device)
    root = prior.sqrt(identity.view(n, *prior.img_size)).flatten(1)
    white = matrix @ root
    s2, v = torch.linalg.eigh(white.T @ white)
    seen = s2 > 1e-14 * s2.max()  # the rest is rounding error: directions that the operator does not measure
    gain = torch.where(seen, 1 / (s2 + sigma**2), 0.0)
    residual = y.flatten(1).double() - matrix @ mean.flatten()
    t = ((residual @ white @ v) * gain) @ v.T
    left = root @ v * torch.where(seen, sigma**2 * gain, 1.0).sqrt()
    covariance = Dense(left @ left.T, prior.img_size)
    shift = (t @ root).view(-1, *prior.img_size)
    if sigma == 0:
        return shift, covariance, torch.full((len(y),), math.nan)
    misfit = (residual - t @ white.T).square().sum(1) / sigma**2 + t.square().sum(1)
    volume = len(matrix) * math.log(2 * math.pi * sigma**2) + (s2.clamp(min=0) / sigma**2).log1p().sum()
    return shift, covariance, -(misfit + volume) / 2
