"""Scores of restored images."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from invdiff.demo import scores

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
    """Interim: PSNR and SSIM as ``invdiff demo`` has them."""
    found = dict(zip(METRICS, scores(x, truth)))
    return {name: found[name] for name in names or METRICS}
