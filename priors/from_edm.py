"""EDM: the ``.pkl`` files of NVlabs/edm, read without running the code in them.

Such a file is a pickle of modules, each with the source code of its class, which EDM's own loader runs. Here everything in it but
tensors and containers becomes an inert record of what it was made of (:class:`_Record`); the network is deepinv's copy of the same
architecture, built from the recorded arguments and filled with the recorded tensors.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from deepinv.models import ADMUNet, Denoiser, NCSNpp
from torch import Tensor, nn

from invdiff.priors.condition import Labelled
from invdiff.priors.from_modules import KarrasPrior
from invdiff.priors.weights_io import check_fit, check_label, one_line

SHAPE = (  # arguments of a network that deepinv's class has under the same name; the others do not change what it computes
    "img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim", "model_channels", "channel_mult",
    "channel_mult_emb", "num_blocks", "attn_resolutions",
)  # fmt: skip
STYLE = {"embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1]}
STYLES = {  # of SongUNet, by deepinv's name
    "ddpm": STYLE,
    "ncsn": {**STYLE, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
}


class _Record(dict[Any, Any]):
    """Stands for any object of a pickle that is no tensor or container: keeps arguments and state, and does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Fixed:
    """What a pickle may use or call, and cannot change: pickles can set attributes of all that they hold."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it may only use")


def _storage(data: bytes) -> _Fixed:
    """The numbers of a tensor, in torch's own format, in which nothing but numbers is read."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _Fixed(torch.tensor([], dtype=storage.dtype).set_(storage.untyped(), 0, (len(storage),), (1,)))


def _rebuild(storage: _Fixed, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Fixed:
    """A tensor of numbers that are there: none beyond the storage, and no more than it has."""
    numbers = storage.value
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or last >= len(numbers) or math.prod(size) > len(numbers):
        raise pickle.UnpicklingError(f"a tensor {size} of a storage of {len(numbers)} numbers")
    return _Fixed(numbers.as_strided(size, stride, offset))


def _parameter(data: _Fixed, *_: Any) -> _Fixed:
    return data


KNOWN = {
    ("collections", "OrderedDict"): _Fixed(OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Fixed(_rebuild),
    ("torch._utils", "_rebuild_parameter"): _Fixed(_parameter),
    ("torch.storage", "_load_from_bytes"): _Fixed(_storage),
}
MOST = 10_000  # tensors: modules that share others could name any number


class _Unpickler(pickle.Unpickler):
    """Calls nothing that the file names but the four functions above, and lets it change none of them."""

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), _Record)


def _state(obj: Any) -> dict[str, Any]:
    """What a recorded module held: EDM's classes keep it in the one argument they are rebuilt from."""
    meta = obj.args[0] if obj.args else {"state": obj.state}
    return meta["state"]  # type: ignore[no-any-return]


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a recorded module, as in a state dict."""
    state = _state(module)
    for name, tensor in {**state["_parameters"], **state["_buffers"]}.items():
        if tensor is not None:
            yield prefix + name, tensor.value
    for name, child in state["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _network(model: Any, std: float) -> Denoiser:
    """deepinv's network of the recorded one, filled; ``ValueError`` for one that deepinv has not."""
    kind, given = model.args[0]["class_name"], _state(model)["_init_kwargs"]
    options = {"augment_dim": 0, **{name: given[name] for name in SHAPE if name in given}}
    cls: type[Denoiser] = ADMUNet
    if kind == "SongUNet":
        style = {name: given.get(name, value) for name, value in STYLE.items()}
        names = [name for name, known in STYLES.items() if known == {**style, "resample_filter": list(style["resample_filter"])}]
        if not names:
            raise ValueError(f"its SongUNet is neither DDPM++ nor NCSN++ as published: {style}")
        cls, options = NCSNpp, {**options, "model_type": names[0]}
    elif kind != "DhariwalUNet":
        raise ValueError(f"its network is a {kind}, not SongUNet or DhariwalUNet")
    state = dict(islice(_tensors(model), MOST))
    with torch.device("meta"):  # shapes without memory: the file may ask for any amount
        net = cls(pretrained=None, _was_trained_on_minus_one_one=True, pixel_std=std, **options)
    check_fit(net, state, "the file")
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):  # which has 32 in deepinv, whatever the width
            module.num_groups = min(32, module.num_channels // 4)
    return net


def load(file: str | Path, *, label: int | None = None) -> Denoiser:
    """A prior from ``FILE.pkl`` of EDM: its ``ema`` network, on images in [0, 1], any size (padded to what it halves).

    Networks with ``EDMPrecond`` are read, DDPM++, NCSN++ and ADM alike; those of EDM's baselines (VP, VE, iDDPM) are not. One that is
    conditioned on classes takes labels as its ``condition``, and ``label`` where there is none. ``ValueError`` for a file that is missing,
    damaged or of something else.
    """
    path = Path(file)
    if not os.path.isfile(path):  # Path.is_file fails on names that are too long
        raise ValueError(f"no weights at {str(path.absolute())!r}: there is no such file")
    try:
        with path.open("rb") as f:
            held = _Unpickler(f).load()
        outer = held["ema"]
        kind, state = outer.args[0]["class_name"], _state(outer)
        if kind != "EDMPrecond":
            raise ValueError(f"its network is preconditioned by {kind}; only EDMPrecond is read")
        model, std = state["_modules"]["model"], float(state["sigma_data"])
        channels, classes = int(state["img_channels"]), int(state["label_dim"])
        levels = len(_state(model)["_init_kwargs"].get("channel_mult", (1, 2, 2, 2)))
        net = _network(model, std)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise ValueError(
            f"{path} is no network of EDM that can be read ({one_line(error)}). Expected is a .pkl of NVlabs/edm with EDMPrecond; if it is one, "
            "get it again, or open it with EDM's own code and give the network to priors.KarrasPrior"
        ) from error
    check_label(label, classes, path)
    prior = KarrasPrior(net, (0.0, 1.0), (0.001, 40.0), channels=channels, multiple=2 ** (levels - 1))
    return Labelled(prior, classes, label, one_hot=True) if classes else prior
