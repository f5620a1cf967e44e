"""Conditions: a class label, a prompt or an embedding that tells a prior which images are meant.

A *condition* is given in one of these forms, one for all images of a batch of B or one an image:

=================  =======================  ==================================================
                   one for all              one an image
=================  =======================  ==================================================
class label        ``3``                    ``[3, 0, 7]``, or a tensor (B,)
prompt             ``"a cat"``              ``["a cat", "a dog", "a house"]``
embedding          a tensor (1, ...)        a tensor (B, ...)
=================  =======================  ==================================================

A prior that takes one has an argument of that name, ``prior(x, sigma, condition=...)``, and always gets one entry an
image: a tensor (B, ...) or a list of length B. Labels become a tensor of integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from invdiff.priors.wrap import DEFAULTS, Outer, Prior, as_prior

Condition = Any  # int, str, tensor, or a list of one of them
Rows = Tensor | list[Any]  # one entry an image
Level = float | Tensor


def per_image(condition: Condition, batch: int) -> Rows:
    """The condition of each of ``batch`` images: a tensor (batch, ...) or a list. ``ValueError`` if it is of another number."""
    if isinstance(condition, (Integral, str)):
        condition = [condition]
    if isinstance(condition, np.ndarray):
        condition = torch.as_tensor(condition)
    if isinstance(condition, (list, tuple)) and condition and all(isinstance(c, Integral) for c in condition):
        condition = torch.tensor([int(c) for c in condition])
    listed = isinstance(condition, (list, tuple)) or (isinstance(condition, Tensor) and condition.ndim > 0)
    if not listed or len(condition) not in (1, batch):
        what = f"a tensor of shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else repr(condition)
        raise ValueError(
            f"a condition for {batch} images is a label, a prompt, a list of {batch} of them, or a tensor of shape (1, ...) "
            f"or ({batch}, ...); got {what}"
        )
    return select(condition, range(batch) if len(condition) == batch else [0] * batch)


def select(condition: Rows, rows: Sequence[int]) -> Rows:
    """The entries of these rows, in this order."""
    return condition[list(rows)] if isinstance(condition, Tensor) else [condition[i] for i in rows]


def told(prior: Any, condition: Condition, batch: int, device: torch.device) -> Rows | None:
    """What ``prior`` is told of each of ``batch`` images, on ``device``. ``TypeError`` if it takes no condition and there is one."""
    if condition is None:
        return None
    rows = per_image(condition, batch)
    if not takes_condition(prior):
        raise TypeError(
            "this prior takes no condition: it is not called as prior(x, sigma, condition=...); leave condition= out"
        )
    return rows.to(device) if isinstance(rows, Tensor) else rows


def takes_condition(prior: Callable[..., Tensor]) -> bool:
    """Whether a prior has an argument ``condition``; one that only hands on what it is given (``**kwargs``) has not."""
    if isinstance(prior, Prior):
        return takes_condition(prior.denoiser)
    return "condition" in inspect.signature(prior.forward if isinstance(prior, nn.Module) else prior).parameters


class Told(Outer, Denoiser):
    """A prior that takes a condition, made of one whose network takes the same as keywords of its own: see :meth:`tell`."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior
        for name in ("channels", *DEFAULTS):
            setattr(self, name, getattr(prior, name))

    def tell(self, condition: Rows | None, x: Tensor) -> dict[str, Tensor]:
        """What the network is given for the images ``x``: tensors (B, ...) by keyword."""
        raise NotImplementedError

    def forward(self, x: Tensor, sigma: Level, condition: Rows | None = None, **kwargs: Any) -> Tensor:
        return self.prior(x, sigma, **{**self.tell(condition, x), **kwargs})


class Labelled(Told):
    """A class-conditional prior: ``condition`` holds labels (B,) from 0 to ``classes - 1``; ``label`` stands in for none.

    The network is given them as ``class_labels``, (B,) or, ``one_hot``, (B, classes). ``ValueError`` for other labels, and for a
    call without one.
    """

    def __init__(self, prior: Any, classes: int, label: int | None = None, one_hot: bool = False) -> None:
        super().__init__(prior)
        self.classes, self.label, self.one_hot = classes, label, one_hot

    def tell(self, condition: Rows | None, x: Tensor) -> dict[str, Tensor]:
        labels = self.label if condition is None else condition
        rows: Rows = torch.tensor([-1]) if labels is None else per_image(labels, len(x))
        whole = isinstance(rows, Tensor) and rows.dtype in (torch.int32, torch.int64) and rows.ndim == 1
        if not isinstance(rows, Tensor) or not whole or not bool(((rows >= 0) & (rows < self.classes)).all()):
            raise ValueError(
                f"this prior is told a class, condition=0 to {self.classes - 1}, one for all or one an image, or label= when "
                f"it is loaded; got {labels}"
            )
        rows = rows.to(x.device, torch.int64)
        return {"class_labels": nn.functional.one_hot(rows, self.classes) if self.one_hot else rows}


class ClassifierFree(Prior):
    """Classifier-free guidance: ``D = D_u + weight (D_c - D_u)``, of a prior with (c) and without (u) its condition.

    ``weight`` 0 ignores the condition, 1 is the conditional prior, and more makes images more typical of it than the
    data are: what is sampled is then no longer a posterior, and its spread is too small. It is a number, or
    a function of the noise level (a float, or a tensor (B,)), such as one that guides at some levels only, or
    :func:`cfg_plus_plus`. ``null`` is the condition that stands for none, such as a negative prompt or the label of "no
    class"; ``None`` calls the prior without one. A latent prior is guided where its latents are:
    ``latent.denoiser = ClassifierFree(latent.denoiser, weight)``. Two evaluations a call, and counted as two.

    ``TypeError`` for a prior that takes no condition; ``ValueError`` when called without one.

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, whose w is ``weight - 1``.
    """

    def __init__(self, prior: Any, weight: float | Callable[[Level], Level], null: Condition = None) -> None:
        super().__init__(as_prior(prior))
        if not takes_condition(self.denoiser):
            raise TypeError(
                f"guidance needs a prior called as prior(x, sigma, condition=...), got {_name(prior)}; of a LatentPrior, give "
                "its .denoiser"
            )
        self.weight, self.null = weight, null
        self.evaluations *= 2

    def forward(self, x: Tensor, sigma: Level, condition: Rows | None = None, **kwargs: Any) -> Tensor:
        if condition is None:
            raise ValueError("guidance needs something to guide to: give solve, or this prior, a condition=")
        null = {} if self.null is None else {"condition": per_image(self.null, len(x))}
        free = self.denoiser(x, sigma, **null, **kwargs)
        bound = self.denoiser(x, sigma, condition=condition, **kwargs)
        weight = self.weight(sigma) if callable(self.weight) else self.weight
        weight = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
        return free + weight.view(-1, *[1] * (x.ndim - 1)) * (bound - free)


def cfg_plus_plus(strength: float, levels: Sequence[float]) -> Callable[[Level], Tensor]:
    """The weight of :class:`ClassifierFree` that makes it CFG++ on a ladder of noise levels (descending, the last is 0).

    CFG++ moves from level ``s`` to ``t`` with the noise of the unconditional estimate,

        x' = D_u + strength (D_c - D_u) + t (x - D_u) / s

    which is the step of ``DDIM(eta=0)`` and of ``Euler`` with the ordinary guidance of ``weight = strength / (1 - t / s)``:
    the nearer the levels, the stronger. So its effect depends on the number of steps, and has no limit for many.
    ``strength`` is in [0, 1]. ``levels`` are those the strategy visits, ``samplers.ladder(steps, sigma_max, sigma_min)``
    with these three set in the strategy too. ``ValueError`` at any other level.

    Source: Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", algorithm 2.
    """
    if not 0 <= strength <= 1 or not all(a > b >= 0 for a, b in pairwise(levels)):
        raise ValueError(f"CFG++ takes a strength in [0, 1] and descending levels, got {strength} and {list(levels)}")
    here, following = (torch.tensor(part, dtype=torch.float64) for part in (levels[:-1], levels[1:]))
    weights = strength / (1 - following / here)

    def weight(sigma: Level) -> Tensor:
        asked = torch.as_tensor(sigma, dtype=torch.float64).cpu().reshape(-1)
        distance, place = (asked[:, None] / here - 1).abs().min(1)
        if float(distance.max()) > 1e-5:
            raise ValueError(
                f"CFG++ knows its weight at the levels of its ladder only, and {float(asked[distance.argmax()]):.6g} is none; "
                "give the strategy the steps, sigma_max and sigma_min of that ladder"
            )
        return weights[place]

    return weight


def _name(prior: Any) -> str:
    return getattr(prior, "__name__", type(prior).__name__)
