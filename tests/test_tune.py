"""Searching settings: on a problem whose best setting is known in closed form."""

from __future__ import annotations

import csv
import re
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from invdiff import operators, solvers
from invdiff.bench import tune
from invdiff.bench.tune import Example, search, space
from invdiff.cli import app
from invdiff.files import Locked, lock
from invdiff.priors import DenoisingUNet
from invdiff.priors.weights_io import save_weights
from invdiff.problem import Problem
from invdiff.solvers import DPS, Strategy
from invdiff.solvers.preset import with_settings

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'invdiff[tune]'")


@dataclass(frozen=True)
class Shrink(Strategy):
    """Returns ``factor y``: for truth of variance v and noise of variance s, best at v / (v + s)."""

    factor: float = 1.0

    def check(self, p: Problem) -> None:
        if not p.linear:
            self._refuse("a linear operator", "use another")

    def sample(self, p: Problem) -> Tensor:
        if self.factor > 5:
            raise FloatingPointError("diverged")
        return self.factor * p.y


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(solvers.STRATEGIES, "shrink", Shrink)


def examples(count: int = 3) -> list[Example]:
    """Variances 0.04 and 0.04: the best factor is 0.5."""
    found = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        truth, noise = (0.2 * torch.randn(1, 1, 40, 40, generator=generator) for _ in range(2))
        found.append(Example(truth + noise, operators.Denoising(noise=0.2), truth))
    return found


def prior(x: Tensor, sigma: Tensor) -> Tensor:
    return x


def test_the_best_setting_is_found_and_written(tmp_path: Path) -> None:
    told: list[int] = []
    path = search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=25, report=lambda done, best: told.append(done))
    best = solvers.get(str(path))
    assert isinstance(best, Shrink) and best.factor == pytest.approx(0.5, abs=0.1)
    found = yaml.safe_load(path.read_text())["found"]
    assert found["default"] == pytest.approx(1, rel=0.1) and found["value"] == pytest.approx(0.5, rel=0.1)
    low, high = found["training"]["difference_95"]
    assert low < found["training"]["difference"] < high < 0
    assert told == list(range(2, 26))
    with sqlite3.connect(tmp_path / "study.db") as db:
        assert db.execute("select count(*) from trials").fetchone() == (25,)


def test_what_is_gained_is_measured_on_images_that_were_not_searched_on(tmp_path: Path) -> None:
    """Training images whose best factor is 0.5, held ones without noise, for which it is 1: what is gained there is lost here."""
    clean = [Example(e.truth, e.A, e.truth) for e in examples(2)]
    found = yaml.safe_load(search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=12, held=clean).read_text())
    factor, gain = found["settings"]["factor"], found["found"]["held"]
    assert gain["images"] == 2 and gain["difference"] == pytest.approx((1 - factor) ** 2, rel=1e-3)
    assert found["found"]["training"]["images"] == 3 and found["found"]["training"]["difference"] < 0


def test_the_study_is_kept_as_a_table(tmp_path: Path) -> None:
    path = search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=8)
    with path.with_suffix(".csv").open(newline="") as f:
        trials = list(csv.DictReader(f))
    assert len(trials) == 8 and trials[0]["factor"] == "1.0"
    done = [t for t in trials if t["state"] == "complete"]
    for t in done:
        assert float(t["value"]) == pytest.approx(sum(map(float, t["scores"].split())) / 3, rel=1e-4)
    best = min(done, key=lambda t: float(t["value"]))
    assert float(best["factor"]) == yaml.safe_load(path.read_text())["settings"]["factor"]


def test_a_search_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    first = search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=3)
    assert yaml.safe_load(first.read_text())["found"]["trials"] == 3
    again = search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=5)
    assert yaml.safe_load(again.read_text())["found"]["trials"] == 5
    with pytest.raises(ValueError, match="another search"):
        search(examples(), "shrink", prior, out=tmp_path, metric="psnr", trials=3)
    clean = [Example(e.truth, e.A, e.truth) for e in examples()]
    for on, other in ((clean, prior), (examples(), DenoisingUNet(channels=1, widths=(8,), blocks=1))):
        with pytest.raises(ValueError, match="another search"):
            search(on, "shrink", other, out=tmp_path, metric="nmse", trials=3)
    with lock(tmp_path), pytest.raises(Locked):
        search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=6)


def test_a_preset_is_never_worse_than_the_default(tmp_path: Path) -> None:
    """Nothing in the range is as good as the default, and some diverge: the preset is the default."""
    path = search(examples(), "shrink", prior, out=tmp_path, metric="nmse", trials=4, ranges={"factor": (4.0, 6.0)})
    assert solvers.get(str(path)) == Shrink() and yaml.safe_load(path.read_text())["settings"] == {"factor": 1.0}


def test_what_is_searched_by_default() -> None:
    assert space(DPS()) == {"sampler.eta": (0.0, 1.0), "weight": (0.1, 10.0)}
    changed = with_settings(DPS(), {"weight": 2.0, "sampler.eta": 0.5, "steps": 7})
    assert (changed.weight, changed.sampler.eta, changed.steps) == (2.0, 0.5, 7)
    for name in solvers.names():
        strategy = solvers.get(name)
        assert with_settings(strategy, {k: tune._setting(strategy, k) for k in space(strategy)}) == strategy


def test_mistakes_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = examples(1)
    with pytest.raises(ValueError, match="no setting 'wieght'"):
        search(given, "shrink", prior, out=tmp_path, ranges={"wieght": (0.0, 1.0)})
    with pytest.raises(ValueError, match="metric is one of"):
        search(given, "shrink", prior, out=tmp_path, metric="quality")
    with pytest.raises(ValueError, match="range of factor"):
        search(given, "shrink", prior, out=tmp_path, ranges={"factor": (2.0, 1.0)})
    with pytest.raises(ValueError, match="0 examples"):
        search([], "shrink", prior, out=tmp_path)
    with pytest.raises(ValueError, match="needs a linear operator"):
        A = operators.from_callable(lambda x: x**2, img_size=(1, 40, 40))
        A.noise_model = operators.Denoising(noise=0.2).noise_model
        search([Example(given[0].y, A, given[0].truth)], "shrink", prior, out=tmp_path / "nonlinear")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"invdiff\[tune\]"):
        search(given, "shrink", prior, out=tmp_path)


def test_the_command_says_what_is_gained_and_solve_takes_its_preset(tmp_path: Path) -> None:
    suite = {
        "name": "small", "images": {}, "files": {"picture": {"path": "$path", "size": 16}},
        "tasks": {"denoise": {"operator": "Denoising", "noise": 0.2}}, "methods": {"shrink": None},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(suite))
    for folder, count in (("training", 3), ("held", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 100, (16, 16, 3), dtype=np.uint8)  # dark: best at about 0.57
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    save_weights(DenoisingUNet(widths=(8, 8), blocks=1), tmp_path / "tiny.safetensors")
    images = [f"--images={tmp_path / 'training'}", f"--held={tmp_path / 'held'}", f"--prior={tmp_path / 'tiny.safetensors'}"]
    options = [f"--suite={tmp_path / 'small.yaml'}", "--trials=6", "--metric=nmse", "--vary=factor=0.5:1", f"--out={tmp_path / 'out'}"]
    done = CliRunner().invoke(app, ["tune", "denoise", "--solver=shrink", *images, *options])
    assert done.exit_code == 0, done.output
    assert re.search(r"nmse on 3 training images: -0\.\d+, 95 % interval \[.*\]\nnmse on 2 held images: -0\.\d+, ", done.output), done.output
    tuned = solvers.get(str(tmp_path / "out/preset.yaml"))
    found = yaml.safe_load((tmp_path / "out/preset.yaml").read_text())["found"]
    assert (found["task"], found["images"], found["held_images"]) == ("denoise", ["0", "1", "2"], ["0", "1"]) and len(found["prior_sha256"]) == 64
    assert isinstance(tuned, Shrink) and 0.5 < tuned.factor < 0.9
    for option, error in (("--vary=factor", "--vary is NAME=LOW:HIGH"), (f"--held={tmp_path / 'training'}", "is the folder that is searched on")):
        wrong = CliRunner().invoke(app, ["tune", "denoise", "--solver=shrink", *images, *options, option])
        assert wrong.exit_code == 2 and error in wrong.output


def test_the_prior_is_that_of_the_task() -> None:
    assert [tune.prior_of(*place) for place in (("deblur", "photos"), ("views-20", "phantom-ct"), ("single-4x", "kspace"))] == ["natural", "phantom", "brain-mri"]
