"""The image operators: laws over the registry, then closed-form truth, then behaviour."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepinv import physics as dinv
from operator_registry import REGISTRY, uneven_kernel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from invdiff import operators as ops
from invdiff.operators import border


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY)
def test_laws(name: str) -> None:
    operator, shape = REGISTRY[name]()
    report = ops.check(operator, shape)
    excused = {row.law for row in report.rows if not row.applicable}
    reasons = {
        "adjoint at 37x31": True,  # where the size is fixed, or must be a multiple; see test_any_size for the others
        "noise": not bool((operator.noise_model.variance(torch.ones(1)) > 0).all()),
        "svd": not isinstance(operator, dinv.DecomposablePhysics),
        "gradient: A_vjp = finite": getattr(operator, "surrogate_gradient", False),
    }
    nonlinear = ("adjoint", "linearity", "pseudo-inverse", "prox", "svd", "batch: A A+")
    allowed = tuple(k for k, v in reasons.items() if v)
    allowed += () if isinstance(operator, dinv.LinearPhysics) else nonlinear
    assert not [law for law in excused if not law.startswith(allowed)], f"laws left out in silence\n{report}"


@pytest.mark.parametrize("name", [n for n in REGISTRY if isinstance(REGISTRY[n]()[0], ops.Spectral)])
def test_closed_forms_are_tight(name: str) -> None:
    report = ops.check(*REGISTRY[name]())
    limits = {"pseudo-inverse": 1e-3, "prox": 1e-7, "svd": 1e-7}
    wrong = [
        row
        for row in report.rows
        for law, limit in limits.items()
        if row.law.startswith(law)
        and row.dtype == "float64"
        and not (row.measured is not None and row.measured < limit)
    ]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "name", ["denoising", "decolorize", "blur-circular", "blur-kernels", "blur-valid", "blur-reflect"]
)
def test_any_size(name: str) -> None:
    rows = [row for row in ops.check(*REGISTRY[name]()).rows if row.law == "adjoint at 37x31"]
    assert len(rows) == 2 and all(row.applicable and row.passed for row in rows)


def test_one_operator_serves_several_sizes_in_turn() -> None:
    blur, small = ops.Blur(uneven_kernel(4, 5)), ops.Downsampling(2, uneven_kernel(4, 6))
    for operator in (blur, small):
        for size in ((12, 14), (20, 8), (12, 14)):
            x = pictures(2, 1, *size)
            for dtype in (torch.float32, torch.float64):
                c = operator.V_adjoint(x.to(dtype))
                torch.testing.assert_close(operator.U(operator.mask * c), operator.A(x.to(dtype)))
        gram = operator.A_adjoint_A(pictures(1, 1, 16, 16))  # a size not seen before
        torch.testing.assert_close(gram, operator.A_adjoint(operator.A(pictures(1, 1, 16, 16))))


# ---- closed-form truth ------------------------------------------------------------------------------


def test_blur_of_a_point_is_its_kernel() -> None:
    kernel = uneven_kernel(4, 5)
    x = torch.zeros(1, 1, 11, 12)
    x[..., 5, 6] = 1
    for boundary in ("circular", "reflect"):
        y = ops.Blur(kernel, boundary=boundary).A(x)
        torch.testing.assert_close(y[0, 0, 3:7, 4:9], kernel / kernel.sum(), atol=1e-7, rtol=0)
        assert float(y.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "circular"), ("reflect", "reflect"), ("valid", "")])
def test_blur_is_the_convolution_of_a_padded_image(boundary: str, mode: str) -> None:
    kernel, x = uneven_kernel(4, 5).double(), pictures(2, 1, 17, 14)
    padded = F.pad(x, (2, 2, 1, 2), mode=mode) if mode else x
    expected = F.conv2d(padded, (kernel / kernel.sum()).flip(0, 1)[None, None])
    torch.testing.assert_close(ops.Blur(kernel, boundary=boundary).A(x), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_downsampling_is_average_pooling_and_antialiased_bicubic(factor: int) -> None:
    x = pictures(2, 3, 48, 60)
    torch.testing.assert_close(ops.Downsampling(factor).A(x), F.avg_pool2d(x, factor), atol=1e-6, rtol=0)
    bicubic = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(ops.Downsampling(factor, "bicubic").A(x)[inside], bicubic[inside], atol=1e-6, rtol=0)


def _matrix(operator: Any, shape: tuple[int, int, int]) -> Tensor:
    n = torch.Size(shape).numel()
    return operator.A(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T


@pytest.mark.parametrize("name", ["blur", "downsampling", "decolorize", "compressed-sensing", "inpainting"])
def test_decomposition_agrees_with_the_matrix(name: str) -> None:
    operators: dict[str, tuple[Any, tuple[int, int, int]]] = {
        "blur": (ops.Blur(uneven_kernel(3, 4).double()), (1, 6, 7)),
        "downsampling": (ops.Downsampling(2, uneven_kernel(2, 4).double()), (1, 6, 8)),
        "decolorize": (ops.Decolorize().double(), (3, 3, 4)),
        "compressed-sensing": (ops.CompressedSensing((2, 5, 4), 0.3), (2, 5, 4)),
        "inpainting": (ops.Inpainting(ops.random_mask((6, 5), 0.4)), (1, 6, 5)),
    }
    operator, shape = operators[name]
    matrix = _matrix(operator, shape)
    x, y = pictures(1, *shape), operator.A(pictures(1, *shape, seed=1)) + 0.1
    values = torch.linalg.svdvals(matrix)
    c = operator.V_adjoint(x)
    mine = (operator.mask + torch.zeros_like(c)).flatten().sort(descending=True).values[: len(values)]
    torch.testing.assert_close(mine.double(), values, atol=1e-6, rtol=0)
    pinv = (torch.linalg.pinv(matrix, rtol=1e-4) @ y.flatten()).view_as(x)
    torch.testing.assert_close(operator.A_dagger(y), pinv, atol=1e-6, rtol=1e-6)
    left = 3 * matrix.T @ matrix + torch.eye(x.numel(), dtype=torch.float64)
    prox = torch.linalg.solve(left, 3 * matrix.T @ y.flatten() + x.flatten()).view_as(x)
    torch.testing.assert_close(operator.prox_l2(x, y, 3.0), prox, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prox_of_a_valid_blur_agrees_with_the_matrix(dtype: torch.dtype) -> None:
    operator, shape = ops.Blur(ops.motion_kernel(7, 30), boundary="valid").double(), (1, 23, 29)  # padded inside
    matrix, x = _matrix(operator, shape), pictures(4, *shape)
    y = operator.A(x) + 0.01 * pictures(*operator.A(x).shape, seed=1)
    gamma = torch.tensor([0.3, 100.0, 2500.0, 9600.0], dtype=torch.float64)
    for z in (torch.zeros_like(x), x + 0.02 * pictures(*x.shape, seed=2)):
        left = gamma[:, None, None] * (matrix.T @ matrix) + torch.eye(x[0].numel(), dtype=torch.float64)
        right = gamma[:, None] * (y.flatten(1) @ matrix) + z.flatten(1)
        expected = torch.linalg.solve(left, right).view_as(x)
        mine = operator.to(dtype).prox_l2(z.to(dtype), y.to(dtype), gamma.to(dtype))
        torch.testing.assert_close(mine.double(), expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize(("kernel", "steps"), [("gaussian:2.0", 12), ("gaussian:5.0", 12), ("disk:4", 25)])
def test_prox_of_a_valid_blur_takes_few_steps(kernel: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(border, "conjugate_gradient", functools.partial(ops.conjugate_gradient, steps=steps))
    operator, x = ops.Blur(ops.parse_kernel(kernel), boundary="valid"), pictures(1, 3, 101, 90, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator.prox_l2(0.9 * x, operator.A(x), 2500.0)


@pytest.mark.parametrize("kernel", ["gaussian:12", "disk:30"])
def test_prox_of_a_valid_blur_by_a_large_kernel(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a width there is no preconditioner, since its matrices are large; the solution is the same."""
    operator = ops.Blur(ops.parse_kernel(kernel), boundary="valid").double()
    x, side = pictures(1, 1, 200, 210), operator.kernel.shape[-1]
    with_it = operator.prox_l2(0.9 * x, operator.A(x), 2500.0)
    monkeypatch.setattr(border, "WIDEST", side // 2)
    monkeypatch.setattr(border, "_inverses", lambda *_: pytest.fail("a large system was inverted"))
    torch.testing.assert_close(operator.prox_l2(0.9 * x, operator.A(x), 2500.0), with_it, atol=5e-4, rtol=0)


def test_pseudo_inverse_of_a_valid_blur_explains_the_measurement_and_is_linear() -> None:
    operator = ops.Blur(ops.gaussian_kernel(1.5), boundary="valid")
    y = operator.A(pictures(2, 1, 41, 37))
    x = operator.A_dagger(y)
    assert float((operator.A(x) - y).norm() / y.norm()) < 1e-3
    torch.testing.assert_close(operator.A_dagger(y[:1] - 2 * y[1:]), x[:1] - 2 * x[1:], atol=1e-3, rtol=0)


def test_conjugate_gradients_use_the_preconditioner_and_tell_when_they_fail() -> None:
    d = torch.logspace(0, 4, 50, dtype=torch.float64)
    b, steps = pictures(2, 50), []

    def matvec(v: Tensor) -> Tensor:
        steps.append(1)
        return d * v

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(ops.conjugate_gradient(matvec, b, precondition=lambda r: r / d), b / d)
    assert len(steps) == 1
    with pytest.warns(RuntimeWarning, match="after 5 steps at a relative residual of"):
        ops.conjugate_gradient(matvec, b, steps=5)
    b[1, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="nan"):
        x = ops.conjugate_gradient(matvec, b, precondition=lambda r: r / d, steps=5)
    assert bool(torch.isnan(x[1]).any())
    torch.testing.assert_close(x[0], b[0] / d)


def test_compressed_sensing_is_orthonormal_and_spreads_a_constant_image() -> None:
    operator = ops.CompressedSensing((1, 32, 31), 0.25)
    y = pictures(2, 248)
    torch.testing.assert_close(operator.A(operator.A_adjoint(y)), y)
    z = operator.A(torch.ones(1, 1, 32, 31, dtype=torch.float64))
    assert z.shape == (1, 248) and float(z.abs().max()) < 5  # of an energy of 992, five deviations a coefficient


# ---- behaviour -----------------------------------------------------------------------------------------


def test_masks() -> None:
    assert int(ops.random_mask((3, 20, 30), 0.3).sum()) == 180
    assert torch.equal(ops.random_mask((20, 30), seed=1), ops.random_mask((20, 30), seed=1))
    assert not torch.equal(ops.random_mask((20, 30), seed=0), ops.random_mask((20, 30), seed=1))
    box = ops.box_mask((10, 12), (4, 2), where=(1, 3))
    assert box.shape == (10, 12) and not box[1:5, 3:5].any() and int(box.sum()) == 112
    assert not ops.box_mask((10, 10), 4)[3:7, 3:7].any()
    assert ops.line_mask((5, 4), 2)[:, 0].tolist() == [1, 0, 1, 0, 1]
    assert ops.line_mask((5, 4), 3, columns=True)[0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (1, 1, 6, 5), (2, 1, 6, 5), (2, 3, 6, 5)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_inpainting_accepts_masks_of_every_shape(shape: tuple[int, ...], kind: torch.dtype) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    x = pictures(2, 3, 6, 5)
    assert torch.equal(ops.Inpainting(mask.to(kind)).A(x), mask.expand(2, 3, 6, 5) * x)


def test_mask_and_kernel_from_image_files(tmp_path: Path) -> None:
    grey = np.zeros((6, 5), np.uint8)
    grey[1:3, 2] = 255
    Image.fromarray(grey).save(tmp_path / "m.png")
    assert torch.equal(ops.mask_from_image(tmp_path / "m.png"), torch.from_numpy(grey > 0).float())
    kernel = ops.parse_kernel(str(tmp_path / "m.png"))
    assert kernel.shape == (6, 5) and kernel[1, 2] == kernel[2, 2] == 0.5


def test_kernels_have_the_spread_they_claim() -> None:
    def moments(kernel: Tensor) -> tuple[float, float, float]:
        h, w = kernel.shape
        y, x = torch.arange(h)[:, None] - (h - 1) / 2, torch.arange(w)[None] - (w - 1) / 2
        return tuple(float((kernel * m).sum()) for m in (x * x, y * y, -x * y))  # type: ignore[return-value]

    assert moments(ops.gaussian_kernel(2.0)) == pytest.approx((4, 4, 0), abs=0.02)
    assert moments(ops.gaussian_kernel(2.0, size=20)) == pytest.approx((4, 4, 0), abs=0.02)
    along, across, pixel = 15**2 / 12, 1 / 12, 1 / 12  # variances of a bar of 15 x 1, and of the pixels that sample it
    expected = (0.75 * along + 0.25 * across + pixel, 0.25 * along + 0.75 * across + pixel, 0.433 * (along - across))
    assert moments(ops.motion_kernel(15, 30)) == pytest.approx(expected, abs=0.1)
    assert ops.motion_kernel(1).sum() == 1 and ops.motion_kernel(1).max() == 1
    assert moments(ops.disk_kernel(3))[0] == pytest.approx(9 / 4 + pixel, abs=0.05)
    assert torch.equal(ops.parse_kernel("motion:15,30"), ops.motion_kernel(15, 30))
    assert torch.equal(ops.parse_kernel("gaussian:2.0"), ops.gaussian_kernel(2.0))


def test_a_kernel_can_be_learned_through_the_blur() -> None:
    kernel = uneven_kernel(3, 3).requires_grad_()
    operator = ops.Blur(kernel)
    for _ in range(2):  # a second backward pass must not meet a spent graph
        (grad,) = torch.autograd.grad(operator.A(pictures(1, 1, 8, 8, dtype=torch.float32)).square().sum(), kernel)
        assert bool(grad.abs().sum() > 0)
        operator = ops.Blur(kernel)


def test_copies_are_independent_and_keep_changes() -> None:
    operator = ops.Inpainting(ops.random_mask((6, 5)), 0.1)
    operator.noise_model = ops.Gaussian(0.3)
    for twin in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert twin.noise_model.sigma == 0.3 and torch.equal(twin.mask, operator.mask)
        twin.mask.zero_()
        assert bool(operator.mask.any())


def test_kernel_may_be_replaced_or_changed_in_place() -> None:
    operator, x = ops.Blur(uneven_kernel(3, 3)), pictures(1, 1, 8, 8, dtype=torch.float32)
    before = operator.A(x)
    operator.kernel.mul_(2)
    torch.testing.assert_close(operator.A(x), 2 * before)
    operator.kernel = torch.ones(1, 1, 1, 1)
    torch.testing.assert_close(ops.Blur(torch.ones(1, 1)).A(x), x)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ops.Inpainting(torch.zeros(4, 4)), "zero everywhere"),
        (lambda: ops.Inpainting(torch.full((4, 4), 0.5)), "0 .unknown. and 1"),
        (lambda: ops.Inpainting(torch.full((4, 4), torch.nan)), "0 .unknown. and 1"),
        (lambda: ops.Inpainting(torch.ones(4)), "shape"),
        (lambda: ops.Inpainting(torch.ones(4, 4)).A(torch.ones(1, 3, 4, 5)), "does not fit the mask"),
        (lambda: ops.Inpainting(torch.ones(3, 4, 4)).A(torch.ones(1, 1, 4, 4)), "does not fit the mask"),
        (lambda: ops.random_mask((4, 4), 0.0), "keep"),
        (lambda: ops.box_mask((4, 4), 5), "inside"),
        (lambda: ops.box_mask((4, 4), 2, where="left"), "where"),
        (lambda: ops.line_mask((4, 4), 5), "every"),
        (lambda: ops.Blur(torch.zeros(3, 3)), "sum other than zero"),
        (lambda: ops.Blur(torch.tensor([[1.0, -1.0]])), "sum other than zero"),
        (lambda: ops.Blur(torch.full((3, 3), torch.nan)), "finite"),
        (lambda: ops.Blur(torch.ones(3)), "float tensor"),
        (lambda: ops.Blur(torch.ones(3, 3), boundary="zero"), "circular, valid, reflect"),
        (lambda: ops.Blur(torch.ones(5, 5)).A(torch.ones(1, 1, 4, 9)), "does not fit an image of 4x9"),
        (lambda: ops.Blur(torch.ones(5, 5), boundary="valid").A(torch.ones(1, 1, 4, 9)), "does not fit"),
        (lambda: ops.Blur(torch.ones(5, 5), boundary="reflect").A(torch.ones(1, 1, 4, 9)), "does not fit"),
        (lambda: ops.Downsampling(0), "at least 1"),
        (lambda: ops.Downsampling(2, "nearest"), "average"),
        (lambda: ops.Downsampling(2, torch.ones(3, 3)), "half a pixel"),
        (lambda: ops.Downsampling(4).A(torch.ones(1, 1, 8, 10)), "multiples of the factor 4"),
        (lambda: ops.Decolorize(weights="rgb"), "luminance"),
        (lambda: ops.Decolorize().A(torch.ones(1, 1, 4, 4)), r"\(B, 3, H, W\)"),
        (lambda: ops.CompressedSensing((1, 4, 4), 1.5), "fraction"),
        (lambda: ops.CompressedSensing((1, 4, 4), 0.5).A(torch.ones(1, 1, 4, 5)), "images of shape"),
        (lambda: ops.gaussian_kernel(0.0), "sigma"),
        (lambda: ops.motion_kernel(0.5), "length"),
        (lambda: ops.disk_kernel(-1.0), "radius"),
        (lambda: ops.parse_kernel("gaussian:wide"), "gaussian:2.0"),
        (lambda: ops.parse_kernel("disk:1,2"), "disk:3"),
        (lambda: ops.parse_kernel("foo:3"), "foo:3.*gaussian:SIGMA, motion:LENGTH,ANGLE, disk:RADIUS or a picture"),
        (lambda: ops.parse_kernel("nofile.png"), "nofile.png.*gaussian:SIGMA"),
        (lambda: ops.parse_kernel(""), "gaussian:SIGMA"),
        (lambda: ops.parse_kernel(__file__), "test_operators.py.*cannot identify"),
        (lambda: ops.gaussian_kernel(1e9), "at most 512 pixels"),
        (lambda: ops.gaussian_kernel(1e308), "at most 512 pixels"),
        (lambda: ops.gaussian_kernel(1.0, size=10**6), "between 1 and 1025"),
        (lambda: ops.gaussian_kernel(1.0, size=0), "between 1 and 1025"),
        (lambda: ops.motion_kernel(1e9), "at most 512 pixels"),
        (lambda: ops.disk_kernel(1000), "at most 512 pixels"),
        (lambda: ops.Blur(torch.ones(41, 41), boundary="valid").A_adjoint(torch.ones(1, 1, 40, 48)), "leaves 40x48"),
        (lambda: ops.Blur(torch.ones(41, 41), boundary="valid").A(torch.ones(1, 1, 80, 88)), "crop the kernel"),
        (lambda: ops.Gaussian(torch.ones(1, 1, 4, 4)), r"\(\), \(B,\) or \(B, 1, 1, 1\)"),
        (lambda: ops.Gaussian(torch.ones(2, 1)), r"\(\), \(B,\) or \(B, 1, 1, 1\)"),
        (lambda: ops.Gaussian(torch.ones(3)).variance(torch.ones(2, 1, 4, 4)), "3 levels.*batch of 2"),
        (lambda: ops.Denoising(torch.ones(3)).measure(torch.ones(2, 1, 4, 4)), "3 levels.*batch of 2"),
        (lambda: ops.as_noise(dinv.PoissonNoise(0.1, normalize=False)), "multiply y by the gain"),
        (lambda: ops.as_noise(dinv.PoissonNoise(torch.tensor([0.1, 0.2]))), "gain.*one number"),
        (lambda: ops.as_noise(dinv.PoissonGaussianNoise(0.1, torch.tensor([0.1, 0.2]))), "sigma.*one number"),
    ],
)
def test_errors_say_what_was_given_and_what_to_do(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_a_black_kernel_file_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="black.png.*sum other than zero"):
        ops.parse_kernel(str(tmp_path / "black.png"))


def test_unknown_pixels_are_measured_as_zero() -> None:
    mask, x = ops.random_mask((16, 13)), pictures(2, 3, 16, 13)
    operator = ops.Inpainting(mask, 0.1)
    for y in (operator.measure(x), operator(x)):
        assert not y[..., mask == 0].any()
        assert float((y - x)[..., mask == 1].std()) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1, 1)])
def test_one_noise_level_an_image(shape: tuple[int, ...]) -> None:
    noise, z = ops.Gaussian(torch.tensor([0.1, 0.4]).view(shape)), torch.zeros(2, 3, 50, 40)
    assert noise.variance(z).flatten(1)[:, 0].tolist() == pytest.approx([0.01, 0.16])
    y = ops.Denoising(noise).measure(z)
    assert y.flatten(1).std(1).tolist() == pytest.approx([0.1, 0.4], rel=0.05)
    assert noise.select([1, 1, 0]).variance(torch.zeros(3, 1)).flatten().tolist() == pytest.approx([0.16, 0.16, 0.01])


@pytest.mark.parametrize(
    "theirs",
    [
        dinv.GaussianNoise(0.2),
        dinv.GaussianNoise(torch.tensor([0.2])),
        dinv.PoissonNoise(0.2),
        dinv.PoissonNoise(1.0, normalize=False),
        dinv.PoissonGaussianNoise(0.2, 0.3),
        dinv.PoissonGaussianNoise(0.0, 0.3),
        dinv.PoissonGaussianNoise(0.2, 0.0),
    ],
)
def test_noise_models_of_deepinv_keep_their_law(theirs: dinv.NoiseModel) -> None:
    torch.manual_seed(0)
    ours, z = ops.as_noise(theirs), torch.full((1, 1, 300, 300), 0.8)
    for y in (theirs(z), ours.sample(z, torch.Generator().manual_seed(0))):
        assert float(y.mean()) == pytest.approx(0.8, abs=0.02)
        assert float(y.var()) == pytest.approx(float(ours.variance(z).mean()), rel=0.03)


def test_a_dark_pixel_has_the_variance_of_half_a_photon() -> None:
    z = torch.tensor([[-1.0, 0.0, 0.1, 0.3]])
    assert ops.Poisson(0.4).variance(z).flatten().tolist() == pytest.approx([0.08, 0.08, 0.08, 0.12])


def test_from_callable_refuses_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="function"):
        ops.from_callable(3)  # type: ignore[arg-type]
