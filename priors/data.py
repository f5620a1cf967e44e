"""What a prior is trained on: images read from files or drawn, held out or not, cut, turned and given noise.

A recipe names one of five kinds of ``images``:

* ``photographs``: PNG, JPEG, TIFF, BMP, WebP, in colour (``channels: 3``) or gray (1), in [0, 1].
* ``digits``: IDX files of images, the format of MNIST (``*images*idx3-ubyte``, ``.gz`` or not), in [0, 1].
* ``hounsfield``: 16-bit PNG or TIFF, value = Hounsfield unit + 1024; in [0, 1] by :func:`from_hounsfield`.
* ``magnitude``: pictures of a magnitude, divided by their 99th percentile; a random smooth phase makes them complex.
* ``ellipses``: random phantoms of :mod:`invdiff.phantoms`; no files.

Images are kept as uint8 where the file has 8 bits and the values are used as they are, else as float32.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from invdiff.io import FORMATS, read_image
from invdiff.phantoms import draw, random_ellipses
from invdiff.priors.recipe import Recipe
from invdiff.seeds import seeded

LARGEST_PHANTOM = 512  # pixels across
PHASE_SPACING = 32  # pixels


def from_hounsfield(hu: Tensor) -> Tensor:
    """Hounsfield units to the unit of CT priors: ``x = (hu + 1000) / 2000``, clipped to [0, 1].

    Air (-1000) is 0, water (0) is 0.5, and what is denser than 1000, cortical bone and metal, is 1. ``x`` is the linear
    attenuation divided by twice that of water, so the line integrals of ``x`` are what a scanner measures, up to a factor.
    """
    hu = hu if hu.is_floating_point() else hu.float()  # in 16 bits the sum would wrap around
    return ((hu + 1000) / 2000).clamp(0, 1)


def to_hounsfield(x: Tensor) -> Tensor:
    """Images of CT priors to Hounsfield units, ``2000 x - 1000``: the inverse of :func:`from_hounsfield`."""
    return 2000 * (x if x.is_floating_point() else x.float()) - 1000


def with_phase(magnitude: Tensor, generator: torch.Generator) -> Tensor:
    """A magnitude (1, H, W) as a complex image (2, H, W), real and imaginary part, of random smooth phase.

    The phase is uniform in the whole plus a bicubic surface through independent N(0, 1) radians at nodes up to 32 pixels
    apart: the smooth phase that coils and an inhomogeneous field leave, about 0.05 radians a pixel.
    """
    h, w = magnitude.shape[1:]
    nodes = torch.randn((1, 1, *(2 + (side - 1) // PHASE_SPACING for side in (h, w))), generator=generator)
    phase = F.interpolate(nodes, (h, w), mode="bicubic", align_corners=True)[0]
    phase = phase + 2 * math.pi * torch.rand((), generator=generator)
    return torch.cat([magnitude * phase.cos(), magnitude * phase.sin()])


# Reading


def load_images(folder: str | Path, recipe: Recipe, smallest: int) -> dict[str, Tensor]:
    """Read every image of the recipe's kind below ``folder``, (C, H, W) by name, in the order of the paths.

    Images with a side under ``smallest`` are left out. A file that cannot be read is named on standard error and left out;
    ``ValueError`` if none is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"training data: {root} is not a folder")
    read, what = _READERS[recipe.images]
    images: dict[str, Tensor] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and _is_kind(p, recipe.images)):
        try:
            found = read(path, recipe.channels)
        except ValueError as error:
            print(f"note: left out {error}", file=sys.stderr)
            continue
        name = path.relative_to(root).as_posix()
        images |= {name if len(found) == 1 else f"{name}:{i:05}": image for i, image in enumerate(found)}
    usable = {name: image for name, image in images.items() if min(image.shape[1:]) >= smallest}
    if not usable:
        raise ValueError(
            f"training data: {root} holds {len(images)} readable images, none with both sides of at least {smallest} pixels; "
            f"give a folder of {what}"
        )
    return usable


def _is_kind(path: Path, kind: str) -> bool:
    if kind == "digits":
        return "images" in path.name and "idx3-ubyte" in path.name
    return path.suffix.lower() in FORMATS


def _picture(path: Path, channels: int) -> tuple[Tensor, int]:
    """The picture (channels, H, W) in [0, 1], upright and on white, and the bits of its file."""
    x, meta = read_image(path)
    if meta.alpha is not None:
        x = x * meta.alpha + 1 - meta.alpha
    if x.shape[1] > channels:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)  # luma of ITU-R 601
    return x[0].expand(channels, -1, -1).contiguous(), meta.bits


def _photograph(path: Path, channels: int) -> list[Tensor]:
    x, bits = _picture(path, channels)
    return [x if bits > 8 else (255 * x).round().to(torch.uint8)]


def _hounsfield(path: Path, channels: int) -> list[Tensor]:
    x, bits = _picture(path, 1)
    if bits != 16:
        raise ValueError(f"{path}: {bits} bits do not hold Hounsfield units; save HU + 1024 as a 16-bit PNG or TIFF")
    return [from_hounsfield((65535 * x).round() - 1024)]


def _magnitude(path: Path, channels: int) -> list[Tensor]:
    x, _ = _picture(path, 1)
    unit = float(np.quantile(x.numpy(), 0.99))
    if not unit > 0:
        raise ValueError(f"{path}: 99 % of its pixels are black, which leaves nothing to normalise it by")
    return [x / unit]


def _digits(path: Path, channels: int) -> list[Tensor]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, n, h, w = struct.unpack(">4i", raw[:16])
        if magic != 0x803:  # unsigned bytes on three axes
            raise ValueError(f"magic number {magic:#x}, not 0x803")
        images = np.frombuffer(raw, np.uint8, offset=16).reshape(n, 1, h, w)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path}: not a whole IDX file of images ({error})") from error
    return list(torch.from_numpy(images.copy()))


_PICTURES = f"{', '.join(sorted(FORMATS))} files"
_READERS: dict[str, tuple[Callable[[Path, int], list[Tensor]], str]] = {
    "photographs": (_photograph, _PICTURES),
    "digits": (_digits, "IDX files of images, e.g. t10k-images-idx3-ubyte.gz"),
    "hounsfield": (_hounsfield, "16-bit .png or .tiff files, value = Hounsfield unit + 1024"),
    "magnitude": (_magnitude, _PICTURES),
}


# Holding out


def split(images: dict[str, Tensor], recipe: Recipe) -> tuple[list[Tensor], list[Tensor], str]:
    """Images to train on, images held out, and in words which those are.

    Held out are all whose names match ``recipe.holdout_names`` where that is given and any do, else ``recipe.holdout`` of them,
    at most half, evenly spread. ``ValueError`` unless both parts have an image.
    """
    held = [name for name in images if recipe.holdout_names and re.search(recipe.holdout_names, name)]
    if len(held) == len(images):
        raise ValueError(
            f"training data: the names of all {len(images)} images match holdout_names {recipe.holdout_names!r} of the recipe, "
            "which leaves none to train on. Give --held DIR, or a recipe with your names"
        )
    if held:
        how = f"whose names match {recipe.holdout_names!r}"
    else:
        if len(images) < 2:
            raise ValueError("training data: one usable image; give two or more, since one is held out")
        count = min(recipe.holdout, len(images) // 2)
        names = list(images)
        held, how = [names[i * len(names) // count] for i in range(count)], f"evenly spread over all {len(names)}, in the order of their names"
        if count < recipe.holdout:
            print(f"note: few images: {count} of {len(images)} are held out, not trained on; --held DIR measures on others", file=sys.stderr)
        if recipe.holdout_names:
            how += f", since no name matches {recipe.holdout_names!r}"
            print(
                f"note: held out: {count} images, {how}; their neighbours in a series are trained on, so the figures may flatter. "
                "Give --held DIR to hold out whole patients",
                file=sys.stderr,
            )
    return [image for name, image in images.items() if name not in set(held)], [images[n] for n in held], how


def load_data(recipe: Recipe, data: str | Path | None, held: str | Path | None) -> tuple[Crops, list[Tensor], str]:
    """The crops to train on, the held-out images as floats (C, H, W), and in words how they were held out.

    ``data`` is a folder, ``None`` for ellipses; ``held`` a folder of held-out images in the place of :func:`split`.
    """
    if (recipe.images == "ellipses") != (data is None):
        needs = "draws its images itself: leave out" if data is not None else "is trained on files: give"
        raise ValueError(f"the recipe {recipe.name} ({recipe.images}) {needs} --data DIR")
    generators = (seeded(recipe.seed, i, 1) for i in range(sys.maxsize))
    if data is None:
        if held is not None:
            raise ValueError(f"the recipe {recipe.name} draws its held-out images itself: leave out --held DIR")
        crops = Crops([], recipe)
        drawn = (crops.draw(g) for g in generators)
        shown = (window for window in drawn if window.any())  # black ones, beside the body, would flatter the figures
        return crops, list(islice(shown, recipe.holdout)), "drawn with other seeds"
    images = load_images(data, recipe, recipe.crop)
    if held is not None:
        if Path(held).resolve() == Path(data).resolve():
            raise ValueError(f"--held {held} is the folder that is trained on; give other images, or leave --held out")
        train, tests, how = list(images.values()), list(load_images(held, recipe, 1).values()), "a folder of their own"
    else:
        train, tests, how = split(images, recipe)
    return Crops(train, recipe), [_finished(im, recipe.images, g) for im, g in zip(tests, generators)], how


# Batches


class Crops:
    """Random crops and noise for a step; a function of (recipe.seed, step), and of ``encode``, which makes latents of the crops."""

    def __init__(self, images: Iterable[Tensor], recipe: Recipe) -> None:
        self.recipe, images = recipe, list(images)
        self.encode: Callable[[Tensor], Tensor] = lambda x: x
        self.levels = [[_shrink(im, s) for im in images if min(im.shape[1:]) * s >= recipe.crop] for s in recipe.scales]
        self.levels = [level for level in self.levels if level]
        self.images = len(images)
        seen = hashlib.sha256()
        for im in images:
            seen.update(im.numpy().tobytes())
        self.digest = seen.hexdigest()[:8]
        if images and not self.levels:
            raise ValueError(f"scales {list(recipe.scales)} leave no image of {recipe.crop} pixels a side; take larger ones")

    def draw(self, g: torch.Generator) -> Tensor:
        """A clean crop (C, S, S): of an image at one of the recipe's scales, or of a phantom of any size from S to 512."""
        r = self.recipe
        if r.images == "ellipses":
            smallest, largest = math.log(r.crop), math.log(max(r.crop, LARGEST_PHANTOM))
            size = round(math.exp(smallest + (largest - smallest) * float(torch.rand((), generator=g))))
            top, left = (_integer(size - r.crop + 1, g) for _ in range(2))
            crop = draw(random_ellipses(g), size, top, left, r.crop)
        else:
            level = self.levels[_integer(len(self.levels), g)]
            im = level[_integer(len(level), g)]
            top, left = (_integer(side - r.crop + 1, g) for side in im.shape[1:])
            crop = im[:, top : top + r.crop, left : left + r.crop]
        if r.turns:
            crop = crop.rot90(_integer(4, g), (1, 2))
        if r.flips and _integer(2, g):
            crop = crop.flip(2)
        return _finished(crop, r.images, g)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean crops (B, C, S, S), or their latents, noise levels (B,), and unit noise like the crops."""
        r = self.recipe
        g = seeded(r.seed, step)
        x0 = self.encode(torch.stack([self.draw(g) for _ in range(r.batch)]))
        noise = torch.randn(x0.shape, generator=g)
        log_sigma = r.log_sigma_mean + r.log_sigma_std * torch.randn(r.batch, generator=g)
        low, high = math.log(r.sigma_min), math.log(r.sigma_max)
        wide = torch.rand(r.batch, generator=g) < r.wide_share
        log_sigma = torch.where(wide, low + (high - low) * torch.rand(r.batch, generator=g), log_sigma)
        gray = torch.rand(r.batch, generator=g) < r.gray_share
        x0[gray] = x0[gray].mean(1, keepdim=True).expand_as(x0[gray])
        noise[gray] = noise[gray][:, :1].expand_as(noise[gray])
        return x0, log_sigma.clamp(low, high).exp(), noise


def _finished(image: Tensor, kind: str, g: torch.Generator) -> Tensor:
    """What the network sees of an image as it is kept: floats, complex where the kind is (a finished one stays as it is)."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return with_phase(image, g) if kind == "magnitude" and len(image) == 1 else image


def _integer(high: int, g: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=g))


def _shrink(im: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return im
    out = F.interpolate(im[None].float(), scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)[0]
    return out.round().clamp(0, 255).to(torch.uint8) if im.dtype == torch.uint8 else out.clamp(min(0.0, float(im.min())), float(im.max()))
