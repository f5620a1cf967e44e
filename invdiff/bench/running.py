"""Running a suite: what is missing is run, each run is recorded when it is done, and nothing is run twice."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

import torch

from invdiff import metrics
from invdiff.bench import performing, records
from invdiff.bench import suite as suites
from invdiff.bench.performing import Done, Job
from invdiff.bench.records import Record
from invdiff.bench.suite import Suite
from invdiff.bench.workers import Given, Processes
from invdiff.files import lock, write_atomically, write_text

TRIES = 3  # of a run that takes its worker down with it


@dataclass
class Progress:
    """How far a suite is. ``problems`` names records that were corrupt, and what else a user should know."""

    total: int
    done: int = 0
    skipped: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    last: Record | None = None
    remaining: float | None = None  # seconds, once something is known


Report = Callable[[Progress], None]


def run(
    suite: str | Path | Suite,
    out: str | Path,
    *,
    images: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
    again: bool = False,
    report: Report = lambda progress: None,
) -> Progress:
    """Run a suite, or what is missing of it, in the folder ``out``.

    :param suite: the name of one that ships, a YAML file (a frozen ``suite.yaml`` among them), or a :class:`Suite`.
    :param images: a folder whose images take the place of the suite's.
    :param workers: processes; by default one a GPU, or as many as there are cores for the threads that the suite gives each.
    :param executor: any ``concurrent.futures.Executor`` to run on instead; it is not shut down.
    :param only: a part of the suite, such as {"task": ["inpaint"], "method": ["dps", "tv"]}; also "image".
    :param again: also run again what failed or was refused.
    :param report: called with the progress, at the beginning and after every run.
    :raises ValueError: the suite is wrong, or ``out`` holds another one. One that has all of its runs and more (methods,
        tasks, images) goes on in the same folder.
    :raises invdiff.files.Locked: another process runs in ``out``.
    """
    out = Path(out)
    given = suite if isinstance(suite, Suite) else suites.read(suite, None if images is None else Path(images))
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        pool = Given(executor) if executor is not None else Processes(workers, given.threads, torch.cuda.device_count())
        try:
            if not (out / "suite.yaml").is_file():
                pool.start()  # while the suite is frozen here
            frozen, notes = open_folder(given, out)
            todo, progress = _missing(frozen, out, only or {}, again)
            progress.problems += notes
            if todo and (absent := {name: why for name, why in metrics.absent().items() if name in frozen.metrics}):
                progress.problems.append(f"without {', '.join(absent)}: {'; '.join(dict.fromkeys(absent.values()))}")
            report(progress)
            _work(pool, todo, out, progress, report)
        except BaseException:
            pool.close(now=True)
            raise
        pool.close()
    return progress


def open_folder(given: Suite, out: Path) -> tuple[Suite, list[str]]:
    """The frozen suite of a folder, made at the first run, and notes on what has changed since. ``ValueError`` if it is another."""
    given = given if given.declared else replace(given, declared=given.protocol)
    path = out / "suite.yaml"
    if not path.is_file():
        frozen = suites.freeze(given)
        write_text(path, frozen.yaml())
        return frozen, _changes(frozen)
    frozen = suites.read(path)
    if given.declared != frozen.declared:
        frozen = _grown(frozen, given, out)
    told = replace(frozen, note=given.note, reference=given.reference)
    if told != frozen:
        write_text(path, told.yaml())
    return told, _changes(told)


def _grown(old: Suite, given: Suite, out: Path) -> Suite:
    """The frozen suite ``given`` in the place of ``old``, if it has all runs of that, with the same settings and scores, and more."""
    new = replace(suites.freeze(given), made_with=old.made_with).sealed()
    there = records.load(out)[0]
    kept = {job.key for job in performing.jobs(old)} if old.frozen or old.declared else {r["key"] for r in there}  # edited: what was run
    rejudged = any(name in new.tasks and new.tasks[name].judge != task.judge for name, task in old.tasks.items())
    same = (new.name, new.metrics, new.threads) == (old.name, old.metrics, old.threads) and not rejudged
    lost = kept - {job.key for job in performing.jobs(new)}
    if not same or lost:
        changed = suites.differences(old, new)
        said = f" It differs in {'; '.join(changed[:5])}" * bool(changed) + f"; and {len(changed) - 5} more places" * (len(changed) > 5)
        gone = [r["spec"] for r in there if r["key"] in lost]
        if gone and not changed:  # its own file was edited
            spec = gone[0]
            said = f" Its suite.yaml was edited: {spec['task']} / {spec['image']} / {spec['method']} ran with {spec['settings']}, noise {spec['noise']}, samples {spec['samples']}, seed {spec['seed']}"
        raise ValueError(f"{out} holds the runs of another suite, or of another state of {given.name}; give another folder.{said}")
    protocol = new.protocol
    for record in there:  # they are runs of the new one too, whose protocol they name
        if record["key"] in kept:
            records.write(out, {**record, "protocol": protocol})
    write_text(out / "suite.yaml", new.yaml())
    return new


def _changes(frozen: Suite) -> list[str]:
    now = records.versions()
    changed = [f"{k} {v} (now {now.get(k, 'not installed')})" for k, v in frozen.made_with.items() if now.get(k) != v]
    return [f"the suite was frozen with {', '.join(changed)}; scores may differ"] if changed else []


def _missing(frozen: Suite, out: Path, only: Mapping[str, Sequence[str]], again: bool) -> tuple[list[Job], Progress]:
    found, problems = records.load(out)
    done = {r["key"] for r in found if r["status"] == "ok" or not again}
    jobs = performing.jobs(frozen)
    for kind, names in only.items():
        known = {job.spec[kind] for job in jobs}
        if unknown := set(names) - known:
            raise ValueError(f"{kind} {min(unknown)!r} is none of this suite's: {', '.join(sorted(known))}")
        jobs = [job for job in jobs if not names or job.spec[kind] in names]
    todo = [job for job in jobs if job.key not in done]
    progress = Progress(len(jobs), len(jobs) - len(todo), len(jobs) - len(todo), problems=[f"{p}; run again" for p in problems])
    wanted = {job.key for job in jobs}
    progress.counts.update(r["status"] for r in found if r["key"] in done & wanted)
    return todo, progress


def _work(pool: Processes | Given, todo: list[Job], out: Path, progress: Progress, report: Report) -> None:
    """Hand out the runs and record what comes back."""
    waiting, running = deque(todo), dict[Future[Done], Job]()
    try:
        _hand_out(pool, waiting, running, out, progress, report)
    finally:
        for future in running:  # where something went wrong
            future.cancel()


def _hand_out(
    pool: Processes | Given, waiting: deque[Job], running: dict[Future[Done], Job], out: Path, progress: Progress, report: Report
) -> None:
    lost: Counter[str] = Counter()  # how often a worker died while a run was under way
    clock, broken = _Clock(), False
    while waiting or running:
        # A worker died of one of several runs: each is then tried alone, so that only the culprit comes to TRIES.
        together = 1 if waiting and lost[waiting[0].key] else pool.together
        try:
            while waiting and len(running) < together:
                running[pool.submit(performing.perform, waiting[0])] = waiting[0]
                waiting.popleft()
        except BrokenExecutor:  # those that are running will say so too
            broken = True
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                done = future.result()
            except CancelledError:
                raise RuntimeError("the executor has given the runs up; start again, what was finished is kept") from None
            except BrokenExecutor as error:
                broken = True
                lost[job.key] += 1
                if lost[job.key] < TRIES:
                    waiting.appendleft(job)
                    continue
                done = _gone(job, f"its worker died {TRIES} times: killed, or out of memory? ({error})")
            except Exception as error:  # noqa: BLE001 (of the executor; a run itself raises nothing)
                done = _gone(job, f"{type(error).__name__}: {error}")
            _record(out, done)
            clock.note(job, done.record)
            progress.done += 1
            progress.counts[done.record["status"]] += 1
            progress.last, progress.remaining = done.record, clock.remaining([*waiting, *running.values()])
            report(progress)
        if broken and not running:
            pool.restart()
            broken = False


def _record(out: Path, done: Done) -> None:
    """The pictures first, then the record that names them."""
    for name, data in done.files.items():
        if not (out / name).is_file() or done.record["key"] in name:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / name, lambda p, data=data: p.write_bytes(data))  # type: ignore[misc]
    records.write(out, done.record)


def _gone(job: Job, error: str) -> Done:
    """The record of a run that never came back."""
    record: Record = {
        "key": job.key,
        "suite": job.suite,
        "protocol": job.protocol,
        "spec": job.spec,
        "status": "failed",
        "error": " ".join(error.split()),
        "metrics": dict.fromkeys(job.metrics),
        "cost": dict.fromkeys(performing.COSTS),
        "versions": records.versions(),
        "machine": performing.machine(job.threads),
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "warnings": [],
        "pictures": {},
    }
    return Done(record, {})


class _Clock:
    """Estimates what remains: runs of a method take about as long as those of it that are done, others as long as all."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def note(self, job: Job, record: Record) -> None:
        self.seconds[job.spec["method"]].append(record["cost"]["seconds"] or 0.0)

    def remaining(self, left: list[Job]) -> float:
        done = [s for seconds in self.seconds.values() for s in seconds]
        ahead = sum(fmean(self.seconds[j.spec["method"]] or done) for j in left)
        return (time.perf_counter() - self.begin) * ahead / max(sum(done), 1e-9)
