"""Presets: those that ship are what their studies found; files that are none are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from invdiff import solvers
from invdiff.bench import contestants
from invdiff.cli import app
from invdiff.solvers import DiffPIR, preset


@pytest.mark.parametrize("name", solvers.presets())
def test_what_ships_is_the_best_trial_of_its_study_and_gains_on_other_images(name: str) -> None:
    found = preset.read(name)
    strategy = solvers.get(name)
    assert name.split("@")[0] == found["solver"] and type(strategy) is type(solvers.get(found["solver"]))
    assert strategy != solvers.get(found["solver"])
    with (preset.FOLDER / f"{name}.csv").open(newline="") as f:
        trials = [t for t in csv.DictReader(f) if t["state"] == "complete"]
    best = max(trials, key=lambda t: float(t["value"]))  # of PSNR
    assert found["found"]["metric"] == "psnr" and float(best["value"]) == found["found"]["value"]
    assert {k: float(best[k]) for k in found["settings"]} == found["settings"]
    assert found["found"]["held"]["difference_95"][0] > 0, "it gains beyond the interval"


def test_every_file_beside_a_preset_is_its_study() -> None:
    files = {path.name for path in preset.FOLDER.iterdir()}
    assert files == {f"{name}.{end}" for name in solvers.presets() for end in ("yaml", "csv")} and files
    assert all(path.stat().st_size < 100_000 for path in preset.FOLDER.iterdir())


def test_a_preset_is_read_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"solver": "diffpir", "settings": {"weight": 0.5, "sampler.eta": 0.25}}))
    strategy = solvers.get(str(path))
    assert isinstance(strategy, DiffPIR) and (strategy.weight, strategy.sampler.eta) == (0.5, 0.25)  # type: ignore[attr-defined]
    assert contestants.settings(contestants.complete(str(path))) == repr(strategy), "suites take presets, and freeze their settings"
    listed = CliRunner().invoke(app, ["solvers"]).output
    assert all(f"{name} " in listed for name in solvers.presets())


@pytest.mark.parametrize(
    "text, error",
    [
        ("solver: dps", "'settings', a mapping, are needed"),
        ("[1", "expected ',' or ']'"),
        ("{solver: dsp, settings: {}}", "unknown solver 'dsp'"),
        ("{solver: dps, settings: {wieght: 1.0}}", "no setting 'wieght'"),
        ("{solver: dps, settings: {weight: -1.0}}", "not negative"),
    ],
)
def test_files_that_are_no_presets_are_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=error):
        solvers.get(str(tmp_path / "p.yaml"))


def test_an_unknown_preset_is_told_from_those_that_ship() -> None:
    with pytest.raises(ValueError, match="unknown preset 'dps@sharpen'; presets that ship: "):
        solvers.get("dps@sharpen")
