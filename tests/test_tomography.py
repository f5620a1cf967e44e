"""Tomography: exact sinograms of ellipses, filtered back-projection, the stored matrices."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.operators import Tomography, tomography

ELLIPSES = [  # height, centre, half axes (image side = 1, y upwards), angle of the first axis
    (1.0, (0.0, 0.0), (0.40, 0.30), 0.3),
    (0.5, (0.1, -0.12), (0.15, 0.10), 1.0),
    (-0.4, (-0.15, 0.1), (0.10, 0.18), -0.5),
]


def ellipses(size: int) -> Tensor:
    """Sum of the bumps ``height (1 - r^2)^2`` inside ellipses: smooth, so that sampling it is accurate."""
    at = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
    x, y = at[None, :], -at[:, None]
    image = torch.zeros(size, size, dtype=torch.float64)
    for height, (x0, y0), (a, b), turn in ELLIPSES:
        u = (x - x0) * math.cos(turn) + (y - y0) * math.sin(turn)
        v = (y - y0) * math.cos(turn) - (x - x0) * math.sin(turn)
        image += height * (1 - (u / a) ** 2 - (v / b) ** 2).clamp(min=0) ** 2
    return image[None, None]


def line_integrals(points: Tensor, directions: Tensor) -> Tensor:
    """Exact integrals of :func:`ellipses` along lines through ``points`` (..., 2), image side = 1."""
    d = directions / directions.norm(dim=-1, keepdim=True)
    normal = torch.stack([-d[..., 1], d[..., 0]], -1)
    total = torch.zeros(points.shape[:-1], dtype=torch.float64)
    for height, centre, (a, b), turn in ELLIPSES:
        axis = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
        along, across = normal @ axis, normal[..., 1] * axis[0] - normal[..., 0] * axis[1]
        r2 = (a * along) ** 2 + (b * across) ** 2  # half width of the ellipse's shadow, squared
        t2 = ((points - torch.tensor(centre, dtype=torch.float64)) * normal).sum(-1) ** 2 / r2
        total += height * a * b / r2.sqrt() * 16 / 15 * (1 - t2).clamp(min=0) ** 2.5
    return total


def exact(A: Tomography, center: float = 0.0, pitch: float = 1.0, source: float = 0.0, behind: float = 0.0) -> Tensor:
    """The sinogram of :func:`ellipses`, from the places of source and detector elements (pixels)."""
    size, views, detectors = A.geometry.size, len(A.angles), A.geometry.detectors
    theta = torch.deg2rad(A.angles).view(views, 1, 1)
    along = torch.cat([theta.cos(), theta.sin()], -1)
    forward = torch.cat([-theta.sin(), theta.cos()], -1)
    s = ((torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2 - center) * pitch).view(1, detectors, 1)
    elements = s * along + behind * forward
    directions = elements + source * forward if source else forward.expand_as(elements)
    return line_integrals(elements / size, directions)[None, None]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("size, limit", [(63, 1.6e-3), (64, 1.6e-3), (65, 1.6e-3), (128, 4e-4), (256, 1e-4)])
def test_parallel_sinogram(size: int, limit: float) -> None:
    A = Tomography(size, 45)
    assert relative(A.A(ellipses(size)), exact(A)) < limit


@pytest.mark.parametrize("size, limit", [(64, 1.6e-3), (65, 1.6e-3), (128, 4e-4)])
def test_fan_sinogram(size: int, limit: float) -> None:
    A = Tomography(size, 45, "fan")
    assert relative(A.A(ellipses(size)), exact(A, pitch=1.5, source=2 * size, behind=size)) < limit


def test_axis_pitch_and_distances() -> None:
    angles = [0.0, 17.0, 45.0, 90.0, 133.0, 300.0]
    A = Tomography(64, angles, detectors=70, center=-3.3, pitch=1.3)
    assert relative(A.A(ellipses(64)), exact(A, center=-3.3, pitch=1.3)) < 1.6e-3
    options: dict[str, Any] = {"center": 2.6, "pitch": 1.7}
    A = Tomography(64, angles, "fan", detectors=80, source_distance=100, detector_distance=75.5, **options)
    assert relative(A.A(ellipses(64)), exact(A, source=100, behind=75.5, **options)) < 1.6e-3


@pytest.mark.parametrize("size", [16, 17])
def test_unit_is_the_side_of_the_image(size: int) -> None:
    y = Tomography(size, [0.0, 90.0], detectors=size).A(torch.ones(1, 1, size, size, dtype=torch.float64))
    assert torch.allclose(y, torch.ones_like(y), atol=1e-12)


def test_orientation() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 1, 6] = 9.0  # two to the right of the centre, three above it
    y = Tomography(9, [0.0, 90.0], detectors=9).A(x)[0, 0]
    assert y[0].argmax() == 4 + 2 and y[1].argmax() == 4 + 3


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_every_ray_of_the_image_is_detected(geometry: Any) -> None:
    A = Tomography(20, 30, geometry)
    wide = Tomography(20, 30, geometry, detectors=A.geometry.detectors + 20)
    x = torch.ones(1, 1, 20, 20, dtype=torch.float64)
    assert torch.allclose(wide.A(x)[..., 10:-10], A.A(x))
    assert wide.A(x)[..., :10].abs().max() < 0.05 and wide.A(x)[..., -10:].abs().max() < 0.05


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_gradients_and_view_by_view_projection(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    A = Tomography(13, 9, geometry, center=0.4)
    x = torch.randn(2, 3, 13, 13, dtype=torch.float64, requires_grad=True)
    y = A.A(x)
    v = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * v).sum(), x)
    assert torch.equal(grad, A.A_adjoint(v))
    assert torch.equal(torch.func.jvp(A.A, (x,), (x,))[1], y)
    assert torch.autograd.gradcheck(A.A_adjoint, v[:1, :1].clone().requires_grad_())
    monkeypatch.setattr(tomography, "CACHE_BYTES", 0)
    assert relative(A.A(x.detach()), y.detach()) < 1e-14 and relative(A.A_adjoint(v), grad) < 1e-14
    assert torch.equal(torch.autograd.grad((A.A(x) * v).sum(), x)[0], A.A_adjoint(v))


def test_precisions_agree() -> None:
    A, x = Tomography(32, 20), ellipses(32)
    assert A.A(x).dtype == torch.float64 and relative(A.A(x.float()).double(), A.A(x)) < 1e-6


def test_image_alone_and_in_a_batch() -> None:
    A = Tomography(24, 20, "fan")
    x = torch.rand(5, 2, 24, 24)
    y = A.A(x)
    for call, value in ((A.A, x), (A.A_adjoint, y), (A.fbp, y), (A.A_dagger, y)):
        assert torch.equal(call(value)[3:4], call(value[3:4]))


def disk(size: int) -> Tensor:
    """A disk of height 0.7 off the centre, pixels being averages."""
    at = (torch.arange(8 * size, dtype=torch.float64) + 0.5) / (8 * size) - 0.5
    fine = 0.7 * ((at[None, :] - 0.1) ** 2 + (at[:, None] + 0.05) ** 2 < 0.3**2)
    return fine.view(1, 1, size, 8, size, 8).mean((3, 5))


GOLDEN = [i * 180 / ((1 + 5**0.5) / 2) % 180 for i in range(144)]


@pytest.mark.parametrize(
    "angles, geometry, options",
    [
        (120, "parallel", {}),
        (torch.linspace(0, 180, 121), "parallel", {}),  # both ends: the same view twice
        (torch.linspace(0, 360, 241)[:-1], "parallel", {}),
        (GOLDEN, "parallel", {}),
        (120, "parallel", {"center": 2.3, "pitch": 0.8, "detectors": 130}),
        (240, "fan", {}),
        (240, "fan", {"center": -1.6, "source_distance": 90, "detector_distance": 0}),
    ],
)
def test_filtered_back_projection_of_a_disk(angles: Any, geometry: Any, options: dict[str, Any]) -> None:
    x = disk(64)
    A = Tomography(64, angles, geometry, **options)
    found = A.fbp(A.A(x))
    inside = torch.nn.functional.avg_pool2d(x, 7, 1, 3) > 0.699  # away from the edge
    assert abs(float(found[inside].mean()) / 0.7 - 1) < 5e-3
    assert float((found - x)[inside].abs().max()) < 0.04
    assert relative(found, x) < 0.1


def test_filtered_back_projection_of_smooth_ellipses() -> None:
    x, at = ellipses(64), torch.arange(64) - 31.5
    circle = at[:, None] ** 2 + at**2 < 31**2  # beyond it, 64 detectors see a pixel in some views only
    close = Tomography(64, 240, "fan", source_distance=60)
    for A in (Tomography(64, 120, detectors=64), Tomography(64, 240, "fan"), close):
        assert relative(A.fbp(A.A(x)) * circle, x) < 0.01


def test_hann_window_is_smoother() -> None:
    A = Tomography(64, 60)
    noise = torch.randn(1, 1, 60, A.geometry.detectors, generator=torch.Generator().manual_seed(0))
    assert A.fbp(noise, "hann").std() < 0.5 * A.fbp(noise).std()
    blurred = A.fbp(A.A(ellipses(64)), "hann")
    assert relative(blurred, ellipses(64)) < 0.05
    assert abs(float(blurred.mean() / ellipses(64).mean()) - 1) < 2e-3


def test_missing_wedge() -> None:
    A = Tomography(64, torch.arange(0.0, 150.0, 1.5))
    assert float(A.fbp(A.A(disk(64))).abs().max()) < 1.1  # no view is blown up to stand for the missing ones
    fan = Tomography(64, torch.arange(0.0, 220.0, 2.0), "fan")
    with pytest.raises(ValueError, match="all the way round"):
        fan.fbp(fan.A(disk(64)))


@pytest.mark.parametrize("views", [4, 40])
def test_pseudo_inverse_converges(views: int) -> None:
    A = Tomography(16, views)
    matrix = A.A(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)).flatten(1).T
    y = A.A(torch.rand(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    truth = torch.linalg.pinv(matrix, rtol=1e-8) @ y.flatten()
    assert relative(A.A_dagger(y).flatten(), truth) < 5e-3  # condition number 84 and 280, squared in the equations
    assert relative(A.A(A.A_dagger(y)), y) < 1e-4


def test_matrices_are_shared_bounded_and_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tomography, "_matrices", OrderedDict())
    x = torch.rand(1, 1, 32, 32)
    for _ in range(2):
        A = Tomography(32, 40)
        y = A.A(x)
    assert len(tomography._matrices) == 1
    data = pickle.dumps(A)
    assert len(data) < 2000 and torch.equal(pickle.loads(data).A(x), y)
    (entry,) = tomography._matrices.values()
    assert entry[2] == sum(m.values().nbytes + m.col_indices().nbytes for m in entry[:2])
    monkeypatch.setattr(tomography, "CACHE_BYTES", 2 * entry[2])
    for views in (38, 39, 38, 37):
        Tomography(32, views).A(x)
        assert sum(size for *_, size in tomography._matrices.values()) <= tomography.CACHE_BYTES
    assert [len(key[0].degrees) for key in tomography._matrices] == [38, 37]


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"geometry": "cone"}, "parallel"),
        ({"size": 1}, "at least 2"),
        ({"angles": 0}, "at least 1"),
        ({"angles": [0.0, math.nan]}, "finite"),
        ({"pitch": 0.0}, "pitch"),
        ({"detectors": 0}, "detectors"),
        ({"source_distance": 100.0}, "fan"),
        ({"geometry": "fan", "source_distance": 10.0}, "outside the image"),
    ],
)
def test_impossible_geometry(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Tomography(**{"size": 32, "angles": 10, **arguments})


def test_wrong_images() -> None:
    A = Tomography(32, 10)
    with pytest.raises(ValueError, match="32, 32"):
        A.A(torch.rand(1, 1, 32, 31))
    with pytest.raises(ValueError, match="measurement"):
        A.A_adjoint(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="window"):
        A.fbp(A.A(torch.rand(1, 1, 32, 32)), "cosine")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float32"):
        A.A(torch.rand(1, 1, 32, 32).half())
