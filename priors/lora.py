"""Low-rank adapters (LoRA): fine-tuning that leaves the weights of a prior as they are and learns a small update of each.

Every convolution and linear layer of the network computes with

    W' = W + (alpha / r) B A,   B (outs, r),  A (r, ins * kernel),

where ``W`` is seen as a matrix with the rows of its first axis, and only ``A`` and ``B`` are trained. ``B`` starts at zero, so
that training begins with the prior itself. ``alpha`` is fixed, so that one learning rate serves all ranks ``r``.

An adapter file holds ``A`` and ``B`` as fp16 safetensors; its header names the prior and the SHA-256 of the weights file
that it belongs to. :func:`invdiff.priors.load` adds them to the weights: the result is a network like any other, as fast.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3 and section 4.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invdiff.priors.network import DenoisingUNet
from invdiff.priors.weights_io import fill, read_header, read_tensors, write_tensors

ALPHA = 8.0
FORMAT = "invdiff-lora"
HEADER = ("base", "sha256", "rank")


class _Update(nn.Module):
    """``W + (alpha / r) B A``; no rank above that of ``W``."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outs, ins = weight.flatten(1).shape
        inner = min(rank, outs, ins)
        self.A = nn.Parameter(torch.randn(inner, ins, device=weight.device) / ins**0.5)
        self.B = nn.Parameter(torch.zeros(outs, inner, device=weight.device))
        self.scale = ALPHA / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A).view_as(weight)


def adapt(net: DenoisingUNet, rank: int) -> None:
    """Give ``net`` adapters of rank ``rank``, in place; its other parameters are frozen. It still computes what it did.

    ``ValueError`` for a rank under 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of low-rank adapters is 1 or more, got {rank}")
    net.requires_grad_(False)
    for layer in list(_layers(net)):
        parametrize.register_parametrization(layer, "weight", _Update(layer.weight, rank))  # type: ignore[arg-type]


def save_adapter(net: DenoisingUNet, path: str | Path, base: str, sha256: str, rank: int) -> None:
    """Write the adapters of a network that :func:`adapt` gave some, as fp16 safetensors, atomically."""
    tensors = {name: tensor for name, tensor in net.state_dict().items() if _is_adapter(name)}
    write_tensors(tensors, path, {"format": FORMAT, "base": base, "sha256": sha256, "rank": str(rank)})


def base_of(path: str | Path) -> str | None:
    """Name or path of the prior that the adapter file ``path`` belongs to; None for a file of anything else."""
    header = read_header(path)
    return header.get("base") if header.get("format") == FORMAT else None


def merge(net: DenoisingUNet, path: str | Path, sha256: str) -> DenoisingUNet:
    """``net``, whose file has the SHA-256 ``sha256``, with the adapters of the file ``path`` added to its weights.

    ``ValueError`` with the reason for a damaged file, one of something else, and one that belongs to other weights.
    """
    header, tensors = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds no adapters (written by `invdiff train --lora`); give it to load as a prior of its own"
        )
    if not all(header.get(key) for key in HEADER) or not 1 <= int(header["rank"] if header["rank"].isdecimal() else 0) < 2**31:
        raise ValueError(f"{path}: its header lacks one of {', '.join(HEADER)}; get the file again")
    if header["sha256"] != sha256:
        raise ValueError(
            f"{path} was trained on the weights of {header['base']} with the SHA-256 {header['sha256'][:12]}..., these have "
            f"{sha256[:12]}...; load it with the weights it belongs to"
        )
    foreign = [name for name in tensors if not _is_adapter(name)]
    if foreign:
        raise ValueError(f"{path}: {foreign[0]} is no adapter; get the file again")
    adapt(net, int(header["rank"]))
    fixed = {name: tensor for name, tensor in net.state_dict().items() if not _is_adapter(name)}
    fill(net, fixed | tensors, path)
    for layer in list(_layers(net)):
        parametrize.remove_parametrizations(layer, "weight")  # leaves the sum
    return net.requires_grad_(False)


def _layers(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]


def _is_adapter(name: str) -> bool:
    return ".parametrizations.weight.0." in name
