"""ADM: the U-Nets of OpenAI's guided diffusion, in the ``.pt`` files of that project, of DPS, of DiffPIR and of others.

Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis". A file holds weights only; the shape of
the network follows from their names and sizes, all but the heads of attention. The layers are deepinv's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from deepinv.models import Denoiser
from deepinv.models import diffunet as layers
from torch import Tensor, nn

from invdiff.priors.condition import Labelled
from invdiff.priors.schedule import Schedule, ScheduledPrior
from invdiff.priors.weights_io import check_label, fill, read_state_dict

Weights = dict[str, Tensor]
TIMESTEPS = 1000


class ADM(nn.Module):
    """The U-Net that ``state`` belongs to, not yet filled: ``net(x_t, t)`` with ``t`` (B,), whole or fractional.

    One with ``classes`` is called as ``net(x_t, t, class_labels)`` with labels (B,).
    Tensors are named as in guided diffusion. Attention has ``heads`` heads, or else heads of ``head_channels`` channels.
    ``KeyError``, ``IndexError`` or ``AssertionError`` if ``state`` is of something else.
    """

    def __init__(self, state: Weights, head_channels: int, heads: int | None, new_attention_order: bool) -> None:
        super().__init__()
        width, self.time_width = state["time_embed.0.weight"].shape

        def layer(w: Weights, up: bool = False, down: bool = False) -> nn.Module:
            if "in_layers.2.weight" in w:
                outs, ins = w["in_layers.2.weight"].shape[:2]
                film = len(w["emb_layers.1.weight"]) == 2 * outs
                return layers.ResBlock(ins, width, 0.0, outs, use_scale_shift_norm=film, up=up, down=down)
            if "qkv.weight" in w:
                each = head_channels if heads is None else -1
                return layers.AttentionBlock(
                    len(w["norm.weight"]), heads or 1, each, use_new_attention_order=new_attention_order
                )
            if "op.weight" in w:
                return layers.Downsample(w["op.weight"].shape[1], True)
            if "conv.weight" in w:
                return layers.Upsample(w["conv.weight"].shape[1], True)
            return nn.Conv2d(w["weight"].shape[1], len(w["weight"]), 3, padding=1)

        descent = [_numbered(block) for block in _numbered(_under(state, "input_blocks."))]
        ascent = [_numbered(block) for block in _numbered(_under(state, "output_blocks."))]
        middle = _numbered(_under(state, "middle_block."))
        if len(descent) != len(ascent) or len(middle) != 3:
            raise ValueError(f"{len(descent)} input blocks, {len(middle)} layers in the middle, which are 3, and {len(ascent)} output blocks")
        # The last block of a level on the way up enlarges: it ends in one more residual layer, or in a convolution. That
        # tells the number of blocks a level, and so which ones on the way down halve.
        enlarging = [len(block) > 1 and "qkv.weight" not in block[-1] for block in ascent]
        period = enlarging.index(True) + 1 if True in enlarging else len(ascent)
        self.multiple = 2 ** sum(enlarging)
        self.channels = descent[0][0]["weight"].shape[1]

        self.time_embed = nn.Sequential(nn.Linear(self.time_width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = len(state.get("label_emb.weight", ()))
        if self.classes:
            self.label_emb = nn.Embedding(self.classes, width)
        self.input_blocks = nn.ModuleList(
            layers.TimestepEmbedSequential(*(layer(w, down=i > 0 and i % period == 0) for w in block))
            for i, block in enumerate(descent)
        )
        self.middle_block = layers.TimestepEmbedSequential(*map(layer, middle))
        self.output_blocks = nn.ModuleList(
            layers.TimestepEmbedSequential(*map(layer, block[:-1]), layer(block[-1], up=up))
            for block, up in zip(ascent, enlarging)
        )
        outs, ins = state["out.2.weight"].shape[:2]
        self.out = nn.Sequential(layers.normalization(ins), nn.SiLU(), nn.Conv2d(ins, outs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        emb = self.time_embed(layers.timestep_embedding(t, self.time_width).to(x.dtype))
        if class_labels is not None:
            emb = emb + self.label_emb(class_labels)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


def load(
    file: str | Path,
    *,
    noise: str = "linear",
    label: int | None = None,
    head_channels: int = 64,
    heads: int | None = None,
    new_attention_order: bool = False,
) -> Denoiser:
    """A prior from a guided-diffusion file, ``.pt`` or ``.safetensors``: DPS's ``ffhq_10m.pt``, ``imagenet256.pt`` and others.

    ``noise`` is the schedule of 1000 steps: ``linear``, or ``cosine`` (OpenAI's 64x64 network). A network conditioned on
    classes takes labels as its ``condition``, and ``label`` where there is none. The shape of attention is not in the
    file: ``head_channels`` (64 in all but OpenAI's 128x128 network, which has ``heads=4``) and ``new_attention_order``
    (OpenAI's 64x64 network). ``ValueError`` for files and options that do not fit.
    """
    if noise not in BETAS:
        raise ValueError(f"the noise schedule of guided diffusion is {' or '.join(BETAS)}, got {noise!r}")
    # deepinv's DiffUNet, which has the same names, saves the tables of its schedule too
    state = {name: tensor for name, tensor in read_state_dict(file).items() if "alphas_cumprod" not in name}
    try:
        net = ADM(state, head_channels, heads, new_attention_order)
    except (KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error or type(error).__name__
        raise ValueError(f"{file} holds no U-Net of guided diffusion: {reason}") from error
    check_label(label, net.classes, file)
    fill(net, state, file)
    schedule = Schedule.discrete(np.cumprod(1 - BETAS[noise]), "epsilon")
    prior = ScheduledPrior(net, schedule, net.channels, net.multiple)
    return Labelled(prior, net.classes, label) if net.classes else prior


def _cosine() -> np.ndarray:
    """``1 - a(t + 1) / a(t)``, at most 0.999, for ``a(t) = cos^2(pi/2 (t/T + 0.008) / 1.008)``; shape (T,)."""
    a = np.cos(np.pi / 2 * (np.arange(TIMESTEPS + 1) / TIMESTEPS + 0.008) / 1.008) ** 2
    return np.minimum(1 - a[1:] / a[:-1], 0.999)


BETAS = {"linear": np.linspace(1e-4, 0.02, TIMESTEPS), "cosine": _cosine()}


def _under(state: Weights, prefix: str) -> Weights:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _numbered(state: Weights) -> list[Weights]:
    """Tensors named ``0.rest``, ``1.rest``, ...: the tensors of each number, by the rest of their names; ``KeyError`` for a gap."""
    count = 1 + max((int(name.split(".")[0]) for name in state), default=0)
    parts = [_under(state, f"{i}.") for i in range(count)]
    if not all(parts):
        raise KeyError(f"block {parts.index({})} of {count}")
    return parts
