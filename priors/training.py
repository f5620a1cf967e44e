"""Training a denoising prior: ``invdiff train --recipe natural --data DIR``.

The loss is the mean squared error of the preconditioned network, weighted to unit size at every noise
level (Karras et al. 2022, eq. 8): ``E ||D(x0 + sigma n, sigma) - x0||^2 / c_out(sigma)^2``.

A run keeps everything in its output folder: ``checkpoint.safetensors`` (weights, average, optimiser and
step, replaced atomically), ``log.csv``, ``sheet.png`` and, at the end, ``NAME.safetensors`` with its card
``NAME.md`` (``NAME-lora`` for low-rank adapters). Started again, it goes on from the checkpoint; crops and noise are drawn from (seed, step), so a
resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from invdiff.io import write_atomically, write_image
from invdiff.priors import cards, registry
from invdiff.priors.data import load_data
from invdiff.priors.evaluation import denoising_psnr, evaluate, measured
from invdiff.priors.lora import adapt, save_adapter
from invdiff.priors.network import DenoisingUNet
from invdiff.priors.recipe import Recipe
from invdiff.priors.sampling import device_of, sheet
from invdiff.priors.weights_io import save_weights


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

    The run ends after ``recipe.steps`` steps, or after ``minutes`` if that comes first; the learning rate
    falls along a cosine of whichever is nearer. ``report(step, fraction_done, loss)`` is called every 20 steps.
    Ctrl-C writes a checkpoint before it ends the run.
    """
    folder = Path(out)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = folder / f"{recipe.name}{'' if lora is None else '-lora'}.safetensors"
    if lora is not None and (start is None or Path(start).resolve() == path.resolve()):
        raise ValueError("adapters (--lora) are of a prior: name it, --start natural, and keep it out of the --out folder")
    crops, tests, how = load_data(recipe, data, held)
    begin = registry.load_network(start) if start is not None else None
    if begin is not None and begin.config != recipe.network():
        raise ValueError(
            f"start: {start} is a network of {begin.config}, the recipe {recipe.name} asks for {recipe.network()}"
        )
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(recipe.seed)
    net = DenoisingUNet(recipe.network()).to(target, memory_format=torch.channels_last)
    if begin is not None:
        net.load_state_dict(begin.state_dict())
    digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in tests)).hexdigest()[:8]
    begun = f"--start {start}, --held {held} and held-out images {digest}"
    ema = DenoisingUNet(recipe.network()).to(target)
    base = ""
    if start is not None and lora is not None:
        adapt(net, lora)
        adapt(ema, lora)
        base = registry.sha256(registry.weights_file(start))
        begun = f"--lora {lora} on weights {base[:8]}, {begun}"
    ema.requires_grad_(False).load_state_dict(net.state_dict())
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    state = _Checkpoint(folder / "checkpoint.safetensors", recipe, begun, net, ema, optimiser)
    step, spent = state.load()
    origin = time.monotonic() - spent
    first, running = step, 0.0
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
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            step += 1
            decay = min(recipe.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for e, p in zip(ema.parameters(), net.parameters()):
                    e.lerp_(p, 1 - decay)
            running += (loss.item() - running) * max(0.01, 1 / (step - first))
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
    if start is not None and lora is not None:
        save_adapter(ema, path, str(start if start in registry.names() else Path(start).resolve()), base, lora)
    else:
        save_weights(ema, path)
    source = f"{crops.images} images" if crops.images else "images drawn for it"
    trained = f"in {step} steps ({(time.monotonic() - origin) / 60:.0f} minutes) on {source}"
    print(f"measuring on {len(tests)} held-out images", file=sys.stderr)
    if begin is not None:
        before = denoising_psnr(begin.to(target), measured(tests), 25 / 255)
        way = "" if lora is None else f"as adapters of rank {lora} (LoRA), "
        trained += f", {way}from the weights of {start}, whose PSNR at 25 was {before:.2f} dB on the same held-out images"
    text = cards.write(recipe, evaluate(ema, tests, recipe.generated), f"{len(tests)} images, {how}", trained)
    write_atomically(path.with_suffix(".md"), lambda p: p.write_text(text, encoding="utf-8"))
    return path


class _Checkpoint:
    """Weights, average and Adam moments in one safetensors file, written beside and then renamed."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        begun: str,
        net: DenoisingUNet,
        ema: DenoisingUNet,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.path, self.begun, self.net, self.ema, self.optimiser = path, begun, net, ema, optimiser
        self.recipe = _settings(recipe)

    def _learned(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]

    def save(self, step: int, seconds: float) -> None:
        from safetensors.torch import save_file

        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, p in self._learned():
            tensors |= {f"{k}.{name}": v for k, v in self.optimiser.state[p].items() if isinstance(v, Tensor)}
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        notes = {"step": str(step), "seconds": str(seconds), "recipe": self.recipe, "begun": self.begun}
        write_atomically(self.path, lambda p: save_file(whole, p, notes))

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
        if not _same_settings(meta.get("recipe"), self.recipe):
            raise ValueError(f"{self.path} comes from another recipe; give an empty --out folder")
        if meta.get("begun", self.begun) != self.begun:
            raise ValueError(
                f"{self.path} was begun with {meta['begun']}, not with {self.begun}; give the same images and options, or an empty --out folder"
            )
        try:
            for prefix, module in (("net.", self.net), ("ema.", self.ema)):
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            for name, p in self._learned():
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
    """The recipe as JSON, without what does not change the steps that were taken: a run may be made longer."""
    return json.dumps({k: v for k, v in asdict(recipe).items() if k not in {"steps", "about", "generated"}})


def _same_settings(stored: str | None, wanted: str) -> bool:
    """Whether two recipes agree; what a recipe stored by an older version lacks is what that version did, the default."""
    defaults = json.loads(_settings(Recipe("any")))
    return defaults | json.loads(stored or "{}") == json.loads(wanted)


def _log(path: Path, step: int, seconds: float, loss: float, ema: DenoisingUNet, held: list[Tensor]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.writer(f)
        if new:
            writer.writerow(["step", "seconds", "loss", "psnr_25"])
        writer.writerow([step, round(seconds), f"{loss:.5f}", f"{denoising_psnr(ema, held, 25 / 255):.3f}"])


def _sheet(path: Path, ema: DenoisingUNet, held: list[Tensor]) -> None:
    """Rows: held-out images; columns: noisy and denoised at three noise levels."""
    side = min(128, *(s for image in held for s in image.shape[1:]))
    x0 = torch.stack([image[:, :side, :side] for image in held])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    columns = [x0]
    for sigma in (0.1, 0.3, 1.0):
        noisy = x0 + sigma * noise
        with torch.no_grad():
            columns += [noisy, ema(noisy.to(device_of(ema)), sigma).cpu()]
    write_image(path, sheet(torch.stack(columns, 1).flatten(0, 1), columns=len(columns)))
