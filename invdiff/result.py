"""What :func:`invdiff.solve` returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.files import write_atomically
from invdiff.solvers.particles import systematic

if TYPE_CHECKING:
    from invdiff.solvers import Strategy


@dataclass(frozen=True, repr=False)
class Result:
    """Posterior samples and what was done to get them.

    ``samples`` has shape (K, B, C, H, W), in antithetic pairs (:class:`invdiff.problem.RowNoise`): every other one,
    ``samples[::2]``, are independent; ``residual`` (B,) is the root-mean-square misfit of ``x`` in units of the noise
    (about 1 when the noise level is right; in the measurement's own unit when the noise is zero); ``nfe`` the network
    evaluations each sample took, counted (two a call with guidance; an image in patches and a volume in slices count as one),
    and ``backward`` the backward passes through the network, likewise (of chunks that took different numbers, the most);
    ``seconds`` the time of the whole call. Of volumes all shapes have one more axis, D before H and W.

    Of particle strategies ``samples`` are the particles: in no pairs, and not equally likely. ``log_weights`` (K, B) says how
    likely (their exponentials add up to 1), ``ess`` (B,) how many equally weighted ones they are worth, ``ancestors`` from how many they descend; mean, std, quantile and
    residual go by it, and ``equal()`` gives samples of equal weight. ``parents`` (steps, K, B) is the genealogy: which particle of the
    level before each came from.
    """

    samples: Tensor
    residual: Tensor
    nfe: int
    seconds: float
    solver: Strategy
    seed: int
    reason: str = ""  # why this solver: what solver="auto" saw in the operator
    log_weights: Tensor | None = None
    ess: Tensor | None = None
    parents: Tensor | None = None
    backward: int = 0

    def __repr__(self) -> str:
        """What was done, in a line, not the numbers."""
        residual = ", ".join(f"{value:.3g}" for value in self.residual.tolist())
        return (
            f"Result(samples of shape {tuple(self.samples.shape)}, residual [{residual}], nfe={self.nfe}, backward={self.backward}, "
            f"seconds={self.seconds:.1f}, solver={self.solver}, seed={self.seed}, reason={self.reason!r})"
        )

    @property
    def mean(self) -> Tensor:
        """Mean of the samples, shape (B, C, H, W): the estimate of smallest mean squared error."""
        return weighted_mean(self.samples, self.log_weights)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the samples, shape (B, C, H, W): the uncertainty of a pixel. NaN for a single sample.

        Samples 2j and 2j + 1 are an antithetic pair (a, b), not independent. Variances add up: that within the pairs, the mean
        of ``((a - b) / 2)^2``, and that between them, the variance of ``(a + b) / 2`` (0 where there is one pair; an odd last
        sample is left out). Of particles of weights w it is ``sum w (x - mean)^2 / (1 - sum w^2)``.
        """
        if len(self.samples) < 2:
            return torch.full_like(self.samples[0], torch.nan)
        if self.log_weights is not None and self.ess is not None:
            squares = weighted_mean((self.samples - self.mean).square(), self.log_weights)
            shrinkage = 1 - 1 / self.ess.to(squares)
            return (squares / shrinkage.view(-1, *[1] * (squares.ndim - 1))).sqrt()
        pairs = self.samples[: len(self.samples) // 2 * 2].unflatten(0, (-1, 2))
        within = ((pairs[:, 0] - pairs[:, 1]) / 2).square().mean(0)
        return (within + pairs.mean(1).var(0)).sqrt() if len(pairs) > 1 else within.sqrt()

    @property
    def ancestors(self) -> Tensor | None:
        """Of particles: from how many different ones of the first level those at the end descend, shape (B,); None without a genealogy.

        Few of them mean that the ensemble has collapsed somewhere on the way, though ``ess``, which looks at the last level, may be high.
        """
        if self.parents is None:
            return None
        line = torch.arange(self.parents.shape[1], device=self.parents.device).view(-1, 1).expand(self.parents.shape[1:])
        for chosen in self.parents.flip(0):
            line = chosen.gather(0, line)
        return torch.tensor([len(column.unique()) for column in line.unbind(1)])

    @property
    def x(self) -> Tensor:
        """The image to show: the mean of the samples (with ``samples=1``, that sample itself)."""
        return self.mean

    def quantile(self, q: float) -> Tensor:
        """Pixelwise quantile of the samples, shape (B, C, H, W), ``q`` in [0, 1].

        Of particles: the least value that, with those under it, has at least the share ``q`` of the weight.
        """
        if self.log_weights is None:
            return self.samples.quantile(q, dim=0)
        ordered, order = self.samples.sort(0)
        shares = _along(self.log_weights.double().exp(), self.samples).expand_as(ordered).gather(0, order).cumsum(0)
        place = (shares < q * shares[-1] * (1 - 1e-12)).sum(0, keepdim=True).clamp(max=len(ordered) - 1)
        return ordered.gather(0, place)[0]

    def equal(self) -> Tensor:
        """Samples of equal weight, shape (K, B, C, H, W): particle ``k`` of an image occurs ``K w_k`` times, rounded up or down."""
        if self.log_weights is None:
            return self.samples
        chosen = [systematic(w, torch.tensor(0.5, device=w.device)) for w in self.log_weights.unbind(1)]
        return torch.stack([self.samples[k, b] for b, k in enumerate(chosen)], 1)

    def save(self, path: str | Path) -> None:
        """Write samples, mean, std and the settings to a NumPy ``.npz`` file, whole or not at all."""
        import numpy as np

        arrays = {k: getattr(self, k).cpu().numpy() for k in ("samples", "mean", "std", "residual")}
        arrays |= {k: v.cpu().numpy() for k in ("log_weights", "ess", "parents") if (v := getattr(self, k)) is not None}
        facts: dict[str, Any] = {"solver": repr(self.solver)}
        facts |= {k: getattr(self, k) for k in ("reason", "seed", "nfe", "backward", "seconds")}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as f:  # given a name, NumPy would add .npz to it
                np.savez_compressed(f, settings=json.dumps(facts), **arrays)

        write_atomically(Path(path), write)

    def plot(self, image: int = 0) -> Any:
        """A matplotlib figure of one image: estimate, uncertainty, and up to four samples; of a volume its middle slice.

        Of particles those of the largest weights.
        """
        from matplotlib.figure import Figure

        def middle(t: Tensor) -> Tensor:
            return t[:, t.shape[1] // 2] if t.ndim == 4 else t

        def show(t: Tensor) -> Any:
            t = middle(t).detach().float().cpu()
            if len(t) == 2:  # complex: magnitude
                t = t.square().sum(0, keepdim=True).sqrt()
            return t.permute(1, 2, 0).clamp(0, 1).squeeze(-1).numpy()

        panels = [("estimate", show(self.x[image])), ("standard deviation", middle(self.std[image]).mean(0).cpu().numpy())]
        places = torch.arange(len(self.samples)) if self.log_weights is None else self.log_weights[:, image].argsort(descending=True)
        panels += [(f"sample {k}", show(self.samples[k, image])) for k in places[:4].tolist()]
        figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for axis, (title, picture) in zip(axes, panels):
            axis.imshow(picture, cmap="magma" if title == "standard deviation" else "gray")
            axis.set_title(title)
            axis.axis("off")
        return figure


def weighted_mean(samples: Tensor, log_weights: Tensor | None) -> Tensor:
    """Mean along the first axis of (K, B, C, H, W), with weights (K, B) where there are any."""
    return samples.mean(0) if log_weights is None else (_along(log_weights.softmax(0), samples) * samples).sum(0)


def _along(weights: Tensor, samples: Tensor) -> Tensor:
    return weights.view(*weights.shape, *[1] * (samples.ndim - 2))


def citation(of: Result | Strategy | str) -> str:
    """BibTeX of the strategy of a result, of a strategy, or of the strategy of that name."""
    from invdiff.solvers import get

    return get(of.solver if isinstance(of, Result) else of).reference
