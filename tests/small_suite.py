"""A small suite in a folder of its own, with contestants of a user's: what the tests of running suites start from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from invdiff import bench
from invdiff.bench import running
from invdiff.priors import DenoisingUNet
from invdiff.priors.weights_io import save_weights

SUITE = """
name: tiny
samples: 2
prior: tiny.safetensors
images:
  a: {source: {photograph: {name: astronaut, size: 16}}}
  b: {source: {photograph: {name: camera, size: 16}}}
tasks:
  inpaint: {operator: {Inpainting: {mask: {random_mask: {shape: $shape, keep: 0.5}}}}, noise: 0.05}
  superres: {operator: {Downsampling: {factor: 4}}, noise: 2e-2}
methods:
  auto:
  dps-3: {run: {DPS: {steps: 3, sampler: {DDIM: {eta: 0.5}}}}}
  tv: {run: {total_variation: {iterations: 5, weights: [0.02]}}}
  measurement:
"""
RUNS = 16
ROOT = Path(__file__).parents[1]

MINE = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

import torch
from invdiff.bench import Outcome
from invdiff.solvers import Strategy


@dataclass(frozen=True)
class Mean(Strategy):
    shade: float = 0.5

    def sample(self, p):
        return torch.full_like(p.start(0.0), self.shade)


def shrinking():
    return lambda x, sigma: x / (1 + 4 * sigma**2)


def left_half(width):
    return lambda x: x[..., : width // 2]


def brightness(outcome, case):
    return {"brightness": float(outcome.x.mean()), "bad": float("nan")}


def slow(case, seconds=0.05):
    time.sleep(seconds)
    return Outcome(case.truth)


def raises(case):
    case.prior(case.truth, 0.1)
    raise RuntimeError("out of luck")


def not_finite(case):
    return Outcome(case.truth / 0)


def huge(case):
    return Outcome(1e3 * case.truth)


def picky(case):
    raise ValueError("not this one")


def wipes(case):
    case.truth.zero_(), case.y.zero_()
    return Outcome(case.truth)


def leaves(case):
    raise SystemExit("\\udcff")


def generous(outcome, case):
    return {"psnr": 99.0}


def dies(case, once):
    if not Path(once).exists():
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(case.truth)


def dies_always(case):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True, name="folder")
def suite_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a suite, the weights of a tiny network, and contestants of a user's own, ``mine``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    save_weights(DenoisingUNet(widths=(8, 8), blocks=1), "tiny.safetensors")
    Path("tiny.yaml").write_text(SUITE)
    Path("mine.py").write_text(MINE)
    yield tmp_path
    torch.set_num_threads(threads)


def run(suite: str = "tiny.yaml", out: str = "out", **options: Any) -> running.Progress:
    with ThreadPoolExecutor(1) as executor:
        return bench.run(suite, out, executor=executor, **options)


def with_methods(*methods: str, samples: int = 2) -> str:
    """A suite of one task on one image."""
    text = yaml.safe_load(SUITE) | {"samples": samples, "methods": {m.split(":")[-1]: {"run": m} for m in methods}}
    del text["tasks"]["superres"], text["images"]["b"]
    Path("methods.yaml").write_text(yaml.safe_dump(text))
    return "methods.yaml"


def scores(out: str) -> dict[str, dict[str, float | None]]:
    found, problems = bench.load(out)
    assert not problems
    return {r["key"]: r["metrics"] for r in found}


def by_method(out: str = "out") -> dict[str, bench.Record]:
    return {r["spec"]["method"]: r for r in bench.load(out)[0]}
