"""A small network whose layers all matter, for the tests of networks and of their files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.priors import DenoisingUNet, NetworkConfig


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(seed: int, channels: int = 3) -> DenoisingUNet:
    unet = DenoisingUNet(NetworkConfig(channels=channels, widths=(8, 16), blocks=1, patch=2)).requires_grad_(False)
    for i, (_, p) in enumerate(sorted(unet.named_parameters())):
        fan_in = p[0].numel() if p.ndim > 1 else 4
        p.copy_(
            (randn(*p.shape, seed=100 * seed + i) / math.sqrt(2 * fan_in)).half()
        )  # a file in fp16 holds them exactly
    return unet.eval()
