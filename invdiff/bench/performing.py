"""One run: a method on the measurement of an image, scored, timed and drawn. This is what workers do; they write nothing.

A :class:`Job` is plain data, so that it travels to any process or machine that has this package.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from invdiff import metrics
from invdiff.bench import contestants, images, records, tasks
from invdiff.bench import suite as suites
from invdiff.bench.case import Case, Outcome
from invdiff.bench.components import Component, bound, build, canonical, split
from invdiff.bench.records import Record
from invdiff.priors import LatentPrior, as_prior
from invdiff.priors.sampling import shown

COSTS = ("nfe", "backward", "seconds", "cpu_seconds", "peak_mib")
DIVERGED = 10.0  # a result whose size is that many times the truth's is no restoration


@dataclass(frozen=True)
class Job:
    """Everything a worker needs for one run."""

    suite: str
    protocol: str
    spec: dict[str, Any]
    image: suites.Image
    task: suites.Task
    run: Component
    prior: Component
    metrics: tuple[str, ...]
    threads: int
    uses_prior: bool

    @property
    def key(self) -> str:
        return records.key(self.spec)


@dataclass(frozen=True)
class Done:
    """What comes back: the record, and the PNG files it names, by their path from the folder."""

    record: Record
    files: dict[str, bytes]


def jobs(frozen: suites.Suite) -> list[Job]:
    """All runs of a frozen suite, those that take longest first, so that no worker is left alone with them at the end."""
    found, protocol = [], frozen.protocol
    for name, image, label in frozen.pairs():
        task, method = frozen.tasks[name], frozen.methods[label]
        run, samples = method.run, suites.count(frozen, task, method)
        if contestants.is_auto(run):
            run, samples = method.chosen[name]["run"], method.chosen[name]["samples"]
        classical = split(run)[0] in contestants.CLASSICAL
        known = tasks.prior_label(task.prior)
        operator, arguments = split(task.operator)
        spec = {
            "task": name,
            "image": image,
            "method": label,
            "settings": contestants.settings(run),
            "prior": None if classical else known,
            "prior_sha256": None if classical else frozen.priors[known],
            "samples": 1 if classical else samples,
            "seed": frozen.seed + frozen.images[image].seed,
            "operator": {"name": operator, **arguments},
            "noise": task.noise,
            "image_sha256": frozen.images[image].sha256,
            "measurement_sha256": task.measurements[image]["sha256"],
        }
        job = Job(
            suite=frozen.name,
            protocol=protocol,
            spec=spec,
            image=frozen.images[image],
            task=replace(task, measurements={image: task.measurements[image]}),
            run=run,
            prior=task.prior,
            metrics=tuple(frozen.metrics),
            threads=frozen.threads,
            uses_prior=not classical,
        )
        found.append(job)
    return sorted(found, key=_guess, reverse=True)


def _guess(job: Job) -> float:
    """How long a run may take, in evaluations of the network; of other libraries' samplers little is known: they go first."""
    if not job.uses_prior:
        return 0.0
    if not contestants.is_strategy(job.run):
        return float("inf")
    strategy = build(job.run, contestants.CONTESTANTS)
    return (job.spec["samples"] or 4) * strategy.steps * (3 if strategy.gradient else 1)


def perform(job: Job) -> Done:
    """Do one run. Whatever goes wrong in it is in the record; only what hits the process itself is raised."""
    torch.set_num_threads(job.threads)
    started = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    device = torch.device("cuda" if job.uses_prior and torch.cuda.is_available() else "cpu")
    status, error, scores, pictures = "ok", None, dict.fromkeys(job.metrics), {}
    cost: dict[str, float | None] = dict.fromkeys(COSTS)
    evaluations, doing = Evaluations(), "preparing"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            case, judge = prepare(job, device)
            doing = "running"
            with evaluations.of(case.prior), _measured(cost, device):
                given = replace(case, y=case.y.clone(), truth=case.truth.clone())  # theirs to change
                outcome = contestants.contestant(job.run)(given)
            doing = "scoring"
            cost |= evaluations.per_sample(1 if outcome.samples is None else len(outcome.samples))
            check(outcome, case.truth)
            scores |= score(job, outcome, case, judge)
            pictures = draw(job, outcome, case)
        except (Exception, SystemExit) as caught_error:  # noqa: BLE001 (whatever a contestant raises is a result of the benchmark)
            said_no = isinstance(caught_error, (ValueError, TypeError)) and doing == "running" and not evaluations.forward
            refused = said_no or (isinstance(caught_error, ImportError) and not evaluations.forward)
            status = "refused" if refused else "failed"
            error = f"{type(caught_error).__name__}: {' '.join(str(caught_error).split())}"
            if status == "failed":
                error += _place(caught_error)
            error = error.encode("utf-8", "backslashreplace").decode()  # half a character, which no file can hold
    record: Record = {
        "key": job.key,
        "suite": job.suite,
        "protocol": job.protocol,
        "spec": job.spec,
        "status": status,  # type: ignore[typeddict-item]
        "error": error,
        "metrics": scores,
        "cost": cost,
        "versions": records.versions(),
        "machine": machine(job.threads),
        "started": started,
        "warnings": sorted({f"{w.category.__name__}: {w.message}" for w in caught if "invdiff" in w.filename}),
        "pictures": {kind: path for kind, (path, _) in pictures.items()},
    }
    return Done(record, dict(pictures.values()))


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({os.path.basename(last.filename)}, line {last.lineno})"


# What is measured on


@lru_cache(maxsize=4)
def _prior(text: str, sha256: str, device: torch.device) -> Any:
    """The priors last used stay in the worker; ``RuntimeError`` for other weights than those of the frozen suite."""
    component = json.loads(text)
    if tasks.prior_sha256(component) != sha256:
        raise RuntimeError("the weights of the prior are not those that the suite was frozen with; run it in another folder")
    prior = tasks.load_prior(component)
    return prior.to(device) if isinstance(prior, LatentPrior) else as_prior(prior).to(device)


@lru_cache(maxsize=32)
def _truth(text: str) -> Tensor:
    return build(json.loads(text), images.IMAGES)


def prepare(job: Job, device: torch.device) -> tuple[Case, Any]:
    """The case of a job, and the judge of its task; ``RuntimeError`` if image or measurement are not those that were frozen."""
    truth = _truth(canonical(job.image.source))
    A, law = tasks.operator(job.task.operator, job.task.noise, tuple(truth.shape[1:]))
    y = tasks.measure(A, law, truth, job.task.seed + job.image.seed)
    known = {"sha256": job.image.sha256, "fingerprint": job.image.fingerprint}
    for what, value, wanted in (("image", truth, known), ("measurement", y, job.task.measurements[job.spec["image"]])):
        if not tasks.same(value, wanted):
            raise RuntimeError(f"the {what} is not the one that the suite was frozen with: other versions of the libraries?")
    judge = None
    if job.task.judge:
        function, told = bound(job.task.judge, {}, {}, ("outcome", "case"))
        judge = partial(function, **told)
    prior = _prior(canonical(job.prior), job.spec["prior_sha256"], device) if job.uses_prior else None
    return Case(y.to(device), A.to(device), law, prior, truth.to(device), job.spec["samples"], job.spec["seed"]), judge


def check(outcome: Outcome, truth: Tensor) -> None:
    """``FloatingPointError`` for NaN, infinite values and divergence, ``RuntimeError`` for an image of another shape."""
    if outcome.x.shape != truth.shape:
        raise RuntimeError(f"the result has shape {tuple(outcome.x.shape)}, the image {tuple(truth.shape)}")
    for part in (outcome.x, outcome.samples, outcome.std):
        if part is not None and not bool(torch.isfinite(part).all()):
            raise FloatingPointError("the result is not finite")
    size, wanted = (float(t.square().mean().sqrt()) for t in (outcome.x, truth))
    if size > DIVERGED * wanted:
        raise FloatingPointError(f"it diverged: root mean square {size:.3g}, of the true image {wanted:.3g}")


def score(job: Job, outcome: Outcome, case: Case, judge: Any) -> dict[str, float | None]:
    """The metrics of the suite, and the scores of the judge of the task; None for what does not apply."""
    samples = None if outcome.samples is None else outcome.samples.cpu()
    found = metrics.measure(
        outcome.x.cpu(), case.truth.cpu(), samples=samples, residual=residual(outcome.x, case), names=job.metrics
    )
    judged = judge(outcome, case) if judge else {}
    if not isinstance(judged, dict) or not all(isinstance(name, str) and name not in job.metrics and name not in COSTS for name in judged):
        raise TypeError(f"a judge returns scores by names that are not those of the metrics of the suite and of costs, got {judged!r}")
    found |= judged
    return {name: None if v is None or not np.isfinite(v) else float(v) for name, v in found.items()}


def residual(x: Tensor, case: Case) -> Tensor | None:
    """``(y - A x) / std(noise)`` of the numbers that are measured; None without noise."""
    with torch.no_grad():
        z = case.A.A(x)
        variance = case.noise.variance(z)
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        measured = case.A.A(probe) != 0 if hasattr(case.A, "A_adjoint") else torch.ones_like(z, dtype=torch.bool)
    return ((case.y - z) / variance.sqrt())[measured].cpu() if bool((variance > 0).all()) else None


# Cost


class Evaluations:
    """Counts passes through a prior, an image each, with hooks: of any method, and without a wrapper that it might notice.

    Of a prior that several threads share, each counts its own.
    """

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self.thread = threading.get_ident()

    @contextmanager
    def of(self, prior: Any) -> Iterator[None]:
        module = prior.denoiser if isinstance(prior, LatentPrior) else prior
        if module is None:
            yield
            return
        each = getattr(module, "evaluations", 1)

        def hook(_: Any, inputs: Any, output: Tensor) -> None:
            if threading.get_ident() != self.thread:
                return
            rows = len(output) * each
            self.forward += rows
            if output.requires_grad:
                output.register_hook(lambda gradient: self._back(rows))

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _back(self, rows: int) -> None:
        self.backward += rows

    def per_sample(self, samples: int) -> dict[str, float | None]:
        return {"nfe": self.forward / samples, "backward": self.backward / samples}


@contextmanager
def _measured(cost: dict[str, float | None], device: torch.device) -> Iterator[None]:
    """Seconds, processor seconds (of the process, all threads) and peak memory of what is done inside.

    On a CPU the peak is the largest resident memory of the process, libraries and weights included. Linux lets it be reset, so
    that it is that of the run; elsewhere it is the largest since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    begin, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            cost["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        else:
            cost["peak_mib"] = _peak_mib()
        cost["seconds"], cost["cpu_seconds"] = time.perf_counter() - begin, time.process_time() - processor


def _peak_mib() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    with suppress(OSError), open("/proc/self/status") as f:  # Linux, where ru_maxrss begins with that of the parent
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@lru_cache(maxsize=1)
def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(threads: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpu": gpu, "threads": threads, "python": platform.python_version()}


# Pictures


def draw(job: Job, outcome: Outcome, case: Case) -> dict[str, tuple[str, bytes]]:
    """Path and PNG of the result, its spread, the measurement and the truth."""
    task, image = job.spec["task"], job.spec["image"]
    y = tasks.picture_of(case.y, case.A, tuple(case.truth.shape[1:]))
    found = {
        "x": (f"pictures/{job.key}-x.png", _png(outcome.x)),
        "y": (f"pictures/{task}/{image}-y.png", _png(y)),
        "truth": (f"pictures/{image}.png", _png(case.truth)),
    }
    if outcome.std is not None:
        spread = outcome.std.square().mean(1, keepdim=True).sqrt()
        white = float(spread.flatten().float().quantile(0.995)) or 1.0
        found["std"] = (f"pictures/{job.key}-std.png", _png(spread / white, white=white))
    return found


def _png(x: Tensor, **text: float) -> bytes:
    """An image (1, C, H, W), of volumes the middle slice, as an 8-bit PNG; ``text`` goes into its header."""
    x = x if x.ndim == 4 else x[:, :, x.shape[2] // 2]
    array = (shown(x.detach().float().cpu())[0] * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    info, buffer = PngInfo(), io.BytesIO()
    for key, value in text.items():
        info.add_text(key, f"{value:.6g}")
    Image.fromarray(array).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
