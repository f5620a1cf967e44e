"""How good a prior is: errors of one denoising over the noise levels, and how near its samples come to real images.

A *complex* image has two channels, its values lie around 0, and its estimates are not clipped; all others are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.models import Denoiser
from torch import Tensor
from torch.nn import functional as F

from invdiff.priors.data import Crops
from invdiff.priors.latent import LatentPrior
from invdiff.priors.recipe import Recipe
from invdiff.priors.sampling import device_of, sample
from invdiff.seeds import seeded

PSNR_LEVELS = (5, 15, 25, 50, 100)  # of 255
RMSE_LEVELS = 7  # from sigma_min to sigma_max, evenly spaced in log sigma
LOW = 0.01  # the noise at which an estimate should have no bias
MEASURED = 64  # images denoised at most


@dataclass(frozen=True)
class Quality:
    """Measured on held-out images.

    ``psnr``: noise level (of 255) to :func:`denoising_psnr`. ``rmse``: sigma to the root-mean-square error, unclipped.
    ``spread``: what the latter tends to at high noise, where nothing is better than the mean (:func:`spread`). ``bias``: mean
    error at ``LOW``, root mean square over images, in units of ``LOW``; 0 is right. ``distance``
    and ``distance_real``: :func:`sliced_wasserstein` from real images to samples, and to other real images (:func:`real_images`).

    Of a ``LatentPrior``, ``rmse``, ``spread`` and ``bias`` are of latents, there is no ``psnr``, and ``reconstruction`` is the
    :func:`reconstruction_psnr` of its autoencoder.
    """

    psnr: dict[int, float] | None
    rmse: dict[float, float]
    spread: float
    bias: float
    distance: float | None = None
    distance_real: float | None = None
    reconstruction: float | None = None


def evaluate(
    prior: Denoiser | LatentPrior,
    images: Sequence[Tensor],
    recipe: Recipe | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> Quality:
    """Measure ``prior`` on held-out ``images`` (C, H, W), of which the :func:`measured` ones are denoised.

    ``recipe`` is what it was trained by: of what size the crops were, and how many samples to compare (``generated``); without
    it images count as seen whole, and none are drawn. ``report`` is told what is measured next.
    """
    psnr, reconstruction = None, None
    if isinstance(prior, LatentPrior):
        denoiser, clean = prior.denoiser, encoded(prior, images)
        report("the autoencoder")
        reconstruction = reconstruction_psnr(prior, images)
    else:
        denoiser, clean, psnr = prior, list(images), {}
        for level in PSNR_LEVELS:
            report(f"PSNR at noise {level} of 255")
            psnr[level] = denoising_psnr(prior, measured(images), level / 255)
    some = measured(clean)
    whole = recipe is None or all(max(image.shape[1:]) <= recipe.crop for image in images)
    low, high = math.log(denoiser.sigma_min), math.log(denoiser.sigma_max)
    levels = torch.linspace(low, high, RMSE_LEVELS, dtype=torch.float64).exp().tolist()
    rmse = {}
    for s in levels:
        report(f"error at noise {s:.2g}")
        rmse[float(f"{s:.2g}")] = denoising_rmse(denoiser, some, s)
    report("bias and spread")
    quality = Quality(psnr, rmse, spread(clean, whole), denoising_bias(denoiser, some, LOW), reconstruction=reconstruction)
    real = None if recipe is None else real_images(images, recipe)
    if real is None:
        return quality
    report(f"{len(real[0])} samples beside real images")
    distance, distance_real = distances(prior, *real)
    return replace(quality, distance=distance, distance_real=distance_real)


def distances(prior: Denoiser | LatentPrior, real: Tensor, one: Tensor, other: Tensor) -> tuple[float, float]:
    """From as many samples of ``prior`` to ``real``, and from ``one`` to ``other``: those of :func:`real_images`."""
    drawn = sample(prior, tuple(real.shape))  # type: ignore[arg-type]
    return sliced_wasserstein(drawn, real), sliced_wasserstein(one, other)


def real_images(images: Sequence[Tensor], recipe: Recipe) -> tuple[Tensor, Tensor, Tensor] | None:
    """Real images (n, C, S, S), S = ``recipe.crop``: those that samples are compared with, and two sets to compare with each other.

    Where ``images`` are seen whole: the even-numbered, these again, and the odd-numbered; ``recipe.generated`` of each at most. Where
    they are larger: crops as the recipe learns them, so many of all images, of the first half of them and of the second half,
    since neighbours of a series look alike. None where that leaves no image.
    """
    images = [image for image in images if min(image.shape[1:]) * max(recipe.scales) >= recipe.crop]
    n, half = recipe.generated, len(images) // 2
    if min(n, half) == 0:
        return None
    if all(max(image.shape[1:]) == recipe.crop for image in images):
        even, odd = (torch.stack(images[i : 2 * min(n, half) : 2]) for i in (0, 1))
        return even, even, odd
    sets = (images, images[:half], images[half:])
    a, b, c = (torch.stack([crops.draw(seeded(recipe.seed, i, k)) for i in range(n)]) for k, crops in enumerate(Crops(x, recipe) for x in sets))
    return a, b, c


@torch.no_grad()
def encoded(prior: LatentPrior, images: Sequence[Tensor]) -> list[Tensor]:
    """The latents (c, h, w) of images (C, H, W)."""
    return [prior.encode(x[None].to(device_of(prior)))[0].to(x.device) for x in images]


@torch.no_grad()
def reconstruction_psnr(prior: LatentPrior, images: Sequence[Tensor]) -> float:
    """Mean over images (C, H, W) of the PSNR (dB, peak 1) of ``decode(encode(x))``, clipped to [0, 1] unless complex."""
    return sum(_psnr(prior.project(x[None].to(device_of(prior)))[0].to(x.device), x) for x in images) / len(images)


def measured(images: Sequence[Tensor]) -> Sequence[Tensor]:
    """The images that are denoised: at most 64 of them, evenly spread."""
    return images[:: math.ceil(len(images) / MEASURED)]


def denoising_psnr(prior: Denoiser, images: Sequence[Tensor], sigma: float) -> float:
    """Mean over images (C, H, W) of the PSNR (dB, peak 1) of ``prior(x0 + sigma n, sigma)``, clipped to [0, 1] unless complex.

    Image ``i`` gets noise from seed ``i``.
    """
    return sum(_psnr(_denoised(prior, x0, sigma, i), x0) for i, x0 in enumerate(images)) / len(images)


def _psnr(x: Tensor, truth: Tensor) -> float:
    error = (x if len(truth) == 2 else x.clamp(0, 1)) - truth
    return -10 * math.log10(max(float(error.square().mean()), 1e-12))


def denoising_rmse(prior: Denoiser, images: Sequence[Tensor], sigma: float) -> float:
    """Root of the mean over images of the mean squared error of ``prior(x0 + sigma n, sigma)``; noise as for the PSNR."""
    errors = [float((_denoised(prior, x0, sigma, i) - x0).square().mean()) for i, x0 in enumerate(images)]
    return math.sqrt(sum(errors) / len(errors))


def denoising_bias(prior: Denoiser, images: Sequence[Tensor], sigma: float) -> float:
    """Mean over pixels of ``prior(x0 + sigma n, sigma) - x0 - (mean of sigma n)``, root mean square over images, in units of sigma.

    The mean of the noise that was drawn is taken out: what is too bright for the whole of an image, no denoiser can know.
    """
    means = []
    for i, x0 in enumerate(images):
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        means.append(float((_denoised(prior, x0, sigma, i) - x0 - sigma * noise.mean()).mean()) / sigma)
    return math.sqrt(sum(m * m for m in means) / len(means))


def spread(images: Sequence[Tensor], whole: bool = True) -> float:
    """Root-mean-square distance of a pixel from its mean: over ``whole`` images of one size; else from the mean of all pixels."""
    if whole and len(images) > 1 and len({im.shape for im in images}) == 1:
        return float(torch.stack(list(images)).var(0).mean().sqrt())
    return float(torch.cat([im.flatten() for im in images]).std())


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Distance between two sets of as many images (n, C, H, W), in the unit of the image; 0 for equal sets.

    On images at full, half and quarter size the patches of 7x7 pixels, every 4th, are projected on 128 random directions
    from seed 0; the distance is the root mean square over sizes and directions of the 2-Wasserstein distance of the
    projections, which sorting gives. A direction ``d`` has ``|d|^2 = 1 / 49 C``, so that an offset of all pixels by ``c``
    in one set changes the projections by ``c`` at most. Images have sides of 28 pixels or more. After Karras et al.
    2018, "Progressive Growing of GANs", section 5 (there on a Laplacian pyramid).
    """
    if a.shape != b.shape or min(a.shape[2:]) < 28:
        raise ValueError(
            f"two sets of as many images, of one shape and 28 pixels or more, are compared: {a.shape}, {b.shape}"
        )
    directions = torch.randn(49 * a.shape[1], 128, generator=torch.Generator().manual_seed(0))
    directions /= directions.square().sum(0, keepdim=True).sqrt() * math.sqrt(len(directions))
    squares = []
    for scale in (1, 2, 4):
        p, q = (
            (F.unfold(F.avg_pool2d(x, scale), 7, stride=4).transpose(1, 2).flatten(0, 1) @ directions).sort(0)[0]
            for x in (a, b)
        )
        squares.append((p - q).square().mean())
    return float(torch.stack(squares).mean().sqrt())


def _denoised(prior: Denoiser, x0: Tensor, sigma: float, seed: int) -> Tensor:
    """``prior(x0 + sigma n, sigma)`` of one image (C, H, W), on the prior's device and back."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return prior((x0 + sigma * noise)[None].to(device_of(prior)), sigma)[0].to(x0.device)
