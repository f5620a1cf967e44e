"""Training: what recipes and images are accepted, how pictures are read, and how a stopped run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff.priors import training
from invdiff.priors.recipe import Recipe
from invdiff.priors.training import denoising_psnr, load_images, train

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
    "{name: r, channels: 2}": "channels is 1",
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


def test_images_are_read_as_they_look(tmp_path: Path) -> None:
    ramp = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(ramp))
    turned = Image.fromarray(np.zeros((12, 16, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGBA", (12, 12), (0, 0, 0, 51)).save(tmp_path / "c.png")
    Image.new("RGB", (12, 12), (255, 0, 0)).save(tmp_path / "d.png")
    deep, upright, clear, _ = load_images(tmp_path, 3, 8)
    assert all(im.dtype == torch.uint8 and im.shape[0] == 3 for im in (deep, upright, clear))
    np.testing.assert_array_equal(deep[1], np.round(ramp / 65535 * 255))
    assert upright.shape == (3, 16, 12)
    assert (clear == 204).all()  # a fifth of black on white
    red = load_images(tmp_path, 1, 8)[3]
    assert red.shape == (1, 12, 12) and (red == 76).all()


def test_bad_images_are_left_out_and_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    assert len(load_images(photos, 3, 16)) == 3
    assert str(photos / "bad.png") in capsys.readouterr().err
    for i in range(3):
        (photos / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="0 readable images"):
        load_images(photos, 3, 16)


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
    batch = training.Crops.batch

    def stop(self: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return batch(self, step)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(training.Crops, "batch", stop)
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
    save_file({"x": torch.zeros(1)}, path, {"recipe": training._settings(TINY)})
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
    assert "on 3 images; 1 more" in path.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match="asks for"):
        train(replace(TINY, widths=(16,)), photos, tmp_path / "third", start=first, device="cpu")
    assert not (tmp_path / "third").exists()
