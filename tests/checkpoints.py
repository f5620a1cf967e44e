"""Tiny networks with random weights, for checkpoints that their own libraries write, and how priors are compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff.priors.from_adm import BETAS

TIMES = (0, 1, 37, 500, 999)
AGREEMENT = 1e-5  # relative to the noise level where that is above 1: what the network's rounding is multiplied by
ABAR = np.cumprod(1 - BETAS["linear"])
SIGMAS = np.sqrt(1 / ABAR - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(net: Any) -> Any:
    """The network with random numbers in the layers that start at zero, which would hide a difference."""
    torch.manual_seed(0)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return net.eval().requires_grad_(False)


def agree(got: Tensor, wanted: Tensor, sigma: float) -> None:
    worst = float((got - wanted).abs().max()) / max(1.0, sigma)
    assert got.shape == wanted.shape and worst < AGREEMENT, f"they differ by {worst:.1e} at sigma {sigma:.3g}"


def saved(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    plan = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8}
    plan |= {"block_out_channels": (16, 16), "attention_head_dim": 8}
    plan |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return stirred(UNet2DModel(**{**plan, **changes}))


def vae(kind: str = "AutoencoderKL", **changes: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    plan = {"block_out_channels": (8, 8), "norm_num_groups": 8, "latent_channels": 4, "sample_size": 16}
    plan |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    if kind == "VQModel":
        plan.pop("sample_size")
        plan |= {"num_vq_embeddings": 32}
    return stirred(getattr(diffusers, kind)(**{**plan, **changes}))


CHARACTERS = [chr(i) for i in range(33, 127)]


def clip(cls: str = "CLIPTextModel", **changes: Any) -> tuple[Any, Any]:
    """A text encoder of CLIP and its tokenizer, which knows single characters."""
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=12)
    plan = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    plan |= {"num_attention_heads": 2, "max_position_embeddings": 12, "projection_dim": 16}
    plan |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(1)
    return getattr(transformers, cls)(transformers.CLIPTextConfig(**plan, **changes)).eval(), tokenizer


def t5(width: int) -> tuple[Any, Any]:
    """A text encoder of T5 and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((c, -2.0) for c in CHARACTERS)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=12)
    plan = {"vocab_size": len(pieces), "d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(2)
    return transformers.T5EncoderModel(transformers.T5Config(**plan)).eval(), tokenizer
