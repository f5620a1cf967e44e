"""The files of a training run: its folder, its checkpoint, what it is given; and what it says while it runs."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from invdiff.cli import app
from invdiff.files import Locked, lock
from invdiff.priors import DenoisingUNet, NetworkConfig, load
from invdiff.priors.recipe import AutoencoderRecipe, Recipe
from invdiff.priors.training import train
from invdiff.priors.weights_io import save_weights

TINY = Recipe("tiny", images="ellipses", channels=1, widths=(8,), blocks=1, crop=16, batch=2, steps=3, holdout=1)
TEXT = "{name: tiny, images: ellipses, channels: 1, widths: [8], blocks: 1, crop: 16, batch: 2, steps: 40, holdout: 1}"


def test_two_runs_in_one_folder_are_refused_and_the_first_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TEXT)
    inside, go = threading.Event(), threading.Event()

    def hold(step: int, done: float, loss: float) -> None:
        inside.set()
        go.wait(60)

    first = threading.Thread(target=train, args=(replace(TINY, steps=20), None, "run"), kwargs={"report": hold})
    first.start()
    assert inside.wait(60)
    try:
        refused = CliRunner().invoke(app, ["train", "--recipe", "tiny.yaml", "--out", "run"])
        assert refused.exit_code == 2 and "error: run is being worked on by process" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        with pytest.raises(Locked):
            train(TINY, None, "run")
    finally:
        go.set()
        first.join()
    assert "in 20 steps" in Path("run/tiny.md").read_text()
    assert load("run").config == TINY.network()  # the folder stands for the weights in it


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.0123abcd.7.tmp").touch()
    train(TINY, None, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    with lock(tmp_path):
        pass  # the run is over, and so is its lock


def test_a_run_without_a_terminal_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TEXT)
    said = CliRunner().invoke(app, ["train", "--recipe", "tiny.yaml", "--out", "run"]).stderr
    assert "tiny: step 20, loss " in said and "tiny: step 40, loss " in said and "% done" in said
    assert len([line for line in said.splitlines() if "% done" in line]) == 2


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\xff", b"\xff\xfe\0", b"name: \0"])
def test_a_recipe_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"recipe {path}: not YAML") as error:
        Recipe.load(path)
    assert "\n" not in str(error.value)


def test_recipes_that_cannot_be_files_are_unknown() -> None:
    for name in ("", "n" * 300, "a\0b"):
        with pytest.raises(ValueError, match="unknown recipe .*recipes that ship: .*natural"):
            Recipe.load(name)


ODD: dict[str, dict[str, str]] = {
    "no step": {"step": ""},
    "negative step": {"step": "-3"},
    "negative time": {"seconds": "-1"},
    "endless time": {"seconds": "inf"},
    "no number": {"seconds": "nan"},
    "recipe cut off": {"recipe": "{"},
    "recipe of another type": {"recipe": "[1]"},
}


@pytest.mark.parametrize("notes", ODD.values(), ids=ODD.keys())
def test_an_odd_header_of_a_checkpoint_is_named(tmp_path: Path, notes: dict[str, str]) -> None:
    train(TINY, None, tmp_path)
    _rewrite(tmp_path / "checkpoint.safetensors", notes, {})
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: its header is damaged .*; delete it to start again"):
        train(TINY, None, tmp_path)


def test_a_checkpoint_with_another_optimiser_is_named(tmp_path: Path) -> None:
    train(TINY, None, tmp_path)
    _rewrite(tmp_path / "checkpoint.safetensors", {}, {"exp_avg.head.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match="does not hold this network; delete it"):
        train(TINY, None, tmp_path)


def _rewrite(path: Path, notes: dict[str, str], tensors: dict[str, Any]) -> None:
    with safe_open(path, "pt") as f:
        header, held = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (f is not a dict)
    save_file(held | tensors, path, header | notes)


def test_only_what_differs_from_the_weights_begun_with_is_said(tmp_path: Path) -> None:
    save_weights(DenoisingUNet(NetworkConfig(1, (8, 16), 1)), tmp_path / "begin.safetensors")

    def said(recipe: Recipe) -> str:
        with pytest.raises(ValueError) as error:
            train(recipe, None, tmp_path / "run", start=tmp_path)
        return str(error.value).partition("recipe tiny: ")[2]

    assert said(TINY) == "widths (8, 16) where the recipe has (8,)"
    assert said(replace(TINY, blocks=2, std=0.3)) == (
        "widths (8, 16) where the recipe has (8,); blocks 1 where the recipe has 2; std 0.25 where the recipe has 0.3"
    )
    assert said(replace(TINY, widths=(8, 16), autoencoder=AutoencoderRecipe())).endswith("it has no autoencoder, the recipe has one")
    assert not (tmp_path / "run").exists()
