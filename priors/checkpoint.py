"""Where a training run stands, in a file that is replaced as a whole."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff.priors.recipe import Recipe
from invdiff.priors.weights_io import save_tensors


class Checkpoint:
    """Weights, average and Adam moments in one safetensors file, written beside and then renamed."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        begun: str,
        net: nn.Module,
        ema: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.path, self.begun, self.net, self.ema, self.optimiser = path, begun, net, ema, optimiser
        self.recipe = _settings(recipe)

    def _learned(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]

    def save(self, step: int, seconds: float) -> None:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, p in self._learned():
            tensors |= {f"{k}.{name}": v for k, v in self.optimiser.state[p].items() if isinstance(v, Tensor)}
        notes = {"step": str(step), "seconds": str(seconds), "recipe": self.recipe, "begun": self.begun}
        save_tensors(tensors, self.path, notes)

    def load(self) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        from safetensors import SafetensorError, safe_open

        remedy = "delete it to start again, or give another --out folder"
        try:
            with safe_open(self.path, "pt") as f:
                meta, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (f is not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); {remedy}") from error
        try:
            same = _same_settings(meta.get("recipe"), self.recipe)
            step, seconds = int(meta["step"]), float(meta["seconds"])
            if step < 1 or not 0 <= seconds < math.inf:
                raise ValueError(f"step {step} after {seconds} seconds")
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: its header is damaged ({error!r}); {remedy}") from error
        if not same:
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
                found = {k: tensors[f"{k}.{name}"] for k in keys}
                if not found["exp_avg"].shape == found["exp_avg_sq"].shape == p.shape or found["step"].ndim:
                    raise ValueError(f"the optimiser's state of {name} is of another shape")
                self.optimiser.state[p] = {k: v.to(p.device if k != "step" else "cpu") for k, v in found.items()}
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path} does not hold this network; {remedy}") from error
        return step, seconds


def _settings(recipe: Recipe) -> str:
    """The recipe as JSON, without what does not change the steps that were taken: a run may be made longer."""
    return json.dumps({k: v for k, v in asdict(recipe).items() if k not in {"steps", "about", "generated"}})


def _same_settings(stored: str | None, wanted: str) -> bool:
    """Whether two recipes agree; what a recipe stored by an older version lacks is what that version did, the default."""
    defaults = json.loads(_settings(Recipe("any")))
    return defaults | json.loads(stored or "{}") == json.loads(wanted)
