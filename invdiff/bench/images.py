"""Where the true images of a suite come from: each maker returns (1, C, H, W) in the unit of the priors.

The makers here are known to suites by their names; one of your own is a function that returns such a tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.transform import resize
from torch import Tensor

from invdiff import demo, phantoms, priors
from invdiff.bench.components import Room, room_of
from invdiff.io import FORMATS, read_image
from invdiff.priors.data import with_phase
from invdiff.seeds import seeded


def photograph(name: str, size: int = 256) -> Tensor:
    """One of scikit-image's photographs: the centre square, reduced to ``size`` pixels a side with antialiasing."""
    if name not in demo.PHOTOGRAPHS:
        raise ValueError(f"photographs: {', '.join(demo.PHOTOGRAPHS)}; got {name!r}")
    return demo.photograph(name, size)


def picture(path: str, size: int | None = None, gray: bool = False) -> Tensor:
    """An image file: its centre square, reduced (or enlarged) to ``size`` pixels a side; whole where ``size`` is None."""
    x, _ = read_image(path)
    if gray and x.shape[1] == 3:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)  # luma of ITU-R 601
    if size is None:
        return x
    n = min(x.shape[-2:])
    top, left = (x.shape[-2] - n) // 2, (x.shape[-1] - n) // 2
    square = x[0, :, top : top + n, left : left + n].permute(1, 2, 0).double().numpy()
    return torch.from_numpy(resize(square, (size, size), anti_aliasing=True)).permute(2, 0, 1)[None].float()


def magnitude(path: str, size: int | None = None, seed: int = 0) -> Tensor:
    """An image file as a complex image: the 99th percentile of its magnitude is 1, its phase random and smooth."""
    x = picture(path, size, gray=True)[0]
    return with_phase(x / float(np.quantile(x.numpy(), 0.99)), seeded(seed))[None]


def phantom(size: int = 256, seed: int = 0) -> Tensor:
    """The random ellipse phantom of a seed."""
    return phantoms.phantom(size, seed)[None]


def shepp_logan(size: int = 256) -> Tensor:
    """The Shepp-Logan phantom."""
    return phantoms.shepp_logan(size)[None]


def complex_phantom(size: int = 192, seed: int = 0) -> Tensor:
    """A random ellipse phantom as a complex image, of random smooth phase."""
    return with_phase(phantoms.phantom(size, seed), seeded(seed))[None]


def drawn(prior: Any, shape: list[int], seed: int = 0, steps: int = 40) -> Tensor:
    """An image (C, H, W) drawn from a prior, for which that prior is right: what it says of errors can be held to.

    A prior by name is sampled in ``steps`` steps, an exact one (``Gaussian`` and others with ``sample``) exactly.
    """
    if hasattr(prior, "sample"):
        return prior.sample(1, seed=seed).view(1, *shape)
    c, h, w = shape
    return priors.sample(priors.load(prior), (1, c, h, w), seed=seed, steps=steps)


MAKERS = (photograph, picture, magnitude, phantom, shepp_logan, complex_phantom, drawn)
IMAGES: Room = {f.__name__: f for f in MAKERS} | room_of(priors, ("Gaussian", "GaussianMixture"))


def files(folder: Path) -> dict[str, Path]:
    """The image files of a folder, by their names without ending; ``ValueError`` if there are none, or two of one name."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in FORMATS:
            if path.stem in found:
                raise ValueError(f"--images {folder}: {found[path.stem].name} and {path.name} have one name; rename one")
            found[path.stem] = path.resolve()
    if not found:
        raise ValueError(f"--images {folder}: no image files in it ({', '.join(FORMATS)})")
    return found
