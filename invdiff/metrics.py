"""Scores of restored images."""

from __future__ import annotations

from collections.abc import Iterable

from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

# name -> title, unit, which is better, back end
METRICS: dict[str, tuple[str, str, str, str]] = {
    "psnr": ("PSNR", "dB", "higher", "scikit-image"),
    "ssim": ("SSIM", "", "higher", "scikit-image"),
}


def measure(
    x: Tensor,
    truth: Tensor,
    *,
    samples: Tensor | None = None,
    residual: Tensor | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float | None]:
    """Interim: PSNR and SSIM of one image, as ``invdiff demo`` has them."""
    a, b = (t[0].clamp(0, 1).double().numpy() for t in (truth, x))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    found = {
        "psnr": float(peak_signal_noise_ratio(a, b, data_range=1)),
        "ssim": float(structural_similarity(a, b, data_range=1, channel_axis=0, **window)),
    }
    return {name: found[name] for name in names or METRICS}
