"""Restoring photographs in files: what ``invdiff restore`` does, callable from Python.

========  =====================================================  ==========================================
task      forward model of the file ``y``                        needs
========  =====================================================  ==========================================
inpaint   ``y = mask * x + noise``                               ``mask``: white known, black to be filled
deblur    ``y = kernel * x + noise``, nothing assumed of what    ``kernel``, e.g. ``gaussian:2.0``
          lies beyond the border
superres  ``y = x`` reduced ``scale`` times (bicubic) + noise,   ``scale``
          mirrored beyond the border
denoise   ``y = x + noise``                                      nothing
========  =====================================================  ==========================================

Noise is a standard deviation on the scale where black is 0 and white is 1. Where it is not given: 0.01 for inpaint,
0.02 for deblur and superres, and for denoise an estimate from the picture itself (:func:`estimate_noise`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from invdiff import operators, priors, solvers
from invdiff.io import FORMATS, check_writable, read_image, read_mask, write_image
from invdiff.priors.patches import blend, scaled, tiles
from invdiff.result import Result
from invdiff.seeds import check_seed
from invdiff.solvers.auto import SAMPLES, Budget
from invdiff.solving import solve

DEFAULT_NOISE = {"inpaint": 0.01, "deblur": 0.02, "superres": 0.02, "denoise": None}
WHOLE = 1024 * 1024  # pixels of the result; larger pictures are restored in overlapping tiles, to bound the memory
TILE, OVERLAP = 640, 64
MARGIN = 4  # pixels a small picture is extended by on each side before it is enlarged


@dataclass(frozen=True)
class Settings:
    """How to restore; checked when made, with ``ValueError`` for anything that cannot work.

    ``mask`` is a file, or a folder with a mask ``NAME.png`` for each picture ``NAME.*``. ``None`` leaves a value to the
    defaults of the task (``noise``) or of :func:`invdiff.solve`.
    """

    task: str
    mask: Path | None = None
    kernel: str | None = None
    scale: int | None = None
    noise: float | None = None
    solver: str = "auto"
    budget: Budget = "balanced"
    steps: int | None = None
    samples: int | None = None
    seed: int = 0
    prior: str = "natural"
    batch_size: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.task not in DEFAULT_NOISE:
            raise ValueError(f"unknown task {self.task!r}; tasks: {', '.join(DEFAULT_NOISE)}")
        for task, name in (("inpaint", "mask"), ("deblur", "kernel"), ("superres", "scale")):
            given = getattr(self, name) is not None
            if given != (self.task == task):
                raise ValueError(
                    f"--{name} is for the task {task}, not {self.task}" if given else f"{task} needs --{name}"
                )
        if self.noise is not None and not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"--noise is a standard deviation, finite and not negative, got {self.noise}")
        if self.noise is not None and self.noise > 1:
            raise ValueError(f"--noise is in units of the picture, where white is 1: {self.noise:g} of 255 is {self.noise / 255:.3f}")
        if self.scale is not None and not 2 <= self.scale <= 16:
            raise ValueError(f"--scale is a whole number from 2 to 16, got {self.scale}")
        check_seed(self.seed)
        for name in ("steps", "samples", "batch_size"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {getattr(self, name)}")
        if self.solver != "auto":
            solvers.get(self.solver)
        if self.budget not in get_args(Budget) or (self.budget != "balanced" and self.solver != "auto"):
            raise ValueError(f"--budget is one of {', '.join(get_args(Budget))}, and for --solver auto, got {self.budget} for {self.solver}")


@dataclass(frozen=True)
class Job:
    """The files of one picture."""

    source: Path
    target: Path
    mask: Path | None = None
    uncertainty: Path | None = None

    @property
    def done(self) -> bool:
        """Whether everything is there already; files are replaced atomically, so there means complete."""
        return self.target.exists() and (self.uncertainty is None or self.uncertainty.exists())

    def check(self) -> None:
        """``ValueError`` if there is no picture, or a result would replace a file it is made from, or another result."""
        if not self.source.is_file():
            raise ValueError(f"{self.source}: no such file or folder")
        files = [p.resolve() for p in (self.source, self.mask, self.target, self.uncertainty) if p]
        if len(set(files)) < len(files):
            names = ", ".join(str(p) for p in (self.source, self.mask, self.target, self.uncertainty) if p)
            raise ValueError(f"the picture, its mask and the results must be different files, got {names}")
        if self.uncertainty and self.uncertainty.suffix.lower() != ".png":
            raise ValueError(f"{self.uncertainty}: the uncertainty is written as .png, which can store its scale")


@dataclass(frozen=True)
class Report:
    """What was done to a picture. ``white`` is the standard deviation shown as white in the uncertainty picture."""

    size: tuple[int, int]
    noise: float
    solver: str
    nfe: int
    seconds: float
    white: float | None
    notices: list[str]


def is_many(source: str) -> bool:
    """Whether ``source`` is a folder or a pattern with wildcards, not a file."""
    if not source:
        raise ValueError("INPUT is empty; give a picture, a folder or a pattern")
    return Path(source).is_dir() or (not Path(source).exists() and any(c in source for c in "*?["))


def find_jobs(source: str, output: Path, mask: Path | None = None, uncertainty: Path | None = None) -> list[Job]:
    """The pictures in a folder (not below it) or that match a pattern; results keep the names, in the folder ``output``.

    ``mask`` is one file for all or a folder, ``uncertainty`` a folder.
    """
    for place in filter(None, (output, uncertainty)):
        if place.is_file():
            raise ValueError(f"{place} is a file, but {source} is many pictures; give a folder for the results")
    found = Path(source).iterdir() if Path(source).is_dir() else map(Path, glob(source, recursive=True))
    out = output.resolve()
    files = [p for p in found if p.suffix.lower() in FORMATS and p.is_file() and out not in p.resolve().parents]
    if not files:
        if Path(source).is_dir() and Path(source).resolve() == out:
            raise ValueError(f"{output} holds the pictures themselves; give another folder for the results")
        raise ValueError(f"{source}: no pictures there ({', '.join(FORMATS)})")
    base = Path(os.path.commonpath([p.parent for p in files]))
    jobs = []
    for p in sorted(files):
        own_mask = mask / f"{p.stem}.png" if mask and mask.is_dir() else mask
        name = p.relative_to(base)
        std = uncertainty / name.with_name(f"{name.name}-std.png") if uncertainty else None
        jobs.append(Job(p, output / name, own_mask, std))
    if mask and not any(job.mask and job.mask.is_file() for job in jobs):
        where = f"no NAME.png for any of the {len(jobs)} pictures there" if mask.is_dir() else "no such file or folder"
        raise ValueError(f"{mask}: {where}; a mask is one file for all, or a folder with a NAME.png for each picture NAME.*")
    return jobs


class Restorer:
    """A prior and settings, ready for picture after picture."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kernel = None if settings.kernel is None else operators.parse_kernel(settings.kernel)
        self.device = _device(settings.device)
        self.prior = priors.load(settings.prior).to(self.device)

    def __call__(self, job: Job, progress: Callable[[float], None] | None = None) -> Report:
        """Restore one picture; every mistake in the files is found before the long work.

        :param progress: is called with the fraction done.
        """
        scale = self.settings.scale or 1
        job.check()
        check_writable(job.target)
        y, meta = read_image(job.source)
        size = (y.shape[-2] * scale, y.shape[-1] * scale)
        check_writable(job.target, size)
        if job.uncertainty:
            check_writable(job.uncertainty)
            if self.settings.samples == 1:
                raise ValueError("the uncertainty is the spread of samples; give --samples of at least 2")
        mask = torch.ones(y.shape[-2:]) if job.mask is None else read_mask(job.mask, (y.shape[-2], y.shape[-1]))
        noise = self.settings.noise
        if noise is None:
            noise = DEFAULT_NOISE[self.settings.task]
        if noise is None:
            noise = estimate_noise(y)

        samples = self.settings.samples
        if samples is None and job.uncertainty:
            samples = SAMPLES[self.settings.budget]  # denoising needs none for its mean, but a spread does
        height, width = y.shape[-2:]
        tile, overlap = (TILE // scale, OVERLAP // scale) if math.prod(size) > WHOLE else (max(height, width), 0)
        boxes = tiles(height, width, tile, overlap)
        if not all(bool(mask[box].any()) for box in boxes):
            raise ValueError(
                f"{job.mask}: a hole covers a tile of {TILE} pixels; reduce the picture, fill it, enlarge it"
            )
        facts: list[tuple[int, float, str]] = []

        def restored() -> Iterator[Tensor]:
            """Mean and spread of each tile, as channels of one image."""
            for i, (rows, columns) in enumerate(boxes):
                report = partial(_share, progress, i, len(boxes)) if progress else None
                seed = self.settings.seed if len(boxes) == 1 else _seed(self.settings.seed, i)
                result = self._solve((mask * y)[..., rows, columns], mask[rows, columns], noise, samples, seed, report)
                facts.append((result.nfe, result.seconds, str(result.solver)))
                shape = (scale * (rows.stop - rows.start), scale * (columns.stop - columns.start))
                yield self._crop(torch.cat([result.x, result.std], 1), shape).cpu()

        mean, std = blend(restored(), [scaled(box, scale) for box in boxes], overlap * scale).chunk(2, 1)
        notices = list(meta.notices) + write_image(job.target, mean, meta)
        white = None
        if job.uncertainty:
            spread = std.square().mean(1, keepdim=True).sqrt()
            white = float(spread.max()) or 1.0
            note = f"standard deviation of a pixel; black is 0, white is {white:.6g} (the picture's own white is 1)"
            write_image(job.uncertainty, spread / white, text={"Description": note, "white": f"{white:.6g}"})
        nfe, seconds, named = zip(*facts)
        return Report(size, noise, named[-1], max(nfe), sum(seconds), white, notices)

    def _solve(
        self,
        y: Tensor,
        mask: Tensor,
        noise: float,
        samples: int | None,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> Result:
        if self.settings.scale is not None:  # the operator is circular: keep the opposite border away
            y = _reflected(y, MARGIN)
        return solve(
            y.to(self.device),
            self._operator(mask, noise).to(self.device),
            self.prior,
            self.settings.solver,
            samples=samples,
            steps=self.settings.steps,
            budget=self.settings.budget,
            seed=seed,
            batch_size=self.settings.batch_size,
            progress=progress or False,
        )

    def _operator(self, mask: Tensor, noise: float) -> Any:
        if self.settings.task == "inpaint":
            return operators.Inpainting(mask=mask, noise=noise)
        if self.kernel is not None:
            return operators.Blur(self.kernel, noise=noise, boundary="valid")
        if self.settings.scale is not None:
            return operators.Downsampling(self.settings.scale, kernel="bicubic", noise=noise)
        return operators.Denoising(noise=noise)

    def _crop(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The part of ``x`` the file shows: light from beyond its border reaches it through the kernel."""
        height, width = size
        top = left = MARGIN * (self.settings.scale or 0)
        if self.kernel is not None:
            h, w = self.kernel.shape
            top, left = h - 1 - h // 2, w - 1 - w // 2
        return x[..., top : top + height, left : left + width]


def estimate_noise(x: Tensor) -> float:
    """Standard deviation of white noise in an image (1, C, H, W), from the median of a double Laplacian.

    The filter of Immerkaer (1996, "Fast noise variance estimation") has norm 6 and is blind to linear slopes; the
    median (Donoho & Johnstone 1994) keeps edges out. Fine texture counts as noise.
    """
    if min(x.shape[-2:]) < 3:
        raise ValueError(
            f"the noise of a picture of {x.shape[-1]}x{x.shape[-2]} pixels cannot be estimated (3x3 at least); give --noise"
        )
    line = x.new_tensor([1.0, -2.0, 1.0])
    response = F.conv2d(x.transpose(0, 1), (line[:, None] * line)[None, None])
    return float(response.abs().median()) / (6 * 0.6745)


def _reflected(y: Tensor, margin: int) -> Tensor:
    """``y`` extended on each side by its mirror image, repeated where the picture is smaller than the margin."""
    for axis in (-2, -1):
        n = y.shape[axis]
        i = torch.arange(-margin, n + margin) % (2 * n)
        y = y.index_select(axis, torch.minimum(i, 2 * n - 1 - i))
    return y


def _seed(seed: int, tile: int) -> int:
    """A seed of its own for each tile, so that the noise of neighbours does not repeat."""
    return int(np.random.SeedSequence((seed, tile)).generate_state(1)[0])


def _share(progress: Callable[[float], None], index: int, count: int, done: int, total: int) -> None:
    progress((index + done / total) / count)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return device
