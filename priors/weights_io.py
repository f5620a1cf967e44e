"""Weights in files: our own, fp16 safetensors with the network's shape in the header, and the state dicts of others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invdiff.files import write_atomically
from invdiff.priors.autoencoder import Autoencoder, AutoencoderConfig, latent_prior
from invdiff.priors.latent import LatentPrior
from invdiff.priors.network import DenoisingUNet, NetworkConfig

C = TypeVar("C", NetworkConfig, AutoencoderConfig)
UNET, LATENT = "invdiff-unet", "invdiff-latent"  # a denoiser of images; an autoencoder and a denoiser of its latents


def save_weights(prior: DenoisingUNet | LatentPrior, path: str | Path) -> None:
    """Write ``prior``, or one made by ``latent_prior``, as fp16 safetensors, atomically."""
    if isinstance(prior, LatentPrior):
        config = {"denoiser": asdict(prior.denoiser.config), "autoencoder": asdict(prior.autoencoder.config)}
        header = {"format": LATENT, "config": json.dumps(config)}
    else:
        header = {"format": UNET, "config": json.dumps(asdict(prior.config))}
    write_tensors(prior.state_dict(), path, header)


def write_tensors(tensors: dict[str, Tensor], path: str | Path, header: dict[str, str]) -> None:
    """Write tensors as fp16 safetensors, atomically; ``ValueError`` for values beyond its 65504."""
    halves = {k: v.half() for k, v in tensors.items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite, or beyond the 65504 of 16-bit floats; nothing is written")
    save_tensors(halves, path, header)


def save_tensors(tensors: dict[str, Tensor], path: str | Path, header: dict[str, str]) -> None:
    """Write safetensors, atomically; equal tensors and headers make equal files, so that a checksum names them.

    The library writes the entries of the header in an order of its own, another each time; here they are sorted. A file is eight bytes
    with the length of its JSON, the JSON, and the numbers, whose places are counted from there.
    """
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, header)
    begin = 8 + int.from_bytes(data[:8], "little")
    layout = json.loads(data[8:begin])
    text = json.dumps({**layout, "__metadata__": dict(sorted(header.items()))}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(Path(path), lambda p: p.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:]))


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            yield f
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated, get it again"
        ) from error


def read_header(path: str | Path) -> dict[str, str]:
    """Header of a safetensors file; ``ValueError`` if it is damaged or missing."""
    with _opened(path) as f:
        return f.metadata() or {}


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors, as float32, of a safetensors file; ``ValueError`` if it is damaged or missing."""
    with _opened(path) as f:
        header = f.metadata() or {}
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (f is not a dict)
    _check_numbers(tensors, path)
    return header, {name: tensor.float() for name, tensor in tensors.items()}


def _check_numbers(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """``ValueError`` for weights that are no floats, or not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {name} holds {tensor.dtype}, weights are floats; get the file again")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: {name} holds values that are not finite; get the file again")


def load_weights(path: str | Path) -> DenoisingUNet | LatentPrior:
    """Read what :func:`save_weights` wrote; a file that is not one raises ``ValueError`` with the reason."""
    metadata, tensors = read_tensors(path)
    if metadata.get("format") not in (UNET, LATENT):
        raise ValueError(
            f"{path} is a safetensors file, but not one of an invdiff network (written by `invdiff train`)"
        )
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
        latent = metadata["format"] == LATENT
        shape = _config(NetworkConfig, config["denoiser"] if latent else config, len(tensors))
        code = _config(AutoencoderConfig, config["autoencoder"], len(tensors)) if latent else None
        with torch.device("meta"):  # shapes without memory: the header may ask for any amount
            outline = _network(shape, code)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: its header does not describe a network ({error!r}); get the file again") from error
    check_fit(outline, tensors, path)
    prior = _network(shape, code)
    prior.load_state_dict(tensors)
    return prior.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _config(kind: type[C], values: dict[str, Any], tensors: int) -> C:
    """The shape of a network, of which a file of so many ``tensors`` can hold the weights."""
    config = kind(**{**values, "widths": tuple(values["widths"])})
    if len(config.widths) * config.blocks > tensors:
        raise ValueError(f"{len(config.widths)} levels of {config.blocks} blocks, and {tensors} tensors in the file")
    return config


def _network(shape: NetworkConfig, code: AutoencoderConfig | None) -> DenoisingUNet | LatentPrior:
    net = DenoisingUNet(shape)
    return net if code is None else latent_prior(net, Autoencoder(code))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a ``.safetensors`` or a torch file of another project, as float32.

    torch files are read with ``weights_only=True``: nothing in them is executed. ``ValueError`` for a file that is missing,
    damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file fails on names that are too long
        raise ValueError(f"no weights at {str(path.absolute())!r}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle fails in any way it likes
        raise ValueError(
            f"{path} is not a readable weights file ({one_line(error)}); it may be truncated, get it again. Files that hold more "
            "than tensors are not read, since they could run any code"
        ) from error
    if not (isinstance(state, dict) and state and all(isinstance(v, Tensor) for v in state.values())):
        raise ValueError(
            f"{path} holds no state dict: tensors by name, as torch.save(net.state_dict(), path) writes them"
        )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def fill(net: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load ``state`` into ``net``; ``ValueError`` with the first difference if it is of another architecture."""
    check_fit(net, state, source)
    net.load_state_dict(state)


def check_fit(net: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """``ValueError`` with the first difference if ``state`` is of another architecture than ``net``."""
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{source}: the weights do not fit {type(net).__name__}: {name} is {found.get(name, 'missing')} in the file, "
            f"{wanted.get(name, 'nothing')} in the network, and {len(wrong) - 1} more differ"
        )
    _check_numbers({name: state[name] for name, own in net.state_dict().items() if own.is_floating_point()}, source)


def check_label(label: int | None, classes: int, source: str | Path) -> None:
    """``ValueError`` unless ``label`` is None or one of the ``classes`` of a network."""
    if label is not None and label not in range(classes):
        allowed = f"is told a class: give label=0 to {classes - 1}" if classes else "takes no label"
        raise ValueError(f"{source}: this network {allowed}; got label={label}")


def one_line(error: Exception) -> str:
    """What an error of another library says, as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
