"""What a restored image is worth: scores of images (piq, deepinv) and of posterior samples.

:data:`METRICS` names every score with its unit, the direction that is better and the code and version that computes it;
:func:`measure` computes them. What is measured:

* Image scores but NMSE see values clamped to [0, 1], as a picture on a screen or in a file is. NMSE and the scores of posterior
  samples see the values as they are.
* Of a complex image (2 channels: real and imaginary part) image scores see the magnitude; the posterior ones see both parts.
* A volume (B, C, D, H, W) is scored slice by slice along D, and the mean over the slices is given.
* 1 channel is gray, 3 are RGB; of any other number each channel counts as a gray image.
* LPIPS and DISTS need weights that are never downloaded here: see :func:`absent`.

Posterior scores expect samples that are independent, or in antithetic pairs as :func:`invdiff.solve` draws them (samples 2j and 2j + 1).
So that neither sort biases them, those of even and those of odd number are each taken as a set of independent draws, and the
mean of both is given: at least 4 samples are needed, and a perfect sampler has the value in the table whatever their number. Few
samples make wide intervals, which forgive much: 4 samples whose spread is 2.4 times too small still cover 77 % instead of 90, 16 cover
54 %. Error / spread tells 2.4 from either.

Heavy libraries are imported when the first score is computed, so that reports need only the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Metric(NamedTuple):
    """``better`` is "higher", "lower", or "target": the nearer to ``target`` the better."""

    title: str
    unit: str  # "" for a pure number
    better: str
    backend: str
    target: float | None = None


_PIQ, _DEEPINV, _OWN = (f"{name} {version(name)}" for name in ("piq", "deepinv", "invdiff"))

METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "dB", "higher", f"{_DEEPINV}: peak 1, at most 80 dB"),
    "ssim": Metric("SSIM", "", "higher", f"{_PIQ}: Gaussian window 11, sigma 1.5, never reduced in size"),
    "ms_ssim": Metric("MS-SSIM", "", "higher", f"{_PIQ}: 5 scales, from 161 pixels a side"),
    "lpips": Metric("LPIPS", "", "lower", f"{_PIQ}: VGG16"),
    "dists": Metric("DISTS", "", "lower", f"{_PIQ}: VGG16"),
    "fsim": Metric("FSIM", "", "higher", f"{_PIQ}: FSIMc for RGB"),
    "gmsd": Metric("GMSD", "", "lower", f"{_PIQ}: of the luma"),
    "haarpsi": Metric("HaarPSI", "", "higher", f"{_PIQ}: 3 scales"),
    "nmse": Metric("NMSE", "", "lower", f"{_DEEPINV}: |x - truth|^2 / |truth|^2"),
    "psnr_sample": Metric("PSNR of a sample", "dB", "higher", f"{_DEEPINV}: as PSNR, mean over samples"),
    "ssim_sample": Metric("SSIM of a sample", "", "higher", f"{_PIQ}: as SSIM, mean over samples"),
    "crps": Metric("CRPS", "", "lower", f"{_OWN}: fair estimate, in the unit of the image"),
    "coverage_50": Metric("Coverage 50 %", "", "target", f"{_OWN}: central interval of Student's t", 0.5),
    "coverage_90": Metric("Coverage 90 %", "", "target", f"{_OWN}: central interval of Student's t", 0.9),
    "spread_skill": Metric("Error / spread", "", "target", f"{_OWN}: corrected for the number of samples", 1.0),
    "chi_square": Metric("Residual chi-square", "", "target", f"{_OWN}: mean of ((y - A x) / sigma)^2", 1.0),
}

# Sides that windows, scales and poolings need; the value for a smaller image is None.
_SMALLEST = {"ssim": 11, "ms_ssim": 161, "lpips": 32, "dists": 32, "fsim": 16, "gmsd": 16, "haarpsi": 16}


def measure(
    x: Tensor,
    truth: Tensor,
    *,
    samples: Tensor | None = None,
    residual: Tensor | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float | None]:
    """Scores of the restored images ``x`` against ``truth``, and of posterior ``samples`` where they are given.

    ``x`` and ``truth`` have shape (B, C, H, W), of volumes (B, C, D, H, W); ``samples`` (K, B, C, ...). A score is the mean over the
    batch. ``residual``, ``(y - A(x)) / sigma`` in any shape, is what chi-square needs: 1 is the value of the truth, a smaller one
    fits the noise, a larger one misses the data. ``names`` chooses among :data:`METRICS`, by default all. The value is None where a
    score does not apply: image too small, weights not on the disk, no samples, fewer than 4 for scores of their spread, no
    spread to compare with, no residual. Raises ``ValueError`` for shapes that do not match, unknown names, and values that are not finite.
    """
    import torch

    wanted = list(METRICS if names is None else names)
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"unknown metrics {unknown}; known: {', '.join(METRICS)}")
    if x.shape != truth.shape or x.ndim not in (4, 5):
        raise ValueError(f"x and truth both have shape (B, C, H, W) or (B, C, D, H, W), got {tuple(x.shape)} and {tuple(truth.shape)}")
    if samples is not None and (samples.shape[1:] != truth.shape or not len(samples)):
        raise ValueError(f"samples have shape (K, {', '.join(map(str, truth.shape))}), got {tuple(samples.shape)}")
    for what, value in {"x": x, "truth": truth, "samples": samples, "residual": residual}.items():
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{what} has values that are not finite; a diverged run has no scores")
    with torch.no_grad():
        images = [_as_images(t.double()) for t in (x, truth)]
        posterior: dict[str, float | None] = {}
        if samples is not None:
            posterior |= _posterior(samples.double(), truth.double())
            posterior |= {f"{name}_sample": _single(name, samples, images[1]) for name in _SINGLE if f"{name}_sample" in wanted}
        if residual is not None:
            posterior["chi_square"] = float(residual.abs().double().square().mean())
        return {name: posterior.get(name) if name in _POSTERIOR else _image(name, *images) for name in wanted}


def absent() -> dict[str, str]:
    """The metrics that cannot be computed here, and why: weights that are not in the cache of ``torch.hub``."""
    from urllib.parse import urlsplit

    import piq
    import torch
    from torchvision.models import VGG16_Weights

    folder, missing = Path(torch.hub.get_dir()) / "checkpoints", {}
    for name, metric in {"lpips": piq.LPIPS, "dists": piq.DISTS}.items():
        urls = [VGG16_Weights.IMAGENET1K_V1.url, metric._weights_url]
        missing[name] = [url for url in urls if not (folder / Path(urlsplit(url).path).name).is_file()]
    needed = ", ".join(dict.fromkeys(url for urls in missing.values() for url in urls))
    return {name: f"weights are not in {folder}; put there: {needed}" for name, urls in missing.items() if urls}


# Image scores


def _as_images(t: Tensor) -> Tensor:
    """(N, 1 or 3, H, W): slices of volumes, magnitude of complex images, single channels of what is no picture."""
    if t.ndim == 5:
        t = t.movedim(2, 1).flatten(0, 1)
    if t.shape[1] == 2:
        return t.square().sum(1, keepdim=True).sqrt()
    return t if t.shape[1] in (1, 3) else t.flatten(0, 1).unsqueeze(1)


def _image(name: str, x: Tensor, truth: Tensor) -> float | None:
    if min(x.shape[-2:]) < _SMALLEST.get(name, 1):
        return None
    if name != "nmse":
        x, truth = x.clamp(0, 1), truth.clamp(0, 1)
    if name in ("lpips", "dists"):
        if name in absent():
            return None
        x, truth = (t.float().expand(-1, 3, -1, -1) for t in (x, truth))
    return float(_scorer(name)(x, truth).mean())


@cache
def _scorer(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    import piq
    from deepinv.loss.metric import NMSE, PSNR

    each: dict[str, Any] = {"reduction": "none"}
    if name == "lpips":
        return piq.LPIPS(**each)
    if name == "dists":
        return piq.DISTS(**each)
    scorers: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "psnr": PSNR(),
        "nmse": NMSE(),
        "ssim": lambda x, y: piq.ssim(x, y, downsample=False, **each),
        "ms_ssim": lambda x, y: piq.multi_scale_ssim(x, y, **each),
        "fsim": lambda x, y: piq.fsim(x, y, chromatic=x.shape[1] == 3, **each),
        "gmsd": lambda x, y: piq.gmsd(x, y, **each),
        "haarpsi": lambda x, y: piq.haarpsi(x, y, **each),
    }
    return scorers[name]


# Posterior scores

def _single(name: str, samples: Tensor, truth: Tensor) -> float | None:
    """The mean of the scores of single samples, which look sharper than their mean and lie farther from the truth."""
    scores = [_image(name, _as_images(s.double()), truth) for s in samples]
    return None if None in scores else sum(scores) / len(scores)  # type: ignore[arg-type]


_SPREAD = ("crps", "coverage_50", "coverage_90", "spread_skill")
_SINGLE = ("psnr", "ssim")
_POSTERIOR = (*_SPREAD, "chi_square", *(f"{name}_sample" for name in _SINGLE))


def _posterior(samples: Tensor, truth: Tensor) -> dict[str, float]:
    if len(samples) < 4:
        return {}
    halves = [_independent(half, truth) for half in (samples[::2], samples[1::2])]
    means = {name: (halves[0][name] + halves[1][name]) / 2 for name in _SPREAD}
    return {name: value for name, value in means.items() if math.isfinite(value)}  # not so without any spread


def _independent(s: Tensor, truth: Tensor) -> dict[str, float]:
    """Scores of K independent draws ``s`` with mean ``m`` and variance ``v``. All are right on average for exact draws:

    * CRPS: ``E|s - truth| - E|s - s'| / 2`` over different draws (the fair estimate: Ferro 2014, equation 5);
    * an interval is ``m -+ t sqrt(v (1 + 1/K))`` with the quantile ``t`` of Student's distribution, K - 1 degrees of freedom: exact for
      a Gaussian posterior with any K (quantiles of few samples would cover too little);
    * error / spread: root of the ratio of ``(m - truth)^2`` to ``v (1 + 1/K)``, each averaged over an image first (Fortin et al. 2014).
    """
    import torch
    from scipy.stats import t as student

    count = len(s)
    rank = torch.arange(1, count + 1, dtype=s.dtype, device=s.device) * 2 - count - 1
    gaps = torch.tensordot(rank, s.sort(0).values, 1) / (count * (count - 1) / 2)  # mean of |s - s'|
    error, variance = (s.mean(0) - truth).abs(), s.var(0) * (1 + 1 / count)
    error_square, spread_square = (t.square().flatten(1).mean(1) for t in (error, variance.sqrt()))
    scores = {
        "crps": float((s - truth).abs().mean() - gaps.mean() / 2),
        "spread_skill": float((error_square / spread_square).sqrt().mean()),
    }
    for percent in (50, 90):
        half = student.ppf(0.5 + percent / 200, count - 1) * variance.sqrt()
        scores[f"coverage_{percent}"] = float((error <= half).double().mean())
    return scores
