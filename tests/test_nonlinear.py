"""Nonlinear operators: closed-form values, symmetries, and gradients that lead somewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    Blur,
    Denoising,
    GammaQuantisation,
    NonlinearBlur,
    PhaseRetrieval,
    Saturation,
    gaussian_kernel,
)
from invdiff.operators.base import select_images
from invdiff.operators.nonlinear import camera_response, inverse_camera_response


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of the sum of ``f``, at each pixel."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@pytest.mark.parametrize("oversampling, size", [(1.0, (9, 12)), (1.5, (14, 18)), (2.0, (18, 24))])
def test_amplitudes_by_definition(oversampling: float, size: tuple[int, int]) -> None:
    x = picture(2, 1, 9, 12)
    y = PhaseRetrieval((1, 9, 12), oversampling).A(x)
    axes = []
    for n, padded in zip((9, 12), size):
        frequency, at = torch.arange(padded) - padded // 2, torch.arange(n)
        axes.append(torch.exp(-2j * math.pi * frequency[:, None] * at / padded).to(torch.complex128) / padded**0.5)
    assert y.shape == (2, 1, *size)
    assert torch.allclose(y, (axes[0] @ x.to(torch.complex128) @ axes[1].T).abs(), atol=1e-6)
    assert torch.allclose(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-12)


def test_what_amplitudes_do_not_tell() -> None:
    A, x = PhaseRetrieval((1, 8, 8)), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 1:4, 2:5] = picture(3, 3)
    y = A.A(x)
    for same in (-x, x.flip(-2, -1), x.roll((3, 2), (-2, -1))):
        assert torch.allclose(A.A(same), y, atol=1e-12)
    assert not torch.allclose(A.A(x.flip(-1)), y, atol=1e-3)


def test_gradient_of_an_amplitude_of_zero_is_finite() -> None:
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)  # its spectrum is one point
    assert bool(torch.isfinite(slope(PhaseRetrieval((1, 8, 8), 1.0).A, x)).all())


def test_saturation_clips() -> None:
    x = torch.tensor([[-0.2, 0.0, 0.1, 0.4, 0.5, 0.9]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, 0.2, 0.8, 1.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(Saturation(2.0).A(x), expected, atol=1e-15)
    assert torch.equal(slope(Saturation(2.0).A, x), torch.full_like(x, 2.0))


def test_saturated_estimates_come_back() -> None:
    """Descent from white reaches the measured pixels, and stops in the saturated range where nothing is known."""
    A, truth = Saturation(2.0), picture(1, 1, 6, 6)
    y, x = A.A(truth), torch.full_like(truth, 1.5)
    for _ in range(200):
        x = x - 0.2 * A.A_vjp(x, A.A(x) - y)
    dark = truth < 0.5
    assert torch.allclose(x[dark], truth[dark], atol=1e-6)
    assert torch.equal(x[~dark], torch.full_like(x[~dark], 1.5))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_levels_of_a_quantised_picture(bits: int, gamma: float) -> None:
    x = torch.linspace(-0.3, 1.3, 20001, dtype=torch.float64)[None]
    y = GammaQuantisation(gamma, bits).A(x)
    step = 1 / (2**bits - 1)
    assert len((y / step).round().unique()) == 2**bits
    assert torch.allclose((y / step).round() * step, y, atol=1e-12)
    exact = camera_response(x, gamma).clamp(0, 1)
    assert float((y - exact).abs().max()) <= step / 2 + 1e-12


def test_gradient_of_a_quantised_picture_is_that_of_the_curve() -> None:
    x = torch.linspace(-0.3, 1.3, 100, dtype=torch.float64)[None]
    h = 1e-6
    curve = (camera_response(x + h, 2.2) - camera_response(x - h, 2.2)) / (2 * h)
    assert torch.allclose(slope(GammaQuantisation(2.2, 3).A, x), curve, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_camera_response(gamma: float) -> None:
    x = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)
    y = camera_response(x, gamma)
    assert torch.allclose(inverse_camera_response(y, gamma), x, atol=1e-14)
    assert torch.allclose(camera_response(-x, gamma), -y)
    ends = camera_response(torch.tensor([0.0, 1.0], dtype=torch.float64), gamma)
    assert torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-15)
    power = x.clamp(min=0) ** (1 / gamma)
    assert float((y - power)[x > 0.1].abs().max()) < 0.05  # a toe, otherwise the power law
    slopes = slope(lambda u: camera_response(u, gamma), torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64))
    assert 1 <= float(slopes[1]) < 15 and torch.allclose(slopes, slopes[1], rtol=1e-5)
    inverse = slope(lambda u: inverse_camera_response(u, gamma), torch.zeros(1, dtype=torch.float64))
    assert float(inverse) == pytest.approx(1 / float(slopes[1]), rel=1e-9)


def test_nonlinear_blur_without_a_curve_is_a_blur() -> None:
    kernel, x = gaussian_kernel(1.0), picture(2, 3, 16, 13)
    expected = Blur(kernel.double(), boundary="reflect").A(x)
    assert torch.allclose(NonlinearBlur(kernel.double(), gamma=1.0).A(x), expected, atol=1e-12)


def test_nonlinear_blur_keeps_flat_pictures_and_spreads_lights() -> None:
    kernel = gaussian_kernel(1.0).double()
    A = NonlinearBlur(kernel)
    for value in (0.0, 0.3, 1.0):
        flat = torch.full((1, 1, 15, 15), value, dtype=torch.float64)
        assert torch.allclose(A.A(flat), flat, atol=1e-12)
    lamp = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    lamp[..., 7, 7] = 1.0
    expected = camera_response(Blur(kernel, boundary="reflect").A(lamp))
    assert torch.allclose(A.A(lamp), expected, atol=1e-12)
    assert float(A.A(lamp).sum()) > 2 * float(lamp.sum())


def test_black_pixels_of_a_nonlinear_blur_have_a_gradient() -> None:
    kernel, black = gaussian_kernel(0.8).double(), torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    expected = Blur(kernel, boundary="reflect").A_adjoint(torch.ones_like(black))  # the curve and its inverse cancel
    assert torch.allclose(slope(NonlinearBlur(kernel).A, black), expected, atol=1e-9)


def test_kernels_of_a_nonlinear_blur_follow_their_images() -> None:
    kernels, x = picture(3, 1, 4, 5) + 0.1, picture(4, 2, 11, 9)
    A, order = NonlinearBlur(kernels), [2, 0, 2, 1]
    chosen = select_images(A, order, batch=3)
    assert torch.allclose(chosen.A(x), NonlinearBlur(kernels[order]).A(x), atol=1e-12)
    assert len(A.blur.kernel) == 3 and select_images(A, order, batch=4) is A
    composed = Denoising(0.0) * A  # deepinv keeps the parts of a product in a list
    assert torch.allclose(select_images(composed, order, batch=3).A(x), chosen.A(x), atol=1e-12)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: PhaseRetrieval((1, 8, 8), 0.9), "at least 1"),
        (lambda: PhaseRetrieval((8, 8)), "image_shape"),
        (lambda: PhaseRetrieval((1, 8, 8)).A(torch.rand(1, 1, 8, 9)), "images of shape"),
        (lambda: Saturation(0.0), "above 0"),
        (lambda: Saturation(math.nan), "above 0"),
        (lambda: GammaQuantisation(0.5), "at least 1"),
        (lambda: GammaQuantisation(bits=0), "between 1 and 16"),
        (lambda: NonlinearBlur(gaussian_kernel(1.0), 0.4), "at least 1"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
