"""Means over images with bootstrap intervals, and paired differences between strategies.

The images are the sample: whole images are drawn with replacement, the same ones for every task and strategy, so that a
difference between two strategies is paired, and a mean over tasks respects that tasks share images. An interval is
``mean -+ t s``, with ``s`` the standard deviation of the bootstrapped means times ``sqrt(n / (n - 1))`` and ``t`` the quantile of Student's
distribution with n - 1 degrees of freedom: percentiles of the bootstrap would be far too narrow for the few images (3 to 20) that
benchmarks have (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). One image has no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invdiff.bench.records import Record
from invdiff.metrics import METRICS, Metric

RESAMPLES = 1000
LEVEL = 0.95
STATUSES = ("ok", "failed", "refused")

COSTS: dict[str, Metric] = {
    "nfe": Metric("Evaluations", "", "lower", "network evaluations of one sample"),
    "backward": Metric("Backward passes", "", "lower", "backward passes through the network of one sample"),
    "seconds": Metric("Time", "s", "lower", "wall clock of the whole run, scores not included"),
    "cpu_seconds": Metric("Processor time", "s", "lower", "of the process, all threads, scores not included"),
    "peak_mib": Metric("Peak memory", "MiB", "lower", "largest memory during the run"),
}
MEASURES = METRICS | COSTS
_TRUTH = "invdiff.bench.truth: judge"
JUDGED: dict[str, Metric] = {  # scores of the suite truth
    "bias": Metric("Bias", "sd", "lower", _TRUTH),
    "spread_measured": Metric("Spread, measured", "", "target", _TRUTH, 1.0),
    "spread_unmeasured": Metric("Spread, unmeasured", "", "target", _TRUTH, 1.0),
    "weights_error": Metric("Error of weights", "", "lower", _TRUTH),
    "sliced_w2_ratio": Metric("Distance", "", "lower", _TRUTH),
    "ess": Metric("Effective sample size", "", "", _TRUTH),
    "ancestors": Metric("Ancestors", "", "", _TRUTH),
}

Array = NDArray[np.float64]


@lru_cache(maxsize=64)
def _weights(n: int) -> Array:
    """How often each of ``n`` images was drawn, in each resample (RESAMPLES, n); always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def interval(values: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """``(mean, half width of the interval)``, each of shape (c,), of ``values`` (n images, c) or (n images, tasks, c).

    With tasks it is the mean over tasks of the means over images. NaN stands for an image that is missing; a column
    without values has the mean NaN, one with a single image (in every task) the half width NaN.
    """
    from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes a second to import

    values = values if values.ndim == 3 else values[:, None]
    n, tasks, columns = values.shape
    there = np.isfinite(values)
    flat, mask = np.where(there, values, 0.0).reshape(n, -1), there.reshape(n, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (flat.sum(0) / mask.sum(0)).reshape(tasks, columns).mean(0)
        weights = _weights(n)
        total = weights @ mask.astype(float) if not mask.all() else float(n)
        boot = (weights @ flat / total).reshape(-1, tasks, columns).mean(1)
        count = there.any(1).sum(0)
        usable = np.isfinite(boot)  # a resample may hold none of the images that are there
        centre = np.where(usable, boot, 0.0).sum(0) / usable.sum(0)
        spread = np.sqrt((np.where(usable, boot - centre, 0.0) ** 2).sum(0) / usable.sum(0))
        half = stdtrit(count - 1, (1 + level) / 2) * spread * np.sqrt(count / (count - 1))
        half = np.where(half < 1e-9 * np.abs(mean), 0.0, half)  # equal values: rounding is no spread
    return mean, np.where((count > 1) & np.isfinite(mean), half, np.nan)


def label(record: Record, others: dict[tuple[str, str], set[tuple[str, int]]]) -> str:
    """The name of a strategy in tables: with prior and number of samples where the same method ran with several in a task."""
    spec = record["spec"]
    priors, samples = zip(*others[spec["method"], spec["task"]], strict=True)
    parts = [spec["method"]]
    parts += [str(spec.get("prior"))] if len(set(priors)) > 1 else []
    parts += [f"{spec.get('samples')} samples"] if len(set(samples)) > 1 else []
    return ", ".join(parts)


def _ordered(names: set[str], order: Sequence[str]) -> list[str]:
    return [*(name for name in order if name in names), *sorted(names - set(order))]


@dataclass(frozen=True)
class Study:
    """Records as an array. Runs that differ only in their seed are averaged.

    Images, tasks and methods come in the order given; those that it does not name come after, sorted. ``backends`` says what
    computed the metrics, by name.
    """

    records: Sequence[Record]
    image_order: Sequence[str] = ()
    task_order: Sequence[str] = ()
    method_order: Sequence[str] = ()
    backends: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def labels(self) -> list[str]:
        """The strategy of each record."""
        others: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for r in self.records:
            others.setdefault((r["spec"]["method"], r["spec"]["task"]), set()).add((str(r["spec"].get("prior")), r["spec"].get("samples", 1)))
        return [label(r, others) for r in self.records]

    @cached_property
    def tasks(self) -> list[str]:
        return _ordered({r["spec"]["task"] for r in self.records}, self.task_order)

    @cached_property
    def images(self) -> list[str]:
        return _ordered({r["spec"]["image"] for r in self.records}, self.image_order)

    @cached_property
    def methods(self) -> list[str]:
        return _ordered(set(self.labels), self.method_order)

    @cached_property
    def measures(self) -> list[str]:
        """Metrics and costs that have a value somewhere: in the order of MEASURES, then a suite's own."""
        found = {k for r in self.records for part in (r["metrics"], r["cost"]) for k, v in part.items() if v is not None}
        return [*(name for name in MEASURES if name in found), *sorted(found - set(MEASURES))]

    def described(self, measure: str) -> Metric:
        """A measure, computed by what it was when the suite was frozen; what is not known here is a score of the suite's own, of which
        no direction is better."""
        known = (MEASURES | JUDGED).get(measure, Metric(measure, "", "", "a score of the suite's own"))
        return known._replace(backend=str(self.backends.get(measure, known.backend)))

    @cached_property
    def places(self) -> list[tuple[int, int, int]]:
        """(image, task, method) of each record."""
        i, t, m = ({name: k for k, name in enumerate(names)} for names in (self.images, self.tasks, self.methods))
        return [(i[r["spec"]["image"]], t[r["spec"]["task"]], m[name]) for r, name in zip(self.records, self.labels, strict=True)]

    @cached_property
    def values(self) -> Array:
        """(images, tasks, methods, measures); NaN where there is nothing."""
        shape = (len(self.images), len(self.tasks), len(self.methods), len(self.measures))
        total, count = np.zeros(shape), np.zeros(shape)
        for place, r in zip(self.places, self.records, strict=True):
            if r["status"] == "ok":
                found = {**r["metrics"], **r["cost"]}
                row = np.array([np.nan if found.get(k) is None else found[k] for k in self.measures], dtype=float)
                total[place] += np.where(np.isfinite(row), row, 0.0)
                count[place] += np.isfinite(row)
        with np.errstate(invalid="ignore"):
            return total / count

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(tasks, methods, statuses): how many runs went well, failed, were refused."""
        counts = np.zeros((len(self.tasks), len(self.methods), len(STATUSES)), dtype=np.int64)
        for (_, task, method), r in zip(self.places, self.records, strict=True):
            counts[task, method, STATUSES.index(r["status"])] += 1
        return counts

    def counts_of(self, task: int | None) -> list[list[int]]:
        """(methods, statuses) of one task, or of all for None."""
        return (self.counts.sum(0) if task is None else self.counts[task]).tolist()

    def of_task(self, task: int | None) -> Array:
        """(images, tasks, methods, measures) of one task and its images; of all for None."""
        if task is None:
            return self.values
        return self.values[np.isfinite(self.values[:, task]).any((1, 2)), task : task + 1]

    def means(self, task: int | None) -> tuple[Array, Array]:
        """Mean and half width (methods, measures); over all tasks (None) only of strategies that have a value in each."""
        return self._interval(self.of_task(task))

    def differences(self, task: int | None, reference: int) -> tuple[Array, Array]:
        """The same of each strategy minus the reference, over the images that both have."""
        values = self.of_task(task)
        return self._interval(values - values[:, :, reference : reference + 1])

    @staticmethod
    def _interval(values: Array) -> tuple[Array, Array]:
        n, tasks, methods, measures = values.shape
        if not n:
            return np.full((methods, measures), np.nan), np.full((methods, measures), np.nan)
        mean, half = interval(values.reshape(n, tasks, -1))
        return mean.reshape(methods, measures), half.reshape(methods, measures)
