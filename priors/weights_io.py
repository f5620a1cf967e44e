"""Weights as fp16 safetensors files that describe themselves: the network's shape is in the header."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from invdiff.priors.network import DenoisingUNet, NetworkConfig


def save_weights(net: DenoisingUNet, path: str | Path) -> None:
    """Write ``net`` as fp16 safetensors, atomically."""
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    tensors = {k: v.detach().half().cpu().contiguous() for k, v in net.state_dict().items()}
    try:
        save_file(tensors, temporary, {"format": "invdiff-unet", "config": json.dumps(asdict(net.config))})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: str | Path) -> DenoisingUNet:
    """Read what :func:`save_weights` wrote; a file that is not one raises ``ValueError`` with the reason."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118 (f is not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated, get it again"
        ) from error
    if metadata.get("format") != "invdiff-unet":
        raise ValueError(
            f"{path} is a safetensors file, but not one of an invdiff network (written by `invdiff train`)"
        )
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
        config["widths"] = tuple(config["widths"])
        net = DenoisingUNet(NetworkConfig(**config))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its header does not describe a network ({error!r}); get the file again") from error
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the network its header describes ({error})") from error
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
