"""Where runs are done: workers that die, threads, processes, a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_suite import ROOT, RUNS, SUITE, by_method, run, scores, suite_folder, with_methods  # noqa: F401 (the last is a fixture)

from invdiff import bench
from invdiff.bench import performing, running, workers
from invdiff.bench import suite as suites

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
