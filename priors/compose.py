"""Several priors as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from invdiff.priors.wrap import Outer, as_prior


class Product(Outer, Denoiser):
    """Images that several priors agree on, by the sum of their scores: ``D = x + sum_i w_i (D_i - x)``.

    At every level this is the denoiser of ``prod_i p_i(x; sigma)^w_i``, the product of the *diffused* densities, where that
    of ``prod_i p_i(x)^w_i``, diffused, would be right. The two agree

    * at all levels, where the priors are Gaussians of one covariance and the weights sum to 1, and, with weights of 1, where the
      priors shape different directions (of two, each leaves alone what the other denoises);
    * in general as sigma goes to 0 only: for Gaussians the difference of the denoisers falls as ``sigma^4``.

    So a solver draws from something near the product. With weights that sum to more than 1 its spread is too small and,
    at few steps, the reverse process can overshoot; weights that sum to 1, none negative, are safe (a weighted geometric mean of
    densities). One evaluation of each prior a call. A composed prior takes no condition; fix those of its parts:
    ``lambda x, sigma: prior(x, sigma, condition=c)``.

    Args:
        priors: two or more, of images of one shape.
        weights: one number each; negative ones steer away from a prior.

    The sum of several densities, a mixture, needs their values at every level, which networks do not have: for exact
    priors there is :class:`~invdiff.priors.GaussianMixture`.

    ``mean`` and ``std`` are those of the product of white Gaussians with the mean and spread of each; ``ValueError`` if it
    has none, since the weights sum to too little.

    Source: Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models"; Du et al. 2023, "Reduce,
    Reuse, Recycle", section 3 (why it is not exact).
    """

    def __init__(self, priors: Sequence[Any], weights: Sequence[float]) -> None:
        super().__init__()
        if len(priors) < 2 or len(weights) != len(priors):
            raise ValueError(
                f"a product is of two or more priors, each with a weight; got {len(priors)} and {len(weights)}"
            )
        parts: list[Any] = [as_prior(prior) for prior in priors]
        self.parts = nn.ModuleList(parts)
        self.weights = tuple(float(w) for w in weights)
        if not all(math.isfinite(w) for w in self.weights):
            raise ValueError(f"weights are finite numbers, got {self.weights}")
        precisions = [w / part.std**2 for w, part in zip(self.weights, parts)]
        if not sum(precisions) > 0:
            raise ValueError(f"weights {self.weights} leave no density: the sum of weight / std^2 has to be positive")
        self.mean = sum(a * torch.as_tensor(part.mean) for a, part in zip(precisions, parts)) / sum(precisions)
        self.std = sum(precisions) ** -0.5
        self.sigma_min = max(part.sigma_min for part in parts)
        self.sigma_max = min(part.sigma_max for part in parts)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"the priors share no range of noise levels: from {self.sigma_min} to {self.sigma_max}")
        self.evaluations = sum(getattr(part, "evaluations", 1) for part in parts)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        return x + sum(w * (part(x, sigma, **kwargs) - x) for w, part in zip(self.weights, self.parts))
