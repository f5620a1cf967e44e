"""Every program in demos/ runs, in its quick form and with an untrained prior, and draws its picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from invdiff.priors import DenoisingUNet
from invdiff.priors.weights_io import save_weights

DEMOS = sorted((Path(__file__).parents[1] / "demos").glob("*.py"))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a program as the command line would; return its variables."""

    def run(path: Path) -> dict[str, Any]:
        prior, out = tmp_path / "tiny.safetensors", tmp_path / "out.png"
        save_weights(DenoisingUNet(widths=(8, 8), blocks=1), prior)
        options = ["--prior", str(prior)] if '"--prior"' in path.read_text(encoding="utf-8") else []
        monkeypatch.setattr(sys, "argv", [str(path), "--quick", "--out", str(out), *options])
        names = runpy.run_path(str(path), run_name="__main__")
        with Image.open(out) as im:
            assert np.asarray(im.convert("L")).std() > 20 and min(im.size) > 300
        return names

    return run


def called(name: str) -> Path:
    return next(path for path in DEMOS if path.stem == name)


def test_every_demo_is_tested_and_short() -> None:
    assert {f"test_{path.stem}" for path in DEMOS} <= set(globals())
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 60 for path in DEMOS)


def test_inpaint_photo(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = demo(called("inpaint_photo"))
    one, mean = names["psnr"](names["one"]), names["psnr"](names["result"].x)
    assert names["psnr"](names["y"]) < one < mean
    assert f"one sample {one:.2f} dB" in capsys.readouterr().out


def test_uncertainty(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = demo(called("uncertainty"))
    truth, samples = names["truth"], names["result"].samples  # of the last strategy
    inside = ((samples.amin(0) < truth) & (truth <= samples.amax(0)))[(names["mask"] == 0).expand_as(truth)]
    assert names["coverage"]["dps"] == pytest.approx(float(inside.float().mean()), abs=1e-6)
    assert len(samples) == 19 and "90 % intervals hold the truth in" in capsys.readouterr().out


def test_own_operator(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = demo(called("own_operator"))
    assert {"adjoint: <Ax, y> = <x, By>", "gradient: A_vjp = autograd"} <= {row.law for row in names["broken"]}
    truth = names["truth"]
    assert (names["result"].x - truth).norm() < (names["y"] - truth).norm()
    assert "with a wrong adjoint" in capsys.readouterr().out


def test_sparse_ct(demo: Any) -> None:
    errors = demo(called("sparse_ct"))["errors"]
    assert 0 < errors["prior of random fields"] < errors["filtered back-projection"]


def test_exact_posterior(demo: Any) -> None:
    """With 16 samples an exact sampler is off by 0.25 posterior standard deviations, and so is dps, which is too sure of what is known."""
    names = demo(called("exact_posterior"))
    assert names["bias"]["dps"] < 0.4
    assert 0.6 < names["known"]["dps"] < 1.0 and 0.8 < names["missing"]["dps"] < 1.1
