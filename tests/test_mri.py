"""MRI: the Fourier transform by its definition, coils, and what the mask makers promise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import deepinv
import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    MRI,
    MultiCoilMRI,
    equispaced_mask,
    poisson_disc_mask,
    radial_mask,
    random_lines_mask,
)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def normalised_maps(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    maps = random(*shape, dtype=dtype)
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def dft(n: int) -> Tensor:
    """Centred orthonormal transform: frequencies and pixels counted from number ``n // 2``."""
    at = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-2j * math.pi * at[:, None] * at / n) / math.sqrt(n)


@pytest.mark.parametrize("h, w", [(8, 8), (9, 6), (7, 5)])
def test_fourier_transform_by_definition(h: int, w: int) -> None:
    x = random(2, 2, h, w)
    y = MRI(torch.ones(h, w)).A(x)
    truth = dft(h) @ torch.complex(x[:, 0], x[:, 1]) @ dft(w).T
    assert torch.allclose(torch.complex(y[:, 0], y[:, 1]), truth, atol=1e-12)


@pytest.mark.parametrize("h, w", [(16, 16), (17, 12)])
def test_same_as_deepinv(h: int, w: int) -> None:
    mask, maps, x = random_lines_mask((h, w), 2), normalised_maps(1, 3, h, w, dtype=torch.complex64), random(2, 2, h, w)
    x = x.float()
    for ours, theirs in (
        (MRI(mask), deepinv.physics.MRI(mask=mask, img_size=(h, w))),
        (MultiCoilMRI(mask, maps), deepinv.physics.MultiCoilMRI(mask=mask, coil_maps=maps, img_size=(h, w))),
    ):
        y = ours.A(x)
        assert torch.allclose(y, theirs.A(x), atol=1e-6)
        assert torch.allclose(ours.A_adjoint(y), theirs.A_adjoint(y), atol=1e-6)


def test_single_coil_pseudo_inverse_fills_with_zeros() -> None:
    A = MRI(radial_mask((16, 16), 5))
    y = A.A(random(1, 2, 16, 16))
    assert torch.allclose(A.A(A.A_dagger(y)), y, atol=1e-12)
    assert torch.allclose(A.A_dagger(y), A.A_adjoint(y), atol=1e-12)


def test_normalised_maps_and_full_mask_make_an_isometry() -> None:
    A, x = MultiCoilMRI(torch.ones(12, 9), normalised_maps(4, 12, 9)), random(2, 2, 12, 9)
    assert torch.allclose(A.A_adjoint(A.A(x)), x, atol=1e-12)
    assert A.A(x).shape == (2, 2, 4, 12, 9)


def test_coils_recover_what_one_coil_cannot() -> None:
    mask, x = equispaced_mask((16, 16), 2), random(1, 2, 16, 16)
    A = MultiCoilMRI(mask, normalised_maps(6, 16, 16))
    assert float((A.A_dagger(A.A(x)) - x).norm() / x.norm()) < 1e-4
    assert float((MRI(mask).A_dagger(MRI(mask).A(x)) - x).norm() / x.norm()) > 0.5


def test_maps_and_mask_of_each_image() -> None:
    masks = torch.stack([random_lines_mask((12, 10), 2, seed=s)[None] for s in range(3)])
    maps, x = normalised_maps(3, 4, 12, 10), random(3, 2, 12, 10)
    y = MultiCoilMRI(masks, maps).A(x)
    for i in range(3):
        assert torch.equal(y[i : i + 1], MultiCoilMRI(masks[i, 0], maps[i]).A(x[i : i + 1]))


def test_changing_precision_keeps_complex_maps() -> None:
    maps = normalised_maps(4, 8, 8, dtype=torch.complex64)
    A = MultiCoilMRI(torch.ones(8, 8), maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = A.to(torch.float64)
    assert A.coil_maps.dtype == torch.complex128 and torch.equal(A.coil_maps[0], maps.to(torch.complex128))
    assert A.float().coil_maps.dtype == torch.complex64


@pytest.mark.parametrize("coils", [0, 4])
def test_noise_is_per_part_and_only_where_sampled(coils: int) -> None:
    mask = random_lines_mask((64, 64), 2)
    A = MultiCoilMRI(mask, normalised_maps(coils, 64, 64), 0.3) if coils else MRI(mask, 0.3)
    x = torch.zeros(2, 2, 64, 64)
    for y in (A.measure(x, seed=1), A(x)):
        assert not bool(y[..., mask == 0].any())
        for part in (y[:, 0], y[:, 1]):
            assert float(part[..., mask == 1].std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ((torch.ones(8),), "mask"),
        ((torch.ones(2, 3, 8, 8),), "mask"),
        ((torch.full((8, 8), 0.5),), "0 .* and 1"),
        ((torch.zeros(8, 8),), "at least one"),
        ((torch.ones(8, 8), torch.ones(4, 8, 8)), "complex"),
        ((torch.ones(8, 8), torch.ones(4, 8, 9) + 0j), "size of the mask"),
        ((torch.ones(8, 8), torch.full((4, 8, 8), math.nan) + 0j), "finite"),
    ],
)
def test_wrong_masks_and_maps(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        (MRI if len(arguments) == 1 else MultiCoilMRI)(*arguments)


def test_wrong_images() -> None:
    A = MultiCoilMRI(torch.ones(2, 1, 8, 8), normalised_maps(4, 8, 8))
    for image in (torch.rand(2, 1, 8, 8), torch.rand(2, 2, 8, 9), torch.rand(3, 2, 8, 8)):
        with pytest.raises(ValueError, match="image"):
            A.A(image)
    with pytest.raises(ValueError, match="coils"):
        A.A_adjoint(torch.rand(2, 2, 5, 8, 8))
    with pytest.raises(ValueError, match="k-space"):
        MRI(torch.ones(8, 8)).A_adjoint(torch.rand(2, 2, 4, 8, 8))


Maker = Callable[..., Tensor]
SHAPES = [(64, 64), (40, 96), (65, 63)]


@pytest.mark.parametrize("maker", [equispaced_mask, random_lines_mask, poisson_disc_mask])
@pytest.mark.parametrize("acceleration", [2, 4, 6.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_acceleration_is_the_one_asked_for(maker: Maker, acceleration: float, shape: tuple[int, int]) -> None:
    mask = maker(shape, acceleration, seed=3)
    assert mask.shape == shape and bool(((mask == 0) | (mask == 1)).all())
    assert mask.numel() / float(mask.sum()) == pytest.approx(acceleration, rel=0.04)
    assert mask[shape[0] // 2, shape[1] // 2] == 1


@pytest.mark.parametrize("maker", [equispaced_mask, random_lines_mask, poisson_disc_mask])
def test_masks_depend_on_the_seed_alone(maker: Maker) -> None:
    before = torch.get_rng_state()
    assert torch.equal(maker((32, 64), 4, seed=0), maker((1, 2, 32, 64), 4, seed=0))
    assert not torch.equal(maker((32, 64), 4, seed=0), maker((32, 64), 4, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("maker", [equispaced_mask, random_lines_mask])
@pytest.mark.parametrize("acs", [0, 1, 8, 9])
def test_lines(maker: Maker, acs: int) -> None:
    mask = maker((10, 80), 5, acs=acs)
    assert torch.equal(mask, mask[:1].expand_as(mask))  # whole columns
    assert mask[0].sum() == 16
    assert bool(mask[0, 40 - acs // 2 : 40 - acs // 2 + acs].all())


def test_equispaced_lines_are_evenly_spaced() -> None:
    for seed in range(4):
        lines = equispaced_mask((1, 120), 6, acs=0, seed=seed)[0].nonzero().flatten()
        assert set(lines.diff().tolist()) == {6}
        gaps = equispaced_mask((1, 127), 6, acs=0, seed=seed)[0].nonzero().flatten().diff()
        assert set(gaps.tolist()) <= {6, 7}


def test_default_centre_is_that_of_fastmri() -> None:
    for acceleration, share in ((4, 0.08), (8, 0.04)):
        mask = torch.stack([random_lines_mask((1, 400), acceleration, seed=s)[0] for s in range(20)]).all(0)
        assert int(mask.sum()) == 400 * share


def test_poisson_disc_keeps_points_apart() -> None:
    mask = poisson_disc_mask((96, 80), 6, acs=10)
    assert bool(mask[43:53, 35:45].all())
    outside = mask.clone()
    outside[43:53, 35:45] = 0
    points = outside.nonzero().double()
    radius = (2 * points / torch.tensor([96.0, 80.0]) - 1).norm(dim=1)
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    unit = (distance / (1 + 2 * torch.minimum(radius[:, None], radius))).min()
    assert float(unit) > 0.8, float(unit)  # random points have 0.3
    apart = distance.amin(1)
    near, far = (radius < 0.4), (radius > 0.9)
    assert float(apart[far].mean()) > 1.5 * float(apart[near].mean())


@pytest.mark.parametrize("size", [64, 65, 128])
@pytest.mark.parametrize("share", [1 / 16, 1 / 4, 1])
def test_radial_acceleration(size: int, share: float) -> None:
    spokes = int(size * share)
    mask = radial_mask((size, size), spokes)
    expected = size / (spokes - spokes**2 / (4 * size))
    assert mask.numel() / float(mask.sum()) == pytest.approx(expected, rel=0.03)
    inner = mask[1:, 1:] if size % 2 == 0 else mask  # without the frequency that has no opposite
    assert torch.equal(inner, inner.flip(0, 1))


def test_one_spoke_is_the_readout() -> None:
    assert torch.equal(radial_mask((5, 8), 1), torch.zeros(5, 8).index_fill(0, torch.tensor(2), 1.0))


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: equispaced_mask((32, 32), 0.5), "acceleration"),
        (lambda: random_lines_mask((32, 32), 4, acs=9), "acs"),
        (lambda: poisson_disc_mask((32, 32), 4, acs=17), "acs"),
        (lambda: poisson_disc_mask((32, 32), math.nan), "acceleration"),
        (lambda: radial_mask((32, 32), 0), "spokes"),
    ],
)
def test_impossible_masks(call: Callable[[], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
