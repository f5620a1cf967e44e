"""Benchmark suites are run once whatever happens, with every failure in its record."""

from __future__ import annotations

import importlib
import json
import linecache
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_suite import MINE, RUNS, SUITE, by_method, run, scores, suite_folder, with_methods  # noqa: F401 (the last is a fixture)

from invdiff import bench
from invdiff.bench import performing, report, tasks
from invdiff.bench import suite as suites
from invdiff.files import Locked, lock
from invdiff.priors import DenoisingUNet
from invdiff.priors.weights_io import save_weights

# What is run, and what is left of it


def test_every_pair_has_a_record_with_scores_cost_and_pictures(folder: Path) -> None:
    told: list[float | None] = []
    progress = run(report=lambda p: told.append(p.remaining))
    assert told[0] is None and told[-1] == 0 and all(t is not None and t > 0 for t in told[1:-1])
    found, problems = bench.load("out")
    assert progress.counts == {"ok": RUNS} and len(found) == RUNS and not problems
    assert {(r["spec"]["task"], r["spec"]["image"], r["spec"]["method"]) for r in found} == set(suites.read("tiny.yaml").pairs())
    assert {r["protocol"] for r in found} == {suites.read("out/suite.yaml").protocol} == {suites.read("out/suite.yaml").frozen}
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


def test_what_a_contestant_may_not_do_is_its_failure() -> None:
    """Leaving the program, words that no file can hold, and a judge that overwrites a metric."""
    assert run(with_methods("mine:leaves", "mine:wipes", "mine:slow")).counts == {"failed": 1, "ok": 2}
    assert by_method()["wipes"]["metrics"]["psnr"] < 20 and by_method()["slow"]["metrics"]["psnr"] == 80  # type: ignore[operator]
    text = yaml.safe_load(Path("methods.yaml").read_text())
    text["tasks"]["inpaint"]["judge"] = "mine:generous"
    Path("judged.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="another suite"):  # scores of two judges are not mixed
        run("judged.yaml")
    assert run("judged.yaml", "judged").counts == {"failed": 3} and "are not those of the metrics" in str(by_method("judged")["slow"]["error"])
    text["tasks"]["inpaint"]["judge"] = "mine:none"
    Path("judged.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="tasks.inpaint.judge.*'mine:none' cannot be imported"):
        run("judged.yaml", "none")


def test_other_weights_in_a_kept_folder_are_refused() -> None:
    run(only={"method": ["measurement"]})
    torch.manual_seed(1)
    save_weights(DenoisingUNet(widths=(8, 8), blocks=2), "tiny.safetensors")
    performing._prior.cache_clear()  # another test may have had the frozen ones
    assert run(only={"method": ["measurement", "dps-3"]}).counts == {"ok": 4, "failed": 4}
    assert "not those that the suite was frozen with" in str(by_method()["dps-3"]["error"])


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
    with pytest.raises(ValueError, match=r"another suite.* It differs in tasks.inpaint.noise: 0.05 -> 0.06"):
        run("other.yaml")


def report_notes(folder: str) -> str:
    said: list[str] = []
    report.write(folder, say=said.append)
    return "\n".join(said)


def test_a_frozen_file_that_was_edited_is_another_suite() -> None:
    run(only={"method": ["measurement"]})
    path, name = Path("out/suite.yaml"), {"method": ["measurement"]}
    frozen = path.read_text()
    assert suites.read(path).declared and not suites.read("tiny.yaml").declared
    path.write_text(frozen.replace("{steps: 3,", "{steps: 4,").replace("steps: 3\n", "steps: 4\n"))
    assert path.read_text() != frozen and not suites.read(path).declared
    assert run("out/suite.yaml", only=name).skipped == 4  # what was run is as it was
    path.write_text(frozen.replace("samples: 2", "samples: 3"))
    assert "suite.yaml was edited since" in report_notes("out")
    path.write_text("name: [tiny")
    assert "suite out/suite.yaml: " in report_notes("out")
    path.write_text(frozen.replace("noise: 0.05", "noise: 0.06"))
    with pytest.raises(ValueError, match="measurement of a is not the one|another suite"):
        run("out/suite.yaml", only=name)
    path.write_text(f"{frozen}seed: 7\n".replace("\nseed: 0\n", "\n"))
    with pytest.raises(ValueError, match=r"another suite.* edited: \w+ / [ab] / measurement ran with measurement\(\), .* seed 0"):
        run("out/suite.yaml", only=name)
    run(only=name)
    assert suites.read(path).declared and len(scores("out")) == 4


def test_a_prior_of_a_users_own() -> None:
    """A function without weights, of whose source the checksum is."""
    text = yaml.safe_load(SUITE) | {"prior": "mine:shrinking", "methods": {"dps": {"run": {"DPS": {"steps": 2}}}}}
    Path("own.yaml").write_text(yaml.safe_dump(text))
    assert run("own.yaml", only={"task": ["inpaint"]}).counts == {"ok": 2}
    (before,) = suites.read("out/suite.yaml").priors.values()
    Path("mine.py").write_text(Path("mine.py").read_text().replace("4 * sigma", "5 * sigma**1.5 * sigma"))
    del sys.modules["mine"]
    importlib.invalidate_caches()
    linecache.checkcache()
    with pytest.raises(ValueError, match="not those that the suite was frozen with"):
        run("out/suite.yaml", "again")
    assert before != tasks.prior_sha256("mine:shrinking") == tasks.prior_sha256("mine:shrinking")


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


def test_an_image_may_have_random_numbers_of_its_own() -> None:
    same = SUITE.replace("{photograph: {name: camera, size: 16}}}", "{photograph: {name: astronaut, size: 16}}, seed: 1}")
    Path("seeds.yaml").write_text(same)
    run("seeds.yaml")
    found = {(r["spec"]["image"], r["spec"]["method"]): r for r in bench.load("out")[0] if r["spec"]["task"] == "inpaint"}
    a, b = found["a", "dps-3"], found["b", "dps-3"]
    assert (a["spec"]["seed"], b["spec"]["seed"]) == (0, 1) and a["spec"]["image_sha256"] == b["spec"]["image_sha256"]
    assert a["spec"]["measurement_sha256"] != b["spec"]["measurement_sha256"] and a["metrics"]["psnr"] != b["metrics"]["psnr"]
