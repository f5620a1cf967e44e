"""What the README says is run: its Python, its commands, its table of strategies."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.main import get_command
from typer.testing import CliRunner

from invdiff import Result, citation, operators, priors, solve, solvers
from invdiff.cli import app
from invdiff.priors.cards import header
from invdiff.priors.weights_io import save_weights
from invdiff.solving import DEFAULT_SAMPLES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SIDE = 16
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def tiny() -> priors.DenoisingUNet:
    return priors.DenoisingUNet(widths=(8, 8), blocks=1).requires_grad_(False)


def test_the_table_of_priors_says_what_ships_and_what_the_cards_say() -> None:
    rows = dict(re.findall(r"^\| \[`([\w-]+)`\]\(priors/weights/[\w-]+\.md\) \|.*\| ([^|]*) \|$", README, re.MULTILINE))
    assert sorted(rows) == sorted(priors.names())
    for name, said in rows.items():
        known = header(name)
        wanted = known["psnr"][25] if "psnr" in known else known["reconstruction"]
        assert float(re.findall(r"[\d.]+", said)[0]) == pytest.approx(wanted, abs=0.005), name


def test_the_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "load", lambda name: {"natural": tiny()}[name])
    mask = operators.random_mask((SIDE, SIDE), 0.5, seed=0)
    y = operators.Inpainting(mask, noise=0.05).measure(torch.full((1, 3, SIDE, SIDE), 0.6), seed=0)
    names: dict[str, Any] = {"mask": mask, "y": y}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks[0].splitlines()) == 4
    results = []
    for block in blocks:
        (tmp_path / "block.py").write_text(block)
        names |= runpy.run_path(str(tmp_path / "block.py"), names)
        results.append(names["result"])
    assert all(isinstance(result, Result) for result in results)
    assert names["image"].shape == names["uncertainty"].shape == y.shape
    assert len(results[0].samples) == DEFAULT_SAMPLES and f"{DEFAULT_SAMPLES} unless `samples=`" in README


def test_the_commands_parse_and_restore_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `invdiff ...` line is understood; those that restore are run, in a few steps and with a tiny prior."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    Path("runs/photos").mkdir(parents=True)
    for name in ("photo.png", "photos/a.png"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(name)
    Image.fromarray(((rng.random((32, 32)) < 0.5) * 255).astype(np.uint8)).save("mask.png")
    save_weights(tiny(), "runs/photos/natural.safetensors")

    invdiff = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("invdiff ")]
    assert len(invdiff) >= 7
    for name, *options in invdiff:
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, list(options))  # raises for an option that does not exist
        if name == "restore":
            extra = ["--prior", "runs/photos/natural.safetensors", "--steps", "2", "--samples", "2"]
            outcome = CliRunner().invoke(app, [name, *options, *extra])
            assert outcome.exit_code == 0, f"{options}: {outcome.output}"


def test_the_two_commands_are_there() -> None:
    assert COMMANDS[:2] == ["pip install -e . && invdiff demo", 'pip install -e ".[test]" && pytest']


def accepts(name: str, A: Any) -> bool:
    """Whether the strategy takes the operator: it answers, or refuses with a ValueError that names what it needs."""
    x = torch.full((1, 1, SIDE, SIDE), 0.6)
    try:
        solve(A.measure(x, seed=0), A, priors.Gaussian(x[0], 0.04), name, samples=1, steps=1)
    except ValueError as error:
        assert " needs " in str(error)
        return False
    return True


def cube(x: Tensor) -> Tensor:
    return x + 0.3 * x**3


@pytest.mark.parametrize("name", solvers.names())
def test_the_table_of_strategies_is_true(name: str) -> None:
    kernel = operators.gaussian_kernel(0.6)
    if accepts(name, operators.from_callable(cube, noise=0.05)):
        operator = "any"
    else:
        operator = "linear" if accepts(name, operators.Blur(kernel, noise=0.05, boundary="valid")) else "SVD"
    assert accepts(name, operators.Denoising(0.05))
    noise = "any" if accepts(name, operators.Denoising(operators.Poisson(0.05))) else "Gaussian"
    strategy = solvers.get(name)
    row = f"| `{name}` | {operator} | {noise} | {'yes' if strategy.gradient else 'no'} | {strategy.steps} |"
    assert row in README, f"the README should have the row {row}"


def test_the_table_lists_every_strategy_once() -> None:
    table = README.split("## Strategies")[1].split("\n\n")[1]
    assert re.findall(r"^\| `(\S+)`", table, re.MULTILINE) == solvers.names()


def test_every_strategy_has_its_lines() -> None:
    """docs/strategies.md: a section each, in their order, with the passes of the default settings and the paper that is cited."""
    text = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")
    sections = {s.partition("\n")[0].strip("`"): s for s in text.split("\n## ")[1:]}
    assert list(sections) == ["auto", *solvers.names()]
    A = operators.Inpainting(operators.random_mask((4, 4), 0.5, seed=1), noise=0.05)
    prior = priors.Gaussian(torch.full((1, 4, 4), 0.5), 0.04 * torch.eye(16))
    y = A.measure(prior.sample(1, seed=0), seed=0)
    for name in solvers.names():
        passes = sections[name].split("**Passes** ")[1].split(",")[0]
        assert int(passes) == solve(y, A, prior, name, samples=2).nfe, name
        author, year = re.findall(r"\*\*Reference\*\* (\w+).*?(20\d\d)", sections[name])[0]
        assert author.lower() in citation(name).lower() and year in citation(name), name


def test_every_loader_names_the_tests_that_check_it() -> None:
    """The last column: ``FILE::TEST``, and further tests of the same file by name."""
    table = README.split("| source | how to call |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 8
    for row in table:
        file, *names = re.findall(r"tests/\w+\.py|test_\w+", row.rstrip(" |").rpartition(" | ")[2])
        tests = (Path(__file__).parent / Path(file).name).read_text(encoding="utf-8")
        assert names and all(f"\ndef {name}(" in tests for name in names), row
