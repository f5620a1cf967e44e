"""The autoencoder of the latent priors that ship: small, convolutional, the same at any size.

A variational autoencoder whose latents have noise of a fixed spread ``eta``. What is minimised, over images ``x``, is

    L1(x^ - x) + L1(grad x^ - grad x) + penalty mean(z^2),  z = encode(x),  x^ = decode(z + eta n)

The noise makes the decoder smooth, and the penalty, which is the Kullback-Leibler divergence from unit normal latents up to
constants, stops the encoder from escaping it by large latents. The differences ``grad`` of neighbouring pixels keep edges sharp.
After training the latents are brought to mean 0 and spread 1 (:meth:`Autoencoder.standardise`).

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Rombach et al. 2022, section 3.1 (KL-regularised latents).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invdiff.priors.latent import LatentPrior
from invdiff.priors.network import DenoisingUNet, has_bf16
from invdiff.priors.wrap import Outer


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an :class:`Autoencoder`; stored in the weights file, so that a file describes itself.

    ``channels`` are those of the images, ``latents`` those of the latents; ``widths`` the channels of each level, of which
    each halves the resolution of the one before, ``blocks`` the residual blocks of a level on each side; ``mean`` and
    ``std`` those of the pixels.
    """

    channels: int = 3
    latents: int = 4
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    mean: float = 0.5
    std: float = 0.25

    def __post_init__(self) -> None:
        whole = {"channels": (self.channels,), "latents": (self.latents,), "widths": self.widths, "blocks": (self.blocks,)}
        for name, values in whole.items():
            if not values or not all(isinstance(value, int) and value > 0 for value in values):
                raise ValueError(f"{name} must be whole numbers above 0, got {getattr(self, name)}")
        if not (abs(self.mean) <= 1e6 and 1e-6 <= self.std <= 1e6):
            raise ValueError(f"mean and std are at most 1e6 in size and std is at least 1e-6, got {self.mean} and {self.std}")

    @property
    def factor(self) -> int:
        """Pixels of the image along a side of a latent one."""
        return int(2 ** (len(self.widths) - 1))


class _Residual(nn.Module):
    """``x + conv(silu(conv(silu(x))))``, at first the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Autoencoder(Outer):
    """Images (B, C, H, W) in [0, 1], sides a multiple of the factor, to latents (B, c, H / factor, W / factor) and back.

    As the denoising network it has no normalisation layer: a latent pixel depends on a neighbourhood of the image only.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths

        def level(width: int) -> list[nn.Module]:
            return [_Residual(width) for _ in range(config.blocks)]

        down: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 3, padding=1), *level(widths[0])]
        up: list[nn.Module] = [nn.Conv2d(widths[0], config.channels, 3, padding=1)]
        for a, b in pairwise(widths):
            down += [nn.Conv2d(a, b, 2, stride=2), *level(b)]
            up = [nn.ConvTranspose2d(b, a, 2, stride=2), *level(a), *up]
        # Next to the latents lie 1x1 convolutions, which can take in any shift and scale of them.
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], config.latents, 1))
        self.decoder = nn.Sequential(nn.Conv2d(config.latents, widths[-1], 1), *level(widths[-1]), *up)

    def encode(self, x: Tensor) -> Tensor:
        """The latents of images; ``ValueError`` for another number of channels, or sides that are no multiple of the factor."""
        c, factor = self.config.channels, self.config.factor
        if x.ndim != 4 or x.shape[1] != c or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"this autoencoder takes images of shape (B, {c}, H, W) with sides that are multiples of {factor}, got "
                f"{tuple(x.shape)}; LatentPrior.encode extends images to such sides"
            )
        if not x.is_floating_point():
            raise TypeError(f"images are floats in [0, 1], got {x.dtype}; x.float() / 255 for 8-bit ones")
        return self.encoder((x.to(self._dtype) - self.config.mean) / self.config.std).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images, not clipped, of latents; ``ValueError`` for another number of channels."""
        if z.ndim != 4 or z.shape[1] != self.config.latents:
            raise ValueError(
                f"this autoencoder takes latents of shape (B, {self.config.latents}, h, w), got {tuple(z.shape)}"
            )
        return (self.config.mean + self.config.std * self.decoder(z.to(self._dtype))).to(z.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder[0].weight.dtype  # type: ignore[return-value]

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Change encoder and decoder so that the latents of images ``x`` have mean 0 and spread 1 in every channel.

        What is decoded stays the same. Weights are then rounded to the 16 bits that files hold, so that latents are those of
        the file.
        """
        std, mean = torch.std_mean(self.encode(x), (0, 2, 3))
        std = std.clamp(min=0.01)  # a channel that training gave up stays silent
        last, first = self.encoder[-1], self.decoder[0]
        assert isinstance(last, nn.Conv2d) and isinstance(first, nn.Conv2d)
        assert last.bias is not None and first.bias is not None
        first.bias += (first.weight * mean.view(1, -1, 1, 1)).sum((1, 2, 3))
        first.weight *= std.view(1, -1, 1, 1)
        last.bias.copy_((last.bias - mean) / std)
        last.weight /= std.view(-1, 1, 1, 1)
        for p in self.parameters():
            p.copy_(p.half())


def reconstruction_loss(net: Autoencoder, x: Tensor, eta: float, penalty: float, generator: torch.Generator) -> Tensor:
    """What training minimises (see above), in units of the images' spread; a number."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=has_bf16(x.device)):
        z = net.encode(x)
        noise = torch.randn(z.shape, generator=generator).to(z)
        error = (net.decode(z + eta * noise) - x) / net.config.std
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + edges + penalty * z.square().mean()


def latent_prior(denoiser: DenoisingUNet, autoencoder: Autoencoder) -> LatentPrior:
    """The prior of images made of a denoiser of the latents of an autoencoder; ``ValueError`` if they do not fit."""
    shape = autoencoder.config
    if denoiser.channels != shape.latents:
        raise ValueError(f"a denoiser of {denoiser.channels} channels does not fit latents of {shape.latents}")
    prior = LatentPrior(denoiser, autoencoder.encode, autoencoder.decode, channels=shape.latents, factor=shape.factor)
    prior.autoencoder = autoencoder
    return prior
