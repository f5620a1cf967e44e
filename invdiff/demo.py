"""The demonstration behind ``invdiff demo``: three corruptions of photographs, total variation, and ``solve``.

Photographs come with scikit-image (and were never trained on): the centre square, reduced to 256x256. Scores are
scikit-image's, with peak 1 and after clipping to [0, 1]: PSNR over all pixels and channels, and SSIM with the Gaussian
window of Wang et al. (2004). Total variation gets the weight that is best for the truth, which no one has in practice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional as F

from invdiff import operators, priors
from invdiff.baseline import best_tv
from invdiff.files import write_atomically
from invdiff.io import check_writable
from invdiff.solving import solve

SIDE = 256
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "camera")


@dataclass(frozen=True)
class Task:
    """A corruption: its operator, and how its measurement is shown as a picture of the original size."""

    name: str
    title: str
    noise: float
    operator: Callable[[float], Any]
    show: Callable[[Tensor], Tensor] = lambda y: y


TASKS = (
    Task("inpaint", "half the pixels missing, noise 0.05", 0.05, lambda s: operators.Inpainting(_half(), noise=s)),
    Task(
        "deblur",
        "Gaussian blur of 2 pixels, noise 0.02",
        0.02,
        lambda s: operators.Blur(operators.parse_kernel("gaussian:2.0"), noise=s, boundary="circular"),
    ),
    Task(
        "superres",
        "4 times fewer pixels a side, noise 0.02",
        0.02,
        lambda s: operators.Downsampling(4, kernel="bicubic", noise=s),
        lambda y: F.interpolate(y, scale_factor=4, mode="bicubic", align_corners=False),
    ),
)


def photograph(name: str, side: int | None = None) -> Tensor:
    """The centre square of one of scikit-image's photographs, reduced to (1, C, side, side), by default SIDE, with antialiasing."""
    side = side or SIDE
    image = getattr(data, name)()
    n = min(image.shape[:2])
    top, left = (image.shape[0] - n) // 2, (image.shape[1] - n) // 2
    square = resize(image[top : top + n, left : left + n], (side, side), anti_aliasing=True)
    return torch.from_numpy(np.atleast_3d(square)).permute(2, 0, 1)[None].float()


def scores(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """PSNR (dB) and SSIM of one image (1, C, H, W) (module docstring)."""
    a, b = (t[0].clamp(0, 1).double().cpu().numpy() for t in (truth, x))
    ssim = structural_similarity(
        a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(peak_signal_noise_ratio(a, b, data_range=1)), float(ssim)


def run(
    out: Path,
    images: str = "few",
    prior: str = "natural",
    progress: Callable[[float, str], None] = lambda done, what: None,
) -> tuple[Path, Table]:
    """Restore, write ``out/sheet.png``, and return its path and the table of scores.

    :param images: "few" takes one photograph a task, "all" takes every photograph for every task.
    :param prior: name or path of a prior.
    :param progress: is called with the fraction done and what is being done.
    """
    if images not in ("few", "all"):
        raise ValueError(f'--images is "few" or "all", got {images!r}')
    path = out / "sheet.png"
    out.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    denoiser = priors.load(prior)
    pairs = list(zip(TASKS, PHOTOGRAPHS)) if images == "few" else [(t, name) for t in TASKS for name in PHOTOGRAPHS]

    caption = "TV: total variation at the weight best for the truth. s: seconds. NFE: network evaluations a sample."
    table = Table(title="PSNR in dB / SSIM", caption=caption)
    for column in ("task", "photo", "corrupted", "TV", "invdiff", "s", "NFE"):
        table.add_column(column, justify="left" if column in ("task", "photo") else "right", no_wrap=True)
    rows = []
    for i, (task, name) in enumerate(pairs):
        truth, A = photograph(name), task.operator(task.noise)
        y = A.measure(truth, seed=0)
        progress(i / len(pairs), f"{task.name}, {name}: total variation")
        weights = [task.noise * 2.0**k for k in range(-5, 1)]
        baseline = best_tv(y, A, truth, weights).x

        def tick(done: int, total: int, i: int = i, what: str = f"{task.name}, {name}: invdiff") -> None:
            progress((i + 0.2 + 0.8 * done / total) / len(pairs), what)

        result = solve(y, A, denoiser, progress=tick)
        corrupted = task.show(y)
        figures = [scores(x, truth) for x in (corrupted, baseline, result.x)]
        cells = [f"{psnr:.2f}/{ssim:.3f}" for psnr, ssim in figures]
        table.add_row(task.name, name, *cells, f"{result.seconds:.0f}", str(result.nfe))
        rows.append(Row(f"{name}: {task.title}", [corrupted, baseline, result.x], figures, result.std, truth))
    write_atomically(path, lambda p: draw_sheet(p, rows))
    progress(1.0, "done")
    return path, table


@dataclass(frozen=True)
class Row:
    """A row of the sheet: corrupted, baseline and restored with their scores, then uncertainty and truth."""

    title: str
    pictures: list[Tensor]
    figures: list[tuple[float, float]]
    std: Tensor
    truth: Tensor


def draw_sheet(path: Path, rows: list[Row]) -> None:
    """Draw the rows as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.5 * len(rows) + 0.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    titles = ("corrupted", "total variation, best weight", "invdiff", "uncertainty", "truth")
    for row, part in zip(rows, figure.subfigures(len(rows), 1, squeeze=False)[:, 0]):
        part.suptitle(row.title, fontsize=12, fontweight="bold")
        axes = part.subplots(1, len(titles))
        for axis, title in zip(axes, titles):
            axis.set_title(title, fontsize=11)
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, picture, (psnr, ssim) in zip(axes, row.pictures, row.figures):
            _show(axis, picture)
            axis.set_xlabel(f"PSNR {psnr:.2f} dB, SSIM {ssim:.3f}", fontsize=10)
        std = row.std[0].square().mean(0).sqrt().cpu().numpy()
        top = float(np.quantile(std, 0.995)) or 1.0
        image = axes[3].imshow(std, cmap="magma", vmin=0, vmax=top)
        axes[3].set_xlabel("standard deviation of the samples", fontsize=10)
        part.colorbar(image, ax=axes[3], shrink=0.8)
        _show(axes[4], row.truth)
    figure.savefig(path, format="png")


def _show(axis: Any, picture: Tensor) -> None:
    axis.imshow(picture[0].clamp(0, 1).permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)


def _half() -> Tensor:
    return operators.random_mask((SIDE, SIDE), keep=0.5, seed=0)
