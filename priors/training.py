"""Training a denoising prior: ``invdiff train --recipe natural --data DIR``.

The loss is the mean squared error of the preconditioned network, weighted to unit size at every noise
level (Karras et al. 2022, eq. 8): ``E ||D(x0 + sigma n, sigma) - x0||^2 / c_out(sigma)^2``.

A run keeps everything in its output folder: ``checkpoint.safetensors`` (weights, average, optimiser and
step, replaced atomically), ``log.csv``, ``sheet.png`` and, at the end, ``NAME.safetensors`` with its card
``NAME.md``. Started again, it goes on from the checkpoint; crops and noise are drawn from (seed, step), so a
resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from invdiff.priors.network import DenoisingUNet
from invdiff.priors.recipe import Recipe

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


def load_images(folder: str | Path, channels: int, smallest: int) -> list[Tensor]:
    """Read every image below ``folder`` as uint8 (C, H, W), in the order of the paths: upright, and on white.

    A file that cannot be read is named on standard error and left out; ``ValueError`` if none is left.
    """
    from invdiff.io import read_image

    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"training data: {root} is not a folder")
    images = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        try:
            x, meta = read_image(path)
        except ValueError as error:
            print(f"note: left out {error}", file=sys.stderr)
            continue
        if meta.alpha is not None:
            x = x * meta.alpha + 1 - meta.alpha
        if x.shape[1] > channels:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)  # luma of ITU-R 601
        images.append((255 * x).round().to(torch.uint8)[0].expand(channels, -1, -1).contiguous())
    usable = [im for im in images if min(im.shape[1:]) >= smallest]
    if not usable:
        raise ValueError(
            f"training data: {root} holds {len(images)} readable images, none with both sides of at least {smallest} pixels; "
            f"give a folder of {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    return usable


class Crops:
    """Random crops, flips, turns and noise for a step; a function of (recipe.seed, step) alone."""

    def __init__(self, images: list[Tensor], recipe: Recipe) -> None:
        self.recipe = recipe
        self.levels = [[_shrink(im, s) for im in images if min(im.shape[1:]) * s >= recipe.crop] for s in recipe.scales]
        self.levels = [level for level in self.levels if level]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean crops (B, C, S, S) in [0, 1], noise levels (B,), and unit noise like the crops."""
        r = self.recipe
        g = torch.Generator().manual_seed(_seed(r.seed, step))
        crops = []
        for _ in range(r.batch):
            level = self.levels[_integer(len(self.levels), g)]
            im = level[_integer(len(level), g)]
            top, left = (_integer(side - r.crop + 1, g) for side in im.shape[1:])
            crop = im[:, top : top + r.crop, left : left + r.crop].rot90(_integer(4, g), (1, 2))
            crops.append(crop.flip(2) if _integer(2, g) else crop)
        x0 = torch.stack(crops).float() / 255
        noise = torch.randn(x0.shape, generator=g)
        log_sigma = r.log_sigma_mean + r.log_sigma_std * torch.randn(r.batch, generator=g)
        low, high = math.log(r.sigma_min), math.log(r.sigma_max)
        wide = torch.rand(r.batch, generator=g) < r.wide_share
        log_sigma = torch.where(wide, low + (high - low) * torch.rand(r.batch, generator=g), log_sigma)
        gray = torch.rand(r.batch, generator=g) < r.gray_share
        x0[gray] = x0[gray].mean(1, keepdim=True).expand_as(x0[gray])
        noise[gray] = noise[gray][:, :1].expand_as(noise[gray])
        return x0, log_sigma.clamp(low, high).exp(), noise


def _seed(*key: int) -> int:
    """A seed for a key of several numbers; torch's CPU generator looks at 32 bits only."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _integer(high: int, g: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=g))


def _shrink(im: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return im
    out = F.interpolate(im[None].float(), scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)
    return out[0].round().clamp(0, 255).to(torch.uint8)


def denoising_psnr(prior: Callable[[Tensor, float], Tensor], images: Iterable[Tensor], sigma: float) -> float:
    """Mean over images of the PSNR (dB) of ``prior(x0 + sigma n, sigma)``, clipped to [0, 1].

    ``images`` are uint8 or [0, 1] float tensors (C, H, W); image ``i`` gets noise from seed ``i``.
    """
    device = next((p.device for p in prior.parameters()), None) if isinstance(prior, torch.nn.Module) else None
    values = []
    for i, image in enumerate(images):
        x0 = (image.float() / 255 if image.dtype == torch.uint8 else image)[None]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            out = prior((x0 + sigma * noise).to(device), sigma).to(x0.device).clamp(0, 1)
        values.append(-10 * math.log10(float((out - x0).square().mean())))
    return sum(values) / len(values)


def train(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    *,
    start: str | Path | None = None,
    held: str | Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
    checkpoint_every: int = 500,
    report: Callable[[int, float, float], None] | None = None,
) -> Path:
    """Train ``recipe`` on the images below ``data``; return the path of the finished weights in ``out``.

    ``start`` names a prior that ships, or a weights file, whose weights a new run begins with (fine-tuning); its network
    has to be the recipe's. Figures are measured on the images below ``held``, or on ``recipe.holdout`` images of ``data``,
    evenly spread over the sorted paths, which are then not trained on.

    The run ends after ``recipe.steps`` steps, or after ``minutes`` if that comes first; the learning rate
    falls along a cosine of whichever is nearer. ``report(step, fraction_done, loss)`` is called every 20 steps.
    Ctrl-C writes a checkpoint before it ends the run.
    """
    from invdiff.priors.registry import load_network
    from invdiff.priors.weights_io import save_weights

    folder = Path(out)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images = load_images(data, recipe.channels, recipe.crop)
    if held is None:
        if len(images) < 2:
            raise ValueError(f"training data: {data} holds one usable image; give two or more, since one is held out")
        spread = slice(None, None, max(1, len(images) // recipe.holdout))
        tests = images[spread][: min(recipe.holdout, len(images) - 1)]
        chosen = {id(im) for im in tests}
        images = [im for im in images if id(im) not in chosen]
    else:
        tests = load_images(held, recipe.channels, 1)
    begin = load_network(start) if start is not None else None
    if begin is not None and begin.config != recipe.network():
        raise ValueError(
            f"start: {start} is a network of {begin.config}, the recipe {recipe.name} asks for {recipe.network()}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    crops = Crops(images, recipe)

    torch.manual_seed(recipe.seed)
    net = DenoisingUNet(recipe.network()).to(target, memory_format=torch.channels_last)
    if begin is not None:
        net.load_state_dict(begin.state_dict())
    ema = DenoisingUNet(recipe.network()).to(target).requires_grad_(False)
    ema.load_state_dict(net.state_dict())
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    state = _Checkpoint(folder / "checkpoint.safetensors", recipe, net, ema, optimiser)
    step, spent = state.load()
    origin = time.monotonic() - spent
    running = 0.0
    try:
        while True:
            elapsed = time.monotonic() - origin
            done = max(step / recipe.steps, elapsed / 60 / minutes if minutes else 0.0)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = (
                    recipe.learning_rate * min(1.0, step / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
                )
            x0, sigma, noise = (t.to(target) for t in crops.batch(step))
            s4 = sigma.view(-1, 1, 1, 1)
            weight = 1 / s4**2 + 1 / recipe.std**2  # 1 / c_out^2
            loss = (weight * (net(x0 + s4 * noise, sigma) - x0).square()).mean()
            if not bool(torch.isfinite(loss)):
                raise RuntimeError(
                    f"training diverged at step {step} (loss {float(loss)}); lower the recipe's learning_rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            step += 1
            decay = min(recipe.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for e, p in zip(ema.parameters(), net.parameters()):
                    e.lerp_(p, 1 - decay)
            running += (loss.item() - running) * max(0.01, 1 / step)
            if report and step % 20 == 0:
                report(step, done, running)
            if step % checkpoint_every == 0:
                state.save(step, time.monotonic() - origin)
                _log(folder / "log.csv", step, time.monotonic() - origin, running, ema, tests[:4])
                _sheet(folder / "sheet.png", ema, tests[:4])
    except KeyboardInterrupt:
        if step > 0:  # before the first step the optimiser has nothing to keep
            state.save(step, time.monotonic() - origin)
            print(
                f"stopped at step {step}; {state.path} is saved, the same command goes on from there", file=sys.stderr
            )
        raise
    state.save(step, time.monotonic() - origin)
    _sheet(folder / "sheet.png", ema, tests[:4])
    figures = {round(255 * s): denoising_psnr(ema, tests, s) for s in (15 / 255, 25 / 255, 50 / 255)}
    path = folder / f"{recipe.name}.safetensors"
    save_weights(ema, path)
    card = _card(recipe, step, time.monotonic() - origin, len(images), len(tests), figures)
    _replace(path.with_suffix(".md"), lambda p: p.write_text(card))
    return path


class _Checkpoint:
    """Weights, average and Adam moments in one safetensors file, written beside and then renamed."""

    def __init__(
        self, path: Path, recipe: Recipe, net: DenoisingUNet, ema: DenoisingUNet, optimiser: torch.optim.Optimizer
    ) -> None:
        self.path, self.net, self.ema, self.optimiser = path, net, ema, optimiser
        self.recipe = _settings(recipe)

    def save(self, step: int, seconds: float) -> None:
        from safetensors.torch import save_file

        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, p in self.net.named_parameters():
            tensors |= {f"{k}.{name}": v for k, v in self.optimiser.state[p].items() if isinstance(v, Tensor)}
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        notes = {"step": str(step), "seconds": str(seconds), "recipe": self.recipe}
        _replace(self.path, lambda p: save_file(whole, p, notes))

    def load(self) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as f:
                meta, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (f is not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it to start again, or give another --out folder"
            ) from error
        if meta.get("recipe") != self.recipe:
            raise ValueError(f"{self.path} comes from another recipe; give an empty --out folder")
        try:
            for prefix, module in (("net.", self.net), ("ema.", self.ema)):
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            for name, p in self.net.named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimiser.state[p] = {
                    k: tensors[f"{k}.{name}"].to(p.device if k != "step" else "cpu") for k in keys
                }
            return int(meta["step"]), float(meta["seconds"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.path} does not hold this network; delete it to start again, or give another --out folder"
            ) from error


def _settings(recipe: Recipe) -> str:
    """The recipe as JSON, without its steps: a run may be made longer."""
    return json.dumps({k: v for k, v in asdict(recipe).items() if k != "steps"})


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _log(path: Path, step: int, seconds: float, loss: float, ema: DenoisingUNet, held: list[Tensor]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.writer(f)
        if new:
            writer.writerow(["step", "seconds", "loss", "psnr_25"])
        writer.writerow([step, round(seconds), f"{loss:.5f}", f"{denoising_psnr(ema, held, 25 / 255):.3f}"])


def _sheet(path: Path, ema: DenoisingUNet, held: list[Tensor]) -> None:
    """Rows: held-out images; columns: noisy and denoised at three noise levels."""
    from PIL import Image

    rows = []
    for i, image in enumerate(held):
        side = min(128, *image.shape[1:])
        x0 = image[None, :, :side, :side].float() / 255
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        row = [x0]
        for sigma in (0.1, 0.3, 1.0):
            noisy = x0 + sigma * noise
            with torch.no_grad():
                row += [noisy, ema(noisy.to(next(ema.parameters()).device), sigma).cpu()]
        rows.append(F.pad(torch.cat(row, 3), (0, 7 * (128 - side), 0, 128 - side)))
    sheet = (torch.cat(rows, 2)[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).squeeze(-1)
    _replace(path, lambda p: Image.fromarray(sheet.numpy()).save(p, format="PNG"))


def _card(recipe: Recipe, step: int, seconds: float, trained: int, held: int, figures: dict[int, float]) -> str:
    settings = "\n".join(f"    {f.name}: {getattr(recipe, f.name)}" for f in fields(recipe))
    table = "\n".join(f"| {s} | {v:.2f} |" for s, v in figures.items())
    return (
        f"# {recipe.name}\n\nA denoising U-Net trained by `invdiff train` in {step} steps ({seconds / 60:.0f} minutes) on "
        f"{trained} images; {held} more were held out.\n\nNoise range: {recipe.sigma_min} to {recipe.sigma_max}.\n\n"
        f"| noise level (/255) | PSNR on the held-out images (dB) |\n| --- | --- |\n{table}\n\nRecipe:\n\n{settings}\n\n"
        "Data and terms: state here where the images come from and under which terms.\n"
    )
