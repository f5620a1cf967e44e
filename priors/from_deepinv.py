"""Networks of deepinv by name, with the weights it publishes or a file of the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepinv.models import ADMUNet, Denoiser, DRUNet, NCSNpp

from invdiff.priors import from_adm
from invdiff.priors.condition import Labelled
from invdiff.priors.from_modules import KarrasPrior
from invdiff.priors.weights_io import check_label, fill, read_state_dict


class Network(NamedTuple):
    """A published network: its class (None for ADM files), where its weights are, how it is built, its trained range."""

    cls: type[Denoiser] | None
    folder: str
    weights: str
    options: dict[str, Any]
    sigmas: tuple[float, float] = (0.001, 40.0)  # EDM networks: 0.002 to 80 in [-1, 1]


EDM = {"_was_trained_on_minus_one_one": True, "pixel_std": 0.5}
CIFAR = {**EDM, "img_resolution": 32, "channel_mult": (2, 2, 2)}
GRAY = {"in_channels": 1, "out_channels": 1}
NETWORKS = {
    "drunet": Network(DRUNet, "drunet", "drunet_deepinv_color_finetune_22k.pth", {}, (0.001, 0.2)),
    "drunet-gray": Network(DRUNet, "drunet", "drunet_deepinv_gray_finetune_26k.pth", GRAY, (0.001, 0.2)),
    "diffunet": Network(None, "diffunet", "diffusion_ffhq_10m.pt", {}),
    "diffunet-large": Network(None, "diffunet", "diffusion_openai.pt", {}),
    "ncsnpp": Network(NCSNpp, "edm", "edm-ffhq-64x64-uncond-ve.pt", EDM),
    "ncsnpp-cifar10": Network(NCSNpp, "edm", "edm-cifar10-32x32-uncond-ve.pt", CIFAR),
    "ddpmpp": Network(NCSNpp, "edm", "edm-ffhq-64x64-uncond-vp.pt", {**EDM, "model_type": "ddpm"}),
    "ddpmpp-cifar10": Network(NCSNpp, "edm", "edm-cifar10-32x32-uncond-vp.pt", {**CIFAR, "model_type": "ddpm"}),
    "adm": Network(ADMUNet, "edm", "adm-imagenet64-cond.pt", {**EDM, "label_dim": 1000}),
}


def load(name: str, *, label: int | None = None, **options: Any) -> Denoiser:
    """A prior from ``NAME`` (weights downloaded once, to torch's cache) or ``NAME:FILE`` (your own weights).

    ``adm`` takes labels (0 to 999) as its ``condition``, and ``label`` where there is none. ``options`` are those of
    deepinv's class, for files of another shape: ``load("drunet:gray.pth", in_channels=1, out_channels=1)``. The DiffUNets are read as ADM files
    (:mod:`invdiff.priors.from_adm`, whose options they take): deepinv's own call rounds the noise level to one of 1000 and
    clips the image, this one does neither. ``ValueError`` for unknown names and files that do not fit,
    ``ConnectionError`` if the weights cannot be downloaded.
    """
    name, _, file = name.partition(":")
    if name not in NETWORKS:
        raise ValueError(f"unknown network of deepinv {name!r}; known are {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    source = Path(file) if file else _download(name)
    if network.cls is None:
        return from_adm.load(source, label=label, **options)
    state = read_state_dict(source)
    options = {"in_channels": 3, **network.options, **options}
    net = network.cls(pretrained=None, **options)
    fill(net, state, source)
    classes = getattr(getattr(net, "map_label", None), "in_features", 0)
    check_label(label, classes, source)
    multiple = 1 if network.cls is DRUNet else 8  # DRUNet pads by itself
    prior = KarrasPrior(net, (0.0, 1.0), network.sigmas, channels=options["in_channels"], multiple=multiple)
    return Labelled(prior, classes, label, one_hot=True) if classes else prior


def _download(name: str) -> Path:
    """The published file, in torch's cache (shared with deepinv)."""
    network = NETWORKS[name]
    path = Path(torch.hub.get_dir(), "checkpoints", network.weights)
    url = f"https://huggingface.co/deepinv/{network.folder}/resolve/main/{network.weights}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise ConnectionError(
                f"deepinv:{name} needs {network.weights}, which could not be downloaded ({error}); get it from {url} and "
                f'give the file: priors.load("deepinv:{name}:{network.weights}")'
            ) from error
    return path
