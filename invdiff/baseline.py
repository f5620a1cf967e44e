"""Total variation: the classical baseline that a learned prior has to beat.

    x = argmin 1/2 |A x - y|^2 + weight * TV(x)   subject to 0 <= x <= 1

    TV(x) = sum over pixels of sqrt( sum over channels of (d_h x)^2 + (d_w x)^2 )

``TV`` is isotropic and couples the channels (Bresson & Chan 2008, "Fast dual minimization of the vectorial total
variation norm"); ``d`` are forward differences, zero across the border.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

RELAXATION = 1.9  # of the primal-dual iterations: any value below 2 converges, near 2 fastest


def gradient(x: Tensor) -> Tensor:
    """Forward differences of (B, C, H, W), stacked on a new last axis of two; zero across the border."""
    g = x.new_zeros(*x.shape, 2)
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=g[..., :-1, :, 0])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=g[..., :, :-1, 1])
    return g


def gradient_adjoint(p: Tensor) -> Tensor:
    """Adjoint of :func:`gradient` (minus the divergence)."""
    x = torch.zeros_like(p[..., 0])
    down, right = p[..., :-1, :, 0], p[..., :, :-1, 1]
    x[..., 1:, :] += down
    x[..., :-1, :] -= down
    x[..., :, 1:] += right
    x[..., :, :-1] -= right
    return x


def total_variation(x: Tensor) -> Tensor:
    """``TV(x)`` of each image, shape (B,)."""
    return gradient(x).square().sum((1, -1)).sqrt().flatten(1).sum(1)


def tv(
    y: Tensor, A: Any, weight: float | Tensor, *, iterations: int = 150, start: Tensor | None = None, box: bool = True
) -> Tensor:
    """Total-variation regularised least squares (module docstring) for a linear operator ``A``.

    Over-relaxed primal-dual iterations of Chambolle & Pock (2011, "A first-order primal-dual algorithm for convex
    problems with applications to imaging") as in Condat (2013); the data term enters through ``A.prox_l2``,
    so that operators with a closed form cost no inner iterations.

    :param y: measurements, batch first.
    :param weight: of TV, positive: a float, or a tensor (B,) with one weight an image.
    :param iterations: the default brings the PSNR of photographs within 0.02 dB of its limit.
    :param start: image to start from, (B, C, H, W); default ``A.A_dagger(y)`` clipped to [0, 1].
    :param box: keep the image in [0, 1].
    :return: images (B, C, H, W).
    """
    w = torch.as_tensor(weight, dtype=y.real.dtype, device=y.device)
    if not bool((torch.isfinite(w) & (w > 0)).all()):
        raise ValueError(f"the weight of total variation is positive and finite, got {weight}")
    if iterations < 1:
        raise ValueError(f"total variation needs at least one iteration, got {iterations}")
    if not hasattr(A, "prox_l2"):
        raise TypeError(f"total variation needs a linear operator with prox_l2, got {type(A).__name__}")
    x = A.A_dagger(y) if start is None else start
    x = x.clamp(0, 1) if box else x
    w = w.reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
    # Steps with tau * sigma * |K|^2 = 1 for K = (gradient, identity), |K|^2 <= 9; their ratio balances the
    # distance to travel of the image (about 0.1) and of the dual variable (at most the weight).
    tau = 0.1 / (3 * w)
    sigma = 1 / (9 * tau)
    gamma = tau.view(-1) if torch.is_tensor(weight) else float(tau[0])
    new, p, q = x, torch.zeros_like(gradient(x)), torch.zeros_like(x)
    for _ in range(iterations):
        new = A.prox_l2(x - tau * (gradient_adjoint(p) + q), y, gamma)
        ahead = 2 * new - x
        step = p + sigma[..., None] * gradient(ahead)
        norm = step.square().sum((1, -1), keepdim=True).sqrt()
        x = x + RELAXATION * (new - x)
        p = p + RELAXATION * (step / (norm / w[..., None]).clamp(min=1) - p)
        if box:
            q_step = q + sigma * ahead
            q = q + RELAXATION * (q_step - sigma * (q_step / sigma).clamp(0, 1) - q)
    return new.clamp(0, 1) if box else new


class BestTV(NamedTuple):
    """Best of a grid of weights, chosen per image with the truth in hand."""

    x: Tensor  # (B, C, H, W)
    weight: Tensor  # (B,)
    psnr: Tensor  # (B,), dB


def psnr(x: Tensor, truth: Tensor, clip: bool = True) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, peak 1, by default after clipping ``x`` to [0, 1]; shape (B,)."""
    return -10 * ((x.clamp(0, 1) if clip else x) - truth).square().flatten(1).mean(1).log10()


def best_tv(
    y: Tensor, A: Any, truth: Tensor, weights: Iterable[float], *, iterations: int = 150, box: bool = True
) -> BestTV:
    """Total variation at the weight with the highest PSNR against ``truth``: an oracle no one has in practice.

    Each image gets its own best weight: first of the grid ``weights``, then of two refinements of the ratio between
    neighbours down to 2^(1/4), which leaves less than 0.02 dB on the table when the grid's own ratio is 2. ``box=False`` for
    images beyond [0, 1], such as complex ones.
    """
    one = torch.ones(len(truth), dtype=truth.dtype, device=truth.device)
    best = BestTV(torch.zeros_like(truth), one, one * -torch.inf)
    for trial in [one * weight for weight in weights]:
        best = _better(best, y, A, truth, trial, iterations, box)
    for ratio in (2**0.5, 2**0.25):
        centre = best.weight
        for trial in (centre * ratio, centre / ratio):
            best = _better(best, y, A, truth, trial, iterations, box)
    return best


def _better(best: BestTV, y: Tensor, A: Any, truth: Tensor, weight: Tensor, iterations: int, box: bool) -> BestTV:
    x = tv(y, A, weight, iterations=iterations, box=box)
    value = psnr(x, truth, clip=box)
    wins = value > best.psnr
    return BestTV(
        torch.where(wins.view(-1, 1, 1, 1), x, best.x),
        torch.where(wins, weight, best.weight),
        torch.where(wins, value, best.psnr),
    )
