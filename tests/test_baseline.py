"""Total variation: adjoint, known minimisers, convergence, and agreement with scikit-image."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from skimage import data
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from invdiff import operators
from invdiff.baseline import best_tv, gradient, gradient_adjoint, psnr, total_variation, tv

TASKS = {
    "denoise": lambda: operators.Denoising(noise=0.1),
    "inpaint": lambda: operators.Inpainting(mask=random_mask(64, 64), noise=0.05),
    "deblur": lambda: operators.Blur(operators.parse_kernel("gaussian:2.0"), noise=0.02),
    "superres": lambda: operators.Downsampling(4, kernel="bicubic", noise=0.02),
}


def random_mask(height: int, width: int) -> Tensor:
    return (torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def photograph(channels: int = 3) -> Tensor:
    x = torch.from_numpy(data.astronaut()[60:124, 180:244].copy()).permute(2, 0, 1)[None].float() / 255
    return x if channels == 3 else x.mean(1, keepdim=True)


def objective(x: Tensor, y: Tensor, A: Any, weight: float) -> float:
    return float(0.5 * (A.A(x) - y).square().sum() + weight * total_variation(x).sum())


def test_gradient_and_its_adjoint() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 37, 31, generator=g, dtype=torch.float64)
    p = torch.randn(2, 3, 37, 31, 2, generator=g, dtype=torch.float64)
    left, right = (gradient(x) * p).sum(), (x * gradient_adjoint(p)).sum()
    assert abs(left - right) < 1e-12 * gradient(x).norm() * p.norm()


def test_total_variation_of_a_straight_edge() -> None:
    x = torch.zeros(1, 3, 20, 20)
    x[..., 10:] = 0.5  # one straight edge of 20 pixels, height 0.5 in three channels
    torch.testing.assert_close(total_variation(x), torch.tensor([20 * 0.5 * 3**0.5]))


def test_a_step_shrinks_as_the_closed_form_says() -> None:
    """Two halves of a strip at 0.2 and 0.8: each moves towards the other by weight * height / area."""
    y = torch.full((1, 1, 8, 16), 0.2, dtype=torch.float64)
    y[..., 8:] = 0.8
    expected = torch.where(y < 0.5, y + 0.4 / 8, y - 0.4 / 8)
    x = tv(y, operators.Denoising(noise=0.0), 0.4, iterations=3000)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_denoising_agrees_with_scikit_image(seed: int) -> None:
    """Measured over these draws: at most 1.3e-3 in a pixel, 8e-5 in the mean; eps keeps theirs from stopping early."""
    x = photograph(1)
    A = operators.Denoising(noise=0.1)
    y = A.measure(x, seed).double()
    ours = tv(y, A, 0.1, iterations=1000, box=False)
    theirs = torch.from_numpy(denoise_tv_chambolle(y[0, 0].numpy(), weight=0.1, eps=1e-12, max_num_iter=3000))[
        None, None
    ]
    assert (ours - theirs).abs().max() < 2e-3
    assert (ours - theirs).square().mean().sqrt() < 2e-4
    assert objective(ours, y, A, 0.1) <= objective(theirs, y, A, 0.1) * (1 + 1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_objective_falls_and_psnr_has_converged(task: str) -> None:
    x, A, weight = photograph(), TASKS[task](), 0.02
    y = A.measure(x, 0)
    runs = [tv(y, A, weight, iterations=n) for n in (5, 20, 80, 150, 1500)]
    values = [objective(run, y, A, weight) for run in runs]
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(values)), values
    assert abs(psnr(runs[-2], x) - psnr(runs[-1], x)) < 0.02
    assert 0 <= runs[-2].min() and runs[-2].max() <= 1


@pytest.mark.parametrize("task", TASKS)
def test_an_image_is_the_same_alone_and_in_a_batch(task: str) -> None:
    x = torch.cat([photograph(), photograph().flip(-1)])
    A = TASKS[task]()
    y, weight = A.measure(x, 0), torch.tensor([0.01, 0.05])
    both = tv(y, A, weight, iterations=30)
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], tv(y[i : i + 1], A, float(weight[i]), iterations=30), atol=1e-5, rtol=0
        )


def test_best_weight_is_found_between_the_grid_points() -> None:
    x, A = photograph(), TASKS["denoise"]()
    y = A.measure(x, 0)
    found = best_tv(y, A, x, [0.02, 0.04, 0.08, 0.16])
    fine = max(float(psnr(tv(y, A, w), x)) for w in torch.linspace(0.04, 0.16, 25).tolist())
    assert float(found.psnr) > fine - 0.02
    torch.testing.assert_close(found.psnr, psnr(found.x, x))
    torch.testing.assert_close(found.x, tv(y, A, found.weight))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        tv(photograph(), operators.Denoising(noise=0.1), weight)
