"""Files that are written whole or not at all, folders of one process, and seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invdiff import operators, phantoms, priors, solve
from invdiff.files import Locked, lock, write_atomically
from invdiff.seeds import seeded


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_what_a_killed_process_left_is_gone_once_the_folder_is_locked(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal; from invdiff.files import write_atomically\n"
        "def write(p): p.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(pathlib.Path('a.txt'), write)"
    )
    python(code, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and not (tmp_path / "a.txt").exists()
    with lock(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_two_processes_write_one_file_each_whole(tmp_path: Path) -> None:
    """The second writes and ends while the first is half-way."""
    other = "import pathlib; from invdiff.files import write_atomically; write_atomically(pathlib.Path('a'), lambda p: p.write_text('other'))"

    def write(p: Path) -> None:
        p.write_text("first")
        done = python(other, tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "a").read_text() == "other" and p.read_text() == "first"

    write_atomically(tmp_path / "a", write)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "first")]


def test_long_names_that_begin_alike_share_no_temporary_file(tmp_path: Path) -> None:
    used: list[Path] = []
    for i in range(2):
        write_atomically(tmp_path / f"{'x' * 200}{i}", lambda p: (used.append(p), p.write_text("whole")))
    assert len(set(used)) == 2


def test_a_locked_folder_names_who_works_in_it(tmp_path: Path) -> None:
    code = "import pathlib; from invdiff.files import lock\nwith lock(pathlib.Path('.')): pass"
    with lock(tmp_path):
        refused = python(code, tmp_path)
        assert f"Locked: . is being worked on by process {os.getpid()} on " in refused.stderr
        with pytest.raises(Locked, match="wait for it, or stop it"), lock(tmp_path):
            pass
    assert python(code, tmp_path).returncode == 0


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(p: Path) -> None:
        p.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# Seeds

MASK = torch.ones(4, 4)
TAKES_A_SEED: dict[str, Callable[[Any], Any]] = {
    "solve": lambda seed: solve(torch.zeros(1, 1, 4, 4), operators.Inpainting(MASK, noise=0.1), priors.Gaussian(0.5, torch.ones(1, 4, 4)), "dps", seed=seed, steps=2, samples=1).x,
    "priors.sample": lambda seed: priors.sample(priors.Gaussian(0.5, torch.ones(1, 4, 4)), (1, 1, 4, 4), seed=seed, steps=2),
    "Gaussian.sample": lambda seed: priors.Gaussian(0.5, torch.ones(1, 4, 4)).sample(1, seed=seed),
    "measure": lambda seed: operators.Inpainting(MASK, noise=0.1).measure(torch.zeros(1, 1, 4, 4), seed),
    "phantom": lambda seed: phantoms.phantom(8, seed),
    "random_mask": lambda seed: operators.random_mask((4, 4), 0.5, seed),
    "CompressedSensing": lambda seed: operators.CompressedSensing((1, 4, 4), 0.5, seed=seed),
    "Recipe": lambda seed: priors.Recipe("r", seed=seed),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES_A_SEED)
def test_seeds_are_those_with_numbers_of_their_own(name: str) -> None:
    """Beyond 32 bits torch's generator repeats: a seed is refused there, and not taken for a smaller one."""
    for seed in (0, np.int64(3), 2**32 - 1):
        TAKES_A_SEED[name](seed)
    for bad in (2**32, -1, 1.5, True, "0"):
        with pytest.raises(ValueError, match=r"seed must be at least 0, under 2\^32 and a whole number, got "):
            TAKES_A_SEED[name](bad)


def test_a_seed_and_its_parts_draw_differently() -> None:
    drawn = [torch.rand((), generator=seeded(*key)).item() for key in ((0,), (1,), (2**32 - 1,), (0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(drawn)) == len(drawn)
    assert torch.equal(torch.rand(3, generator=seeded(5)), torch.rand(3, generator=torch.Generator().manual_seed(5)))
