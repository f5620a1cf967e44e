"""Model cards: Markdown below a header in YAML, between two lines ``---``, which holds what programs read.

    about: what the prior knows, in one line          terms: source and terms of the training images, commercial use
    size: side of the images trained on, in pixels    held_out: how many images were held out, and how
    psnr, rmse, spread, bias, distance, distance_real, reconstruction: measured on the held-out images, see evaluation.Quality

Figures stand there alone, not again in the text.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from invdiff.priors import registry
from invdiff.priors.evaluation import MEASURED, Quality
from invdiff.priors.latent import LatentPrior
from invdiff.priors.recipe import Recipe

NOT_STATED = "not stated"


def header(name_or_path: str | Path) -> dict[str, Any]:
    """The header of the card of a prior that ships, or of the card beside a weights file; empty if there is none, as for
    checkpoints of other projects.

    ``ValueError`` for a name that does not ship, and for a header that is not YAML.
    """
    if str(name_or_path).partition(":")[0] in registry.SOURCES:
        return {}
    path = _path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not text.startswith("---\n"):
            return {}
        return dict(yaml.safe_load(text.split("---\n", 2)[1]))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(
            f"the header of the card of {name_or_path} is not YAML ({' '.join(str(error).split())})"
        ) from None


def read(name_or_path: str | Path) -> str:
    """The card of a prior that ships, or the one beside a weights file. ``ValueError`` where there is none."""
    path = _path(name_or_path)
    if not path.is_file():
        raise ValueError(f"no card at {path}; `invdiff train` writes one beside the weights")
    return path.read_text(encoding="utf-8")


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    return (path if path.suffix == ".safetensors" else registry.weights_file(name_or_path)).with_suffix(".md")


def describe(name: str) -> str:
    """A prior that ships, in four lines: what it knows; size, images and noise; quality; source and terms of its data."""
    known, prior = header(name), registry.load_network(name)
    parameters = sum(p.numel() for p in prior.parameters()) / 1e6
    megabytes = (registry.WEIGHTS / f"{name}.safetensors").stat().st_size / 1e6
    size = f"trained on {known.get('size', '?')}x{known.get('size', '?')}"
    if isinstance(prior, LatentPrior):
        channels, config, unit = prior.autoencoder.config.channels, prior.denoiser.config, " of latents"
        size += f"; latents of {prior.channels} channels, 1/{prior.factor} of the size"
        quality = f"autoencoder, dB: {known.get('reconstruction', 'not measured')}"
    else:
        channels, config, unit = prior.config.channels, prior.config, ""
        psnr = ", ".join(f"{value:.2f} at {level}" for level, value in known.get("psnr", {}).items())
        quality = f"denoising, dB at noise of 255: {psnr or 'not measured'}"
    kind = {1: "gray", 2: "complex (2 channels)", 3: "colour or gray"}[channels]
    network = f"{megabytes:.1f} MB, {parameters:.1f} million parameters"
    if "distance" in known:
        quality += f"; samples to real images {known['distance']:.4f}, real to real {known['distance_real']:.4f}"
    return "\n".join(
        (
            known.get("about", ""),
            f"{network}; {kind}, {size}; noise {config.sigma_min:g} to {config.sigma_max:g}{unit}",
            f"{quality}; held out: {known.get('held_out', NOT_STATED)}",
            f"data: {known.get('terms', NOT_STATED)}",
        )
    )


def command(recipe: Recipe, options: dict[str, Any]) -> str:
    """The command line that trains ``recipe`` so; options that are None are left out. A recipe that does not ship is a YAML file."""
    ships = recipe.name in Recipe.names() and Recipe.load(recipe.name) == recipe
    given = {"recipe": recipe.name if ships else f"{recipe.name}.yaml", **options}
    texts = (f"--{key} {f'{value:g}' if isinstance(value, float) else value}" for key, value in given.items() if value is not None)
    return " ".join(["invdiff train", *texts])


def write(recipe: Recipe, quality: Quality, held_out: str, trained: str, options: dict[str, Any], begun: str | None = None) -> str:
    """The card of a training run.

    ``trained`` says how long, and on how many images; ``options`` are those of :func:`command`; ``begun`` has the terms of the
    weights that the run began with, where it did.
    """
    name, about, terms = recipe.name, recipe.about or recipe.name, NOT_STATED
    if begun is not None:
        name, about, terms = f"{name}, fine-tuned", f"fine-tuned: {about}", f"{begun}; of the images trained on since: {NOT_STATED}"
    known: dict[str, Any] = {
        "about": about,
        "size": recipe.crop,
        "terms": terms,
        "held_out": held_out,
        **{key: _rounded(value) for key, value in asdict(quality).items() if value is not None},
    }
    front = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=10**6)
    settings = "\n".join(f"    {f.name}: {getattr(recipe, f.name)}" for f in fields(recipe))
    if recipe.autoencoder is None:
        what, unit = "A denoising U-Net", "the pixel range"
        first = "`psnr`: dB of one denoising by noise level, in 1/255"
    else:
        what, unit = "An autoencoder and a denoising U-Net of its latents", "the latents' spread"
        first = "`reconstruction`: dB of an image encoded and decoded; `rmse`, `spread` and `bias` are of latents"
    return (
        f"---\n{front}---\n\n# {name}\n\n{what} trained by `{command(recipe, options)}` {trained}. Noise range: "
        f"{recipe.sigma_min:g} to {recipe.sigma_max:g}, in units of {unit}.\n\n"
        f"The header has what was measured on held-out images, but for `distance` and `reconstruction` on at most {MEASURED} of them, evenly spread. {first}. "
        "`rmse`: error by noise level; the higher the level, the nearer it should come to `spread`, that of the mean. "
        "`bias`: mean error at noise 0.01, in units of the noise; 0 is right.\n"
        + (
            "`distance`: sliced Wasserstein distance of samples from real images, to be compared with `distance_real`, that of "
            "other real images; of larger images crops are compared, and `distance_real` is that of the first half from the second.\n"
            if quality.distance is not None
            else ""
        )
        + "\n## Data and terms\n\nWrite into `terms` of the header, and here, where the images come from, under which terms, and whether these allow commercial use.\n"
        f"\n## Recipe\n\n{settings}\n"
    )


def _rounded(value: Any) -> Any:
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else float(f"{value:.4g}")
