"""Phantoms: one object at every size, the share of a pixel inside an outline, and Shepp and Logan's picture."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.data import shepp_logan_phantom
from torch.nn import functional as F

from invdiff.phantoms import draw, phantom, random_ellipses, shepp_logan

DISK = torch.tensor([[0.7, 0.5, 0.3, 0.1, -0.2, 0.4]])


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_is_one_object_at_every_size(seed: int) -> None:
    large, small = phantom(256, seed), phantom(64, seed)
    assert large.shape == (1, 256, 256) and small.shape == (1, 64, 64)
    assert 0 <= float(small.min()) and float(small.max()) <= 1 and float(small.std()) > 0.02
    assert float((F.avg_pool2d(large, 4) - small).square().mean().sqrt()) < 0.01
    assert torch.equal(small, phantom(64, seed)) and not torch.equal(small, phantom(64, seed + 1))


@pytest.mark.parametrize("size", [64, 101])
def test_outlines_are_antialiased(size: int) -> None:
    """The drawn mass is the area of the ellipse, the pixels along its outline neither in nor out."""
    image = draw(DISK, size)
    assert float(image.sum()) * (2 / size) ** 2 == pytest.approx(0.7 * math.pi * 0.5 * 0.3, rel=2e-3)
    between = ((image > 0.01) & (image < 0.69)).sum()
    assert 0.5 * size < int(between) < 3 * size
    row, column = int((1 + 0.2) / 2 * size), int((1 + 0.1) / 2 * size)
    assert float(image[0, row, column]) == pytest.approx(0.7)


def test_a_window_is_a_part_of_the_picture() -> None:
    ellipses = random_ellipses(torch.Generator().manual_seed(3))
    assert torch.equal(draw(ellipses, 96, 10, 30, 40), draw(ellipses, 96)[:, 10:50, 30:70])


def test_shepp_logan_is_the_one_everybody_has() -> None:
    known = torch.from_numpy(shepp_logan_phantom()).float()
    assert float((shepp_logan(400)[0] - known).abs().mean()) < 0.01


def test_wrong_tables_and_windows() -> None:
    with pytest.raises(ValueError, match=r"shape \(n, 6\); got \(6,\)"):
        draw(DISK[0], 64)
    for window in ((-1, 0, 8), (60, 0, 8), (0, 0, 65), (0, 0, 0)):
        with pytest.raises(ValueError, match="does not lie in a picture of 64x64"):
            draw(DISK, 64, *window)


def test_the_centre_of_an_ellipse_is_inside() -> None:
    assert float(shepp_logan(65)[0, 32, 32]) == pytest.approx(0.2, abs=1e-6)
