"""Benchmark suites: frozen and reproducible, run once whatever happens, with every failure in its record."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from invdiff import bench
from invdiff.bench import components, contestants, performing, records, report, running, tasks, workers
from invdiff.bench import images as sources
from invdiff.bench import suite as suites
from invdiff.cli import app
from invdiff.files import Locked, lock
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


def dies(case, once):
    if not Path(once).exists():
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(case.truth)


def dies_always(case):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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


# What is run, and what is left of it


def test_every_pair_has_a_record_with_scores_cost_and_pictures(folder: Path) -> None:
    told: list[float | None] = []
    progress = run(report=lambda p: told.append(p.remaining))
    assert told[0] is None and told[-1] == 0 and all(t is not None and t > 0 for t in told[1:-1])
    found, problems = bench.load("out")
    assert progress.counts == {"ok": RUNS} and len(found) == RUNS and not problems
    assert {(r["spec"]["task"], r["spec"]["image"], r["spec"]["method"]) for r in found} == set(suites.read("tiny.yaml").pairs())
    assert {r["protocol"] for r in found} == {records.digest((folder / "out/suite.yaml").read_bytes())}
    assert suites.read("out/suite.yaml").protocol == found[0]["protocol"]
    for r in found:
        assert r["metrics"]["psnr"] > 5 and r["metrics"]["ssim"] is not None  # type: ignore[operator]
        assert r["machine"]["threads"] == 1 and r["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert all((folder / "out" / path).is_file() for path in r["pictures"].values())
        assert r["cost"]["peak_mib"] > 50 and r["cost"]["seconds"] > 0  # type: ignore[operator]
        passes = {"dps-3": (3, 3), "tv": (0, 0), "measurement": (0, 0)}.get(r["spec"]["method"])
        if passes is None:  # auto: DPS for a mask, DiffPIR otherwise
            passes = (30, 30) if r["spec"]["task"] == "inpaint" else (20, 0)
        assert (r["cost"]["nfe"], r["cost"]["backward"]) == passes
        assert (r["spec"]["prior"] is None) == (passes == (0, 0))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("[!.]*.*")}
    assert run().skipped == RUNS
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("[!.]*.*")}


def test_the_frozen_suite_gives_the_same_scores_again(folder: Path) -> None:
    run()
    Path("tiny.yaml").unlink()
    run("out/suite.yaml", "again")
    assert (folder / "again/suite.yaml").read_bytes() == (folder / "out/suite.yaml").read_bytes()
    first, second = scores("out"), scores("again")
    assert first.keys() == second.keys()
    for key, metrics in first.items():
        assert metrics == pytest.approx(second[key], abs=1e-4)


def test_a_frozen_suite_holds_all_settings(folder: Path) -> None:
    run(only={"method": ["measurement"]})
    frozen = yaml.safe_load((folder / "out/suite.yaml").read_text())
    assert frozen["methods"]["dps-3"]["run"]["DPS"]["weight"] == 1.0
    assert frozen["methods"]["auto"]["chosen"]["superres"]["run"]["DiffPIR"]["weight"] == 0.05
    assert frozen["tasks"]["inpaint"]["operator"]["Inpainting"]["mask"]["random_mask"]["seed"] == 0
    assert set(frozen["priors"]) == {"tiny.safetensors"} and frozen["made_with"]["deepinv"]
    assert all(len(image["sha256"]) == 64 for image in frozen["images"].values())


def test_failures_are_recorded_and_stop_nothing() -> None:
    names = ["mine:raises", "mine:not_finite", "mine:huge", "mine:picky", "fbp", "mine:slow"]
    progress = run(with_methods(*names))
    found = by_method()
    assert progress.counts == {"failed": 3, "refused": 2, "ok": 1}
    assert found["raises"]["error"].startswith("RuntimeError: out of luck (mine.py, line")  # type: ignore[union-attr]
    assert "not finite" in str(found["not_finite"]["error"]) and "diverged" in str(found["huge"]["error"])
    assert found["picky"]["status"] == found["fbp"]["status"] == "refused"
    assert set(found["huge"]["metrics"].values()) == {None}
    assert run("methods.yaml").skipped == 6
    Path("mine.py").write_text(MINE.replace("1e3", "1"))
    sys.modules.pop("mine")
    progress = run("methods.yaml", again=True)
    assert progress.skipped == 1 and progress.counts == {"failed": 2, "refused": 2, "ok": 2}


def test_import_paths_name_operators_strategies_and_judges_of_ones_own() -> None:
    text = yaml.safe_load(SUITE)
    text["tasks"] = {"half": {"operator": {"mine:left_half": {"width": "$side"}}, "noise": 0.1, "judge": "mine:brightness"}}
    text["methods"] = {"mean": {"run": {"mine:Mean": {"shade": 0.25}}}, "dps": {"run": {"DPS": {"steps": 2}}}}
    Path("own.yaml").write_text(yaml.safe_dump(text))
    assert run("own.yaml").counts == {"ok": 4}
    mean = by_method()["mean"]
    assert mean["spec"]["settings"] == "Mean(steps=20, shade=0.25)"
    assert mean["metrics"]["brightness"] == pytest.approx(0.25) and mean["metrics"]["bad"] is None
    assert run("out/suite.yaml", "again").counts == {"ok": 4}


def test_a_part_of_a_suite_can_be_run() -> None:
    assert run(only={"task": ["inpaint"], "method": ["tv", "dps-3"], "image": []}).counts == {"ok": 4}
    page = report.write("out", say=lambda text: None)
    assert "this is a part: 12 of the 16 runs" in page.read_text(encoding="utf-8") and "12 of the 16 runs" in page.with_suffix(".md").read_text(encoding="utf-8")
    assert run(only={"image": ["b"]}).skipped == 2
    with pytest.raises(ValueError, match="method 'dps' is none of this suite's: auto, dps-3"):
        run(only={"method": ["dps"]})


# Killed, corrupted, run twice


def _in_a_fork(function: Callable[[], Any]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_moment_it_goes_on(folder: Path) -> None:
    run(out="whole")
    torch.set_num_threads(1)
    rng, counts = random.Random(0), [0]
    for _ in range(3):
        process = _in_a_fork(run)
        goal = counts[-1] + rng.randint(1, 4)
        while len(bench.load("out")[0]) < goal and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not bench.load("out")[1]  # what is there is whole
        counts.append(len(bench.load("out")[0]))
    assert run().skipped == counts[-1] >= 3
    assert scores("out") == scores("whole")
    assert not list((folder / "out").rglob(".*.tmp"))
    assert {p.name for p in (folder / "out").rglob("*.png")} == {p.name for p in (folder / "whole").rglob("*.png")}


def test_corrupt_records_are_reported_and_run_again(folder: Path) -> None:
    run()
    paths = sorted((folder / "out/runs").iterdir())
    whole = [path.read_text() for path in paths]
    paths[0].write_text(whole[0][:200])
    paths[1].write_text("")
    paths[2].write_text(whole[3])  # of another run
    paths[4].write_text(whole[4].replace('"noise": 0.0', '"noise": 0.1'))
    paths[5].write_text("[1, 2]")
    _, problems = bench.load("out")
    assert len(problems) == 5 and all(path.name in text for path, text in zip([*paths[:3], *paths[4:6]], problems))
    progress = run()
    assert progress.skipped == RUNS - 5 and len([p for p in progress.problems if "corrupt" in p]) == 5
    assert len(scores("out")) == RUNS
    for path, text in zip(paths, whole):
        assert json.loads(path.read_text())["metrics"] == json.loads(text)["metrics"]


def test_two_at_once_are_refused_and_a_lock_ends_with_its_process(folder: Path) -> None:
    (folder / "out").mkdir()
    with lock(folder / "out"), pytest.raises(Locked, match=f"process {os.getpid()}"):
        run()
    assert not (folder / "out/suite.yaml").exists()
    if sys.platform == "linux":

        def hold() -> None:
            with lock(folder / "out"):
                (folder / "held").touch()
                time.sleep(60)

        process = _in_a_fork(hold)
        while not (folder / "held").exists():
            time.sleep(0.01)
        with pytest.raises(Locked), lock(folder / "out"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with lock(folder / "out"):
        pass


def test_a_folder_keeps_to_its_suite() -> None:
    run(only={"method": ["measurement"]})
    text = yaml.safe_load(SUITE)
    text["tasks"]["inpaint"]["noise"] = 0.06
    Path("other.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="another suite"):
        run("other.yaml")


def test_a_suite_that_has_grown_goes_on_in_its_folder() -> None:
    """What was run is not run again, and is of the new protocol; a method less, or other scores, are another suite."""
    run(only={"method": ["measurement"]})
    before, text = scores("out"), yaml.safe_load(SUITE)
    text["methods"]["tv-9"] = {"run": {"total_variation": {"iterations": 9, "weights": [0.02]}}}
    Path("grown.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    assert run("grown.yaml", only={"method": ["measurement", "tv-9"]}).skipped == 4
    after, protocol = scores("out"), suites.read("out/suite.yaml").protocol
    assert len(after) == 8 and before.items() <= after.items()
    assert {r["protocol"] for r in bench.load("out")[0]} == {protocol} != {suites.read("tiny.yaml").protocol}
    for suite in ("tiny.yaml", "other.yaml"):
        Path("other.yaml").write_text(yaml.safe_dump(text | {"metrics": ["psnr"]}))
        with pytest.raises(ValueError, match="another suite"):
            run(suite)
    assert suites.read("out/suite.yaml").protocol == protocol and scores("out") == after


def test_what_only_readers_need_may_change_after_a_run() -> None:
    run(only={"method": ["measurement"]})
    text = yaml.safe_load(SUITE) | {"note": "mind the gap", "reference": "tv"}
    Path("noted.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    assert suites.read("noted.yaml").protocol == suites.read("tiny.yaml").protocol
    before = suites.read("out/suite.yaml")
    assert run("noted.yaml", only={"method": ["measurement"]}).skipped == 4
    after = suites.read("out/suite.yaml")
    assert (after.note, after.reference, after.protocol) == ("mind the gap", "tv", before.protocol)
    Path("noted.yaml").write_text(yaml.safe_dump(text | {"reference": "bm3d"}))
    with pytest.raises(ValueError, match="reference: 'bm3d' is none of auto"):
        suites.read("noted.yaml")


@pytest.mark.parametrize("part", ["image", "measurement", "prior"])
def test_what_is_not_what_was_frozen_is_refused(folder: Path, part: str) -> None:
    run(only={"method": ["measurement"]})
    text = yaml.safe_load((folder / "out/suite.yaml").read_text())
    if part == "image":
        text["images"]["a"]["source"]["photograph"]["name"] = "coffee"
    elif part == "measurement":
        text["tasks"]["inpaint"]["operator"]["Inpainting"]["mask"]["random_mask"]["seed"] = 1
    else:
        save_weights(DenoisingUNet(widths=(8, 8), blocks=1), "tiny.safetensors")
    Path("changed.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    with pytest.raises(ValueError, match="frozen with"):
        run("changed.yaml", "again")
    assert not (folder / "again/suite.yaml").exists()


def test_rounding_is_no_difference_but_anything_else_is() -> None:
    x = torch.rand(1, 3, 20, 20)
    known = tasks.frozen(x)
    assert tasks.same(x, known) and tasks.same(x + 1e-6 * torch.randn_like(x), known)
    for other in (x.flip(-1), x.roll(1, -1), x + 1e-3, x + 1e-2 * torch.randn_like(x), x[:, :, :19]):
        assert not tasks.same(other, known)


# Workers


class Fragile:
    """A pool in which some runs kill their worker, which loses all that are under way, as in a pool of processes."""

    together = 3

    def __init__(self, deadly: Callable[[str], bool]) -> None:
        self.deadly, self.restarts, self.dead = deadly, 0, False
        self.futures: list[Future[Any]] = []
        self.lock = threading.Lock()

    def submit(self, function: Any, job: performing.Job) -> Future[Any]:
        if self.dead:
            raise BrokenExecutor("dead")
        self.futures.append(Future())
        threading.Timer(0.03, self._work, (function, job, self.futures[-1])).start()  # when all that fit are under way
        return self.futures[-1]

    def _work(self, function: Any, job: performing.Job, future: Future[Any]) -> None:
        with self.lock:
            if future.done():
                return
            if not self.deadly(job.spec["method"]):
                future.set_result(function(job))
                return
            self.dead = True
            for lost in self.futures:
                if not lost.done():
                    lost.set_exception(BrokenExecutor("dead"))

    def restart(self) -> None:
        self.restarts, self.dead, self.futures = self.restarts + 1, False, []


def work(pool: Any, suite: str) -> running.Progress:
    frozen = suites.freeze(suites.read(suite))
    jobs = performing.jobs(frozen)
    progress = running.Progress(len(jobs))
    running._work(pool, jobs, Path("out"), progress, lambda p: None)
    return progress


def test_what_a_dying_worker_loses_is_run_again() -> None:
    deaths = iter([True, False, False, True])
    pool = Fragile(lambda method: method == "dps-3" and next(deaths, False))
    assert work(pool, "tiny.yaml").counts == {"ok": RUNS}
    assert pool.restarts == 2 and len(scores("out")) == RUNS


def test_a_run_that_always_kills_its_worker_fails_alone() -> None:
    pool = Fragile(lambda method: method == "dps-3")
    progress = work(pool, "tiny.yaml")
    assert progress.counts == {"ok": RUNS - 4, "failed": 4}
    failed = [r for r in bench.load("out")[0] if r["status"] == "failed"]
    assert {r["spec"]["method"] for r in failed} == {"dps-3"} and "died 3 times" in str(failed[0]["error"])


def test_processes_give_the_same_scores_as_threads(capfd: pytest.CaptureFixture[str]) -> None:
    """Worker processes are told the threads before they load torch, and end with the pool."""
    run()
    bench.run("tiny.yaml", "processes", workers=1)
    assert scores("processes") == scores("out")
    assert not multiprocessing.active_children()
    assert not capfd.readouterr().err


def test_threads_share_a_prior_and_count_their_own_evaluations() -> None:
    with ThreadPoolExecutor(3) as executor:
        bench.run("tiny.yaml", "out", executor=executor, only={"method": ["dps-3", "tv"]})
    assert {r["cost"]["nfe"] for r in bench.load("out")[0] if r["spec"]["method"] == "dps-3"} == {3.0}


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
    "methods.dps-3: unknown name 'DPSS'": ("DPS:", "DPSS:"),
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
    assert done.exit_code == 1 and "2 runs (2 were there already): 1 failed, 1 ok" in done.output


# Slow: real processes that are really killed, and a clone of the repository


@pytest.mark.slow
def test_a_frozen_suite_gives_the_same_scores_in_a_clean_clone(folder: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone of the repository")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), "clone"], check=True)
    command = [sys.executable, "-c", "from invdiff.cli import main; main()", "bench", "run"]
    part = ["--image", "camera", "--method", "auto", "--method", "ddrm", "--workers", "1"]
    for code, suite, out in ((ROOT, "quick", "out"), (folder / "clone", "out/suite.yaml", "again")):
        subprocess.run([*command, suite, "--out", out, *part], env=os.environ | {"PYTHONPATH": str(code)}, check=True)
    first, second = scores("out"), scores("again")
    assert first.keys() == second.keys() and len(first) >= 4
    for key, found in first.items():
        assert second[key] == pytest.approx(found, abs=1e-4)


@pytest.mark.slow
def test_workers_share_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pool = workers.Processes(None, 1, gpus=2)
    assert pool.workers == 2
    found: set[str | None] = set()
    while len(found) < 2:
        found |= {f.result() for f in [pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(8)]}
    pool.close()
    assert found == {"2", "5"}


@pytest.mark.slow
def test_worker_processes_that_die_are_replaced() -> None:
    text = yaml.safe_load(Path(with_methods("mine:slow", "mine:dies_always")).read_text())
    text["methods"]["dies"] = {"run": {"mine:dies": {"once": "died"}}}
    Path("dying.yaml").write_text(yaml.safe_dump(text))
    assert bench.run("dying.yaml", "out", workers=2).counts == {"ok": 2, "failed": 1}
    assert "died 3 times" in str(by_method()["dies_always"]["error"])
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_ten_kills_of_the_command_lose_nothing(folder: Path) -> None:
    """The whole family of processes: the command is killed, its workers end by themselves."""
    run(out="whole")
    methods = {f"slow-{i}": {"run": {"mine:slow": {"seconds": 0.3}}} for i in range(20)}
    Path("tiny.yaml").write_text(yaml.safe_dump(yaml.safe_load(SUITE) | {"methods": yaml.safe_load(SUITE)["methods"] | methods}))
    command = [sys.executable, "-c", "from invdiff.cli import main; main()", "bench", "run", "tiny.yaml", "--out", "out", "--workers", "2"]
    rng = random.Random(1)
    for _ in range(10):
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.DEVNULL)
        goal = len(bench.load("out")[0]) + rng.randint(1, 4)
        while len(bench.load("out")[0]) < goal:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.wait()
        assert not bench.load("out")[1]
    assert 10 <= len(bench.load("out")[0]) < RUNS + 80  # it had not come to the end
    assert run().counts == {"ok": RUNS + 80}
    whole = scores("whole")
    assert {key: metrics for key, metrics in scores("out").items() if key in whole} == whole


@pytest.mark.slow
def test_a_dask_cluster_finishes_though_a_worker_is_killed(folder: Path) -> None:
    distributed = pytest.importorskip("distributed")
    run(out="whole")
    methods = {f"slow-{i}": {"run": {"mine:slow": {"seconds": 0.5}}} for i in range(5)}
    Path("tiny.yaml").write_text(yaml.safe_dump(yaml.safe_load(SUITE) | {"methods": yaml.safe_load(SUITE)["methods"] | methods}))
    killed: list[int] = []

    def kill_one(progress: running.Progress) -> None:
        if progress.done == 5 and not killed:
            killed.append(next(iter(executor.client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=":0", resources={"GPU": 1}
    ) as cluster:
        executor = workers.Dask(cluster.scheduler_address, {"GPU": 1})
        try:
            progress = bench.run("tiny.yaml", "out", executor=executor, report=kill_one)
        finally:
            executor.shutdown(wait=False)
    assert killed and progress.counts == {"ok": RUNS + 20}
    whole = scores("whole")
    assert {key: metrics for key, metrics in scores("out").items() if key in whole} == whole
