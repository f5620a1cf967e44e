"""Operators of deepinv itself, each with every strategy that takes it, and a plain function as the prior."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff import operators, solve, solvers
from invdiff.priors import as_prior

SIDE = 16
GREY, COLOUR, COMPLEX = (1, SIDE, SIDE), (3, SIDE, SIDE), (2, SIDE, SIDE)
KERNEL = operators.gaussian_kernel(0.8)[None, None]


def noise() -> dinv.GaussianNoise:
    return dinv.GaussianNoise(0.1)


def half_mask(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()


# name: (operator, shape of its images, whether it has a singular value decomposition)
PHYSICS: dict[str, tuple[Callable[[], dinv.Physics], tuple[int, ...], bool]] = {
    "denoising": (lambda: dinv.Denoising(noise()), COLOUR, True),
    "inpainting": (lambda: dinv.Inpainting(COLOUR, mask=half_mask(1, SIDE, SIDE), noise_model=noise()), COLOUR, True),
    "inpainting-masks": (
        lambda: dinv.Inpainting(GREY, mask=half_mask(2, 1, SIDE, SIDE), noise_model=noise()),
        GREY,
        True,
    ),
    "blur-fft": (lambda: dinv.BlurFFT(GREY, filter=KERNEL, noise_model=noise()), GREY, True),
    "blur-valid": (lambda: dinv.Blur(KERNEL, padding="valid", noise_model=noise()), GREY, False),
    "downsampling": (
        lambda: dinv.Downsampling(COLOUR, filter="gaussian", factor=2, noise_model=noise()),
        COLOUR,
        False,
    ),
    "decolorize": (lambda: dinv.Decolorize(noise_model=noise()), COLOUR, True),
    "compressed-sensing": (lambda: dinv.CompressedSensing(64, GREY, noise_model=noise()), GREY, False),
    "tomography": (lambda: dinv.Tomography(angles=8, img_width=SIDE, normalize=True, noise_model=noise()), GREY, False),
    "mri": (
        lambda: dinv.MRI(mask=half_mask(1, 2, 1, SIDE).expand(1, 2, SIDE, SIDE), img_size=COMPLEX, noise_model=noise()),
        COMPLEX,
        True,
    ),
}


def shrink(x: Tensor, sigma: float) -> Tensor:
    """The best estimate of independent pixels of mean 1/2 and standard deviation 1/4."""
    return 0.5 + (x - 0.5) / (1 + 16 * sigma**2)


@pytest.mark.parametrize("strategy", ["auto", *solvers.names()])
@pytest.mark.parametrize("name", PHYSICS)
def test_every_strategy_takes_operators_of_deepinv(name: str, strategy: str) -> None:
    make, shape, decomposed = PHYSICS[name]
    torch.manual_seed(0)
    A = make()
    y = A(torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)))
    if strategy in ("ddrm", "ddnm+", "mcgdiff", "fps") and not decomposed:
        with pytest.raises(ValueError, match="singular value decomposition"):
            solve(y, A, shrink, strategy, steps=4, samples=2)
        return
    result = solve(y, A, shrink, strategy, steps=4, samples=2)
    assert result.samples.shape == (2, 2, *shape)
    assert bool(torch.isfinite(result.samples).all())
    if strategy == "fk":
        return  # two particles leave nothing to select from
    # The estimate has to explain y better than the prior's mean does.
    before = (A.A(torch.full((2, *shape), 0.5)) - y).norm()
    assert float((A.A(result.x) - y).norm()) < float(before)


def test_numbers_given_replace_those_of_the_denoiser() -> None:
    prior = as_prior(shrink, mean=0.1, std=0.3, sigma_min=0.01, sigma_max=5.0)
    assert (prior.mean, prior.std, prior.sigma_min, prior.sigma_max) == (0.1, 0.3, 0.01, 5.0)
    again = as_prior(prior, sigma_max=2.0)
    assert again is not prior and (again.mean, again.sigma_min, again.sigma_max) == (0.1, 0.01, 2.0)
    x = torch.rand(1, 1, 4, 4)
    assert torch.equal(again(x, 0.3), shrink(x, 0.3))
    for wrong in ({"std": 0.0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}, {"sigma_min": float("nan")}):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            as_prior(shrink, **wrong)
