"""Training a denoising prior: ``invdiff train --recipe natural --data DIR``.

The loss is the mean squared error of the preconditioned network, weighted to unit size at every noise
level (Karras et al. 2022, eq. 8): ``E ||D(x0 + sigma n, sigma) - x0||^2 / c_out(sigma)^2``.

A recipe with a section ``autoencoder`` trains that first (priors/autoencoder.py), then the denoiser on its latents.

A run keeps everything in its output folder: ``checkpoint.safetensors`` (weights, average, optimiser and
step, replaced atomically), ``log.csv``, ``sheet.png`` and, at the end, ``NAME.safetensors`` with its card
``NAME.md`` (``NAME-lora`` for low-rank adapters); of an autoencoder ``autoencoder-checkpoint.safetensors`` and so on. Started
again, it goes on from the checkpoint; crops and noise are drawn from (seed, step), so a
resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invdiff.files import lock, write_text
from invdiff.io import write_image
from invdiff.priors import cards, registry
from invdiff.priors.autoencoder import Autoencoder, AutoencoderConfig, latent_prior, reconstruction_loss
from invdiff.priors.checkpoint import Checkpoint
from invdiff.priors.data import Crops, load_data
from invdiff.priors.evaluation import (
    denoising_psnr,
    denoising_rmse,
    encoded,
    evaluate,
    measured,
    reconstruction_psnr,
)
from invdiff.priors.latent import LatentPrior
from invdiff.priors.lora import adapt, save_adapter
from invdiff.priors.network import DenoisingUNet, NetworkConfig
from invdiff.priors.recipe import AutoencoderRecipe, Recipe
from invdiff.priors.sampling import decoded, device_of, sheet
from invdiff.priors.weights_io import save_weights

AUTOENCODER_SHARE = 1 / 2  # of the minutes, at most
STANDARD = 512  # crops by whose latents their mean and spread are measured

M = TypeVar("M", bound=nn.Module)


def train(
    recipe: Recipe,
    data: str | Path | None,
    out: str | Path,
    *,
    start: str | Path | None = None,
    lora: int | None = None,
    held: str | Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
    checkpoint_every: int = 500,
    report: Callable[[int, float, float], None] | None = None,
) -> Path:
    """Train ``recipe`` on the images below ``data``; return the path of the finished weights in ``out``.

    ``data`` is ``None`` for a recipe that draws its images itself. ``start`` names a prior that ships, or a weights file,
    whose weights a new run begins with (fine-tuning); its network has to be the recipe's. ``lora`` leaves these weights as they
    are and trains adapters of that rank (:mod:`invdiff.priors.lora`), which is what ``out`` then gets. Figures are measured on the
    images below ``held``, or on those of ``data`` that the recipe holds out, which are then not trained on.

    With an autoencoder in the recipe that comes first, for its own steps or half of the minutes; with ``start`` it is that of
    the prior begun with, and stays as it is.

    The run ends after ``recipe.steps`` steps, or after ``minutes`` if that comes first; the learning rate
    falls along a cosine of whichever is nearer. ``report(step, fraction_done, loss)`` is called every 20 steps.
    Ctrl-C writes a checkpoint before it ends the run. One run works in ``out`` at a time; others raise ``invdiff.files.Locked``.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes is above 0, or None for no limit, got {minutes}")
    folder = Path(out)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = folder / f"{recipe.name}{'' if lora is None else '-lora'}.safetensors"
    if lora is not None and (start is None or Path(start).resolve() == path.resolve()):
        raise ValueError("adapters (--lora) are of a prior: name it, --start natural, and keep it out of the --out folder")
    crops, tests, how = load_data(recipe, data, held)
    begin = registry.load_network(start) if start is not None else None
    if lora is not None and isinstance(begin, LatentPrior):
        raise ValueError(f"adapters (--lora) are of priors of images; {start} is one of latents")
    if begin is not None and _shapes(begin) != (recipe.network(), recipe.code()):
        differ = "; ".join(_differences(_shapes(begin), (recipe.network(), recipe.code())))
        raise ValueError(f"start: {start} has another network than the recipe {recipe.name}: {differ}")
    terms = None if start is None else f"of {start}: {cards.header(start).get('terms', cards.NOT_STATED)}"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        torch.manual_seed(recipe.seed)
        net = DenoisingUNet(recipe.network()).to(target, memory_format=torch.channels_last)
        if begin is not None:
            net.load_state_dict((begin.denoiser if isinstance(begin, LatentPrior) else begin).state_dict())
        begun = f"--start {start}, images {crops.digest}, --held {held} and held-out images {_digest(tests)}"
        base = ""
        if start is not None and lora is not None:
            adapt(net, lora)
            base = registry.sha256(registry.weights_file(start))
            begun = f"--lora {lora} on weights {base[:8]}, {begun}"
        stage = _Stage(folder, "", recipe, begun, recipe.steps, recipe.learning_rate, minutes, checkpoint_every, report)
        shown = tests[:4]
        latent: LatentPrior | None = None
        after = ""
        if isinstance(begin, LatentPrior):
            latent = latent_prior(net, begin.autoencoder.to(target))
        elif recipe.autoencoder is not None:
            latent, steps, stage = _train_autoencoder(net, crops, shown, recipe.autoencoder, stage)
            after = f" after {steps} of the autoencoder"
        if latent is not None:
            crops.encode = partial(_encode, latent)

        def loss(step: int) -> Tensor:
            x0, sigma, noise = (t.to(target) for t in crops.batch(step))
            s4 = sigma.view(-1, 1, 1, 1)
            weight = 1 / s4**2 + 1 / net.std**2  # 1 / c_out^2
            return (weight * (net(x0 + s4 * noise, sigma) - x0).square()).mean()

        def score(ema: DenoisingUNet) -> tuple[str, float]:
            if latent is None:
                return "psnr_25", denoising_psnr(ema, shown, 25 / 255)
            return "rmse_0.3", denoising_rmse(ema, encoded(latent, shown), 0.3)

        def look(ema: DenoisingUNet) -> None:
            _sheet(folder / "sheet.png", ema, shown, latent)

        ema, step, seconds = _fit(net, loss, stage, score, look)
        prior = ema if latent is None else latent_prior(ema, latent.autoencoder)
        if start is not None and lora is not None:
            save_adapter(ema, path, str(start if start in registry.names() else registry.weights_file(start).resolve()), base, lora)
        else:
            save_weights(prior, path)
        source = f"{crops.images} images" if crops.images else "images drawn for it"
        trained = f"in {step} steps ({seconds / 60:.{0 if seconds > 600 else 1}f} minutes){after} on {source}"
        print(f"measuring on {len(measured(tests))} of {len(tests)} held-out images", file=sys.stderr)
        if begin is not None:
            way = "" if lora is None else f"as adapters of rank {lora} (LoRA), "
            trained += f", {way}from the weights of {start}"
        if isinstance(begin, DenoisingUNet):
            before = denoising_psnr(begin.to(target), measured(tests), 25 / 255)
            trained += f", whose PSNR at 25 was {before:.2f} dB on the same held-out images"
        quality = evaluate(prior, tests, recipe, lambda what: print(f"measuring: {what}", file=sys.stderr))
        if begin is not None and quality.psnr is not None:
            trained += f", and is {quality.psnr[25]:.2f} dB now"
        print(f"{path}: {trained}", file=sys.stderr)
        options: dict[str, Any] = {"data": data and "DIR", "held": held and "HELD", "start": start, "lora": lora}
        options["minutes"] = minutes if step < recipe.steps else None
        text = cards.write(recipe, quality, f"{len(tests)} images, {how}", trained, options, terms)
        write_text(path.with_suffix(".md"), text)
        return path


def _shapes(prior: DenoisingUNet | LatentPrior) -> tuple[NetworkConfig, AutoencoderConfig | None]:
    """What a recipe's ``network()`` and ``code()`` are compared with."""
    if isinstance(prior, LatentPrior):
        return prior.denoiser.config, prior.autoencoder.config
    return prior.config, None


def _differences(given: tuple[Any, Any], wanted: tuple[Any, Any]) -> Iterator[str]:
    """What differs between two shapes of :func:`_shapes`, in words."""
    for what, a, b in zip(("", "autoencoder "), given, wanted):
        if (a is None) != (b is None):
            yield f"it has {'no' if a is None else 'an'} autoencoder, the recipe has {'none' if b is None else 'one'}"
        elif a is not None:
            pairs = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
            yield from (f"{what}{name} {x} where the recipe has {y}" for name, x, y in pairs if x != y)


def _train_autoencoder(
    net: DenoisingUNet, crops: Crops, shown: list[Tensor], section: AutoencoderRecipe, stage: _Stage
) -> tuple[LatentPrior, int, _Stage]:
    """Train the autoencoder for ``net``, the denoiser of its latents; return both, the steps, and the stage that trains ``net``.

    Once that stage has a checkpoint the autoencoder is left as it is: its latents must not change any more.
    """
    code = stage.recipe.code()
    assert code is not None
    target = device_of(net)
    autoencoder = Autoencoder(code).to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = stage.part(0, AUTOENCODER_SHARE)
    first = replace(first, name="autoencoder-", steps=section.steps, learning_rate=section.learning_rate)

    def loss(step: int) -> Tensor:
        x0 = crops.batch(step)[0].to(target)
        generator = torch.Generator().manual_seed(step)
        return reconstruction_loss(autoencoder, x0, section.eta, section.penalty, generator)

    def score(ema: Autoencoder) -> tuple[str, float]:
        return "psnr", reconstruction_psnr(latent_prior(net, ema), shown)

    def look(ema: Autoencoder) -> None:
        images = _squares(shown)
        with torch.no_grad():
            pairs = [images, latent_prior(net, ema).project(images.to(target)).cpu()]
        write_image(stage.folder / "autoencoder-sheet.png", sheet(torch.stack(pairs, 1).flatten(0, 1), columns=2))

    ema, steps, seconds = _fit(autoencoder, loss, first, score, look, final=stage.path.exists())
    second = replace(
        stage.part(AUTOENCODER_SHARE, 1),
        minutes=stage.minutes and max(stage.minutes - seconds / 60, 1e-9),  # 0 would be no limit
        begun=f"{stage.begun}, autoencoder {_digest(list(ema.parameters()))}",
    )
    ema.standardise(torch.cat([crops.batch(i)[0] for i in range(math.ceil(STANDARD / stage.recipe.batch))]).to(target))
    return latent_prior(net, ema), steps, second


@torch.no_grad()
def _encode(latent: LatentPrior, x: Tensor) -> Tensor:
    return latent.encode(x.to(device_of(latent))).to(x.device)


def _digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(x.detach().cpu().numpy().tobytes() for x in tensors)).hexdigest()[:8]


@dataclass(frozen=True)
class _Stage:
    """What :func:`_fit` keeps to; files are called by ``name``, after which comes what they are."""

    folder: Path
    name: str
    recipe: Recipe
    begun: str
    steps: int
    learning_rate: float
    minutes: float | None
    checkpoint_every: int
    report: Callable[[int, float, float], None] | None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}checkpoint.safetensors"

    def part(self, begin: float, end: float) -> _Stage:
        """The stage between these shares of its minutes, and reported as such."""
        report, minutes, share = self.report, self.minutes, end - begin
        return replace(
            self,
            minutes=minutes and share * minutes,
            report=report and (lambda step, done, loss: report(step, begin + share * done, loss)),
        )


def _fit(
    net: M,
    loss_of: Callable[[int], Tensor],
    stage: _Stage,
    score: Callable[[M], tuple[str, float]],
    look: Callable[[M], None],
    final: bool = False,
) -> tuple[M, int, float]:
    """Minimise ``loss_of(step)`` over the weights of ``net``; return their running average, steps and seconds.

    Whenever a checkpoint is written, ``score(average)`` goes to the log and ``look(average)`` draws a sheet. ``final``: what
    the checkpoint holds is not trained any more.
    """
    ema = copy.deepcopy(net).requires_grad_(False)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    state = Checkpoint(stage.path, stage.recipe, stage.begun, net, ema, optimiser)
    step, spent = state.load()
    if step:
        print(f"{stage.path}: going on from step {step}", file=sys.stderr)
    if final:
        return ema, step, spent
    origin = time.monotonic() - spent
    first, running = step, 0.0
    try:
        while True:
            elapsed = time.monotonic() - origin
            done = max(step / stage.steps, elapsed / 60 / stage.minutes if stage.minutes else 0.0)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = (
                    stage.learning_rate * min(1.0, step / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
                )
            loss = loss_of(step)
            if not bool(torch.isfinite(loss)):
                raise RuntimeError(
                    f"training diverged at step {step} (loss {float(loss)}); lower the recipe's learning_rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            step += 1
            decay = min(stage.recipe.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for e, p in zip(ema.parameters(), net.parameters()):
                    e.lerp_(p, 1 - decay)
            running += (loss.item() - running) * max(0.01, 1 / (step - first))
            if stage.report and step % 20 == 0:
                stage.report(step, done, running)
            if step % stage.checkpoint_every == 0:
                state.save(step, time.monotonic() - origin)
                _log(stage.folder / f"{stage.name}log.csv", step, time.monotonic() - origin, running, *score(ema))
                look(ema)
    except KeyboardInterrupt:
        if step > 0:  # before the first step the optimiser has nothing to keep
            state.save(step, time.monotonic() - origin)
            print(
                f"stopped at step {step}; {state.path} is saved, the same command goes on from there", file=sys.stderr
            )
        raise
    if step == 0:
        raise ValueError("no time was left for a single step; give more minutes")
    state.save(step, time.monotonic() - origin)
    look(ema)
    return ema, step, time.monotonic() - origin


def _log(path: Path, step: int, seconds: float, loss: float, name: str, value: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.writer(f)
        if new:
            writer.writerow(["step", "seconds", "loss", name])
        writer.writerow([step, round(seconds), f"{loss:.5f}", f"{value:.3f}"])


def _squares(images: list[Tensor]) -> Tensor:
    """The top left of each image, as large as the smallest has it, of 128 pixels a side at most."""
    side = min(128, *(s for image in images for s in image.shape[1:]))
    return torch.stack([image[:, :side, :side] for image in images])


def _sheet(path: Path, ema: DenoisingUNet, held: list[Tensor], latent: LatentPrior | None) -> None:
    """Rows: held-out images; columns: noisy and denoised at three noise levels, of latents as they are decoded."""
    images = _squares(held)
    x0 = images if latent is None else _encode(latent, images)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    columns = [images]
    for sigma in (0.1, 0.3, 1.0):
        noisy = x0 + sigma * noise
        with torch.no_grad():
            pair = [noisy, ema(noisy.to(device_of(ema)), sigma).cpu()]
        size = (images.shape[2], images.shape[3])
        columns += pair if latent is None else [decoded(latent, z, size) for z in pair]
    write_image(path, sheet(torch.stack(columns, 1).flatten(0, 1), columns=len(columns)))
