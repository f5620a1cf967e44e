"""The denoising network, its weights files, the registry of priors, and the wrapper for any denoiser."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepinv.models import Denoiser, MedianFilter
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from invdiff import priors
from invdiff.priors import DenoisingUNet, Gaussian, NetworkConfig, Recipe, as_prior, cards, network, registry
from invdiff.priors.data import load_data
from invdiff.priors.evaluation import denoising_psnr, denoising_rmse, measured
from invdiff.priors.sampling import sheet
from invdiff.priors.weights_io import save_weights


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> DenoisingUNet:
    """A small network whose layers all matter: those that start at zero get random weights."""
    return tiny(seed=0)


def tiny(seed: int, channels: int = 3) -> DenoisingUNet:
    unet = DenoisingUNet(NetworkConfig(channels=channels, widths=(8, 16), blocks=1, patch=2)).requires_grad_(False)
    for i, (_, p) in enumerate(sorted(unet.named_parameters())):
        fan_in = p[0].numel() if p.ndim > 1 else 4
        p.copy_(
            (randn(*p.shape, seed=100 * seed + i) / math.sqrt(2 * fan_in)).half()
        )  # a file in fp16 holds them exactly
    return unet.eval()


@pytest.fixture(params=["bf16", "float32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run in bf16 where this machine does so by itself, and in float32; the tolerance in units of the image."""
    if request.param == "bf16" and network.has_bf16(torch.device("cpu")):
        return {"rtol": 0.0, "atol": 1e-2}
    monkeypatch.setattr(network, "has_bf16", lambda device: False)
    return {"rtol": 0.0, "atol": 2e-6}


# Network


def test_images_of_a_batch_do_not_mix(net: DenoisingUNet, precision: Any) -> None:
    x, sigma = 0.5 + randn(3, 3, 24, 20), torch.tensor([0.05, 0.4, 3.0])
    together = net(x, sigma)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], float(sigma[i])), together[i : i + 1], **precision)
    assert float((net(x, 0.4) - together)[0].abs().max()) > 10 * precision["atol"]  # the noise level does matter


def test_odd_sizes_are_padded_by_reflection(net: DenoisingUNet, precision: Any) -> None:
    x = 0.5 + randn(2, 3, 37, 31)
    out = net(x, 0.3)
    assert out.shape == x.shape
    padded = F.pad(x, (0, 1, 0, 3), mode="reflect")
    torch.testing.assert_close(out, net(padded, 0.3)[..., :37, :31], **precision)
    assert net(x[..., :1, :2], 0.3).shape == (2, 3, 1, 2)  # too small to reflect


def test_a_pixel_depends_on_its_neighbourhood_only(net: DenoisingUNet, precision: Any) -> None:
    x = 0.5 + randn(1, 3, 96, 96)
    whole, part = net(x, 0.3), net(x[..., 16:80, 16:80], 0.3)
    torch.testing.assert_close(part[..., 28:36, 28:36], whole[..., 44:52, 44:52], **precision)


def test_gray_images_are_their_three_equal_channels(net: DenoisingUNet) -> None:
    x = 0.5 + randn(2, 1, 16, 12)
    out = net(x, 0.3)
    assert out.shape == x.shape
    torch.testing.assert_close(out, net(x.expand(-1, 3, -1, -1), 0.3).mean(1, keepdim=True), rtol=0, atol=1e-6)
    for channels, wrong in ((3, 2), (1, 3), (2, 1)):
        with pytest.raises(ValueError, match=rf"\(B, {channels}, H, W\)"):
            tiny(0, channels)(torch.zeros(1, wrong, 8, 8), 0.1)
    with pytest.raises(ValueError, match="batch axis"):
        net(x[0], 0.1)


def test_preconditioning_beyond_the_trained_range(net: DenoisingUNet, precision: Any) -> None:
    n = randn(1, 3, 16, 16)
    x = 0.2 + 0.1 * n
    torch.testing.assert_close(net(x, 1e-6), x, rtol=0, atol=1e-5)
    fresh = DenoisingUNet(NetworkConfig(widths=(8, 16), blocks=1, patch=2))  # its last layer is zero: F = 0
    torch.testing.assert_close(fresh(0.5 + 1e3 * n, 1e3), torch.full_like(n, 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(fresh(x, 0.25), 0.5 + (x - 0.5) / 2)
    # Pure noise looks the same at every level past the range, as long as the network is told the same level.
    torch.testing.assert_close(net(0.5 + 1e3 * n, 1e3), net(0.5 + 1e4 * n, 1e4), rtol=0, atol=precision["atol"] + 1e-3)


def test_network_is_differentiable_and_keeps_float64(net: DenoisingUNet) -> None:
    double = tiny(seed=0).double()
    x = (0.5 + randn(1, 3, 8, 8).double()).requires_grad_()
    out = double(x, 0.3)
    assert out.dtype == torch.float64
    direction = randn(1, 3, 8, 8, seed=1).double()
    (grad,) = torch.autograd.grad((out * direction).sum(), x)
    step = randn(1, 3, 8, 8, seed=2).double()
    numeric = ((double(x + 1e-5 * step, 0.3) - double(x - 1e-5 * step, 0.3)) * direction).sum() / 2e-5
    torch.testing.assert_close((grad * step).sum(), numeric, rtol=1e-6, atol=0)
    torch.testing.assert_close(net(x.detach().float(), 0.3).double(), out.detach(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_round_less_than_the_noise(dtype: torch.dtype, net: DenoisingUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network removes is of the order of sigma, and so is its rounding; the image itself keeps its digits."""
    monkeypatch.setattr(network, "has_bf16", lambda device: False)
    rounded = tiny(seed=0).to(dtype)
    n, x0 = randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for sigma in (0.0, 0.002, 0.02, 0.2, 2.0, 20.0):
        x = x0 + sigma * n
        out, double = rounded(x, sigma), rounded(x.double(), sigma)
        assert out.dtype == torch.float32 and double.dtype == torch.float64 and rounded(x.to(dtype), sigma).dtype == dtype
        assert float((out - net(x, sigma)).square().mean().sqrt()) <= 0.02 * sigma + 1e-7, sigma
        assert float((double - net(x, sigma)).square().mean().sqrt()) <= 0.02 * sigma + 1e-7, sigma


def test_compiled_once_for_many_sizes_and_every_level(net: DenoisingUNet) -> None:
    """torch.compile's own counter in place of its slow back end: one graph for each way to treat a size, whatever the level."""
    from torch._dynamo.testing import CompileCounter  # takes a second to import

    counter, compiled = CompileCounter(), tiny(seed=0)
    compiled.compile(backend=counter)
    for shape in ((1, 3, 16, 16), (4, 3, 24, 20), (3, 1, 37, 31)):
        x = 0.5 + randn(*shape)
        for sigma in (0.05, 0.31, 2.0, torch.full(shape[:1], 0.4)):
            torch.testing.assert_close(compiled(x, sigma), net(x, sigma), rtol=0, atol=1e-2)
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs"
    assert all(torch.equal(a, b) for a, b in zip(compiled.state_dict().values(), net.state_dict().values()))


# Weights files and the registry


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: DenoisingUNet) -> Path:
    """A weights folder with one prior, its card and its checksum."""
    save_weights(net, tmp_path / "tiny.safetensors")
    (tmp_path / "tiny.md").write_text("# tiny\n")
    digest = hashlib.sha256((tmp_path / "tiny.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  tiny.safetensors\n")
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    return tmp_path


def test_load_by_name_and_by_path(shipped: Path, net: DenoisingUNet, precision: Any) -> None:
    assert priors.names() == ["tiny"]
    assert priors.card("tiny") == "# tiny\n"
    x = 0.5 + randn(1, 3, 16, 16)
    for loaded in (priors.load("tiny"), priors.load(shipped / "tiny.safetensors"), pickle.loads(pickle.dumps(net))):
        assert loaded.config == net.config
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values()))
        torch.testing.assert_close(loaded(x, 0.3), net(x, 0.3), **precision)


def test_unknown_names(shipped: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown prior 'natrual'; priors that ship: tiny"):
        priors.load("natrual")
    with pytest.raises(ValueError, match="unknown prior 'x'"):
        priors.card("x")


def test_damaged_install(shipped: Path) -> None:
    path = shipped / "tiny.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="corrupt install"):
        priors.load("tiny")
    path.write_bytes(whole)
    priors.load("tiny")
    (shipped / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="corrupt install"):
        priors.load("tiny")


def test_bad_files(shipped: Path, tmp_path: Path) -> None:
    whole = (shipped / "tiny.safetensors").read_bytes()
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        priors.load(path)
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"not weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            priors.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not one of an invdiff network"):
        priors.load(path)
    for header in ({}, {"config": "{"}, {"config": "{}"}, {"config": '{"widths": [8], "depth": 3}'}):
        save_file({"weight": torch.zeros(3)}, path, {"format": "invdiff-unet", **header})
        with pytest.raises(ValueError, match="does not describe a network"):
            priors.load(path)
    nan, inf = float("nan"), float("inf")
    many = {f"weight{i}": torch.zeros(3) for i in range(9)}
    odd = {"std": [0.0, -0.1, nan, inf, "x"], "mean": [nan, None], "sigma_min": [-0.1, 0.0, 30.0, nan], "sigma_max": [nan, inf]}
    odd |= {"widths": [[], [0], [8.5]], "channels": [0], "blocks": [-1], "patch": [0]}
    for key, value in ((key, value) for key, values in odd.items() for value in values):
        config = json.dumps({"widths": [8, 16], key: value})
        save_file(many, path, {"format": "invdiff-unet", "config": config})
        with pytest.raises(ValueError, match=f"{path}: its header does not describe a network .*get the file again"):
            priors.load(path)
    save_file({"weight": torch.tensor([0, 1])}, path, {"format": "invdiff-unet"})
    with pytest.raises(ValueError, match=f"{path}: weight holds torch.int64, weights are floats"):
        priors.load(path)
    save_file({"weight": torch.tensor([0.0, nan])}, path, {"format": "invdiff-unet"})
    with pytest.raises(ValueError, match=f"{path}: weight holds values that are not finite"):
        priors.load(path)
    config = json.dumps({"widths": [8, 16], "blocks": 2})
    save_file(many, path, {"format": "invdiff-unet", "config": config})
    with pytest.raises(ValueError, match="do not fit"):
        priors.load(path)


@pytest.mark.parametrize("huge", [{"blocks": 10**5}, {"widths": [10**5]}, {"widths": [8] * 10**4}, {"patch": 4096}, {"channels": 10**30}])
def test_a_header_that_asks_for_a_huge_network_is_refused_before_it_is_built(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, huge: dict[str, Any]
) -> None:
    """The weights of one, the header of another; nothing but shapes may be made of it."""
    tensors, path = load_file(shipped / "tiny.safetensors"), tmp_path / "mine.safetensors"
    config = asdict(priors.load("tiny").config) | huge
    save_file(tensors, path, {"format": "invdiff-unet", "config": json.dumps(config)})
    init = torch.nn.Conv2d.__init__

    def on_meta(self: torch.nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        assert torch.empty(0).device.type == "meta"
        init(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", on_meta)
    with pytest.raises(ValueError, match=f"{path}: .*(does not describe|do not fit)"):
        priors.load(path)


def test_names_that_cannot_be_files_are_refused_like_others(shipped: Path) -> None:
    for name in ("", "n" * 300, "a\0b", ".safetensors", "n" * 300 + ".safetensors", "a\0b.safetensors", "adm:" + "n" * 300, "adm:a\0b"):
        with pytest.raises(ValueError, match="unknown prior .*priors that ship|no weights at .*no such file") as error:
            priors.load(name)
        assert "\0" not in str(error.value)


def test_a_damaged_list_of_checksums_is_a_corrupt_install(shipped: Path) -> None:
    for damage in (b"\xff\xfe\0", b"tiny.safetensors\n", b"\n\n"):
        (shipped / "SHA256SUMS").write_bytes(damage)
        with pytest.raises(ValueError, match="SHA256SUMS: corrupt install, reinstall invdiff"):
            priors.load("tiny")


def test_a_folder_stands_for_the_finished_weights_in_it(shipped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="0 files of finished weights.*it holds no .safetensors files"):
        priors.load(run)
    whole = (shipped / "tiny.safetensors").read_bytes()
    (run / "checkpoint.safetensors").write_bytes(whole)
    (run / "autoencoder-checkpoint.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match="it holds autoencoder-checkpoint.safetensors, checkpoint.safetensors; let `invdiff train` finish"):
        priors.load(run)
    (run / "mine.safetensors").write_bytes(whole)
    (run / "mine.md").write_text("---\nsize: 28\n---\n")
    assert torch.equal(priors.load(run).stem.weight, priors.load("tiny").stem.weight)
    assert cards.header(run) == {"size": 28}
    (run / "mine-lora.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match="2 files of finished weights, .*mine-lora.safetensors, mine.safetensors; give one of them"):
        priors.load(run)


def test_every_prior_that_ships_loads_and_has_a_card() -> None:
    listed = (registry.WEIGHTS / "SHA256SUMS").read_text().split()[1::2] if priors.names() else []
    assert sorted(listed) == sorted(f"{name}.safetensors" for name in priors.names())
    bar = torch.zeros(1, 1, 32, 32)  # which a digit, a photograph and a slice of a body may hold
    bar[..., 8:24, 14:18] = 0.8
    for name in priors.names():
        prior, known = priors.load(name), cards.header(name)
        if isinstance(prior, priors.LatentPrior):
            x0 = bar.expand(1, prior.autoencoder.config.channels, 32, 32)
            assert float((prior.project(x0) - x0).square().mean().sqrt()) < 0.1
            assert known["reconstruction"] > 25
        else:
            x0 = bar.expand(1, prior.config.channels, 32, 32)
            x = x0 + 0.2 * randn(*x0.shape)
            assert float((prior(x, 0.2) - x0).square().mean().sqrt()) < 0.1  # half of the noise at most is left
            assert known["psnr"][25] > 20
        errors = list(known["rmse"].values())
        assert errors == sorted(errors) and known["bias"] < 0.1  # less noise, less error; no bias where there is little
        assert 0.85 < errors[-1] / known["spread"] < 1.15, name  # the mean of all images, where there is nothing but noise
        assert known.get("distance", 0) <= 2.5 * known.get("distance_real", 0), name
        assert "Data and terms" in priors.card(name)
        assert known["about"] and known["size"] and known["held_out"]
        assert "commercial" in known["terms"], name  # whether weights and results may be used so, or that it is not stated
        with Image.open(registry.WEIGHTS / f"{name}.png") as picture:
            assert picture.size[0] > 100 and f"]({name}.png)" in priors.card(name)
        assert len(priors.describe(name).splitlines()) == 4


def test_the_figures_of_a_card_are_those_of_its_weights() -> None:
    """Recomputed for the prior whose held-out images need no files, at a low and at a high level."""
    prior, known = priors.load("phantom"), cards.header("phantom")
    held = measured(load_data(Recipe.load("phantom"), None, None)[1])
    assert denoising_psnr(prior, held, 25 / 255) == pytest.approx(known["psnr"][25], abs=0.03)  # of processors without bf16, too
    assert denoising_rmse(prior, held, 20.0) == pytest.approx(known["rmse"][20.0], rel=0.005)


def test_the_sheet_of_a_card_is_what_its_weights_draw() -> None:
    drawn = sheet(priors.sample(priors.load("mnist"), (8, 1, 28, 28)), columns=8)
    with Image.open(registry.WEIGHTS / "mnist.png") as picture:
        first_row = torch.from_numpy(np.asarray(picture)[:32].copy()) / 255
    assert float((drawn[0, 0] - first_row).abs().mean()) < 0.02  # other digits differ by 0.12


# Any denoiser as a prior


class Shrink(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.gain * x / (1 + sigma**2)


def test_functions_and_modules_become_priors() -> None:
    x, level = randn(2, 3, 4, 4), torch.full((2,), 0.5)
    for prior in (as_prior(lambda x, sigma: 2 * x / (1 + sigma**2)), as_prior(Shrink()), as_prior(Shrink().forward)):
        assert isinstance(prior, Denoiser)
        assert (prior.mean, prior.std, prior.sigma_min, prior.sigma_max) == (0.5, 0.25, 0.002, 20.0)
        for sigma in (0.5, level, level[:1], level[0]):  # (B,) would not broadcast against (B, C, H, W)
            torch.testing.assert_close(prior(x, sigma), 1.6 * x)
        assert as_prior(prior) is prior
    assert len(list(as_prior(Shrink()).parameters())) == 1  # so that .to(device) reaches them


def test_a_level_an_image_is_handed_on() -> None:
    seen: list[Any] = []

    def record(x: Tensor, sigma: float | Tensor) -> Tensor:
        seen.append(sigma)
        return x

    level = torch.tensor([0.1, 0.2])
    as_prior(record)(randn(2, 1, 4, 4), level)
    assert seen[0] is level


def test_metadata_of_the_denoiser_is_kept(net: DenoisingUNet) -> None:
    module = Shrink()
    module.mean, module.sigma_max = 0.0, 80.0  # type: ignore[assignment]
    module.std = module.forward  # type: ignore[assignment]  # a method of that name is no number
    prior = as_prior(module)
    assert (prior.mean, prior.std, prior.sigma_min, prior.sigma_max) == (0.0, 0.25, 0.002, 80.0)
    gaussian = Gaussian(0.5, torch.ones(1, 2, 2))
    for complete in (net, gaussian):
        assert as_prior(complete) is complete
    x = randn(1, 3, 8, 8)
    median = MedianFilter(kernel_size=3)
    assert torch.equal(as_prior(median)(x, 0.1), median(x, 0.1))


def test_load_takes_what_is_a_prior_already(net: DenoisingUNet) -> None:
    latent = priors.load("mnist-latent")
    assert priors.load(net) is net and priors.load(latent) is latent
    for denoiser in (Shrink(), lambda x, sigma: 2 * x / (1 + sigma**2)):
        torch.testing.assert_close(priors.load(denoiser)(torch.ones(2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 1.6))
    with pytest.raises(TypeError, match="a prior that is there takes none"):
        priors.load(net, label=3)
    for wrong in (None, 3, Shrink):
        with pytest.raises(TypeError, match=r"called as prior\(x, sigma\)"):
            priors.load(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 0.5, torch.zeros(3), "natural", Shrink])
def test_not_a_denoiser(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"called as prior\(x, sigma\)"):
        as_prior(wrong)


def test_import_adds_little_to_that_of_deepinv() -> None:
    code = (
        "import sys, deepinv.models, deepinv.physics; before = set(sys.modules); import invdiff.priors; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name for name in run.stdout.split() if not name.startswith("_")}
    assert added <= {"invdiff", "yaml", "PIL"}


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    """A checksum names them, whenever and however often they are written."""
    net = DenoisingUNet(widths=(8, 8), blocks=1)
    files = set()
    for i in range(12):
        save_weights(net, tmp_path / f"{i}.safetensors")
        files.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(files) == 1
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(net.parameters(), priors.load(tmp_path / "0.safetensors").parameters()))


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_images_are_floats_and_noise_levels_are_levels(sigma: float) -> None:
    net = DenoisingUNet(widths=(8, 8), blocks=1)
    with pytest.raises(ValueError, match="0 or more and finite"):
        net(torch.zeros(1, 3, 8, 8), sigma)
    with pytest.raises(TypeError, match=r"images are floats in \[0, 1\], got torch.uint8; x.float\(\) / 255"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0.1)


LEVELS = [-0.1, float("nan"), float("inf"), 1e300, torch.tensor(-0.1), torch.tensor([0.1, -0.2]), torch.tensor([0.1, float("nan")]), torch.ones(3)]


@pytest.mark.parametrize("sigma", LEVELS, ids=str)
def test_noise_levels_that_are_none(sigma: float | torch.Tensor) -> None:
    net, x = DenoisingUNet(channels=1, widths=(8,), blocks=1), torch.rand(2, 1, 8, 8)
    for prior in (net, priors.KarrasPrior(lambda x, s: x)):
        with pytest.raises(ValueError, match="one for all images or one for each of 2"):
            prior(x, sigma)
    with pytest.raises(ValueError, match="images of shape"):
        net(x[:, :, :0], 0.1)


def test_empty_batches() -> None:
    for prior in (DenoisingUNet(channels=1, widths=(8,), blocks=1), priors.as_prior(lambda x, s: x)):
        assert prior(torch.zeros(0, 1, 8, 8), torch.zeros(0)).shape == (0, 1, 8, 8)


def test_weights_that_16_bits_cannot_hold_are_not_written(tmp_path: Path) -> None:
    net = DenoisingUNet(channels=1, widths=(8,), blocks=1)
    torch.nn.init.constant_(net.head.bias, 1e5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head.bias has values"):
        save_weights(net, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
