"""Where a training run stands, in a file that is replaced as a whole."""

from __future__ import annotations

import json
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
