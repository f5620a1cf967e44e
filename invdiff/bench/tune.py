"""Searching a strategy's settings on training images, with optuna (extra ``tune``).

    examples = tune.examples("deblur", Path("training"), suite="photos")
    path = tune.search(examples, "diffpir", priors.load("natural"), out=Path("runs/tuned"), trials=40)
    solve(y, A, prior, str(path))

The first trial is the strategy as it is, so that a preset is never worse on these images; the images have to be others than those a
benchmark measures on. The folder holds ``preset.yaml`` (:mod:`invdiff.solvers.preset`), ``preset.csv`` with all trials, and
``study.db``, which ``optuna-dashboard`` opens and from which a search that was stopped goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from torch import Tensor, nn

from invdiff import solvers
from invdiff.bench.records import versions
from invdiff.bench.stats import interval
from invdiff.files import lock, write_text
from invdiff.metrics import METRICS, measure
from invdiff.solvers import Strategy
from invdiff.solvers.preset import with_settings
from invdiff.solving import solve

if TYPE_CHECKING:
    from deepinv.physics import Physics

Ranges = Mapping[str, tuple[float, float]]


class Example(NamedTuple):
    """A training image with its measurement: ``truth`` (1, C, H, W), ``y = A(truth) + noise``."""

    y: Tensor
    A: Physics
    truth: Tensor


def examples(task: str, images: Path, suite: str = "photos") -> list[Example]:
    """The task of a suite on the images of a folder, made as the suite makes its own."""
    from invdiff.bench import suite as suites
    from invdiff.bench import tasks
    from invdiff.bench.components import build
    from invdiff.bench.images import IMAGES

    found = suites.read(suite, images)
    if task not in found.tasks:
        raise ValueError(f"the suite {suite} has no task {task!r}; it has {', '.join(found.tasks)}")
    chosen, made = found.tasks[task], []
    for image in found.images.values():
        truth = build(image.source, IMAGES)
        A, law = tasks.operator(chosen.operator, chosen.noise, tuple(truth.shape[1:]))
        made.append(Example(tasks.measure(A, law, truth, chosen.seed), A, truth))
    return made


def prior_of(task: str, suite: str) -> Any:
    """The prior of a task of a suite, as a component."""
    from invdiff.bench import suite as suites

    found = suites.read(suite)
    return found.tasks[task].prior or found.prior


def ranges(given: list[str] | None) -> dict[str, tuple[float, float]] | None:
    """Settings and their limits, from texts NAME=LOW:HIGH; None where none is given. ``ValueError`` for other texts."""
    try:
        parts = [text.split("=") for text in given or []]
        return {name: (float(low), float(high)) for name, limits in parts for low, high in [limits.split(":")]} or None
    except ValueError:
        raise ValueError(f"--vary is NAME=LOW:HIGH, such as weight=0.1:10, got {given}") from None


def space(strategy: Strategy) -> dict[str, tuple[float, float]]:
    """The settings that are searched by default: fractions called ``eta`` over [0, 1], other positive numbers over a tenth to
    ten times their value; ``sampler.eta`` is the ``eta`` of its ``sampler``. Numbers of steps are costs and stay as they are."""
    found: dict[str, tuple[float, float]] = {}

    def visit(part: Any, prefix: str) -> None:
        for f in fields(part):
            value, name = getattr(part, f.name), prefix + f.name
            if is_dataclass(value):
                visit(value, f"{name}.")
            elif isinstance(value, float) and f.name.startswith("eta"):
                found[name] = (0.0, 1.0)
            elif isinstance(value, float) and value > 0:
                found[name] = (value / 10, value * 10)

    visit(strategy, "")
    return found


def search(
    on: Sequence[Example],
    solver: str,
    prior: Any,
    *,
    out: Path,
    ranges: Ranges | None = None,
    trials: int = 40,
    metric: str = "psnr",
    samples: int = 2,
    seed: int = 0,
    held: Sequence[Example] = (),
    notes: Mapping[str, Any] = {},
    report: Callable[[int, float], None] = lambda done, best: None,
) -> Path:
    """Search the settings of ``solver`` that are best on examples, and return the path of the preset.

    ``ranges`` says what is searched, name to (lowest, highest), logarithmic from a factor of ten on; by default :func:`space`.
    ``metric`` is any of ``invdiff.metrics.METRICS`` (posterior ones need ``samples`` >= 4): its mean over the examples, or the
    distance from its target, is optimised. A trial that is worse than the median after some of the images is not
    finished. ``trials`` counts those that ``out`` already holds. What the best of many trials gains on the images it was chosen on
    is more than it gains on others: on ``held`` ones it is measured once, at the end. ``notes``, such as the names of task and images, go into the preset, beside checksums of the images, their
    measurements and the prior. ``report`` is told how many are done, and the best value.

    Raises ``ValueError`` if the strategy refuses the task, or if ``out`` holds the study of another search: other settings, images,
    measurements or prior; :class:`invdiff.files.Locked` if another process searches there.
    """
    optuna = _optuna()
    start = solvers.get(solver)
    chosen = dict(space(start) if ranges is None else ranges)
    if not on or not chosen:
        raise ValueError(f"nothing to search on: {len(on)} examples" if not on else f"{start!r} has no settings to search; name some in ranges")
    if metric not in METRICS or metric == "chi_square":
        raise ValueError(f"metric is one of {', '.join(m for m in METRICS if m != 'chi_square')}, got {metric!r}")
    defaults = {name: _setting(start, name) for name in chosen}
    for name, (low, high) in chosen.items():
        if not 0 <= low < high < math.inf:
            raise ValueError(f"the range of {name} is (lowest, highest), not negative, got ({low}, {high})")
    start = with_settings(start, {k: v for k, v in defaults.items() if v is not None})  # fails here for a name that is unknown

    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        higher = METRICS[metric].better == "higher"
        study = optuna.create_study(
            storage=f"sqlite:///{out / 'study.db'}", study_name="study", load_if_exists=True, direction="maximize" if higher else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0),
        )  # fmt: skip
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))  # a search that goes on does not repeat its trials
        what = {
            "solver": repr(start), "ranges": {k: list(v) for k, v in chosen.items()}, "metric": metric, "samples": samples, "seed": seed,
            "images": len(on), "images_sha256": _checksum(t for e in on for t in (e.truth, e.y)), "prior_sha256": _prior_checksum(prior),
        }  # fmt: skip
        if study.user_attrs.get("what", what) != what:
            raise ValueError(f"{out} holds the study of another search, {study.user_attrs['what']}; give another folder")
        study.set_user_attr("what", what)

        def value(trial: Any, strategy: Strategy) -> float:
            scores: list[float] = []
            for i, example in enumerate(on):
                scores.append(_score(example, strategy, prior, metric, samples, seed))
                trial.set_user_attr("scores", scores)
                trial.report(float(np.mean(scores)), i)
                if i + 1 < len(on) and trial.should_prune():
                    raise optuna.TrialPruned
            return float(np.mean(scores))

        def as_it_is(trial: Any) -> float:
            trial.set_user_attr("default", True)
            return value(trial, start)

        def objective(trial: Any) -> float:
            return value(trial, with_settings(start, {name: _suggest(trial, name, chosen[name], defaults[name]) for name in chosen}))

        states = optuna.trial.TrialState

        def done() -> int:
            return sum(t.state in (states.COMPLETE, states.PRUNED, states.FAIL) for t in study.trials)

        if not _defaults(study):
            study.optimize(as_it_is, n_trials=1)  # what the strategy refuses, it refuses here
        while done() < trials:
            study.optimize(objective, n_trials=1, catch=(ValueError, ArithmeticError))  # settings that are refused or diverge
            report(done(), study.best_value)
        best = study.best_trial
        settings = {k: v for k, v in {**defaults, **best.params}.items() if v is not None}
        gains = {"training": np.subtract(best.user_attrs["scores"], _defaults(study)[0].user_attrs["scores"])}
        if held:
            tuned, default = ([_score(e, s, prior, metric, samples, seed) for e in held] for s in (with_settings(start, settings), start))
            gains["held"] = np.subtract(tuned, default)
        write_text(out / "preset.csv", _csv(study, defaults))
        write_text(out / "preset.yaml", _yaml(study, solver, settings, what | {"notes": {**notes, "versions": versions()}}, gains))
        return out / "preset.yaml"


def _checksum(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for t in tensors:
        found.update(str(tuple(t.shape)).encode() + t.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _prior_checksum(prior: Any) -> str:
    """Of the weights of a network; of another callable its name."""
    return _checksum(prior.state_dict().values()) if isinstance(prior, nn.Module) else getattr(prior, "__qualname__", type(prior).__qualname__)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("searching needs optuna: pip install 'invdiff[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _defaults(study: Any) -> list[Any]:
    """The trial of the strategy as it is, if it was finished."""
    return [t for t in study.trials if t.user_attrs.get("default") and t.value is not None]


def _setting(strategy: Any, name: str) -> Any:
    for part in name.split("."):
        if not hasattr(strategy, part):
            raise ValueError(f"{type(strategy).__name__} has no setting {part!r}; it is {strategy!r}")
        strategy = getattr(strategy, part)
    return strategy


def _suggest(trial: Any, name: str, limits: tuple[float, float], default: Any) -> float:
    low, high = limits
    log = low > 0 and high >= 10 * low
    if isinstance(default, int) and not isinstance(default, bool):
        return trial.suggest_int(name, int(low), int(high), log=log)
    return trial.suggest_float(name, low, high, log=log)


def _score(example: Example, strategy: Strategy, prior: Any, metric: str, samples: int, seed: int) -> float:
    result = solve(example.y, example.A, prior, strategy, samples=samples, seed=seed)
    value = measure(result.x, example.truth, samples=result.samples, names=[metric])[metric]
    if value is None:
        raise ValueError(f"{metric} has no value here: image too small, too few samples, or its weights are not on the disk")
    target = METRICS[metric].target
    return value if target is None else abs(value - target)


def _csv(study: Any, defaults: Mapping[str, Any]) -> str:
    """One line a trial: its settings, and the scores of the images that it came to."""
    lines: list[list[Any]] = [["trial", "state", "value", *defaults, "scores"]]
    for t in study.trials:
        settings = defaults if t.user_attrs.get("default") else t.params
        scores = " ".join(f"{v:.6g}" for v in t.user_attrs.get("scores", []))
        lines.append([t.number, t.state.name.lower(), t.value, *(settings.get(name) for name in defaults), scores])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _yaml(study: Any, solver: str, settings: dict[str, Any], what: dict[str, Any], gains: Mapping[str, Any]) -> str:
    """The preset: the settings of the best trial, and how they were found."""
    facts = {
        "metric": what["metric"] + ("" if METRICS[what["metric"]].target is None else ", distance from its target"),
        "value": float(study.best_value),
        "default": float(_defaults(study)[0].value),
    }
    for name, values in gains.items():
        (mean,), (half,) = interval(values[:, None])
        ends = None if math.isnan(half) else [float(mean - half), float(mean + half)]
        facts[name] = {"images": len(values), "difference": float(mean), "difference_95": ends}
    facts |= {"samples": what["samples"], "trials": len(study.trials), "ranges": what["ranges"]}
    facts |= {"images_sha256": what["images_sha256"], "prior_sha256": what["prior_sha256"], **what["notes"]}
    text = "# Found by invdiff tune. `training` is what was gained on the images that were searched on: on others it may be less.\n"
    return text + yaml.safe_dump({"solver": solver, "settings": settings, "found": facts}, sort_keys=False)
