"""Samples of a prior follow its law, and the figures on a card are what they say: checked on priors in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff.priors import Gaussian, GaussianMixture, Recipe, as_prior, sample
from invdiff.priors.cards import header
from invdiff.priors.evaluation import (
    denoising_bias,
    denoising_psnr,
    denoising_rmse,
    distances,
    evaluate,
    real_images,
    sliced_wasserstein,
    spread,
)
from invdiff.priors.sampling import TOGETHER, sheet, shown
from invdiff.samplers import DDPM, Heun, Sampler

SHAPE = (1, 4, 4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Samples


@pytest.mark.parametrize("sampler", [None, Heun(), DDPM()])
def test_samples_of_a_gaussian_have_its_mean_and_covariance(sampler: Sampler | None) -> None:
    factor = 0.1 * randn(16, 16) + 0.1 * torch.eye(16)
    mean, covariance, n = 0.5 + 0.1 * randn(*SHAPE, seed=1), factor @ factor.T, 2000
    options = {} if sampler is None else {"sampler": sampler, "steps": 150 if isinstance(sampler, DDPM) else 40}
    x = sample(Gaussian(mean, covariance), (n, *SHAPE), **options).flatten(1)  # type: ignore[arg-type]
    deviation = (x.mean(0) - mean.flatten()) / (covariance.diagonal() / n).sqrt()
    assert float(deviation.square().mean().sqrt()) < 1.6  # 1 where only chance is at work
    # Relative error of the covariance; chance alone makes about sqrt(rank / n)
    error = (x.T.cov() - covariance).norm() / covariance.norm()
    assert float(error) < 0.1


def test_modes_of_a_mixture_are_drawn_by_their_weights() -> None:
    prior = GaussianMixture(
        torch.tensor([0.25, 0.75]), torch.stack([torch.full(SHAPE, 0.3), torch.full(SHAPE, 0.7)]), 0.02**2
    )
    x = sample(prior, (400, *SHAPE))
    high = (x.mean((1, 2, 3)) > 0.5).float()
    assert float(high.mean()) == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 400))
    around = x - torch.where(high > 0, 0.7, 0.3).view(-1, 1, 1, 1)
    assert float(around.std()) == pytest.approx(0.02, rel=0.1)


def test_an_image_depends_on_seed_and_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Gaussian(0.5, torch.full(SHAPE, 0.04))
    shares: list[float] = []
    many = sample(prior, (5, *SHAPE), seed=3, steps=8, progress=shares.append)
    assert shares == [(i + 1) / 8 for i in range(8)]
    monkeypatch.setattr("invdiff.priors.sampling.TOGETHER", 2 * 16)
    torch.testing.assert_close(sample(prior, (5, *SHAPE), seed=3, steps=8, progress=shares.append), many)
    assert shares[8:] == pytest.approx([(i + 1) / 24 for i in range(24)]) and TOGETHER > 32
    torch.testing.assert_close(sample(prior, (2, *SHAPE), seed=3, steps=8), many[:2])
    assert float((sample(prior, (5, *SHAPE), seed=4, steps=8) - many).abs().min()) > 0
    for shape, steps in (((1, 4, 4), 8), ((0, 1, 4, 4), 8), ((1, 1, 4, 4), 0)):
        with pytest.raises(ValueError, match="shape is|steps is"):
            sample(prior, shape, steps=steps)  # type: ignore[arg-type]


def test_a_sheet_shows_every_image_once() -> None:
    images = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1).expand(5, 1, 6, 8)
    picture = sheet(images)
    assert picture.shape == (1, 1, 2 * 10, 3 * 12)
    assert picture[0, 0, 5, 5::12].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert picture[0, 0, 15, 5::12].tolist() == pytest.approx([0.7, 0.9, 1.0])  # the last place is empty
    assert shown(torch.tensor([-0.3, 0.4]).view(1, 2, 1, 1)).item() == pytest.approx(0.5)


# Figures


def test_errors_are_those_of_the_closed_form() -> None:
    """White Gaussian images of spread s: one denoising leaves s sigma / sqrt(s^2 + sigma^2), at high noise s."""
    s, prior = 0.1, Gaussian(0.5, torch.full((1, 32, 32), 0.01))
    images = list(0.5 + s * randn(40, 1, 32, 32, seed=99))
    for sigma in (0.02, 0.1, 5.0):
        left = s * sigma / math.hypot(s, sigma)
        assert denoising_rmse(prior, images, sigma) == pytest.approx(left, rel=0.02)
        assert denoising_psnr(prior, images, sigma) == pytest.approx(-20 * math.log10(left), abs=0.1)
    assert spread(images) == pytest.approx(s, rel=0.02)
    assert spread([im[:, :, :5] for im in images[:1]] + images[1:]) == pytest.approx(s, rel=0.02)  # of several sizes


def test_estimates_are_clipped_unless_complex() -> None:
    beyond = as_prior(lambda x, sigma: x * 0 + 1.5)
    assert denoising_psnr(beyond, [torch.full((1, 4, 4), 0.9)], 0.1) == pytest.approx(20.0, abs=1e-4)
    assert denoising_psnr(beyond, [torch.full((2, 4, 4), 1.4)], 0.1) == pytest.approx(20.0, abs=1e-4)


def test_bias_is_that_of_the_estimate_not_of_the_noise() -> None:
    images = list(0.5 + 0.1 * randn(6, 1, 4, 4))
    assert denoising_bias(as_prior(lambda x, sigma: x), images, 0.01) == pytest.approx(0, abs=1e-4)
    assert denoising_bias(as_prior(lambda x, sigma: x - 0.3 * sigma), images, 0.01) == pytest.approx(0.3, abs=1e-4)


def test_distance_tells_laws_apart() -> None:
    a, b = randn(64, 1, 28, 28), randn(64, 1, 28, 28, seed=1)
    same = sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, a) == 0 and sliced_wasserstein(a, b) == sliced_wasserstein(b, a)
    wider, smooth = 1.3 * b, torch.nn.functional.avg_pool2d(b, 3, 1, 1) * 3  # as wide, but correlated
    assert sliced_wasserstein(a, wider) > 3 * same and sliced_wasserstein(a, smooth) > 3 * same
    assert 0 < sliced_wasserstein(a, a + 0.5) < 0.5
    with pytest.raises(ValueError, match="28 pixels or more"):
        sliced_wasserstein(a, b[:3])


def test_evaluate_compares_samples_with_real_images() -> None:
    law = Gaussian(0.5, torch.full((1, 28, 28), 0.01))
    images = list(law.sample(80, seed=9))
    recipe = Recipe("law", channels=1, crop=28, generated=40)
    good = evaluate(law, images, recipe)
    bad = evaluate(Gaussian(0.5, torch.full((1, 28, 28), 0.02)), images, replace(recipe, generated=10**6))
    assert good.distance and good.distance_real and bad.distance
    assert good.distance < 1.5 * good.distance_real and bad.distance > 3 * good.distance
    assert list(good.psnr) == [5, 15, 25, 50, 100] and len(good.rmse) == 7
    assert list(good.rmse.values())[-1] == pytest.approx(good.spread, rel=0.05)
    assert good.bias < 0.1 and evaluate(law, images[:3]).distance is None
    assert evaluate(law, images[:1], recipe).distance is None  # nothing real to compare with


@pytest.mark.parametrize("channels", [1, 2])
def test_of_larger_images_crops_as_they_were_learned_are_compared(channels: int) -> None:
    """Two patients, one bright and one dark, each of similar slices, of several sizes: halves are patients, not every other slice."""
    kind = "photographs" if channels == 1 else "magnitude"
    recipe = Recipe("ct", images=kind, channels=channels, crop=28, generated=12, scales=(1.0, 0.75))
    images = [torch.full((channels, 40 + i, 60), 0.2 if i < 4 else 0.8) + 0.01 * randn(channels, 40 + i, 60, seed=i) for i in range(8)]
    found = real_images([*images, torch.zeros(channels, 20, 60)], recipe)  # the last is too small for a crop
    assert found is not None
    mixed, dark, bright = found
    assert mixed.shape == dark.shape == bright.shape == (12, channels, 28, 28)
    assert float(dark.mean()) == pytest.approx(0.2, abs=0.01) and float(bright.mean()) == pytest.approx(0.8, abs=0.01)
    assert 0.3 < float(mixed.mean()) < 0.7
    assert all(torch.equal(a, b) for a, b in zip(found, real_images(images, recipe) or ()))
    law = Gaussian(torch.full((channels, 28, 28), 0.5), 0.01)
    to_samples, to_real = distances(law, *found)
    assert to_real == pytest.approx(sliced_wasserstein(dark, bright)) and 0 < to_samples < to_real


# Cards


def test_headers_of_cards(tmp_path: Path) -> None:
    weights, card = tmp_path / "mine.safetensors", tmp_path / "mine.md"
    assert header(weights) == {}
    card.write_text("# no header\n")
    assert header(weights) == {}
    card.write_text("---\nsize: 28\npsnr: {25: 30.5}\n---\n# mine\n\n---\n")
    assert header(weights) == {"size": 28, "psnr": {25: 30.5}}
    for wrong in ("size: [", "- 3", "text"):
        card.write_text(f"---\n{wrong}\n---\n")
        with pytest.raises(ValueError, match=r"header of the card of .*mine.safetensors is not YAML"):
            header(weights)
    with pytest.raises(ValueError, match="unknown prior"):
        header("none")


def test_what_cannot_be_drawn_is_said() -> None:
    prior = Gaussian(torch.full(SHAPE, 0.5), 0.04)
    for shape in ((1, 2, 8), (0, *SHAPE), (2.0, *SHAPE), (-1, *SHAPE), (True, *SHAPE), ("2", *SHAPE), 4):
        with pytest.raises(ValueError, match="four positive whole numbers, got"):
            sample(prior, shape)  # type: ignore[arg-type]
    for steps in (2.5, 0, -1, True, float("inf"), "9"):
        with pytest.raises(ValueError, match="steps is a whole number, at least 1, got"):
            sample(prior, (1, *SHAPE), steps=steps)  # type: ignore[arg-type]
    for made, what in ((3, "int"), (None, "NoneType"), (torch.zeros(1, 1), r"a tensor of shape \(1, 1\)")):
        with pytest.raises(TypeError, match=f"clean ones of the same shape; .* this one made {what}"):
            sample(lambda x, sigma, made=made: made, (1, *SHAPE))
