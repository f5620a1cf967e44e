"""Weights files, the registry of priors that ship, and their cards."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_network import randn

from invdiff import priors
from invdiff.priors import DenoisingUNet, Recipe, cards, registry
from invdiff.priors.data import load_data
from invdiff.priors.evaluation import denoising_psnr, denoising_rmse, measured
from invdiff.priors.sampling import sheet
from invdiff.priors.weights_io import save_weights


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


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    """A checksum names them, whenever and however often they are written."""
    net = DenoisingUNet(widths=(8, 8), blocks=1)
    files = set()
    for i in range(12):
        save_weights(net, tmp_path / f"{i}.safetensors")
        files.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(files) == 1
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(net.parameters(), priors.load(tmp_path / "0.safetensors").parameters()))


def test_weights_that_16_bits_cannot_hold_are_not_written(tmp_path: Path) -> None:
    net = DenoisingUNet(channels=1, widths=(8,), blocks=1)
    torch.nn.init.constant_(net.head.bias, 1e5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head.bias has values"):
        save_weights(net, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
