"""``invdiff restore``: what it writes, what it refuses, and that nothing is left half-done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from terminal import QUICK, invoke
from torch import Tensor

from invdiff import restore, solvers
from invdiff.io import Meta, read_image, write_image


def fake_solve(picture: Callable[[Tensor, Any], Tensor], std: Tensor | None = None) -> Callable[..., Any]:
    """A ``solve`` that returns ``picture(y, A)`` and ``std``, by default zero."""

    def solve(y: Tensor, A: Any, *args: Any, progress: Any = False, **kwargs: Any) -> Any:
        x = picture(y, A)
        if progress:
            progress(1, 1)
        return SimpleNamespace(x=x, std=0 * x if std is None else std, nfe=1, seconds=0.0, solver="fake")

    return solve


TASKS = {
    "inpaint": ["--mask", "mask.png"],
    "deblur": ["--kernel", "gaussian:1.0"],
    "superres": ["--scale", "2"],
    "denoise": ["--noise", "0.1"],
}


@pytest.mark.parametrize("task", TASKS)
def test_restore_writes_the_picture_and_its_uncertainty(folder: Path, weights: str, task: str) -> None:
    common = ["--task", task, "--prior", weights, *TASKS[task], *QUICK]
    result = invoke("restore", "a.png", "out.png", "--uncertainty", "std.png", *common)
    assert result.exit_code == 0, result.output
    scale = 2 if task == "superres" else 1
    with Image.open("out.png") as out, Image.open("std.png") as std:
        assert (out.mode, out.size) == ("RGB", (40 * scale, 32 * scale))
        assert (std.mode, std.size) == ("L", out.size)
        assert std.info["white"] in result.output and "white is " + std.info["white"] in std.info["Description"]
        assert np.asarray(std).max() == 255
    assert {p.name for p in folder.iterdir()} == {"a.png", "mask.png", "out.png", "std.png"}


def test_known_pixels_are_kept_and_unknown_ones_filled(folder: Path, weights: str) -> None:
    args = ["--task", "inpaint", "--mask", "mask.png", "--noise", "0.001", "--prior", weights, "--samples", "2"]
    assert invoke("restore", "a.png", "out.png", *args).exit_code == 0
    (x, _), (out, _), (mask, _) = (read_image(p) for p in ("a.png", "out.png", "mask.png"))
    known = mask.bool().expand_as(x)
    assert (out - x)[known].square().mean().sqrt() < 0.01
    assert out[~known].min() > 0.05  # black in the measurement, gray under this prior


def test_the_uncertainty_picture_has_the_scale_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    std = torch.full((1, 3, 32, 40), 0.02)
    std[..., :20] = 0.08
    monkeypatch.setattr(restore, "solve", fake_solve(lambda y, A: y, std))
    monkeypatch.setattr(restore.priors, "load", lambda name: torch.nn.Identity())
    assert invoke("restore", "a.png", "o.png", "--task", "denoise", "--uncertainty", "s.png").exit_code == 0
    with Image.open("s.png") as im:
        shown = np.asarray(im) / 255 * float(im.info["white"])
    np.testing.assert_allclose(shown, std[0, 0], atol=1e-3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_bit_depth_gray_and_transparency_come_back(folder: Path, weights: str, suffix: str) -> None:
    alpha = torch.zeros(1, 1, 32, 40)
    alpha[..., 20:] = 1
    write_image(f"in.{suffix}", torch.rand(1, 1, 32, 40), Meta(bits=16, alpha=alpha))
    args = ["--task", "superres", "--scale", "2", "--prior", weights, *QUICK]
    assert invoke("restore", f"in.{suffix}", f"out.{suffix}", *args).exit_code == 0
    x, meta = read_image(f"out.{suffix}")
    assert x.shape == (1, 1, 64, 80) and meta.bits == 16
    assert meta.alpha is not None and meta.alpha[..., :35].max() < 1e-3 and meta.alpha[..., 45:].min() > 0.999
    assert (x * 255 - (x * 255).round()).abs().max() > 0.1  # more than 8 bits are used


@pytest.mark.parametrize("shape", [(5, 7), (4, 6)])
def test_deblurring_does_not_shift(folder: Path, weights: str, shape: tuple[int, int]) -> None:
    point = np.zeros(shape, np.uint8)
    point[shape[0] // 2, shape[1] // 2] = 255
    Image.fromarray(point).save("kernel.png")
    args = ["--task", "deblur", "--kernel", "kernel.png", "--noise", "0.001", "--prior", weights, "--samples", "2"]
    result = invoke("restore", "a.png", "out.png", *args)
    assert result.exit_code == 0, result.output
    assert (read_image("out.png")[0] - read_image("a.png")[0]).abs().mean() < 0.01


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_join_without_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch, scale: int) -> None:
    calls: list[tuple[int, ...]] = []
    most = 16 if scale == 1 else 16 + 4 * restore.MARGIN  # enlarged, a small picture has a margin on each side

    def enlarge(y: Tensor, A: Any) -> Tensor:
        calls.append(tuple(y.shape))
        return y.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    monkeypatch.setattr(restore, "solve", fake_solve(enlarge))
    monkeypatch.setattr(restore.priors, "load", lambda name: torch.nn.Identity())
    for name, value in (("WHOLE", 20 * 20), ("TILE", 16), ("OVERLAP", 4)):
        monkeypatch.setattr(restore, name, value)
    task = ["denoise"] if scale == 1 else ["superres", "--scale", "2"]
    assert invoke("restore", "a.png", "out.png", "--task", *task).exit_code == 0
    assert len(calls) == (3 * 3 if scale == 1 else 5 * 7) and all(max(c[2:]) * scale <= most for c in calls)
    x, out = read_image("a.png")[0], read_image("out.png")[0]
    torch.testing.assert_close(out, enlarge(x, None), atol=1e-6, rtol=0)


def test_every_tile_has_noise_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def solve(y: Tensor, *args: Any, seed: int, **kwargs: Any) -> Any:
        seeds.append(seed)
        return SimpleNamespace(x=y, std=0 * y, nfe=7, seconds=0.0, solver="fake")

    monkeypatch.setattr(restore, "solve", solve)
    monkeypatch.setattr(restore.priors, "load", lambda name: torch.nn.Identity())
    args = ["restore", "a.png", "out.png", "--task", "denoise", "--seed", "5"]
    assert invoke(*args).exit_code == 0 and seeds == [5]
    for name, value in (("WHOLE", 20 * 20), ("TILE", 16), ("OVERLAP", 4)):
        monkeypatch.setattr(restore, name, value)
    result = invoke(*args)
    assert len(set(seeds)) == len(seeds) == 10 and "7 network evaluations" in result.output
    assert invoke(*args).exit_code == 0 and seeds[1:10] == seeds[10:]


@pytest.mark.parametrize("size", [(32, 40), (1, 1), (3, 2)])
def test_enlarging_keeps_the_opposite_border_out(folder: Path, weights: str, size: tuple[int, int]) -> None:
    steps = np.full((*size, 3), 64, np.uint8)
    steps[:, size[1] // 2 :] = 192
    Image.fromarray(steps).save("steps.png")
    args = ["--task", "superres", "--scale", "4", "--noise", "0.01", "--prior", weights, "--samples", "1"]
    result = invoke("restore", "steps.png", "out.png", *args)
    assert result.exit_code == 0, result.output
    out = read_image("out.png")[0]
    assert out.shape == (1, 3, 4 * size[0], 4 * size[1])
    if size[1] > 3:
        columns = out.mean((0, 1, 2))
        for border, inside in ((columns[:4], columns[40]), (columns[-4:], columns[-40])):
            assert (border - inside).abs().max() < 0.02  # wrapped around, they would mix


def test_a_margin_is_a_mirror_image() -> None:
    row = torch.arange(3.0).view(1, 1, 1, 3)
    assert restore._reflected(row, 4)[0, 0, 2].tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


def test_an_uncertainty_of_denoising_is_drawn_without_being_asked_for_samples(folder: Path, weights: str) -> None:
    args = ["--task", "denoise", "--noise", "0.1", "--steps", "3", "--prior", weights]
    assert invoke("restore", "a.png", "out.png", "--uncertainty", "s.png", *args).exit_code == 0
    with Image.open("s.png") as std:
        assert np.asarray(std).std() > 5 and 0 < float(std.info["white"]) < 0.5


@pytest.mark.parametrize("error", [RuntimeError("CUDA\nlost"), torch.OutOfMemoryError("out of memory"), KeyError("x")])
def test_errors_of_torch_are_one_line_and_a_folder_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    working = fake_solve(lambda y, A: y)

    def solve(y: Tensor, A: Any, *args: Any, **kwargs: Any) -> Any:
        if y.shape[-1] == 40:
            raise error
        return working(y, A)

    monkeypatch.setattr(restore, "solve", solve)
    monkeypatch.setattr(restore.priors, "load", lambda name: torch.nn.Identity())
    line = f"error: {' '.join(str(error).split())}\n"
    result = invoke("restore", "a.png", "out.png", "--task", "denoise")
    assert (result.exit_code, result.stderr) == (2, line)
    monkeypatch.setenv("INVDIFF_DEBUG", "1")
    result = invoke("restore", "a.png", "out.png", "--task", "denoise")
    assert result.exit_code == 2 and "Traceback" in result.stderr and result.stderr.endswith(line)
    (folder / "in").mkdir()
    os.link("a.png", "in/1.png")
    Image.new("RGB", (8, 8)).save("in/2.png")
    result = invoke("restore", "in", "out", "--task", "denoise")
    assert result.exit_code == 1 and "1 restored, 0 skipped (already there), 1 failed" in result.output
    assert Path("out/2.png").is_file()


def test_noise_is_estimated_from_the_picture() -> None:
    x = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 0.1, 0.2):
        assert restore.estimate_noise(x + sigma * noise) == pytest.approx(sigma, rel=0.15)
    flat = 0.5 + 0.1 * noise
    assert restore.estimate_noise(flat) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("pattern", ["photos", "photos/*.png"])
def test_many_pictures_skip_fail_and_go_on(folder: Path, weights: str, pattern: str) -> None:
    photos = folder / "photos"
    photos.mkdir()
    for name in ("1.png", "2.png", "4.png"):
        os.link("a.png", photos / name)
    (photos / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    (photos / "notes.txt").write_text("not a picture either")
    args = [pattern, "out", "--task", "denoise", "--uncertainty", "std", "--prior", weights, *QUICK]
    first = invoke("restore", *args)
    assert first.exit_code == 1 and "3 restored, 0 skipped (already there), 1 failed" in first.output
    assert f"failed: {Path('photos/3.png')}: not a readable" in first.output
    assert {p.name for p in (folder / "out").iterdir()} == {"1.png", "2.png", "4.png"}
    assert {p.name for p in (folder / "std").iterdir()} == {f"{i}.png-std.png" for i in (1, 2, 4)}
    (folder / "out" / "2.png").unlink()
    (photos / "3.png").unlink()
    second = invoke("restore", *args)
    assert second.exit_code == 0 and "1 restored, 2 skipped (already there), 0 failed" in second.output
    third = invoke("restore", *args)
    assert third.exit_code == 0 and "0 restored, 3 skipped" in third.output


def test_each_picture_of_a_folder_takes_its_own_mask(folder: Path, weights: str) -> None:
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    os.link("a.png", "photos/a.png")
    os.link("a.png", "photos/b.png")
    os.link("mask.png", "masks/a.png")
    result = invoke("restore", "photos", "out", "--task", "inpaint", "--mask", "masks", "--prior", weights, *QUICK)
    assert result.exit_code == 1 and "1 restored" in result.output and "b.png: no such file" in result.output


ERRORS: dict[str, tuple[list[str], str]] = {
    "noise of 255": (["a.png", "o.png", "--task", "denoise", "--noise", "25"], "25 of 255 is 0.098"),
    "missing picture": (["none.png", "o.png", "--task", "denoise"], "no such file"),
    "empty input": (["", "o.png", "--task", "denoise"], "INPUT is empty"),
    "missing input folder": (["none", "out", "--task", "denoise"], "none: no such file or folder"),
    "many into a file": (["photos", "mask.png", "--task", "denoise"], "mask.png is a file"),
    "uncertainties into a file": (["photos", "o", "--task", "denoise", "--uncertainty", "mask.png"], "mask.png is a file"),
    "too small to estimate": (["2x9.png", "o.png", "--task", "denoise"], "give --noise"),
    "drawing in the transparency": (["a.png", "o.png", "--task", "inpaint", "--mask", "clear.png"], "transparency"),
    "negative seed": (["a.png", "o.png", "--task", "denoise", "--seed", "-1"], "seed must be at least 0"),
    "damaged picture": (["bad.png", "o.png", "--task", "denoise"], "bad.png: not a readable image"),
    "unknown task": (["a.png", "o.png", "--task", "sharpen"], "tasks: inpaint, deblur, superres, denoise"),
    "no mask": (["a.png", "o.png", "--task", "inpaint"], "inpaint needs --mask"),
    "no kernel": (["a.png", "o.png", "--task", "deblur"], "deblur needs --kernel"),
    "no scale": (["a.png", "o.png", "--task", "superres"], "superres needs --scale"),
    "mask for another task": (["a.png", "o.png", "--task", "denoise", "--mask", "mask.png"], "--mask is for the task"),
    "mask of wrong size": (["a.png", "o.png", "--task", "inpaint", "--mask", "small.png"], "8x8 pixels, the image 40x32"),
    "black mask": (["a.png", "o.png", "--task", "inpaint", "--mask", "black.png"], "black everywhere"),
    "missing mask for many": (["photos", "o", "--task", "inpaint", "--mask", "none"], "none: no such file or folder"),
    "no mask of many": (["photos", "o", "--task", "inpaint", "--mask", "empty"], "no NAME.png for any of the 1 pictures"),
    "missing mask": (["a.png", "o.png", "--task", "inpaint", "--mask", "none.png"], "none.png: no such file"),
    "unknown kernel": (["a.png", "o.png", "--task", "deblur", "--kernel", "gaussian:x"], "gaussian:2.0"),
    "missing kernel": (["a.png", "o.png", "--task", "deblur", "--kernel", "none.png"], "none.png"),
    "scale of one": (["a.png", "o.png", "--task", "superres", "--scale", "1"], "from 2 to 16"),
    "negative noise": (["a.png", "o.png", "--task", "denoise", "--noise", "-0.1"], "finite and not negative"),
    "noise of nan": (["a.png", "o.png", "--task", "denoise", "--noise", "nan"], "finite and not negative"),
    "unknown solver": (["a.png", "o.png", "--task", "denoise", "--solver", "magic"], ", ".join(solvers.names())),
    "no steps": (["a.png", "o.png", "--task", "denoise", "--steps", "0"], "--steps is at least 1"),
    "no samples": (["a.png", "o.png", "--task", "denoise", "--samples", "-3"], "--samples is at least 1"),
    "one sample": (["a.png", "o.png", "--task", "denoise", "--samples", "1", "--uncertainty", "s.png"], "at least 2"),
    "unknown suffix": (["a.png", "o.xyz", "--task", "denoise"], "cannot write .xyz"),
    "missing folder": (["a.png", "none/o.png", "--task", "denoise"], "does not exist"),
    "uncertainty as jpeg": (["a.png", "o.png", "--task", "denoise", "--uncertainty", "s.jpg"], "written as .png"),
    "output is input": (["a.png", "./a.png", "--task", "denoise"], "must be different files"),
    "output is mask": (["a.png", "mask.png", "--task", "inpaint", "--mask", "mask.png"], "must be different files"),
    "folder onto itself": ([".", ".", "--task", "denoise"], "another folder"),
    "empty folder": (["empty", "out", "--task", "denoise"], "no pictures there"),
    "pattern without match": (["*.jpg", "out", "--task", "denoise"], "no pictures there"),
    "unknown device": (["a.png", "o.png", "--task", "denoise", "--device", "abacus"], "try cpu"),
    "unknown prior": (["a.png", "o.png", "--task", "denoise", "--prior", "none"], "unknown prior 'none'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_end_in_one_line_and_nothing_is_written(folder: Path, weights: str, case: str) -> None:
    args, words = ERRORS[case]
    Image.new("L", (8, 8), 255).save("small.png")
    Image.new("L", (40, 32)).save("black.png")
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:600])
    for name in ("empty", "photos"):
        (folder / name).mkdir()
    os.link("a.png", "photos/a.png")
    Image.new("RGB", (2, 9)).save("2x9.png")
    drawing = Image.new("LA", (40, 32))
    drawing.paste((0, 255), (5, 5, 20, 20))
    drawing.save("clear.png")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = invoke("restore", *args, *([] if "--prior" in args else ["--prior", weights]))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and words in result.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_stopping_leaves_nothing_half_written(folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "solve", stop)
    result = invoke("restore", "a.png", "out.png", "--task", "denoise", "--prior", weights)
    assert result.exit_code == 130 and "stopped" in result.stderr and "Traceback" not in result.output
    assert {p.name for p in folder.iterdir()} == {"a.png", "mask.png"}


def test_the_installed_program(folder: Path, weights: str) -> None:
    program = [sys.executable, "-c", "from invdiff.cli import main; main()"]
    args = ["restore", "a.png", "out.png", "--task", "denoise", "--prior", weights, *QUICK]
    done = subprocess.run([*program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out.png: 40x32") and Path("out.png").is_file()
    done = subprocess.run([*program, *args[:2], "a.png", *args[3:]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
