"""Scores of images and of posterior samples: closed forms first, then what is refused and what does not apply."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deepinv.loss.metric import PSNR
from scipy.stats import norm
from torch import Tensor

from invdiff import metrics
from invdiff.metrics import METRICS, measure

IMAGE = ["psnr", "ssim", "ms_ssim", "fsim", "gmsd", "haarpsi", "nmse"]
SINGLE = ["psnr_sample", "ssim_sample"]
POSTERIOR = ["crps", "coverage_50", "coverage_90", "spread_skill"]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(name: str, x: Tensor, truth: Tensor, samples: Tensor | None = None) -> float:
    found = measure(x, truth, samples=samples, names=[name])[name]
    assert found is not None
    return found


# Images


def test_psnr_and_nmse_have_their_closed_form() -> None:
    truth = torch.full((1, 3, 16, 16), 0.5)
    assert value("psnr", truth + 0.1, truth) == pytest.approx(20, abs=1e-4)
    assert value("nmse", truth + 0.1, truth) == pytest.approx(0.04, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", IMAGE)
def test_the_truth_is_best_and_more_noise_is_worse(name: str, channels: int) -> None:
    side = 161 if name == "ms_ssim" else 32
    smooth = torch.nn.functional.interpolate(rand(1, channels, 6, 6), size=(side, side), mode="bicubic").clamp(0, 0.7)
    noise = randn(1, channels, side, side).float()
    sign = 1 if METRICS[name].better == "higher" else -1
    perfect, good, bad = (sign * value(name, smooth + s * noise, smooth) for s in (0, 0.02, 0.1))
    assert perfect > good > bad
    assert perfect == pytest.approx({"psnr": 80, "gmsd": 0, "nmse": 0}.get(name, 1), abs=1e-6)


@pytest.mark.parametrize("name", [*IMAGE, *SINGLE, *POSTERIOR])
def test_a_batch_is_scored_as_the_mean_of_its_images(name: str) -> None:
    side = 161 if name == "ms_ssim" else 16
    truth, x, samples = rand(3, 1, side, side), rand(3, 1, side, side, seed=2), rand(4, 3, 1, side, side, seed=3)
    alone = [value(name, x[i : i + 1], truth[i : i + 1], samples[:, i : i + 1]) for i in range(3)]
    assert value(name, x, truth, samples) == pytest.approx(sum(alone) / 3, rel=1e-9)


def test_values_are_clamped_as_a_picture_is_except_for_nmse() -> None:
    truth = torch.ones(1, 1, 16, 16)
    found = measure(truth + 0.5, truth, names=["psnr", "ssim", "nmse"])
    assert found["psnr"] == 80 and found["ssim"] == pytest.approx(1) and found["nmse"] == pytest.approx(0.25)


def test_complex_images_are_scored_by_magnitude() -> None:
    magnitude, phase = rand(1, 1, 16, 16), 6 * rand(1, 1, 16, 16, seed=5)
    turned = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], 1)
    straight = torch.cat([magnitude, torch.zeros_like(magnitude)], 1)
    assert value("psnr", turned, straight) == pytest.approx(80, abs=1e-3)


def test_volumes_are_scored_slice_by_slice() -> None:
    truth, x = rand(1, 1, 3, 16, 16), rand(1, 1, 3, 16, 16, seed=2)
    alone = [value("ssim", x[:, :, d], truth[:, :, d]) for d in range(3)]
    assert value("ssim", x, truth) == pytest.approx(sum(alone) / 3)


def test_ssim_is_the_one_of_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    truth, x = (rand(1, 1, 300, 20, seed=s).double() for s in (0, 1))
    theirs = structural_similarity(
        truth[0, 0].numpy(), x[0, 0].numpy(), data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert value("ssim", x, truth) == pytest.approx(theirs, abs=1e-6)


# Posterior samples


def test_single_samples_are_scored_each_not_their_mean() -> None:
    """Samples 0.1 and 0.2 off have 20 and 13.98 dB, their mean 16.48; what applies to images applies to samples."""
    truth = torch.full((1, 3, 16, 16), 0.5)
    samples = torch.stack([truth + 0.1, truth + 0.2])
    assert value("psnr_sample", samples.mean(0), truth, samples) == pytest.approx(16.99, abs=0.01)
    assert value("psnr", samples.mean(0), truth, samples) == pytest.approx(16.48, abs=0.01)
    x, samples = rand(1, 3, 16, 16), rand(3, 1, 3, 16, 16, seed=2)
    alone = [value("ssim", s, x) for s in samples]
    assert value("ssim_sample", x, x, samples) == pytest.approx(sum(alone) / 3, rel=1e-9)
    assert measure(x[..., :8], x[..., :8], samples=samples[..., :8], names=SINGLE)["ssim_sample"] is None
    assert measure(x, x, names=SINGLE) == dict.fromkeys(SINGLE)


@pytest.mark.parametrize("count", [4, 10])
@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_crps_of_gaussian_samples_is_the_closed_form(count: int, spread: float) -> None:
    """E CRPS(N(0, s^2), t) over t ~ N(0, 1): sqrt(2 (1 + s^2) / pi) - s / sqrt(pi), whatever the number of samples."""
    truth, samples = randn(1, 1, 200, 200), spread * randn(count, 1, 1, 200, 200, seed=2)
    exact = math.sqrt(2 * (1 + spread**2) / math.pi) - spread / math.sqrt(math.pi)
    assert value("crps", truth, truth, samples) == pytest.approx(exact, abs=0.01)


def test_crps_of_one_number_against_the_integral() -> None:
    samples = 0.7 * randn(4000, 1, 1, 1, 1) + 0.2
    z = (0.5 - 0.2) / 0.7
    exact = 0.7 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert value("crps", samples[0], torch.full((1, 1, 1, 1), 0.5), samples) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [4, 9, 32])
def test_exact_samples_are_calibrated(count: int, paired: bool) -> None:
    """Independent or in antithetic pairs, few or many."""
    centre, truth = randn(1, 1, 150, 150), randn(1, 1, 150, 150, seed=2)
    noise = randn(count, 1, 1, 150, 150, seed=3)
    if paired:
        noise[1::2] = -noise[: count // 2 * 2 : 2]
    found = measure(centre, centre + 0.2 * truth, samples=centre + 0.2 * noise, names=POSTERIOR)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.012)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.008)
    assert found["spread_skill"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("spread", [0.4, 2.5])
def test_wrong_spreads_show(spread: float) -> None:
    truth, samples = randn(1, 1, 150, 150), spread * randn(16, 1, 1, 150, 150, seed=3)
    found = measure(truth, truth, samples=samples, names=POSTERIOR)
    assert found["spread_skill"] == pytest.approx(math.sqrt((1 + spread**2 / 8) / (spread**2 * (1 + 1 / 8))), rel=0.03)
    assert found["coverage_90"] is not None and (found["coverage_90"] < 0.6) == (spread < 1)


def test_residual_chi_square() -> None:
    x, noise = rand(1, 1, 8, 8), randn(2, 1, 100, 100)
    for residual, expected in ((noise, 1), (2 * noise, 4), (torch.complex(noise, noise), 2)):
        found = measure(x, x, residual=residual, names=["chi_square"])["chi_square"]
        assert found == pytest.approx(expected, rel=0.03)
    assert measure(x, x, names=["chi_square"]) == {"chi_square": None}


# What does not apply, and what is refused


@pytest.mark.parametrize("name", IMAGE)
def test_images_too_small_for_a_score_have_none(name: str) -> None:
    """Just below the smallest side there is no value, at it there is one."""
    least = metrics._SMALLEST.get(name, 1)
    assert math.isfinite(value(name, rand(1, 3, least, least), rand(1, 3, least, least, seed=1)))
    if least > 1:
        assert measure(rand(1, 3, least - 1, least), rand(1, 3, least - 1, least), names=[name]) == {name: None}


def test_too_few_samples_and_no_spread_have_no_value() -> None:
    truth = rand(1, 1, 8, 8)
    assert set(measure(truth, truth, samples=rand(3, 1, 1, 8, 8), names=POSTERIOR).values()) == {None}
    assert set(measure(truth, truth, names=POSTERIOR).values()) == {None}
    same = measure(truth, truth, samples=truth.expand(4, 1, 1, 8, 8) + 0.1, names=["spread_skill", "crps"])
    assert same["spread_skill"] is None and same["crps"] == pytest.approx(0.1)


@pytest.mark.parametrize("where", ["x", "truth", "samples", "residual"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(where: str, bad: float) -> None:
    given = {"x": rand(1, 1, 8, 8), "truth": rand(1, 1, 8, 8), "samples": rand(4, 1, 1, 8, 8), "residual": rand(1, 64)}
    given[where].flatten()[3] = bad
    with pytest.raises(ValueError, match=where):
        measure(**given)


def test_mistakes_are_named() -> None:
    x = rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"unknown metrics \['pnsr'\]; known: psnr"):
        measure(x, x, names=["pnsr"])
    with pytest.raises(ValueError, match="x and truth"):
        measure(x, rand(1, 1, 8, 9))
    with pytest.raises(ValueError, match="samples"):
        measure(x, x, samples=x)


def test_every_metric_is_described() -> None:
    assert {*IMAGE, *SINGLE, *POSTERIOR, "lpips", "dists", "chi_square"} == set(METRICS)
    for metric in METRICS.values():
        assert (metric.better == "target") == (metric.target is not None)
        assert any(char.isdigit() for char in metric.backend), "names the version"


# Weights that may not be there


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metrics._scorer.cache_clear()
    yield tmp_path / "checkpoints"
    metrics._scorer.cache_clear()


def test_without_weights_the_learned_metrics_are_absent_and_it_is_said_why(hub: Path) -> None:
    assert set(metrics.absent()) == {"lpips", "dists"}
    assert str(hub) in metrics.absent()["lpips"] and "vgg16" in metrics.absent()["lpips"]
    x = rand(1, 3, 16, 16)
    assert measure(x, x, names=["lpips", "dists"]) == {"lpips": None, "dists": None}


def test_with_weights_the_learned_metrics_are_there(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network and its weights are random here: only the way to them is tested, and that a perfect image is best."""
    from types import SimpleNamespace
    from urllib.parse import urlsplit

    import piq.perceptual
    from torchvision.models import VGG16_Weights
    from torchvision.models.vgg import cfgs, make_layers

    hub.mkdir()
    for url in (VGG16_Weights.IMAGENET1K_V1.url, piq.LPIPS._weights_url, piq.DISTS._weights_url):
        (hub / Path(urlsplit(url).path).name).touch()
    channels = [64, 128, 256, 512, 512]
    weights = {"lpips": [torch.ones(1, c, 1, 1) for c in channels], "dists": {k: torch.ones(1, 1475, 1, 1) for k in ("alpha", "beta")}}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: weights["lpips" if "lpips" in url else "dists"])
    with torch.device("meta"):
        features = make_layers(cfgs["D"])
    features = features.to_empty(device="cpu")
    for parameter in features.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    monkeypatch.setattr(piq.perceptual, "vgg16", lambda **_: SimpleNamespace(features=features))
    assert metrics.absent() == {}
    for channels_of_image in (1, 3):
        truth = rand(1, channels_of_image, 32, 32)
        for name in ("lpips", "dists"):
            assert value(name, rand(1, channels_of_image, 32, 32, seed=1), truth) > value(name, truth, truth) - 1e-9


def test_psnr_is_deepinvs() -> None:
    x, truth = rand(1, 3, 16, 16), rand(1, 3, 16, 16, seed=1)
    assert value("psnr", x, truth) == pytest.approx(float(PSNR()(x, truth)), abs=1e-4)
