"""Priors on patches of large images and on slices of volumes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff import operators, priors, solve
from invdiff.operators import Linear
from invdiff.priors import Gaussian, Patched, Product, Slices, covariance
from invdiff.priors.patches import blend, tiles
from invdiff.samplers import DPMSolver2M
from invdiff.solvers import PiGDM


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Local(nn.Module):
    """Two 3x3 convolutions, so that a pixel depends on two around it; counts the images of each call."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, dtype=torch.float64) for _ in range(2))
        for i, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=i) / 3
        self.requires_grad_(False)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Any = None) -> Tensor:
        self.seen.append(tuple(x.shape))
        scale = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        shift = 0.0 if condition is None else torch.as_tensor(condition, dtype=x.dtype).view(-1, 1, 1, 1)
        return self.second((self.first(x) / (1 + scale)).tanh()) + shift


SIZES = [(29, 23), (16, 41), (12, 12), (9, 40), (5, 7)]


# Patches


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 5, 6])
def test_tiles_cover_and_blend_to_one(size: tuple[int, int], overlap: int) -> None:
    x = randn(2, 3, *size)
    boxes = tiles(*size, 12, overlap)
    assert all(b.stop - b.start == min(n, 12) for box in boxes for b, n in zip(box, size))
    torch.testing.assert_close(blend([x[..., r, c] for r, c in boxes], boxes, overlap), x)


@pytest.mark.parametrize("size", SIZES)
def test_a_local_prior_is_the_same_on_patches(size: tuple[int, int]) -> None:
    """Everywhere, for any size, with a noise level and a condition an image; at most ``at_once`` patches a call."""
    prior, x = Local(), randn(3, 2, *size)
    sigma, label = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64), torch.tensor([0, 1, 2])
    whole = prior(x, sigma, condition=label)
    patched = Patched(prior, size=18, overlap=8, at_once=4)
    prior.seen.clear()
    torch.testing.assert_close(patched(x, sigma, condition=label), whole)
    assert all(shape[0] <= 4 and max(shape[2:]) <= 18 for shape in prior.seen)
    torch.testing.assert_close(patched(x[1:2], 0.5, condition=label[1:2]), whole[1:2])
    torch.testing.assert_close(patched(x, torch.tensor([0.5])), prior(x, 0.5))


def test_the_network_is_the_same_on_patches_of_its_grid() -> None:
    net = priors.DenoisingUNet(widths=(8, 8), blocks=1).double().requires_grad_(False)
    for i, p in enumerate(net.parameters()):
        p.copy_(randn(*p.shape, seed=i) / math.sqrt(2 * (p[0].numel() if p.ndim > 1 else 4)))
    x = 0.5 + randn(1, 3, 144, 96)
    patched = Patched(net, size=96, overlap=48)
    assert (patched.size - patched.overlap) % net.multiple == 0
    torch.testing.assert_close(patched(x, 0.3), net(x, 0.3), rtol=0, atol=1e-9)


def test_without_enough_overlap_it_is_only_near() -> None:
    prior, x = Local(), randn(1, 2, 40, 40)
    error = (Patched(prior, 18, 0)(x, 0.5) - prior(x, 0.5)).abs().amax((0, 1))
    assert float(error[16:20].max()) > 1e-3 and float(error[:16, :16].max()) < 1e-12


def test_the_gradient_is_that_of_the_whole() -> None:
    prior, x, direction = Local(), randn(2, 2, 29, 23).requires_grad_(), randn(2, 2, 29, 23, seed=1)
    (whole,) = torch.autograd.grad((prior(x, 0.5) * direction).sum(), x)
    (patched,) = torch.autograd.grad((Patched(prior, 18, 8, at_once=3)(x, 0.5) * direction).sum(), x)
    torch.testing.assert_close(patched, whole)


def test_a_prior_of_one_size_serves_larger_images() -> None:
    small = Gaussian(torch.rand(1, 6, 6, dtype=torch.float64), 0.04)
    patched, A = Patched(small, 6, 2), operators.Denoising(0.1)
    assert patched.mean.shape == (1, 1, 1) and patched(randn(2, 1, 13, 9).float(), 0.1).dtype == torch.float32
    result = solve(randn(2, 1, 13, 9), A, patched, "diffpir", steps=3, samples=2)
    assert result.x.shape == (2, 1, 13, 9) and result.nfe == 3


@pytest.mark.parametrize(
    ("size", "overlap", "at_once"), [(0, 0, 1), (8, 5, 1), (8, -1, 1), (8, 4, 0), (math.inf, 4, 1), (8, 0.5, 1)]
)
def test_patches_out_of_range(size: Any, overlap: Any, at_once: int) -> None:
    with pytest.raises(ValueError, match="an overlap from 0 to half of it"):
        Patched(Local(), size, overlap, at_once)


# Slices


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_denoised_each_by_itself(axis: int) -> None:
    prior, x = Local(), randn(2, 2, 5, 4, 3)
    sigma, label = torch.tensor([0.1, 0.5], dtype=torch.float64), torch.tensor([3, 4])
    out = Slices(prior, axis, at_once=3)(x, sigma, condition=label)
    for i in range(x.shape[2 + axis]):
        expected = prior(x.select(2 + axis, i), sigma, condition=label)
        torch.testing.assert_close(out.select(2 + axis, i), expected)
    assert Slices(Gaussian(0.5, torch.ones(2, 4, 3)), 0).mean.shape == (2, 1, 4, 3)


def test_slices_out_of_range() -> None:
    for axis, at_once in ((3, 1), (0, 0)):
        with pytest.raises(ValueError, match="axis is 0, 1 or 2"):
            Slices(Local(), axis, at_once)
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\), got \(1, 2, 4, 3\)"):
        Slices(Local())(randn(1, 2, 4, 3), 0.1)


VOLUME = (1, 4, 5, 3)


class Sums(Linear):
    """Sums of neighbouring slices: an operator that ties them."""

    def A(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x[:, :, ::2] + x[:, :, 1::2]

    def A_adjoint(self, y: Tensor, *args: object, **kwargs: object) -> Tensor:
        return y.repeat_interleave(2, 2)


def white() -> Gaussian:
    return Gaussian(0.4, covariance.Diagonal(torch.full((1, 5, 3), 0.04, dtype=torch.float64)))


def test_volumes_are_drawn_from_their_posterior() -> None:
    """In closed form: pixels of variance 0.04 of which some are measured, each with noise of its volume's own level."""
    mask = (randn(*VOLUME[1:]) > 0).double()
    levels = torch.tensor([0.05, 0.2])
    A = operators.Inpainting(mask, noise=levels)
    x = 0.4 + 0.2 * randn(2, *VOLUME)
    y = A.measure(x)
    strategy = PiGDM(steps=50, sampler=DPMSolver2M(), sigma_max=10.0, sigma_min=0.005)
    result = solve(y, A, Slices(white()), strategy, samples=400)
    gain = mask * 0.04 / (0.04 + levels.view(2, 1, 1, 1, 1) ** 2)
    mean, std = 0.4 + gain * (y - 0.4), 0.2 * (1 - gain).sqrt()
    bias = float(((result.mean - mean) / std).square().mean().sqrt())
    assert bias < 0.08, f"bias of {bias:.3f} posterior standard deviations (Monte-Carlo floor 0.05)"
    spread = (result.std / std).flatten(1).square().mean(1).sqrt()
    assert float((spread - 1).abs().max()) < 0.05, f"spread {spread} of the posterior's"


@pytest.mark.parametrize("name", ["dps", "mcg", "pigdm", "ddnm", "diffpir", "reddiff"])
def test_a_volume_is_the_same_alone_and_in_a_batch(name: str) -> None:
    A = Sums(noise=0.1)
    prior = Product([Slices(white(), 0), Slices(Gaussian(0.5, torch.full((1, 4, 5), 0.02)), 2)], [0.5, 0.5])
    y = A.measure(0.4 + 0.2 * randn(3, *VOLUME))
    noise = torch.tensor([0.1, 0.05, 0.2])
    check_volumes(y, A, prior, name, noise)


@pytest.mark.parametrize("name", ["auto", "ddrm", "ddnm+"])
def test_masked_volumes(name: str) -> None:
    A = operators.Inpainting((randn(*VOLUME[1:]) > 0).double(), noise=0.1)
    check_volumes(A.measure(0.4 + 0.2 * randn(3, *VOLUME)), A, Slices(white()), name, torch.full((3,), 0.1))


def check_volumes(y: Tensor, A: Linear, prior: Any, name: str, noise: Tensor) -> None:
    whole = solve(y, A, prior, name, noise=noise, steps=4, samples=2)
    first = solve(y[:1], A, prior, name, noise=float(noise[0]), steps=4, samples=2)
    torch.testing.assert_close(whole.samples[:, :1], first.samples, rtol=0, atol=1e-7)
    torch.testing.assert_close(whole.residual[:1], first.residual)
    assert whole.samples.shape == (2, 3, *VOLUME) and whole.nfe == 4 * prior.evaluations


def test_nothing_to_evaluate_is_said() -> None:
    for prior, shape in ((Patched(Local(), 8, 2), (0, 2, 9, 9)), (Slices(Local()), (0, 2, 3, 9, 9)), (Slices(Local()), (1, 2, 0, 9, 9))):
        with pytest.raises(ValueError, match="no images: .* a batch"):
            prior(torch.zeros(shape), 0.1)
    with pytest.raises(ValueError, match=r"images of shape \(B, C, H, W\), got \(2, 9, 9\)"):
        Patched(Local(), 8, 2)(torch.zeros(2, 9, 9), 0.1)
    with pytest.raises(TypeError, match="a prior is a denoiser .* got inf"):
        Patched(math.inf, 8, 2)
