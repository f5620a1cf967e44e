"""Pictures in the page of a report: what is read, and what is made of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic
from PIL import Image

from invdiff.bench import pictures


def test_a_picture_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    synthetic.save(tmp_path / "good.png", np.random.default_rng(0).random((400, 400, 3)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no picture")
    found, notes = pictures.embed(tmp_path, ["cut.png", "text.png", "good.png"], 10**5)
    assert list(found) == ["good.png"] and sum("cannot be read" in note for note in notes) == 2


def test_pictures_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    synthetic.save(tmp_path / "secret.png", np.zeros((4, 4, 3)))
    (tmp_path / "in").mkdir()
    assert pictures.embed(tmp_path / "in", ["../secret.png", str(tmp_path / "secret.png")], 10**6) == ({}, [])


def test_16_bit_pictures_are_reduced_without_clipping(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "a.png")
    with Image.open(io.BytesIO(pictures._reduced(tmp_path / "a.png"))) as picture:
        assert np.asarray(picture).mean() == pytest.approx(127.5, abs=2)


def test_sheets_leave_out_what_is_no_picture_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, data in (("text.png", b"no picture"), ("empty.png", b"")):
        (folder / name).write_bytes(data)
    Image.new("LA", (6, 6), (128, 255)).save(folder / "alpha.png")
    Image.new("I;16", (6, 6), 30000).save(folder / "deep.png")
    Image.new("L", (6, 6)).save(tmp_path / "outside.png")
    read = {name: pictures.read(folder, name) for name in ("text.png", "empty.png", "absent.png", "../outside.png", "alpha.png", "deep.png")}
    assert [name for name, image in read.items() if image is not None] == ["alpha.png", "deep.png"]
    assert read["alpha.png"].mean() == 128 and abs(read["deep.png"].mean() - 30000 / 257) < 1  # type: ignore[union-attr]
