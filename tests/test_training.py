"""Training: what recipes are accepted, how a stopped run goes on, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff.priors import cards, checkpoint, data, load, sample
from invdiff.priors.cards import header
from invdiff.priors.evaluation import denoising_psnr
from invdiff.priors.recipe import Recipe
from invdiff.priors.training import train

TINY = Recipe("tiny", widths=(8,), blocks=1, crop=16, batch=2, steps=3, holdout=1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        array = np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


def test_recipes_that_ship_and_numbers_in_any_notation(tmp_path: Path) -> None:
    assert Recipe.load("natural").widths == (32, 64, 128, 256)
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nlearning_rate: 1e-3\nscales: [1, 0.5]")
    assert Recipe.load(path) == Recipe("r", learning_rate=1e-3, scales=(1.0, 0.5))


BAD = {
    "": "key 'name'",
    "- 1": "key 'name'",
    "steps: 3": "key 'name'",
    "{name: [": "not YAML",
    "{name: r, steps: abc}": "steps must be a whole number, got 'abc'",
    "{name: r, batch: 2.5}": "batch must be a whole number",
    "{name: r, steps: true}": "steps must be a whole number",
    "{name: r, widths: 8}": "widths must be a list of whole numbers",
    "{name: r, widths: [a]}": "widths must be a list",
    "{name: r, learning_rate: fast}": "learning_rate must be a number",
    "{name: r, std: .nan}": "std must be a number",
    "{name: 3}": "name must be text",
    "{name: ''}": "name is the name of a file",
    "{name: a/b}": "name is the name of a file",
    "{name: r, holdout: 0}": "holdout must be positive",
    "{name: r, channels: 1, gray_share: 0.5}": "gray_share is of colour images",
    "{name: checkpoint}": "not 'checkpoint'",
    "{name: ..}": "name is the name of a file",
    "{name: r, sigma_max: 0.001}": "sigma_min lies below sigma_max",
    "{name: r, seed: -1}": "seed must be at least 0",
    "{name: r, ema: -5}": "ema lies in [0, 1]",
    "{name: r, wide_share: 7}": "wide_share lies in [0, 1]",
    "{name: r, widths: [-8]}": "widths must be positive",
    "{name: r, generated: 2, crop: 16}": "28 pixels a side",
    "{name: r, channels: 2}": "channels is 1 or 3 for images: photographs, got 2",
    "{name: r, images: magnitude}": "channels is 2 for images: magnitude, got 3",
    "{name: r, images: films}": "images is one of photographs, digits",
    "{name: r, flips: 1}": "flips must be true or false, got 1",
    "{name: r, holdout_names: '('}": "holdout_names is a regular expression",
    "{name: r, generated: -1}": "generated is a number of images",
    "{name: r, stepz: 3}": "unknown keys",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_recipes_are_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert BAD[text] in message and "\n" not in message and message.startswith(f"recipe {path}: ")


def test_one_image_is_refused_at_the_start(photos: Path, tmp_path: Path) -> None:
    for i in range(2):
        (photos / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="two or more"):
        train(TINY, photos, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_score_is_taken_on_the_device_of_the_model() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, x: Tensor, sigma: float) -> Tensor:
            assert x.device == self.weight.device
            return torch.full(x.shape, 0.6)

    assert denoising_psnr(Elsewhere(), [torch.full((1, 4, 4), 0.5)], 0.1) == pytest.approx(20.0, abs=1e-4)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_file(train(TINY, photos, tmp_path / "whole", device="cpu"))
    batch = data.Crops.batch

    def stop(self: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return batch(self, step)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(data.Crops, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, photos, out, device="cpu")
    assert "stopped at step 2" in capsys.readouterr().err and (out / "checkpoint.safetensors").is_file()
    resumed = load_file(train(TINY, photos, out, device="cpu"))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_a_checkpoint_belongs_to_its_recipe(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TINY, photos, out, device="cpu")
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(TINY, learning_rate=1e-4), photos, out, device="cpu")
    train(replace(TINY, steps=4), photos, out, device="cpu")
    assert "in 4 steps" in (out / "tiny.md").read_text()


def test_a_damaged_checkpoint_is_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TINY, photos, out, device="cpu")
    path = out / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="checkpoint.safetensors is damaged .* delete it"):
        train(TINY, photos, out, device="cpu")
    save_file({"x": torch.zeros(1)}, path, {"recipe": checkpoint._settings(TINY), "step": "3", "seconds": "1"})
    with pytest.raises(ValueError, match="does not hold this network; delete it"):
        train(TINY, photos, out, device="cpu")


def test_a_run_begins_with_given_weights_and_measures_on_given_images(photos: Path, tmp_path: Path) -> None:
    first = train(TINY, photos, tmp_path / "first", device="cpu")
    tests = tmp_path / "held"
    tests.mkdir()
    Image.new("RGB", (9, 7), (200, 100, 50)).save(tests / "flat.png")
    still = replace(TINY, learning_rate=1e-30, steps=1)
    path = train(still, photos, tmp_path / "second", start=first, held=tests, device="cpu")
    start, end = load_file(first), load_file(path)
    assert all(torch.equal(end[k], v) for k, v in start.items())
    before = f"{header(path)['psnr'][25]:.2f} dB on the same held-out images"  # the weights have not moved
    assert (
        f"on 3 images, from the weights of {first}, whose PSNR at 25 was {before}"
        in path.with_suffix(".md").read_text()
    )
    assert header(path)["held_out"] == "1 images, a folder of their own"
    with pytest.raises(ValueError, match=r"widths \(8,\) where the recipe has \(16,\)"):
        train(replace(TINY, widths=(16,)), photos, tmp_path / "third", start=first, device="cpu")
    assert not (tmp_path / "third").exists()


def test_a_checkpoint_of_an_older_version_has_the_defaults(photos: Path, tmp_path: Path) -> None:
    """Settings that came later mean, where they are missing, what was done before."""
    path = tmp_path / "run" / "checkpoint.safetensors"
    train(TINY, photos, path.parent, device="cpu")
    with safe_open(path, "pt") as f:
        notes, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (f is not a dict)
    old = {
        k: v for k, v in json.loads(notes["recipe"]).items() if k not in {"images", "flips", "turns", "holdout_names"}
    }
    save_file(tensors, path, notes | {"recipe": json.dumps(old)})
    train(replace(TINY, steps=4, about="tiny pictures"), photos, path.parent, device="cpu")
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(TINY, turns=False), photos, path.parent, device="cpu")


def test_a_run_without_files_leaves_a_whole_card(tmp_path: Path) -> None:
    recipe = Recipe("toy", "Toy phantoms", "ellipses", 1, (8,), 1, crop=28, batch=2, steps=2, holdout=8, generated=4)
    path = train(recipe, None, tmp_path / "run", device="cpu")
    known, text = header(path), path.with_suffix(".md").read_text()
    assert known["about"] == "Toy phantoms" and known["size"] == 28 and known["terms"] == "not stated"
    assert known["held_out"] == "8 images, drawn with other seeds"
    assert list(known["psnr"]) == [5, 15, 25, 50, 100] and all(10 < v < 50 for v in known["psnr"].values())
    assert min(known["rmse"]) == recipe.sigma_min and max(known["rmse"]) == recipe.sigma_max
    assert known["spread"] > 0 and known["distance"] > 0 and known["distance_real"] > 0
    assert "`invdiff train --recipe toy.yaml` in 2 steps" in text and "images drawn for it" in text and "    images: ellipses" in text
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.size == (7 * 32, 4 * 32)


def test_the_card_has_the_command_that_trained_it(photos: Path, tmp_path: Path) -> None:
    """With the minutes where they ended the run, and only there."""
    path = train(replace(TINY, steps=10**6), photos, tmp_path / "a", minutes=0.002, device="cpu")
    assert "`invdiff train --recipe tiny.yaml --data DIR --minutes 0.002` in" in path.with_suffix(".md").read_text()
    other = train(TINY, photos, tmp_path / "b", start=str(path), held=shutil.copytree(photos, tmp_path / "held"), minutes=60, device="cpu")
    assert f"`invdiff train --recipe tiny.yaml --data DIR --held HELD --start {path}` in" in other.with_suffix(".md").read_text()
    assert cards.command(Recipe.load("mnist"), {"data": "DIR", "minutes": 30.0}) == "invdiff train --recipe mnist --data DIR --minutes 30"


def test_complex_images_are_trained_on_and_drawn(photos: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, images="magnitude", channels=2, mean=0.0)
    path = train(recipe, photos, tmp_path / "run", device="cpu")
    images = sample(load(path), (2, 2, 16, 16), steps=3)
    assert images.shape == (2, 2, 16, 16) and bool(images.isfinite().all())
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.mode == "L"


def test_a_run_goes_on_only_as_it_was_begun(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TINY, photos, out, held=shutil.copytree(photos, tmp_path / "held"), device="cpu")
    with pytest.raises(ValueError, match="begun with --start None, images [0-9a-f]{8}, --held"):
        train(replace(TINY, steps=5), photos, out, device="cpu")


def test_other_held_out_images_are_another_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TINY, photos, out, device="cpu")
    (photos / "0.png").rename(photos / "9.png")  # another image comes first, and is held out
    with pytest.raises(ValueError, match="give the same images and options"):
        train(replace(TINY, steps=5), photos, out, device="cpu")


def test_few_images_are_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(TINY, holdout=100), photos, tmp_path / "run", device="cpu")
    count = len(list(photos.iterdir()))
    assert f"note: few images: {count // 2} of {count} are held out" in capsys.readouterr().err


def test_scales_that_leave_no_image(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave no image of 16 pixels"):
        train(replace(TINY, scales=(0.1,)), photos, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_images(photos: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    train(TINY, photos, out)
    other.mkdir()
    for i, path in enumerate(sorted(photos.iterdir())):
        with Image.open(path) as im:
            im.transpose(Image.Transpose.FLIP_LEFT_RIGHT if i == 1 else Image.Transpose.ROTATE_180).save(other / path.name)
    with pytest.raises(ValueError, match="was begun with"):
        train(TINY, other, out)
    with pytest.raises(ValueError, match="is the folder that is trained on"):
        train(TINY, photos, out, held=photos)
