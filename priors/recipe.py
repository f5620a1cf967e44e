"""Recipes: everything that fixes a training run, read from YAML and checked."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from invdiff.priors.autoencoder import AutoencoderConfig
from invdiff.priors.network import NetworkConfig
from invdiff.seeds import check_seed

T = TypeVar("T")

RECIPES = resources.files("invdiff.priors") / "recipes"

# Kinds of images (priors/data.py), and how many channels each can have; complex images have two.
KINDS = {"photographs": (1, 3), "digits": (1,), "hounsfield": (1,), "magnitude": (2,), "ellipses": (1,)}


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The section ``autoencoder`` of a recipe: shape and training of the autoencoder whose latents the prior is of."""

    latents: int = 4
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    eta: float = 0.1
    penalty: float = 0.01
    steps: int = 10000
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for key in ("latents", "blocks", "eta", "penalty", "steps", "learning_rate"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be positive, got {getattr(self, key)}")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths are two or more positive numbers, got {list(self.widths)}")


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a training run; ``priors/recipes/*.yaml`` holds one file each.

    With a section ``autoencoder`` the prior is one of its latents, which have mean 0 and spread 1: the noise levels are in
    their unit, ``widths``, ``blocks`` and ``patch`` shape the denoiser of latents, ``channels``, ``mean`` and ``std`` are of the images.
    """

    name: str
    about: str = ""
    images: str = "photographs"
    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 2
    patch: int = 1
    mean: float = 0.5
    std: float = 0.25
    sigma_min: float = 0.002
    sigma_max: float = 20.0
    crop: int = 64
    batch: int = 16
    steps: int = 30000
    learning_rate: float = 3e-3
    ema: float = 0.999
    log_sigma_mean: float = -2.2
    log_sigma_std: float = 1.4
    wide_share: float = 0.05
    gray_share: float = 0.0
    flips: bool = True
    turns: bool = True
    scales: tuple[float, ...] = (1.0,)
    holdout: int = 16
    holdout_names: str = ""
    generated: int = 0
    seed: int = 0
    autoencoder: AutoencoderRecipe | None = None

    @staticmethod
    def names() -> list[str]:
        """The recipes that ship."""
        return sorted(path.name.removesuffix(".yaml") for path in RECIPES.iterdir())

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """Read a recipe that ships (by name) or a YAML file of your own (by path); ``ValueError`` names file and key."""
        shipped = str(name) in cls.names()
        if not shipped and not os.path.isfile(name):  # Path.is_file fails on names that are too long
            raise ValueError(
                f"unknown recipe {str(name)!r}; recipes that ship: {', '.join(cls.names())}, or give a YAML file"
            )
        try:
            values = yaml.safe_load((RECIPES / f"{name}.yaml" if shipped else Path(name)).read_bytes())
        except (yaml.YAMLError, UnicodeError) as error:
            raise ValueError(f"recipe {name}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(values, dict) or "name" not in values:
            raise ValueError(f"recipe {name}: lines of 'key: value' are needed, the key 'name' among them")
        try:
            if isinstance(values.get("autoencoder"), dict):
                values["autoencoder"] = _section(values["autoencoder"])
            return _filled(cls, values)
        except ValueError as error:
            raise ValueError(f"recipe {name}: {error}") from None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w][\w .+-]{0,99}", self.name) or self.name.endswith("checkpoint"):
            raise ValueError(
                "name is the name of a file without its folder, at most 100 letters, digits and ' .+-_', and not 'checkpoint' or one that ends so, "
                f"got {self.name[:120]!r}"
            )
        if self.images not in KINDS:
            raise ValueError(f"images is one of {', '.join(KINDS)}, got {self.images!r}")
        if self.channels not in KINDS[self.images]:
            allowed = " or ".join(map(str, KINDS[self.images]))
            raise ValueError(f"channels is {allowed} for images: {self.images}, got {self.channels}")
        if self.gray_share and self.channels != 3:
            raise ValueError(f"gray_share is of colour images, 3 channels; got {self.gray_share} with {self.channels}")
        if self.generated and self.crop < 28:
            raise ValueError(f"generated: samples of 28 pixels a side or more are compared, the crop is {self.crop}")
        if self.generated < 0:
            raise ValueError(f"generated is a number of images, 0 or more, got {self.generated}")
        try:
            re.compile(self.holdout_names)
        except re.error as error:
            raise ValueError(f"holdout_names is a regular expression, got {self.holdout_names!r} ({error})") from None
        for key in ("blocks", "patch", "crop", "batch", "steps", "holdout", "std", "sigma_min", "learning_rate"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be positive, got {getattr(self, key)}")
        for key in ("widths", "scales"):
            if not all(value > 0 for value in getattr(self, key)):
                raise ValueError(f"{key} must be positive, got {list(getattr(self, key))}")
        for key in ("ema", "wide_share", "gray_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} lies in [0, 1], got {getattr(self, key)}")
        check_seed(self.seed)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min lies below sigma_max, got {self.sigma_min} and {self.sigma_max}")
        code = self.code()
        if code is not None and self.crop % code.factor:
            raise ValueError(f"crop is a multiple of {code.factor} with this autoencoder, got {self.crop}")
        if code is not None and self.gray_share:
            raise ValueError(f"gray_share is of priors of pixels, without an autoencoder; got {self.gray_share}")

    def network(self) -> NetworkConfig:
        """The part of the recipe that shapes the denoising network."""
        config = NetworkConfig(**{f.name: getattr(self, f.name) for f in fields(NetworkConfig)})
        section = self.autoencoder
        return config if section is None else replace(config, channels=section.latents, mean=0.0, std=1.0)

    def code(self) -> AutoencoderConfig | None:
        """The part of the recipe that shapes the autoencoder, if it has one."""
        section = self.autoencoder
        if section is None:
            return None
        return AutoencoderConfig(self.channels, section.latents, section.widths, section.blocks, self.mean, self.std)


_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[int, ...]": "a list of whole numbers, e.g. [32, 64]",
    "tuple[float, ...]": "a list of numbers, e.g. [1.0, 0.5]",
    "AutoencoderRecipe | None": "a section of 'key: value'",
}
_TYPES = {"int": int, "str": str, "bool": bool, "AutoencoderRecipe | None": AutoencoderRecipe}


def _filled(cls: type[T], values: dict[str, Any]) -> T:
    """``cls(**values)``, with values as YAML reads them; ``ValueError`` names the key."""
    kinds = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    unknown = set(values) - set(kinds)
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; allowed: {list(kinds)}")
    for key, value in values.items():
        try:
            values[key] = _typed(value, kinds[key])
        except (TypeError, ValueError):
            raise ValueError(f"{key} must be {_KINDS[kinds[key]]}, got {value!r}") from None
    return cls(**values)


def _section(values: dict[str, Any]) -> AutoencoderRecipe:
    try:
        return _filled(AutoencoderRecipe, values)
    except ValueError as error:
        raise ValueError(f"autoencoder: {error}") from None


def _typed(value: Any, kind: str) -> Any:
    """``value`` as a field of type ``kind``, or an error; YAML takes numbers such as 3e-3 for text."""
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not value:
            raise TypeError
        return tuple(_typed(v, kind[len("tuple[") : -len(", ...]")]) for v in value)
    if isinstance(value, bool) != (kind == "bool"):
        raise TypeError
    if kind == "float":
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if not isinstance(value, _TYPES[kind]):
        raise TypeError
    return value
