"""Suites in files: those that ship, their pages, those of users, and their mistakes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_suite import ROOT, RUNS, SUITE, run, suite_folder, with_methods  # noqa: F401 (the last is a fixture)
from typer.testing import CliRunner

from invdiff import bench
from invdiff.bench import components, contestants, tasks
from invdiff.bench import images as sources
from invdiff.bench import suite as suites
from invdiff.cli import app

# Suites in files


@pytest.mark.parametrize("name", suites.suites())
def test_suites_that_ship_can_be_built(name: str, folder: Path) -> None:
    """Images are those of the hashes, operators measure them, methods exist; priors are not asked for."""
    suite = suites.read(name)
    shapes = dict[str, tuple[int, ...]]()
    for key, image in suite.images.items():
        if "drawn" not in image.source:
            truth = components.build(image.source, sources.IMAGES)
            assert tasks.same(truth, {"sha256": image.sha256, "fingerprint": image.fingerprint}), key
            shapes[key] = tuple(truth.shape[1:])
        else:
            shapes[key] = tuple(image.source["drawn"]["shape"])  # type: ignore[index]
    for task in suite.tasks.values():
        shape = shapes[next(iter(task.images or shapes))] if shapes else (3, 64, 64)
        A, law = tasks.operator(task.operator, task.noise, shape)
        y = tasks.measure(A, law, torch.rand(1, *shape), task.seed)
        assert torch.isfinite(y).all() and torch.isfinite(tasks.picture_of(y, A, shape)).all()
    for method in suite.methods.values():
        contestants.complete(method.run)
    assert suite.images or suite.files


def test_the_suite_demo_measures_what_the_demo_shows() -> None:
    from invdiff import demo

    suite = suites.read("demo")
    assert list(suite.tasks) == [t.name for t in demo.TASKS] and list(suite.images) == list(demo.PHOTOGRAPHS)
    truth = components.build(suite.images["camera"].source, sources.IMAGES)
    assert torch.equal(truth, demo.photograph("camera"))
    for shown in demo.TASKS:
        task = suite.tasks[shown.name]
        A, law = tasks.operator(task.operator, task.noise, tuple(truth.shape[1:]))
        assert task.title == shown.title
        assert torch.equal(tasks.measure(A, law, truth, task.seed), shown.operator(shown.noise).measure(truth, seed=0))


DOCS = ROOT / "docs"


@pytest.mark.parametrize("path", [p for p in sorted(DOCS.glob("*.md")) if p.read_text(encoding="utf-8").split()[1] in suites.suites()], ids=str)
def test_pages_of_suites_in_docs_are_of_todays_strategies(path: Path) -> None:
    """Every method of the suite has a row for each task that it has, with the settings that it has today."""
    text = path.read_text(encoding="utf-8")
    suite = suites.read(text.split()[1])
    assert f"`invdiff bench run {suite.name} --out DIR` runs it again" in text, "the suite has changed since"
    frozen = DOCS / "suites" / f"{suite.name}.yaml"
    assert not frozen.is_file() or f"Frozen protocol `{suites.read(frozen).protocol}`" in text
    settings = text.split("\n## Settings\n")[1]
    for label, method in suite.methods.items():
        assert contestants.is_auto(method.run) or f"- `{label}`: `{contestants.settings(contestants.complete(method.run))}`" in settings
    for task in suite.tasks:
        methods = {m for t, _, m in suite.pairs() if t == task}
        part = text.split(f"\n## {task}: ")[1].split("\n## ")[0]
        refused = {m for m in methods if re.search(rf"^- `{re.escape(m)}`,[^`]* {task}\b", text, re.MULTILINE)}
        assert methods - refused <= set(re.findall(r"^\| `([^`]+)`", part, re.MULTILINE))


def test_the_example_in_the_docs_is_a_suite(folder: Path) -> None:
    text = (DOCS / "suites.md").read_text(encoding="utf-8")
    Path("example.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    Path("mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    suite = suites.read("example.yaml")
    frozen = suites.freeze(suite)
    assert len(list(suite.pairs())) == 14 and frozen.methods["exact"].chosen["inpaint"]["samples"] == 8
    assert contestants.complete({"mine:adjoint": {"scale": 2.0}}) == {"mine:adjoint": {"scale": 2.0}}
    for names in (sources.IMAGES, contestants.CLASSICAL, {"denoiser": 0}):
        assert all(f"`{name}`" in text for name in names)
    for kind in (suites.Suite, suites.Task, suites.Image, suites.Method):
        told = {f.name for f in fields(kind)} - {"sha256", "fingerprint", "measurements", "chosen", "priors", "declared", "made_with", "frozen"}
        assert all(f"`{name}`" in text for name in told)


def test_images_of_a_folder_take_the_place_of_the_suites(folder: Path) -> None:
    from PIL import Image

    (folder / "pictures").mkdir()
    Image.new("RGB", (50, 40), (200, 100, 50)).save(folder / "pictures/flat.png")
    text = yaml.safe_load(SUITE) | {"images": {}, "files": {"picture": {"path": "$path", "size": 16}}}
    Path("own.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="--images DIR"):
        run("own.yaml")
    assert run("own.yaml", images="pictures").counts == {"ok": RUNS // 2}
    assert {r["spec"]["image"] for r in bench.load("out")[0]} == {"flat"}
    with pytest.raises(ValueError, match="takes no --images"):
        run("tiny.yaml", images="pictures")


WRONG = {
    "tasks.inpaint: unknown entry 'nois'": ("noise: 0.05", "nois: 0.05"),
    "tasks.inpaint: 'noise' is missing": (", noise: 0.05", ""),
    "tasks.inpaint: unknown name 'Inpaintin'": ("{Inpainting", "{Inpaintin"),
    "tasks.inpaint: Inpainting: got an unexpected keyword argument 'maks'; it takes mask": ("{mask:", "{maks:"),
    "tasks.inpaint: nothing is known as $shap": ("$shape", "$shap"),
    "images.a: photographs: astronaut": ("name: astronaut", "name: astronaut2"),
    "methods.dps-3: DPS: steps must be at least 1": ("steps: 3", "steps: 0"),
    "tasks.inpaint: Gaussian gives a Gaussian, not an operator": ("{Inpainting: {mask: {random_mask: {shape: $shape, keep: 0.5}}}}", "{Gaussian: {sigma: 0.1}}"),
    "methods.dps-3: DPS: sampler must be a sampler such as": ("{DDIM: {eta: 0.5}}", "DDIMM"),
    "methods.dps-3: unknown name 'DPSS'; did you mean DPS?": ("DPS:", "DPSS:"),
    "methods.dps-3: unknown entry 'steps'; allowed: run, samples, tasks, chosen; settings of a strategy go into run": ("{run: {DPS:", "{steps: 3, run: {DPS:"),
    "methods.tv.tasks: 'x' is none of inpaint, superres": ("{run: {total", "{tasks: [x], run: {total"),
    "samples: a whole number is needed, got 'two'": ("samples: 2", "samples: two"),
    "samples is at least 1": ("samples: 2", "samples: 0"),
    "'auto' is given twice": ("  measurement:", "  auto:"),
    "unknown prior 'natura'": ("tiny.safetensors", "natura"),
    "cannot be imported": ("  measurement:", "  m: {run: 'nowhere:f'}"),
    "names become names of files": ("  a: {", "  a/b: {"),
    "a name, or one name with its arguments": ("{DPS: {steps: 3, sampler: {DDIM: {eta: 0.5}}}}", "{DPS: 3}"),
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_in_a_suite_are_told_with_their_place(message: str) -> None:
    Path("wrong.yaml").write_text(SUITE.replace(*WRONG[message]))
    with pytest.raises(ValueError) as error:
        run("wrong.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_line() -> None:
    def invoke(*args: str) -> Any:
        return CliRunner().invoke(app, ["bench", *args])

    listed = invoke("suites")
    assert listed.exit_code == 0 and all(name in listed.output for name in suites.suites())
    wrong = invoke("run", "nothing", "--out", "out")
    assert wrong.exit_code == 2 and "unknown suite 'nothing'; suites that ship: demo, denoising, digits, " in wrong.output
    assert "give --dask" in invoke("run", "quick", "--out", "out", "--resources", "GPU=1").output
    run(with_methods("mine:raises", "mine:slow"))
    done = invoke("run", "methods.yaml", "--out", "out", "--workers", "1")
    assert done.exit_code == 1 and "2 runs (2 of them there before): 1 failed, 1 ok" in done.output
