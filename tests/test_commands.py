"""The command line but ``restore`` (:mod:`test_cli`) and ``bench``: help, lists, training, samples, the demonstration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from terminal import QUICK, invoke

import invdiff
from invdiff import citation, demo, solvers

USAGE = [["--nope"], ["nope"], ["restore"], ["restore", "a", "b", "--task", "denoise", "--nope"],
         ["restore", "a", "b", "--task", "denoise", "--steps", "x"]]  # fmt: skip


@pytest.mark.parametrize("args", USAGE)
def test_errors_of_usage_are_one_line(args: list[str]) -> None:
    result = invoke(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_no_arguments_print_the_help() -> None:
    result = invoke()
    assert result.exit_code == 0 and "restore" in result.stdout and result.output == invoke("--help").output


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from invdiff.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'deepinv', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lists_and_version() -> None:
    assert invoke("--version").output == f"invdiff {invdiff.__version__}\n"
    lines = invoke("solvers").output.splitlines()
    assert [line.split()[0] for line in lines] == [*solvers.names(), *solvers.presets()] and all(len(line) > 20 for line in lines)
    for name in solvers.names():
        told = invoke("solvers", name).output
        assert repr(solvers.get(name)) in told and citation(name) in told
    lines = invoke("priors").output.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == invdiff.priors.names()
    natural = "\n".join(lines).split("natural ")[1]
    for fact in ("9.3 MB", "4.6 million parameters", "colour or gray", "noise 0.002 to 20", "31.85 at 25", "BSDS500"):
        assert fact in natural
    assert "\n# natural\n" in invoke("priors", "natural").output and "unknown prior 'none'" in invoke("priors", "none").stderr


def test_train_makes_a_prior_that_restore_takes(folder: Path) -> None:
    (folder / "data").mkdir()
    for i in range(3):
        Image.fromarray(data.astronaut()[i * 64 : i * 64 + 64, :64]).save(f"data/{i}.png")
    Path("tiny.yaml").write_text("{name: tiny, widths: [8], blocks: 1, crop: 32, batch: 2, steps: 1000, holdout: 1}")
    result = invoke("train", "--recipe", "tiny.yaml", "--data", "data", "--out", "run", "--steps", "2")
    assert result.exit_code == 0, result.output
    assert invoke("train", "--recipe", "tiny.yaml", "--data", "data", "--steps", "2").exit_code == 0
    assert Path("runs/tiny/tiny.safetensors").is_file()
    assert "tiny.safetensors" in result.output and "in 2 steps" in Path("run/tiny.md").read_text()
    assert "measuring: PSNR at noise 25 of 255" in result.stderr
    assert "no card at none.md" in invoke("priors", "none.safetensors").stderr
    args = ["--task", "denoise", "--prior", "run/tiny.safetensors", *QUICK]
    assert invoke("restore", "a.png", "out.png", *args).exit_code == 0
    assert invoke("sample", "run/tiny.safetensors", "--n", "2", "--steps", "2", "--out", "drawn.png").exit_code == 0
    result = invoke("train", "--recipe", "natural", "--out", "run")
    assert result.exit_code == 2 and "give --data DIR" in result.stderr
    result = invoke("train", "--recipe", "none", "--data", "data", "--out", "run")
    assert result.exit_code == 2 and "unknown recipe" in result.stderr


def test_sample_draws_a_sheet(folder: Path, weights: str) -> None:
    args = ["sample", weights, "--n", "3", "--steps", "3"]
    result = invoke(*args, "--size", "24", "--out", "a.png")
    assert result.exit_code == 0 and result.stdout == "sheet: a.png\n"
    invoke(*args, "--size", "24", "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    invoke(*args, "--size", "24", "--seed", "1", "--out", "b.png")
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
    with Image.open("a.png") as picture:
        assert picture.size == (2 * 28, 2 * 28)
    Path(weights).with_suffix(".md").write_text("---\nsize: 28\n---\n")
    invoke(*args, "--out", "b.png")
    with Image.open("b.png") as picture:
        assert picture.size == (2 * 32, 2 * 32)
    for side, told in (("24", False), ("56", True)):
        assert ("learned from images of 28x28" in invoke(*args, "--size", side, "--out", "b.png").stderr) == told
    for wrong in (["--n", "0"], ["--steps", "0"], ["--out", "none/a.png"]):
        result = invoke(*args, *wrong)
        assert result.exit_code == 2 and result.stderr.startswith("error: ")


def test_demo_compares_and_draws(folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIDE", 32)
    result = invoke("demo", "--out", "sheets", "--prior", weights)
    assert result.exit_code == 0, result.output
    assert all(task.name in result.output for task in demo.TASKS)
    assert "NFE" in result.output and "…" not in result.output  # in 80 columns
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert len(re.findall(r"\d\d?\.\d\d/0\.\d{3}", result.output)) == 9
    with Image.open("sheets/sheet.png") as sheet:
        assert sheet.size[0] >= 1200 and np.asarray(sheet).std() > 20
    result = invoke("demo", "--images", "some", "--prior", weights)
    assert result.exit_code == 2 and result.stderr.startswith("error: ")


def test_scores_are_the_textbook_ones() -> None:
    truth = demo.photograph("camera")
    assert truth.shape == (1, 1, 256, 256)
    psnr, ssim = demo.scores(truth + 0.1, truth.clamp(0, 0.9))
    assert psnr == pytest.approx(-10 * float(((truth + 0.1).clamp(0, 1) - truth.clamp(0, 0.9)).square().mean().log10()))
    assert demo.scores(truth + 1e-9, truth)[1] == pytest.approx(1.0) and 0 < ssim < 1


def test_a_missing_extra_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = invoke("restore", "a.png", "o.png", "--task", "denoise", "--prior", "diffusers:some/model")
    assert result.exit_code == 2 and "invdiff[diffusers]" in result.stderr and result.stderr.count("\n") == 1
