"""Measurement noise: how ``y`` scatters around ``z = A(x)``, as a log-likelihood with its gradient.

=================  =====================================================  ==========================
class              law of y given z                                       log p(y | z), up to a constant
=================  =====================================================  ==========================
``Gaussian``       ``z + sigma n``                                        ``-|y - z|^2 / (2 sigma^2)``
``Poisson``        ``gain * Poisson(z / gain)``                           ``(y log z - z) / gain``
``PoissonGaussian``  ``gain * Poisson(z / gain) + sigma n``               Gaussian of variance ``gain z + sigma^2``
=================  =====================================================  ==========================

They are deepinv noise models (``A.noise_model``) that can be pickled and draw with a seed of their own.
Units: ``sigma`` is in the unit of the measurement, ``gain`` is the measurement of one photon.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.seeds import seeded


class Noise(dinv.NoiseModel):
    """Base class: a law of ``y`` given the noiseless measurement ``z``.

    ``sigma`` is a number, or a tensor () or (B,) or (B, 1, 1, 1) with one level an image; others raise ``ValueError``.
    """

    def __init__(self, sigma: float | Tensor = 0.0, gain: float = 0.0) -> None:
        super().__init__()
        if isinstance(sigma, Tensor) and sigma.ndim > 1:
            if tuple(sigma.shape[1:]) != (1, 1, 1):
                raise ValueError(
                    "sigma is a number or a tensor of shape (), (B,) or (B, 1, 1, 1), one level an image; got shape "
                    f"{tuple(sigma.shape)}. Where it differs between pixels, divide y and A by it, and give 1"
                )
            sigma = sigma.flatten()
        levels = torch.as_tensor(sigma, dtype=torch.float32)
        if not bool(torch.isfinite(levels).all() and (levels >= 0).all()) or not math.isfinite(gain) or gain < 0:
            raise ValueError(f"noise levels are finite and not negative, got sigma={sigma}, gain={gain}")
        self.sigma, self.gain = sigma, gain

    def __reduce__(self) -> tuple[Any, ...]:  # deepinv's base class holds a lambda, which cannot be pickled
        return type(self), tuple(self._arguments().values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._arguments().items())})"

    def _arguments(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def variance(self, z: Tensor) -> Tensor:
        """Variance of ``y`` given ``z``, shaped like ``z``."""
        sigma = self.sigma
        if isinstance(sigma, Tensor) and sigma.ndim == 1:  # one level an image
            if len(sigma) not in (1, len(z)):
                raise ValueError(f"noise with {len(sigma)} levels, one an image, does not fit a batch of {len(z)}")
            sigma = sigma.to(z).view(-1, *[1] * (z.ndim - 1))
        return torch.as_tensor(sigma**2, dtype=z.dtype, device=z.device).expand_as(z)

    def select(self, images: list[int]) -> Noise:
        """The noise of these images of the batch, in this order."""
        return Gaussian(self.sigma[images]) if isinstance(self.sigma, Tensor) and self.sigma.numel() > 1 else self

    def log_likelihood(self, y: Tensor, z: Tensor) -> Tensor:
        """``log p(y | z)`` of each image, shape (B,), up to a constant that does not depend on ``z``."""
        raise NotImplementedError

    def score(self, y: Tensor, z: Tensor) -> Tensor:
        """Gradient of :meth:`log_likelihood` with respect to ``z``, shaped like ``z``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.log_likelihood(y, z).sum(), z)
        return grad

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``z``."""
        return z + self.variance(z).sqrt() * torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)

    def forward(self, input: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:  # deepinv's call
        return self.sample(input, None if seed is None else seeded(seed))


class Gaussian(Noise):
    """White Gaussian noise of standard deviation ``sigma``: a number, or a tensor () or (B,) or (B, 1, 1, 1)."""

    def log_likelihood(self, y: Tensor, z: Tensor) -> Tensor:
        return -((y - z).square() / (2 * self.variance(z))).flatten(1).sum(1)


class Poisson(Noise):
    """Photon noise: ``y = gain * k`` with ``k`` Poisson distributed with mean ``z / gain``; needs ``z >= 0``."""

    def __init__(self, gain: float = 1.0) -> None:
        gain = _number(gain, "gain")
        super().__init__(0.0, gain)
        if gain <= 0:
            raise ValueError(f"Poisson noise needs a positive gain, got {gain}")

    def _arguments(self) -> dict[str, Any]:
        return {"gain": self.gain}

    def variance(self, z: Tensor) -> Tensor:
        """``gain max(z, gain / 2)``: half a photon is the variance that a count of zero or one leaves open."""
        return self.gain * z.clamp(min=self.gain / 2)

    def log_likelihood(self, y: Tensor, z: Tensor) -> Tensor:
        rate = z.clamp(min=1e-3 * self.gain)  # a rate of zero would make any count impossible
        return ((y * rate.log() - rate) / self.gain).flatten(1).sum(1)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.gain * torch.poisson((z / self.gain).clamp(min=0).cpu(), generator=generator).to(z.device)


class PoissonGaussian(Noise):
    """Photon noise plus read noise; the likelihood is the usual Gaussian one of variance ``gain z + sigma^2``."""

    def __init__(self, gain: float = 1.0, sigma: float = 0.1) -> None:
        gain, sigma = _number(gain, "gain"), _number(sigma, "sigma")
        super().__init__(sigma, gain)
        if gain <= 0 or sigma <= 0:
            raise ValueError(f"Poisson-Gaussian noise needs gain > 0 and sigma > 0, got {gain} and {sigma}")

    def _arguments(self) -> dict[str, Any]:
        return {"gain": self.gain, "sigma": self.sigma}

    def variance(self, z: Tensor) -> Tensor:
        return self.gain * z.clamp(min=0) + self.sigma**2

    def log_likelihood(self, y: Tensor, z: Tensor) -> Tensor:
        v = self.variance(z)
        return -((y - z).square() / (2 * v) + v.log() / 2).flatten(1).sum(1)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        counts = self.gain * torch.poisson((z / self.gain).clamp(min=0).cpu(), generator=generator).to(z.device)
        return counts + self.sigma * torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)


def _number(value: float | Tensor, name: str) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} of photon noise is one number for all images, got shape {tuple(value.shape)}")
    return float(value)


def as_noise(noise: float | Tensor | dinv.NoiseModel | None) -> Noise:
    """Turn a noise level, or a deepinv noise model of a law we know, into a :class:`Noise`.

    Raises:
        TypeError: a noise model of another law.
        ValueError: levels out of range or of a wrong shape, or Poisson noise that is recorded as counts.
    """
    if isinstance(noise, Noise):
        return noise
    if noise is None or isinstance(noise, dinv.ZeroNoise):
        return Gaussian(0.0)
    if isinstance(noise, (float, int, Tensor)) and not isinstance(noise, bool):
        return Gaussian(noise)
    if isinstance(noise, dinv.PoissonGaussianNoise):
        gain, sigma = _number(noise.gain, "gain"), _number(noise.sigma, "sigma")
        if gain == 0 or sigma == 0:  # deepinv's way to say that there is one kind of noise only
            return Gaussian(sigma) if gain == 0 else Poisson(gain)
        return PoissonGaussian(gain, sigma)
    if isinstance(noise, dinv.PoissonNoise):
        gain = _number(noise.gain, "gain")
        if not bool(noise.normalize) and gain != 1:
            raise ValueError(
                "PoissonNoise(normalize=False) records counts, y / gain, on another scale than A(x); "
                f"multiply y by the gain and give operators.Poisson({gain:g})"
            )
        return Poisson(gain)
    if isinstance(noise, dinv.GaussianNoise):
        return Gaussian(noise.sigma if noise.sigma.numel() > 1 else float(noise.sigma))
    raise TypeError(
        f"noise of type {type(noise).__name__} has no likelihood here; give a level (float), or "
        "operators.Gaussian, operators.Poisson or operators.PoissonGaussian"
    )
