"""Posteriors under a prior that is a network: ``python -m invdiff.bench.truth_digits`` makes ``truth_digits.npz``, half an hour.

No form of them is known, but where little is measured many draws of the prior tell them: each is given the weight ``p(y | x)``. That is exact
for the law from which the prior's own sampler draws, up to the number of draws: 9216, of 64 steps each, are worth 665 and 3372 equally likely
images of the two posteriors. The mean of either half of them is 0.03 and 0.01 posterior standard deviations (root mean square over pixels) from
that of all, and that of 2304 others, of 32 steps, 0.06 and 0.04. The mean of the prior itself is 0.28 and 0.09 from it: little is measured,
since else no draw would fit. Halves of the 512 images that stand for a posterior are off by 0.04.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import priors
from invdiff.bench.case import Case
from invdiff.bench.components import build
from invdiff.bench.images import IMAGES
from invdiff.bench.suite import read
from invdiff.bench.tasks import measure, operator
from invdiff.bench.truth import Reference, directions
from invdiff.files import write_atomically
from invdiff.seeds import seeded
from invdiff.solvers.particles import effective_size

FILE, TASK = Path(__file__).with_suffix(".npz"), "digits"
SEEDS, DRAWS, STEPS = (
    tuple(1000 + 10 * i + j for i in range(8) for j in range(3)),
    384,
    64,
)  # of the draws of the prior, as many of each seed
KEPT = 512  # equally likely images of each posterior
NARROWEST = 0.02  # posterior standard deviation of a pixel, as far as files of 8 bits and few images tell


class Stored:
    """The posteriors in ``FILE``, found by their measurement."""

    @cached_property
    def data(self) -> dict[str, Tensor]:
        """``y`` (n, m); ``images`` (d, N); ``counts`` (n, d), how often each image occurs in each posterior."""
        with np.load(FILE) as file:
            return {name: torch.from_numpy(file[name]).double() for name in ("y", "images", "counts")}

    def __call__(self, case: Case) -> Reference:
        distances = (self.data["y"] - case.y.cpu().double().flatten()).norm(dim=1)
        if distances.min() > 1e-3:
            raise ValueError(f"{FILE.name} has no posterior of this measurement; run python -m invdiff.bench.truth_digits")
        counts = self.data["counts"][distances.argmin()].long()
        x = (self.data["images"] / 255).repeat_interleave(counts, 0)

        def sample(n: int, seed: int) -> Tensor:
            return x[torch.randint(len(x), (n,), generator=seeded(seed))]

        seen, unseen = (None if v is None else (v, float((x @ v).var(0).mean())) for v in directions(case))
        return Reference(sample, x.mean(0), x.std(0).clamp(min=NARROWEST), seen, unseen, atoms=True)


def cases() -> list[tuple[Tensor, Any, Any]]:
    """Measurement, operator and noise of each image of the task."""
    suite, found = read("truth"), []
    for name in suite.tasks[TASK].images:
        x = build(suite.images[name].source, IMAGES)
        A, law = operator(suite.tasks[TASK].operator, suite.tasks[TASK].noise, tuple(x.shape[1:]))
        found.append((measure(A, law, x, suite.tasks[TASK].seed + suite.images[name].seed), A, law))
    return found


def make(path: Path = FILE) -> None:
    prior = priors.load("mnist")
    x = torch.cat([priors.sample(prior, (DRAWS, 1, 28, 28), seed=seed, steps=STEPS) for seed in SEEDS])
    x = x.clamp(0, 1).mul(255).round()
    counts, ys = [], []
    for y, A, law in cases():
        log_weights = law.log_likelihood(y, A.A(x / 255))
        print(
            f"{len(x)} draws are worth {float(effective_size(log_weights)):.0f} of this posterior; {_halves(x / 255, log_weights)}"
        )
        places = (torch.arange(KEPT, dtype=torch.float64) + 0.5) / KEPT
        chosen = torch.searchsorted(log_weights.double().softmax(0).cumsum(0), places)
        counts.append(torch.bincount(chosen, minlength=len(x)))
        ys.append(y.flatten())
    table = torch.stack(counts)
    used = table.sum(0) > 0
    arrays = {"y": torch.stack(ys).numpy(), "images": x[used].flatten(1).byte().numpy(), "counts": table[:, used].to(torch.int16).numpy()}
    write_atomically(path, lambda temporary: save(temporary, arrays))


def _halves(x: Tensor, log_weights: Tensor) -> str:
    """How far the means of the two halves of the draws are from that of all."""
    w, flat = log_weights.double().softmax(0), x.flatten(1).double()
    mean = w @ flat
    std = (w @ (flat - mean).square()).sqrt().clamp(min=NARROWEST)
    middle = len(x) // 2
    parts = [w[half] @ flat[half] / w[half].sum() for half in (slice(middle), slice(middle, None))]
    return "the means of its halves are off by " + ", ".join(
        f"{float(((part - mean) / std).square().mean().sqrt()):.3f}" for part in parts
    )


def save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add .npz to it
        np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    make()
