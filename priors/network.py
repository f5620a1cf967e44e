"""The denoising network: a small, fully convolutional U-Net with EDM preconditioning.

Notation: ``x = x0 + sigma n`` is the noisy image, ``mu`` and ``s`` the mean and spread of the training
pixels, ``F`` the raw U-Net. The denoiser is (Karras et al. 2022, eq. 7)

    D(x, sigma) = mu + c_skip (x - mu) + c_out F(c_in (x - mu), log sigma)

    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),  c_in = 1 / sqrt(sigma^2 + s^2)

The network has no normalisation layer: a pixel's output depends only on a neighbourhood of the input,
so an image means the same alone, in a batch, or as part of a larger image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a :class:`DenoisingUNet`; stored in the weights file, so that a file describes itself.

    ``widths`` are the channels of each level, ``blocks`` the residual blocks of a level on each side.
    Each level halves the resolution; the first works at ``1 / patch`` of the image's resolution.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 2
    patch: int = 1
    mean: float = 0.5
    std: float = 0.25
    sigma_min: float = 0.002
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        whole = {"channels": (self.channels,), "widths": self.widths, "blocks": (self.blocks,), "patch": (self.patch,)}
        for name, values in whole.items():
            if not values or not all(isinstance(value, int) and value > 0 for value in values):
                raise ValueError(f"{name} must be whole numbers above 0, got {getattr(self, name)}")
        if not (abs(self.mean) <= 1e6 and 1e-6 <= self.std <= 1e6):
            raise ValueError(f"mean and std are at most 1e6 in size and std is at least 1e-6, got {self.mean} and {self.std}")
        if not 0 < self.sigma_min < self.sigma_max <= 1e6:
            raise ValueError(f"0 < sigma_min < sigma_max <= 1e6 is needed, got {self.sigma_min} and {self.sigma_max}")


def wrong_shape(x: Tensor, channels: int | None) -> ValueError:
    """What to raise for an image that a prior of so many channels (None: any) does not take."""
    given = f"this prior takes images of shape (B, {channels or 'C'}, H, W), got {tuple(x.shape)}; "
    if x.ndim != 4:
        return ValueError(given + "add the batch axis: x[None]")
    if channels == 1:
        return ValueError(given + "it knows gray images: x.mean(1, keepdim=True), or a prior of colour, such as natural")
    return ValueError(given + "convert the channels first")


def noise_levels(sigma: float | Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The noise level of each image, (B,); ``ValueError`` unless they are one or B numbers, 0 or more and finite."""
    dtype = torch.float32 if x.device.type == "mps" else dtype  # which has no more
    s = torch.as_tensor(sigma, dtype=dtype).reshape(-1)
    if len(s) not in (1, len(x)) or not bool(((s >= 0) & (s <= torch.finfo(torch.float32).max ** 0.5)).all()):
        raise ValueError(f"sigma is a noise level, 0 or more and finite, one for all images or one for each of {len(x)}, got {sigma}")
    return s.to(device=x.device, dtype=dtype).expand(len(x))


class _Residual(nn.Module):
    """``x + conv(silu(scale * conv(silu(x)) + shift))`` with scale and shift set by the noise level."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # every block starts as the identity: no warm-up needed
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(x))
        return x + self.conv2(F.silu(h * (1 + scale) + shift))


class _Level(nn.ModuleList):
    """The residual blocks of one resolution, one after the other."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            x = block(x, emb)
        return x


class DenoisingUNet(Denoiser):
    r"""Denoiser :math:`D(x,\sigma) \approx E[x_0 \mid x_0 + \sigma n = x]` (module docstring for the formula).

    Call it as ``net(x, sigma)`` with ``x`` of shape (B, C, H, W), any H and W, images nominally in [0, 1],
    and ``sigma`` a float or a tensor of shape (B,), in the same unit as the image. A network of three
    channels also takes one-channel images: it was trained on gray images too, with R = G = B.

    Only ``F`` computes in the type of the weights, whose rounding ``c_out`` keeps below the noise: ``net.bfloat16()``, ``net.half()``. All else
    is in float32, or float64 for images of that type. Weights in float32 are computed with in bfloat16 where that is faster.

    Source: preconditioning of Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
    Generative Models", Table 1.
    """

    def __init__(self, config: NetworkConfig | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig(**kwargs)
        self.channels, self.mean, self.std = config.channels, config.mean, config.std
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max
        widths, emb = config.widths, 128
        pixels = config.channels * config.patch**2
        self._compiled: Callable[..., Tensor] = type(self).raw  # until it is
        self.register_buffer("frequencies", 2.0 ** torch.arange(-3, 3), persistent=False)  # exact in any dtype
        self.embed = nn.Sequential(nn.Linear(12, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)

        def level(w: int) -> _Level:
            return _Level(_Residual(w, emb) for _ in range(config.blocks))

        pairs = list(pairwise(widths))
        self.encoder = nn.ModuleList(level(w) for w in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(level(w) for w in widths[:-1])
        self.head = nn.Conv2d(widths[0], pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def raw(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """The U-Net ``F``; ``x`` has unit spread and sides divisible by :attr:`multiple`."""
        phase = log_sigma[:, None] / 4 * (math.pi * self.frequencies.to(log_sigma))
        dtype = self.stem.weight.dtype
        emb = self.embed(torch.cat([phase.sin(), phase.cos()], dim=1).to(dtype))
        h = self.stem(F.pixel_unshuffle(x.to(dtype), self.config.patch))
        skips = []
        for i, level in enumerate(self.encoder):
            if i:
                skips.append(h)
                h = self.down[i - 1](h)
            h = level(h, emb)
        for i in reversed(range(len(skips))):
            h = self.decoder[i](self.up[i](h) + skips[i], emb)
        return F.pixel_shuffle(self.head(h), self.config.patch)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the U-Net by ``torch.compile``, in place, for any size of image and batch.

        Only :meth:`raw` is compiled: the rest would be compiled anew for every noise level and size, until torch gives up
        and runs it as it is. The first sizes and the first gradient take about half a minute each, then it is done. On
        a CPU some networks gain and ``natural`` does not (docs/speed.md); on a GPU it was not measured.
        """
        self._compiled = torch.compile(type(self).raw, *args, **{"dynamic": True, **kwargs})  # unbound: a copy has its own weights

    @property
    def multiple(self) -> int:
        """Sides are padded (by reflection, inside) to a multiple of this."""
        return self.config.patch * 2 ** (len(self.config.widths) - 1)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        channels = self.config.channels
        if x.ndim != 4 or x.shape[1] not in {channels, 1 if channels == 3 else channels} or 0 in x.shape[1:]:
            raise wrong_shape(x, channels)
        if not x.is_floating_point():
            raise TypeError(f"images are floats in [0, 1], got {x.dtype}; x.float() / 255 for 8-bit ones")
        gray = x.shape[1] != channels
        dtype = torch.promote_types(x.dtype, torch.float32)  # whatever the weights'
        image = (x.expand(-1, channels, -1, -1) if gray else x).to(dtype)
        s = noise_levels(sigma, x, dtype)
        s4 = s.view(-1, 1, 1, 1)
        c_in = (s4**2 + self.std**2).rsqrt()
        # Past the trained range the noise level is clamped in the embedding only: c_skip keeps the right limits.
        log_sigma = s.clamp(self.sigma_min, self.sigma_max).log()
        h, w = x.shape[-2:]
        pad = (0, -w % self.multiple, 0, -h % self.multiple)
        z = pad_image((image - self.mean) * c_in, pad)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.stem.weight.dtype == torch.float32 and has_bf16(x.device)):
            f = self._compiled(self, z.contiguous(memory_format=torch.channels_last), log_sigma)
        f = f[..., :h, :w].to(dtype)
        out = self.mean + (self.std * c_in) ** 2 * (image - self.mean) + s4 * self.std * c_in * f
        return (out.mean(1, keepdim=True) if gray else out).to(x.dtype)


def pad_image(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Reflection at the right and bottom; replication where an image is too small to reflect."""
    if not any(pad):
        return x
    reflect = pad[1] < x.shape[-1] and pad[3] < x.shape[-2]
    return F.pad(x, pad, mode="reflect" if reflect else "replicate")


def has_bf16(device: torch.device) -> bool:
    """bf16 arithmetic pays off on GPUs that have it and on CPUs with AVX512-BF16 or AMX instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return False
