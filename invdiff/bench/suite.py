"""Suites: what is run, read from YAML, checked, and frozen.

    name: mine
    images: {cat: {source: {photograph: {name: chelsea, size: 96}}}}
    tasks: {denoise: {operator: Denoising, noise: 0.1}}
    methods: {auto: null, dps-20: {run: {DPS: {steps: 20}}}}

docs/suites.md describes the format. ``source``, ``operator``, ``noise``, ``prior``, ``run`` and ``judge`` are components
(:mod:`invdiff.bench.components`). What only readers of the results need, ``note`` and ``reference``, is no part of the protocol, and may
change after a run. Freezing adds what else determines the scores: checksums of images, measurements and priors, all settings of the
methods, what "auto" chooses, the metrics with their back ends, and the versions it was made with. A frozen suite is a suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from invdiff.bench.components import Component, bound, build, split, with_defaults
from invdiff.bench.records import digest, versions
from invdiff.seeds import check_seed


@dataclass(frozen=True)
class Image:
    """A true image: where it comes from, and how it is recognised once frozen. ``seed`` is added to those of noise and strategy:
    with one of its own, what is left to chance differs from that of other images, and means over images have honest errors."""

    source: Component
    seed: int = 0
    sha256: str = ""
    fingerprint: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """An operator and its noise, on some images (by default all) by some methods (by default all that do not name tasks).

    ``judge``, by import path, is called as ``judge(outcome, case)``, with its arguments if it is given any, and returns further
    scores, name to number.
    """

    operator: Component
    noise: Component | float
    title: str = ""
    seed: int = 0
    samples: int | None = None
    prior: Component = ""
    images: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    judge: Component = ""
    measurements: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A contestant; ``samples: 0`` leaves their number to the strategy. ``chosen`` holds what "auto" takes, by task."""

    run: Component
    samples: int | None = None
    tasks: list[str] = field(default_factory=list)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite (module docstring). ``files`` is the source that makes an image of a file, ``$path``, for ``--images``."""

    name: str
    images: dict[str, Image]
    tasks: dict[str, Task]
    methods: dict[str, Method]
    about: str = ""
    note: str = ""
    reference: str = ""
    seed: int = 0
    samples: int = 4
    threads: int = 1
    prior: Component = "natural"
    metrics: Any = None
    files: Component = ""
    priors: dict[str, str] = field(default_factory=dict)
    declared: str = ""
    made_with: dict[str, str] = field(default_factory=dict)
    frozen: str = ""

    @property
    def protocol(self) -> str:
        """16 digits that name the suite: all of it but what only readers need."""
        return digest(replace(self, note="", reference="", frozen="").yaml().encode())

    def sealed(self) -> Suite:
        """The suite with its ``protocol`` in ``frozen``, which shows later whether its file was edited."""
        return replace(self, frozen=self.protocol)

    def yaml(self) -> str:
        """The suite as the text of a file; settings that have their default value are left out."""
        return yaml.safe_dump(_without_defaults(self), sort_keys=False, width=120, default_flow_style=None, allow_unicode=True)

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """Every (task, image, method)."""
        for name, task in self.tasks.items():
            for image in task.images or self.images:
                for label, method in self.methods.items():
                    if (not task.methods or label in task.methods) and (not method.tasks or name in method.tasks):
                        yield name, image, label


def suites() -> list[str]:
    """Names of the suites that ship."""
    folder = resources.files("invdiff.bench") / "suites"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def read(name: str | Path, images: Path | None = None) -> Suite:
    """Read a suite that ships (by name) or a YAML file (by path). ``images``: a folder to take the images from instead.

    ``ValueError`` names the suite and the place in it that is wrong. One that lives of ``images`` has none without.
    """
    path = Path(name)
    if str(name) in suites():
        text = (resources.files("invdiff.bench") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ValueError(f"unknown suite {str(name)!r}; suites that ship: {', '.join(suites())}; or give a YAML file")
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader
        if images is not None:
            values["images"] = _from_files(values, images)
        suite: Suite = _made(Suite, values, "")
        _check(suite)
        if images is not None or suite.frozen not in ("", suite.protocol):  # edited: another suite than the one that was frozen
            suite = replace(suite, declared="", frozen="")
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"suite {name}: {' '.join(str(error).split())}") from None
    return suite


def differences(old: Suite, new: Suite) -> list[str]:
    """What was changed or taken away between two suites, and then what was added, a line each: ``methods.dps.run.DPS.steps: 20 -> 4``."""
    lines = list(_differences(asdict(old), asdict(new), ""))
    return sorted(lines, key=lambda line: ": nothing -> " in line)


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if at or key not in ("declared", "frozen"):  # names of what is compared here
                yield from _differences(old.get(key, "nothing"), new.get(key, "nothing"), f"{at}.{key}" if at else str(key))
    elif old != new:
        a, b = (text if len(text := " ".join(str(part).split())) <= 80 else f"{text[:77]}..." for part in (old, new))
        yield f"{at}: {a} -> {b}"


def _from_files(values: Any, folder: Path) -> dict[str, Any]:
    from invdiff.bench.images import files

    if not isinstance(values, dict) or "files" not in values:
        raise ValueError("it takes no --images: it has no entry 'files', which says what to make of them")
    name, arguments = split(values["files"])
    return {
        stem: {"source": {name: {k: str(path) if v == "$path" else v for k, v in arguments.items()}}}
        for stem, path in files(folder).items()
    }


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and a key given twice a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(k) for k, _ in node.value]  # type: ignore[no-untyped-call]
        twice = [k for k in keys if keys.count(k) > 1]
        if twice:
            raise ValueError(f"line {node.start_mark.line + 1}: {twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))

# What the fields of the dataclasses may hold, and the dataclass of those that hold several
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "Component": (str, dict),
    "Component | float": (str, dict, float, int),
    "list[str]": (list,),
    "list[float]": (list,),
    "Any": (object,),
}
_PARTS = {"images": Image, "tasks": Task, "methods": Method}
_WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping", type(None): "nothing", object: "anything"}


def _made(kind: type, values: Any, where: str) -> Any:
    """A dataclass of what YAML says, every value of its kind."""
    place = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise TypeError(f"{place}entries 'key: value' are needed, got {values!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = [key for key in values if key not in known]
    if unknown:
        hint = f"; settings of a strategy go into run: {{run: {{STRATEGY: {{{unknown[0]}: ...}}}}}}" if kind is Method else ""
        raise ValueError(f"{place}unknown entry {unknown[0]!r}; allowed: {', '.join(known)}{hint}")
    made = {}
    for name, value in values.items():
        at, form = f"{where}.{name}" if where else name, str(known[name].type)
        if kind is Suite and name in _PARTS:
            if not isinstance(value, dict):
                raise ValueError(f"{at}: entries by name are needed, got {value!r}")
            value = {str(k): _made(_PARTS[name], _expanded(v, str(k), name), f"{at}.{k}") for k, v in value.items()}
        elif form.startswith("dict"):
            if not isinstance(value, dict):
                raise ValueError(f"{at}: a mapping is needed, got {value!r}")
        elif not isinstance(value, _KINDS[form]) or isinstance(value, bool):
            raise ValueError(f"{at}: {' or '.join(_WORDS[k] for k in _KINDS[form])} is needed, got {value!r}")
        made[name] = value
    required = [f.name for f in list(known.values()) if f.name not in made and f.name in _REQUIRED[kind]]
    if required:
        raise ValueError(f"{place}{required[0]!r} is missing")
    return kind(**made)


_REQUIRED = {Suite: ("name", "images", "tasks", "methods"), Image: ("source",), Task: ("operator", "noise"), Method: ("run",)}


def _expanded(value: Any, name: str, part: str) -> Any:
    """A method without ``run`` runs what is called as it is."""
    if part == "methods" and (value is None or (isinstance(value, dict) and "run" not in value)):
        return {"run": name, **(value or {})}
    return value


def _without_defaults(part: Any) -> Any:
    plain = asdict(part)
    kept = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name in _PARTS and isinstance(value, dict):
            kept[f.name] = {k: _without_defaults(v) for k, v in value.items()}
        elif value not in (("", [], {}, None, 0) if isinstance(part, Image) else ("", [], {}, None)) or f.name in _REQUIRED[type(part)]:
            kept[f.name] = plain[f.name]
    return kept


def _check(suite: Suite) -> None:
    """What can be said before anything is built."""
    for names in (suite.images, suite.tasks, suite.methods, [suite.name]):
        for name in names:
            if not re.fullmatch(r"[\w.+-]{1,80}", name):
                raise ValueError(f"{name[:100]!r}: names become names of files; use at most 80 letters, digits and . + - _")
    if not suite.images and not suite.files:
        raise ValueError("it has no images")
    if not suite.tasks or not suite.methods:
        raise ValueError("it has no tasks, or no methods")
    for name, low in (("samples", 1), ("threads", 1)):
        if getattr(suite, name) < low:
            raise ValueError(f"{name} is at least {low}, got {getattr(suite, name)}")
    parts = {f"tasks.{n}": t for n, t in suite.tasks.items()} | {f"methods.{n}": m for n, m in suite.methods.items()}
    for at, part in parts.items():
        if part.samples is not None and part.samples < 0:
            raise ValueError(f"{at}.samples is at least 0 (as many as the strategy likes), got {part.samples}")
    if not isinstance(suite.metrics, (list, dict, type(None))):
        raise TypeError(f"metrics: a list of names is needed, got {suite.metrics!r}")
    for seed in (suite.seed, *(task.seed for task in suite.tasks.values()), *(image.seed for image in suite.images.values())):
        check_seed(seed)
    links: list[tuple[str, list[str], Iterable[str]]] = [
        ("reference", [suite.reference] if suite.reference else [], suite.methods),
        *((f"tasks.{n}.images", t.images, suite.images) for n, t in suite.tasks.items()),
        *((f"tasks.{n}.methods", t.methods, suite.methods) for n, t in suite.tasks.items()),
        *((f"methods.{n}.tasks", m.tasks, suite.tasks) for n, m in suite.methods.items()),
    ]
    for at, names, allowed in links:
        for name in names:
            if name not in allowed:
                raise ValueError(f"{at}: {name!r} is none of {', '.join(allowed)}")
            if names.count(name) > 1:
                raise ValueError(f"{at}: {name!r} is given twice")
    if suite.images and not any(suite.pairs()):
        raise ValueError("no method runs on any task: what tasks say of their methods and methods of their tasks excludes all")


def freeze(suite: Suite) -> Suite:
    """The suite with everything that determines its scores.

    Builds every image, operator and measurement once, and evaluates no strategy. ``ValueError`` names the place of what cannot
    be built, or is not what it was when the suite was frozen.
    """
    from invdiff import metrics
    from invdiff.bench import contestants, images, tasks

    if not suite.images:
        raise ValueError(f"suite {suite.name} has no images of its own; give a folder of yours: --images DIR")
    truths, frozen_images, frozen_tasks, priors = {}, {}, {}, {}
    for name, image in suite.images.items():
        with _at(f"images.{name}"):
            truth = build(image.source, images.IMAGES)
            tasks.check_image(truth)
            if image.sha256 and not tasks.same(truth, asdict(image)):
                raise ValueError("this is not the image that the suite was frozen with")
            truths[name] = truth
            known = asdict(image) if image.sha256 else tasks.frozen(truth)
            source = with_defaults(image.source, images.IMAGES)
            frozen_images[name] = replace(image, source=source, sha256=known["sha256"], fingerprint=known["fingerprint"])
    methods = {}
    for label, method in suite.methods.items():
        with _at(f"methods.{label}"):
            methods[label] = replace(method, run=contestants.complete(method.run))
    for name, task in suite.tasks.items():
        prior = task.prior or suite.prior
        if task.judge:
            with _at(f"tasks.{name}.judge"):
                bound(task.judge, {}, {}, ("outcome", "case"))
        with _at(f"tasks.{name}"):
            label = tasks.prior_label(prior)
            priors[label] = tasks.prior_sha256(prior)
            if suite.priors.get(label, priors[label]) != priors[label]:
                raise ValueError(f"the weights of the prior {label} are not those that the suite was frozen with")
            found, auto = dict(task.measurements), {}
            for key in task.images or suite.images:
                A, law = tasks.operator(task.operator, task.noise, tuple(truths[key].shape[1:]))
                y = tasks.measure(A, law, truths[key], task.seed + suite.images[key].seed)
                if key in found and not tasks.same(y, found[key]):
                    raise ValueError(f"the measurement of {key} is not the one that the suite was frozen with")
                found.setdefault(key, tasks.frozen(y))
                auto = {
                    n: contestants.chosen(m.run, A, law, count(suite, task, m))
                    for n, m in methods.items()
                    if contestants.is_auto(m.run) and (not m.tasks or name in m.tasks) and (not task.methods or n in task.methods)
                }
            for label, (run, samples) in auto.items():
                choice = {"run": run, "samples": samples}
                known_choices = methods[label].chosen
                methods[label] = replace(methods[label], chosen={**known_choices, name: known_choices.get(name, choice)})
            frozen_tasks[name] = replace(
                task,
                operator=with_defaults(task.operator, tasks.OPERATORS, skip=("noise",)),
                prior=prior,
                images=list(task.images or suite.images),
                measurements=found,
            )
    wanted = list(suite.metrics or metrics.METRICS)
    unknown = [m for m in wanted if m not in metrics.METRICS]
    if unknown:
        raise ValueError(f"metrics: {unknown[0]!r} is none of {', '.join(metrics.METRICS)}")
    return replace(
        suite,
        images=frozen_images,
        tasks=frozen_tasks,
        methods=methods,
        priors=priors,
        metrics=suite.metrics if isinstance(suite.metrics, dict) else {m: metrics.METRICS[m][3] for m in wanted},
        made_with=suite.made_with or versions(),
    ).sealed()


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors from within say where they are."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error


def count(suite: Suite, task: Task, method: Method) -> int | None:
    """Samples that a method is asked for: its own number, or the task's, or the suite's; None leaves it to the strategy."""
    return next(n for n in (method.samples, task.samples, suite.samples) if n is not None) or None
