"""Latent priors of our own: the autoencoder, its training before that of the denoiser, and the file that holds both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff import operators, priors, solve
from invdiff.priors import DenoisingUNet, LatentPrior, Recipe, cards, data, registry, sample, train
from invdiff.priors.autoencoder import Autoencoder, AutoencoderConfig, latent_prior, reconstruction_loss
from invdiff.priors.evaluation import reconstruction_psnr
from invdiff.priors.recipe import AutoencoderRecipe
from invdiff.priors.weights_io import load_weights, save_weights

CODE = AutoencoderRecipe(latents=2, widths=(4, 8), steps=3)
TINY = Recipe(
    "toy", "Toys", "ellipses", 1, (8,), 1, crop=28, batch=2, steps=3, holdout=4, generated=2, autoencoder=CODE
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def autoencoder(seed: int = 0) -> Autoencoder:
    """One whose layers all matter, also those that start at zero."""
    torch.manual_seed(seed)
    net = Autoencoder(AutoencoderConfig(1, 2, (4, 8, 8)))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / module.weight[0].numel() ** 0.5)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    return train(TINY, None, tmp_path_factory.mktemp("run"), device="cpu").parent


# The autoencoder


def test_any_multiple_of_the_factor_and_nothing_else() -> None:
    net = autoencoder()
    for h, w in ((4, 4), (8, 20), (28, 28)):
        z = net.encode(randn(3, 1, h, w))
        assert z.shape == (3, 2, h // 4, w // 4) and net.decode(z).shape == (3, 1, h, w)
    for wrong in ((1, 1, 6, 8), (1, 1, 8, 7), (1, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"shape \(B, 1, H, W\) with sides that are multiples of 4, got"):
            net.encode(torch.zeros(wrong))
    for wrong in ((1, 1, 2, 2), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"latents of shape \(B, 2, h, w\), got"):
            net.decode(torch.zeros(wrong))
    x = randn(1, 1, 7, 9)
    assert latent_prior(DenoisingUNet(channels=2, widths=(8,)), net).project(x).shape == x.shape


def test_a_place_means_the_same_in_a_larger_image() -> None:
    net, x = autoencoder(), randn(1, 1, 80, 80)
    part, whole = net.encode(x[..., 16:64, 16:64]), net.encode(x)
    torch.testing.assert_close(part[..., 5:7, 5:7], whole[..., 9:11, 9:11], rtol=0, atol=1e-5)
    z = randn(1, 2, 24, 24)
    torch.testing.assert_close(
        net.decode(z[..., 2:22, 2:22])[..., 36:44, 36:44], net.decode(z)[..., 44:52, 44:52], rtol=0, atol=1e-5
    )


def test_standardised_latents_decode_to_the_same() -> None:
    net, x = autoencoder(), randn(8, 1, 16, 16)
    before, raw = net.decode(net.encode(x)), net.encode(x)
    assert float(raw.mean((0, 2, 3)).abs().max()) > 0.05 or float((raw.std((0, 2, 3)) - 1).abs().max()) > 0.05
    net.standardise(x)
    z = net.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=5e-3)  # weights are rounded to 16 bits
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=0, atol=5e-3)
    torch.testing.assert_close(net.decode(z), before, rtol=0, atol=5e-3)
    assert all(torch.equal(p, p.half().float()) for p in net.parameters())


def test_a_channel_that_says_nothing_stays_silent() -> None:
    net, x = autoencoder(), randn(8, 1, 16, 16)
    net.encoder[-1].weight[1] = 0.0
    net.standardise(x)
    z = net.encode(x)
    assert bool((z[:, 1] == 0).all()) and 0.9 < float(z[:, 0].std()) < 1.1


def test_it_learns_under_noise_of_its_latents() -> None:
    """On images of one number each, which two latents a place can hold."""
    torch.manual_seed(0)
    net = Autoencoder(AutoencoderConfig(1, 2, (4, 8)))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.rand(16, 1, 1, 1, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 8, 8).contiguous()
    prior = latent_prior(DenoisingUNet(channels=2, widths=(8,)), net)
    before = reconstruction_psnr(prior, list(x))
    for step in range(100):
        optimiser.zero_grad()
        reconstruction_loss(net, x, 0.1, 0.01, torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    assert before < 20 and reconstruction_psnr(prior, list(x)) > 26
    with torch.no_grad():
        noisy = net.decode(net.encode(x) + 0.1 * randn(16, 2, 4, 4))
    assert float((noisy - x).square().mean()) < 0.1**2


# The recipe

SECTIONS = {
    "{latent: 4}": "autoencoder: unknown keys ['latent']",
    "{widths: [8]}": "autoencoder: widths are two or more",
    "{widths: 8}": "autoencoder: widths must be a list of whole numbers",
    "{eta: 0}": "autoencoder: eta must be positive",
    "{widths: [8, 8, 8, 8]}": "crop is a multiple of 8 with this autoencoder, got 28",
    "4": "autoencoder must be a section",
}


@pytest.mark.parametrize("section", SECTIONS)
def test_bad_sections_are_named_in_one_line(tmp_path: Path, section: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\ncrop: 28\nautoencoder: {section}\n")
    with pytest.raises(ValueError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert SECTIONS[section] in message and "\n" not in message and message.startswith(f"recipe {path}: ")


@pytest.mark.parametrize("name", ["mnist-latent", "phantom-latent"])
def test_recipes_that_ship(name: str) -> None:
    recipe = Recipe.load(name)
    code = recipe.code()
    assert code is not None and code.factor == 4 and recipe.network().channels == code.latents
    assert (recipe.network().mean, recipe.network().std) == (0.0, 1.0)


# Training


def test_a_run_leaves_one_file_with_both(run: Path) -> None:
    prior = priors.load(run / "toy.safetensors")
    assert isinstance(prior, LatentPrior) and not any(p.requires_grad for p in prior.parameters())
    assert (prior.channels, prior.factor, prior.denoiser.mean, prior.denoiser.std) == (2, 2, 0.0, 1.0)
    held = data.load_data(TINY, None, None)[1]
    known = cards.header(run / "toy.safetensors")
    assert known["reconstruction"] == pytest.approx(reconstruction_psnr(prior, held), abs=0.01)
    assert "in 3 steps" in (run / "toy.md").read_text() and "after 3 of the autoencoder" in (run / "toy.md").read_text()
    assert "psnr" not in known and known["distance"] > 0 and known["size"] == 28
    for name in ("sheet.png", "autoencoder-sheet.png"):
        with Image.open(run / name) as picture:
            assert picture.size == ({"sheet.png": 7, "autoencoder-sheet.png": 2}[name] * 32, 4 * 32)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_run_killed_in_either_stage_goes_on_as_if_it_had_not_been(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    batch, calls = data.Crops.batch, []

    def stop(self: Any, step: int) -> Any:
        calls.append(step)
        if calls.count(2) == {"autoencoder": 1, "denoiser": 3}[stage]:  # in between, crops to standardise on
            raise RuntimeError("killed")
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(data.Crops, "batch", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train(TINY, None, tmp_path, device="cpu", checkpoint_every=1)
    assert (tmp_path / "checkpoint.safetensors").exists() == (stage == "denoiser")
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "toy.safetensors").exists()
    resumed, whole = load_file(train(TINY, None, tmp_path, device="cpu")), load_file(run / "toy.safetensors")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_the_denoiser_keeps_the_autoencoder_it_was_begun_with(run: Path, tmp_path: Path) -> None:
    for path in run.glob("*checkpoint.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    longer = train(replace(TINY, steps=4), None, tmp_path, device="cpu", minutes=60)
    first, second = load_file(run / "toy.safetensors"), load_file(longer)
    same = {name: torch.equal(first[name], second[name]) for name in first}
    assert all(same[name] for name in same if name.startswith("autoencoder."))
    assert not all(same[name] for name in same if name.startswith("denoiser."))
    (tmp_path / "autoencoder-checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match="was begun with .* autoencoder"):
        train(replace(TINY, steps=5), None, tmp_path, device="cpu")


def test_fine_tuning_keeps_the_autoencoder(run: Path, tmp_path: Path) -> None:
    path = train(TINY, None, tmp_path / "tuned", start=run / "toy.safetensors", device="cpu")
    first, second = load_file(run / "toy.safetensors"), load_file(path)
    assert all(torch.equal(second[k], v) for k, v in first.items() if k.startswith("autoencoder."))
    assert "from the weights of" in path.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match="it has an autoencoder, the recipe has none"):
        train(replace(TINY, autoencoder=None), None, tmp_path / "x", start=run / "toy.safetensors", device="cpu")


# The file


def tiny_prior() -> LatentPrior:
    return latent_prior(DenoisingUNet(channels=2, widths=(8,), blocks=1, mean=0.0, std=1.0), autoencoder())


def test_encode_and_decode_agree_with_the_file(tmp_path: Path) -> None:
    prior = tiny_prior()
    prior.autoencoder.standardise(randn(4, 1, 16, 16))
    save_weights(prior, tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    assert isinstance(loaded, LatentPrior)
    x, z = randn(2, 1, 16, 12), randn(2, 2, 4, 3)
    torch.testing.assert_close(loaded.encode(x), prior.encode(x))
    torch.testing.assert_close(loaded.decode(z), prior.decode(z))
    assert loaded.encode(x.double()).dtype == torch.float64
    moved = loaded.double()
    assert moved.autoencoder.decoder[0].weight.dtype == torch.float64  # moves with the prior


def test_wrong_and_damaged_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(tiny_prior(), path)
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as f:
        notes = f.metadata()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        priors.load(path)
    config = json.loads(notes["config"])
    wrong: dict[str, Any] = {
        "{}": {},
        "no autoencoder": {"denoiser": config["denoiser"]},
        "other latents": config | {"autoencoder": config["autoencoder"] | {"latents": 3}},
    }
    for bad in wrong.values():
        save_file(tensors, path, notes | {"config": json.dumps(bad)})
        with pytest.raises(ValueError, match="header does not describe a network"):
            priors.load(path)
    save_file({k: v for k, v in tensors.items() if k.startswith("denoiser.")}, path, notes)
    with pytest.raises(ValueError, match="do not fit LatentPrior: autoencoder.* is missing in the file"):
        priors.load(path)


# What it is for


def test_images_are_drawn_and_listed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = priors.load(run / "toy.safetensors")
    images = sample(prior, (3, 1, 16, 22), steps=3)
    assert images.shape == (3, 1, 16, 22) and bool(images.isfinite().all())
    torch.testing.assert_close(images[:1], sample(prior, (1, 1, 16, 22), steps=3), rtol=0, atol=1e-2)
    monkeypatch.setattr(registry, "WEIGHTS", run)
    digest = hashlib.sha256((run / "toy.safetensors").read_bytes()).hexdigest()
    (run / "SHA256SUMS").write_text(f"{digest}  toy.safetensors\n")
    monkeypatch.setattr(registry, "names", lambda: ["toy"])
    described = priors.describe("toy").splitlines()
    assert len(described) == 4 and "latents of 2 channels, 1/2 of the size" in described[1]
    assert described[2].startswith("autoencoder, dB")


def test_solve_takes_it(run: Path) -> None:
    prior = priors.load(run / "toy.safetensors")
    A = operators.Inpainting(operators.random_mask((18, 20), 0.5, seed=0), noise=0.05)
    result = solve(A.measure(torch.rand(2, 1, 18, 20), seed=0), A, prior, "dps", samples=2, steps=3)
    assert result.samples.shape == (2, 2, 1, 18, 20)
