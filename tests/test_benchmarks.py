"""The scripts that measure: that they measure what they say, at a small size."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from invdiff import solvers
from invdiff.priors import DenoisingUNet
from invdiff.priors.weights_io import save_weights

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A prior that takes no time."""
    save_weights(DenoisingUNet(widths=(8, 8), blocks=1), tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_overhead_is_measured_for_every_strategy(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    overhead = script("overhead")
    overhead.main([f"--prior={tiny}", "--size=16", "--steps=2", "--rounds=1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: [float(v) for v in row[1:3]] for row in rows if row and row[0] in solvers.names()}
    assert list(found) == solvers.names()
    # a network this small takes no longer than what surrounds it: all of it has to show
    assert fmean(value for values in found.values() for value in values) > 1.2, found


def test_speed_is_that_of_one_evaluation(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed, out = script("speed"), tmp_path / "speed.md"
    monkeypatch.setattr(speed, "seconds", lambda net, size, threads, at_least: size / 64 / threads)
    speed.main([f"--priors={tiny}", "--sizes", "16", "128", f"--out={out}", "--rounds=2"])
    lines = [line.split("|")[2:-1] for line in out.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    table = {tuple(cell.strip() for cell in line[:2]): [cell.strip() for cell in line[2:]] for line in lines}
    assert table["on", "network"] == ["16x16", "128x128"]
    for how in ("as loaded", "compiled"):
        assert table["1 thread", how] == ["4", "0.5"] and table["2 threads", how] == ["8", "1"]
    assert torch.__version__ in out.read_text(encoding="utf-8") and speed.processor() in out.read_text(encoding="utf-8")


def test_reports_and_suites_are_timed(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = {
        "name": "small", "prior": tiny, "images": {"a": {"source": {"photograph": {"name": "camera", "size": 16}}}},
        "tasks": {"t": {"operator": "Denoising", "noise": 0.1}}, "methods": {"measurement": None, "wavelets": None},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(suite))
    script("suites").main(["--records=40", f"--suite={tmp_path / 'small.yaml'}", "--method", "measurement"])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"report of 40 records: [\d.]+ s, [\d.]+ s of the processor", lines[0])
    assert re.search(r": \d+ s on one process, \d+ s on two, [\d.]+ times faster", lines[1])


def test_a_slow_prior_is_timed_as_slow() -> None:
    class Slow(DenoisingUNet):
        calls = 0

        def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
            assert x.shape == (1, 1, 8, 8) and torch.get_num_threads() == 1
            self.calls += 1
            time.sleep(0.02)
            return x

    threads, slow = torch.get_num_threads(), Slow(channels=1, widths=(8,), blocks=1)
    try:
        taken = script("speed").seconds(slow, 8, 1, 0.05)
    finally:
        torch.set_num_threads(threads)
    assert taken >= 0.02 and 1 < slow.calls <= 3
