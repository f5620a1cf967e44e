"""Priors by name: those that ship (``weights/NAME.safetensors``, card ``NAME.md``, checksums), and those of others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from deepinv.models import Denoiser

from invdiff.priors import lora
from invdiff.priors.latent import LatentPrior
from invdiff.priors.network import DenoisingUNet
from invdiff.priors.weights_io import load_weights
from invdiff.priors.wrap import as_prior

WEIGHTS = Path(__file__).parent / "weights"
SOURCES = ("adm", "deepinv", "diffusers", "edm")  # each is a module from_SOURCE with a function load, imported when asked for


def names() -> list[str]:
    """Names of the priors that ship."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def card(name: str) -> str:
    """The model card of a prior that ships: data, terms, training and measured quality."""
    if name not in names():
        raise ValueError(_unknown(name))
    return (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")


def load(
    name_or_path: str | Path | Callable[..., Any],
    *,
    adapter: str | Path | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    **options: Any,
) -> Denoiser | LatentPrior:
    """Load a prior: one that ships, one trained by ``invdiff train``, or a published checkpoint of another project.

    A denoiser, module or function is no file: it is returned as :func:`invdiff.priors.as_prior` makes a prior of it, and a
    ``LatentPrior`` as it is, so that code which takes a name also takes a prior.

    ``natural``, ``FILE.safetensors``, ``FOLDER``
        A name out of :func:`names`, a file written by ``invdiff train``, or the folder it wrote it to. A ``LatentPrior`` where the name ends in
        ``-latent``, and where the recipe had an autoencoder. A file of low-rank adapters (:mod:`invdiff.priors.lora`) is loaded
        with the prior it was trained on; where that has moved, ``load(prior, adapter=FILE)`` says where it is.
    ``deepinv:NAME``, ``deepinv:NAME:FILE``
        A network of deepinv with the weights it publishes, or with yours (:func:`invdiff.priors.from_deepinv.load`).
    ``diffusers:NAME_OR_FOLDER``
        A pipeline of Hugging Face diffusers, in pixels or, as a ``LatentPrior``, in latents
        (:func:`invdiff.priors.from_diffusers.load`).
    ``adm:FILE``
        Weights of OpenAI's guided diffusion, as DPS uses them (:func:`invdiff.priors.from_adm.load`).
    ``edm:FILE.pkl``
        A network of NVlabs/edm, read without running the code in its pickle (:func:`invdiff.priors.from_edm.load`).

    A ``LatentPrior`` of any of these encodes and decodes in tiles of ``tile`` pixels a side, which share ``overlap``
    (:meth:`LatentPrior.set_tiles`), to bound the memory of large images.

    ``options`` are those of the source's own function. ``ValueError`` for an unknown name, and for a file that is missing,
    damaged or of something else, such as adapters of other weights; ``TypeError`` for an unknown option, what is neither a name nor
    a denoiser, and for tiles of a prior that has no latents; ``ConnectionError`` for a download that fails; ``ImportError`` without the extra.
    """
    prior = _load(name_or_path, adapter, options)
    if tile is not None or overlap is not None:
        if not isinstance(prior, LatentPrior):
            raise TypeError(f"tile and overlap are of priors of latents, which {name_or_path} is not: priors.Patched(prior, size, overlap) tiles others")
        prior.set_tiles(tile, overlap)
    return prior


def _load(name_or_path: str | Path | Callable[..., Any], adapter: str | Path | None, options: dict[str, Any]) -> Denoiser | LatentPrior:
    if not isinstance(name_or_path, (str, Path)):
        if adapter is not None or options:
            raise TypeError(f"options are of what is loaded by name or path; a prior that is there takes none, got {name_or_path!r}")
        return name_or_path if isinstance(name_or_path, LatentPrior) else as_prior(name_or_path)
    source, _, name = str(name_or_path).partition(":")
    if name and source in SOURCES:
        if adapter is not None:
            raise TypeError(f"adapters are of priors that `invdiff train` trains, not of {name_or_path}: leave out adapter=")
        prior: Denoiser | LatentPrior = import_module(f"invdiff.priors.from_{source}").load(name, **options)
        return prior.eval().requires_grad_(False)
    if options:
        raise TypeError(f"{name_or_path} takes no options, got {', '.join(options)}")
    return load_network(name_or_path, adapter)


def load_network(name_or_path: str | Path, adapter: str | Path | None = None) -> DenoisingUNet | LatentPrior:
    """Networks of this project: of a prior that ships, or of a file of weights or adapters written by ``invdiff train``."""
    files = [weights_file(f) for f in (name_or_path, adapter) if f is not None][::-1]  # adapters first, what they are of last
    while (base := lora.base_of(files[-1])) is not None:
        try:
            file = weights_file(base)
        except ValueError as error:
            raise ValueError(f"{error}. {files[-1]} holds adapters of {base}: priors.load(PRIOR, adapter=FILE) says where that is") from error
        if file.resolve() in [f.resolve() for f in files]:
            raise ValueError(f"{file}: its header names the file itself as the prior it belongs to, or one that does; get the file again")
        files.append(file)
    net = load_weights(files[-1])
    if isinstance(net, LatentPrior) and len(files) > 1:
        raise ValueError(f"{files[-1]} is a prior of latents; adapters are of priors of images")
    for of, file in zip(files[:0:-1], files[-2::-1]):
        net = lora.merge(net, file, sha256(of))  # type: ignore[arg-type]
    return net


def weights_file(name_or_path: str | Path) -> Path:
    """The file of a prior that ships, which is compared with its checksum, or ``FILE.safetensors``, which is there.

    A folder of ``invdiff train`` stands for the finished weights in it.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in names():
        path = WEIGHTS / f"{name}.safetensors"
        if sha256(path) != _checksums().get(path.name):
            raise ValueError(
                f"the weights of {name!r} do not match their SHA-256 in {WEIGHTS / 'SHA256SUMS'}: corrupt install, "
                "reinstall invdiff or train the prior again"
            )
    elif name and os.path.isdir(name):
        path = _finished(path)
    elif path.suffix != ".safetensors":
        raise ValueError(_unknown(name))
    elif not os.path.isfile(path):  # Path.is_file fails on names that are too long
        raise ValueError(f"no weights at {str(path.absolute())!r}: there is no such file")
    return path


def _finished(folder: Path) -> Path:
    """The one file of finished weights that ``invdiff train`` wrote into ``folder``, or ``ValueError``."""
    files = sorted(folder.glob("*.safetensors"))
    finished = [path for path in files if not path.stem.endswith("checkpoint")]
    if len(finished) != 1:
        held = ", ".join(path.name for path in files) or "no .safetensors files"
        remedy = "give one of them" if finished else "let `invdiff train` finish there first"
        raise ValueError(f"{folder} is a folder with {len(finished)} files of finished weights, not one: it holds {held}; {remedy}")
    return finished[0]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksums() -> dict[str, str]:
    """File name to SHA-256, from lines ``<digest>  <name>`` as sha256sum writes them."""
    path = WEIGHTS / "SHA256SUMS"
    lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else []
    parts = (line.split(maxsplit=1) for line in lines)
    return {part[1].lstrip("*"): part[0] for part in parts if len(part) == 2}  # a damaged line names no file


def _unknown(name: str) -> str:
    return (
        f"unknown prior {name!r}; priors that ship: {', '.join(names()) or 'none'}. "
        "For weights of your own give the path of a .safetensors file, or the folder of `invdiff train`, for those of other projects one of "
        f"{', '.join(f'{source}:...' for source in SOURCES)} (help(priors.load))"
    )
