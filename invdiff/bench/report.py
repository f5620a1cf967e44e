"""Reading a benchmark: ``write(DIR)`` makes one page of it that needs nothing else, and tables and plots beside it.

Written into the folder of the records: ``report.html`` (results with intervals, quality against cost, pictures, failures,
protocol, and the command for each row), ``report.md`` (:mod:`invdiff.bench.markdown`), ``results.csv`` and ``results.parquet`` (one line a run), ``summary.csv`` (means and
intervals), ``plots/TASK.png`` and ``plots/TASK-pictures.png``. The page is ``page/report.html`` with its style, script and data filled in; it asks no
network for anything, and all that comes from records is escaped: the data as JSON without ``<``, which the script
shows as text only.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from invdiff.bench import markdown, pictures, plots
from invdiff.bench import suite as suites
from invdiff.bench.records import Record, load
from invdiff.bench.stats import COSTS, MEASURES, RESAMPLES, STATUSES, Study
from invdiff.files import write_atomically, write_text

BUDGET = 24 * 2**20  # bytes of pictures in a page
SCRIPTS = ("table.js", "plot.js", "pictures.js", "start.js")  # one script in four files
KINDS = ("x", "std", "y", "truth")  # of pictures, in the order of the page's data


def write(folder: str | Path, *, budget: int = BUDGET, say: Callable[[str], object] = print) -> Path:
    """Write the report of the benchmark in ``folder`` and return the path of its page.

    ``budget`` bounds the bytes of pictures in the page (:func:`invdiff.bench.pictures.embed`). ``say`` is told what is left out. Raises
    ``ValueError`` where there are no records.
    """
    folder = Path(folder)
    records, problems = load(folder)
    if not records:
        raise ValueError(f"{folder} has no records (runs/*.json); `invdiff bench run SUITE --out {folder}` makes them")
    protocol = (folder / "suite.yaml").read_text(encoding="utf-8") if (folder / "suite.yaml").is_file() else ""
    suite = _suite(protocol)
    study = Study(records, *_order(suite), _backends(suite))
    images, notes = pictures.embed(folder, _wanted(study), budget)
    notes = [*_missing(folder / "suite.yaml", records), *_lost_reference(suite, study), *_told_the_truth(study), *notes]
    spreads = {r["pictures"].get("std") for r in records}
    table = list(_lines(study))
    write_text(folder / "results.csv", _csv(table))
    write_text(folder / "summary.csv", _csv(_summary(study)))
    _parquet(folder / "results.parquet", table, say)
    plots.write(study, folder / "plots")
    plots.write_sheets(study, folder, folder / "plots")
    for note in (*problems, *notes):
        say(f"note: {note}")
    write_text(folder / "report.md", markdown.page(study, suite, [*problems, *notes], _again(folder / "suite.yaml")))
    page = folder / "report.html"
    whites = {name: pictures.white(folder / name) for name in images if name in spreads}
    write_text(page, _page(study, protocol, str(suite.get("note", "")), _data(study, images, whites, [*problems, *notes])))
    return page


def _again(protocol: Path) -> str:
    """The command that runs it all again: by name where the suite is one that ships, as it ships."""
    try:
        suite = suites.read(protocol)
    except ValueError:  # lost, or edited since
        return "invdiff bench run suite.yaml --out DIR"
    name = suite.name
    ships = name in suites.suites() and suites.read(name).protocol == suite.declared
    return f"invdiff bench run {name if ships else 'suite.yaml'} --out DIR"


def command(record: Record) -> str:
    """The command that runs this record again, from the folder that it is in."""
    spec = record["spec"]
    return f"{_command(spec['task'], spec['method'])} --image {shlex.quote(spec['image'])}"


def _command(task: str, method: str) -> str:
    return f"invdiff bench run suite.yaml --out again --task {shlex.quote(task)} --method {shlex.quote(method)}"


def _suite(protocol: str) -> dict[str, Any]:
    """The frozen suite as YAML has it; empty if it is none."""
    try:
        suite = yaml.load(protocol, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # of thousands of images: the fast one
    except yaml.YAMLError:
        suite = None
    return suite if isinstance(suite, dict) else {}


def _backends(suite: dict[str, Any]) -> dict[str, Any]:
    """What computed the metrics, which a frozen suite says."""
    found = suite.get("metrics")
    return found if isinstance(found, dict) else {}


def _lost_reference(suite: dict[str, Any], study: Study) -> list[str]:
    named = suite.get("reference", "")
    return [f"{named}, which the suite compares with, has no record: report.md compares with {study.methods[0]}"] if named and named not in study.methods else []


def _told_the_truth(study: Study) -> list[str]:
    tuned = {name for name, r in zip(study.labels, study.records, strict=True) if str(r["spec"].get("settings")).startswith("total_variation(")}
    return [f"{name} takes the weight that is best for the truth: more than it can do where that is not known" for name in sorted(tuned)]


def _missing(protocol: Path, records: list[Record]) -> list[str]:
    """A note where runs of the suite have no record."""
    try:
        suite = suites.read(protocol)
    except ValueError as error:
        return [str(error)] if protocol.is_file() else []
    wanted, named = set(suite.pairs()), {r["protocol"] for r in records}
    if suite.protocol not in named:
        return [f"suite.yaml was edited since: the runs are of protocol {', '.join(sorted(named))}, not of what it says now"]
    missing = len(wanted - {(r["spec"]["task"], r["spec"]["image"], r["spec"]["method"]) for r in records})
    return [f"this is a part: {missing} of the {len(wanted)} runs of the suite are missing"] if missing else []


def _order(suite: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Images, tasks and methods in the order of the suite."""
    parts = [suite.get(k) for k in ("images", "tasks", "methods")]
    images, tasks, methods = ([str(name) for name in part] if isinstance(part, (dict, list)) else [] for part in parts)
    return images, tasks, methods


# Tables


def _lines(study: Study) -> Iterator[dict[str, Any]]:
    """One flat line a run."""
    for record, strategy in zip(study.records, study.labels, strict=True):
        spec, found = record["spec"], {**record["metrics"], **record["cost"]}
        yield {
            "key": record["key"],
            **{k: record[k] for k in ("suite", "protocol")},  # type: ignore[literal-required]
            **{k: spec.get(k) for k in ("task", "image", "method")},
            "strategy": strategy,
            **{k: spec.get(k) for k in ("settings", "prior", "samples", "seed", "noise")},
            "status": record["status"],
            "error": record["error"],
            "warnings": "; ".join(record["warnings"]),
            **{name: found.get(name) for name in study.measures},
            "started": record["started"],
            "versions": " ".join(f"{k}={v}" for k, v in sorted(record["versions"].items())),
            "machine": " ".join(f"{k}={v}" for k, v in sorted(record["machine"].items())),
            "command": command(record),
        }


def _summary(study: Study) -> Iterator[dict[str, Any]]:
    """One line a task, strategy and measure: mean, ends of the interval."""
    for task, name in enumerate(study.tasks):
        mean, half = study.means(task)
        for method, strategy in enumerate(study.methods):
            counts = dict(zip(STATUSES, study.counts[task, method].tolist(), strict=True))
            for k, measure in enumerate(study.measures):
                m, h = float(mean[method, k]), float(half[method, k])
                if math.isfinite(m):
                    ends = {"low": m - h, "high": m + h} if math.isfinite(h) else {"low": None, "high": None}
                    yield {"task": name, "strategy": strategy, **counts, "measure": measure, "mean": m, **ends}


def _csv(lines: Iterable[dict[str, Any]]) -> str:
    lines = list(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _parquet(path: Path, lines: list[dict[str, Any]], say: Callable[[str], object]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        say(f"note: {path.name} is left out, since pyarrow is not installed; pip install 'invdiff[bench]'")
        return
    # What is no number is text, whatever a user's suite puts there (noise may be a law).
    number = {name for name in lines[0] if all(isinstance(line[name], (int, float, type(None))) for line in lines)}
    columns = {k: [v if k in number or v is None else str(v) for v in (line[k] for line in lines)] for k in lines[0]}
    write_atomically(path, lambda p: parquet.write_table(pyarrow.table(columns), p))


# The page


def _wanted(study: Study) -> list[str]:
    """Pictures by importance: all of the first image, then of the next, so that a page with few has whole comparisons."""
    order = sorted(range(len(study.records)), key=lambda i: study.places[i])
    return [study.records[i]["pictures"][k] for i in order for k in ("truth", "y", "x", "std") if k in study.records[i]["pictures"]]


def _page(study: Study, protocol: str, note: str, data: dict[str, Any]) -> str:
    first = study.records[0]
    texts = {
        "title": f"{first['suite']}: benchmark of invdiff",
        "suite": first["suite"],
        "note": note,
        "protocol": ", ".join(sorted({r["protocol"] for r in study.records})),
        "protocol_text": protocol or "suite.yaml is not in the folder",
        "versions": "; ".join(sorted({" ".join(f"{k} {v}" for k, v in sorted(r["versions"].items())) for r in study.records})),
        "machines": "; ".join(sorted({_machine(r["machine"]) for r in study.records})),
        "started": f"{min(r['started'] for r in study.records)} to {max(r['started'] for r in study.records)}",
        "resamples": str(RESAMPLES),
    }
    source = resources.files("invdiff.bench") / "page"
    filled = {key: escape(text) for key, text in texts.items()}
    filled |= {
        "style": (source / "report.css").read_text(encoding="utf-8"),
        "script": "\n".join((source / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": _json(data),
    }
    template = (source / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


def _machine(machine: dict[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine.get('cpu')}, {machine.get('cores')} cores{gpu}, {machine.get('threads')} thread(s) a run, Python {machine.get('python')}"


def _json(data: Any) -> str:
    """JSON that may stand in a <script>: nothing in it can end the element or begin another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _data(study: Study, images: dict[str, str], whites: dict[str, float | None], notes: list[str]) -> dict[str, Any]:
    """What the script shows. Tables are lists without keys, and texts that repeat are numbers into a list, to stay small."""
    texts: dict[str, int] = {}

    def number(text: str | None) -> int | None:
        return None if text is None else texts.setdefault(text, len(texts))

    embedded = {name: i for i, name in enumerate(images)}
    runs = []
    for place, record in sorted(zip(study.places, study.records, strict=True), key=lambda pair: pair[0]):
        found = {**record["metrics"], **record["cost"]}
        values = [_short(found.get(name)) for name in study.measures] if record["status"] == "ok" else []
        shown = [embedded.get(record["pictures"].get(kind, "")) for kind in KINDS]
        spec = record["spec"]
        drawn = "" if spec.get("prior") is None else f"; {spec.get('samples') or 'its own number of'} sample{'s' * (spec.get('samples') != 1)}"
        facts = [spec.get("seed", 0), STATUSES.index(record["status"]), number(f"{spec.get('settings')}{drawn}"), number(record["error"])]
        runs.append([*place, *facts, values, shown, whites.get(record["pictures"].get("std", ""))])
    scopes: list[int | None] = [*range(len(study.tasks))]
    if len(scopes) > 1:
        scopes.append(None)  # all tasks together
    return {
        "suite": study.records[0]["suite"],
        "notes": notes,
        "images": study.images,
        "quoted": [shlex.quote(name) for name in study.images],
        "tasks": study.tasks,
        "methods": study.methods,
        "measures": [{"name": name, "cost": name in COSTS, **study.described(name)._asdict()} for name in study.measures],
        "missing": [m.title for name, m in MEASURES.items() if name not in study.measures],
        "rows": [row for scope in scopes for row in _rows(study, scope)],
        "differences": [_differences(study, scope) for scope in scopes],
        "runs": runs,
        "texts": list(texts),
        "pictures": list(images.values()),
    }


def _rows(study: Study, task: int | None) -> Iterator[list[Any]]:
    """``[task, method, [ok, failed, refused], means, halves, command]`` of what ran; -1 is all tasks together."""
    mean, half = study.means(task)
    counts = study.counts_of(task)
    methods = {name: record["spec"]["method"] for name, record in zip(study.labels, study.records, strict=True)}
    for method, name in enumerate(study.methods):
        if any(counts[method]) and (task is not None or bool((mean[method] == mean[method]).any())):
            again = "" if task is None else _command(study.tasks[task], methods[name])
            values = [[_short(v) for v in part[method].tolist()] for part in (mean, half)]
            yield [-1 if task is None else task, method, counts[method], *values, again]


def _differences(study: Study, task: int | None) -> list[list[Any]]:
    """``[a][b] = [means, halves]`` of b minus a, for a < b; the others differ in sign."""
    found = []
    for reference in range(len(study.methods) - 1):
        parts = [part[reference + 1 :].tolist() for part in study.differences(task, reference)]
        found.append([[[_short(v) for v in values] for values in pair] for pair in zip(*parts, strict=True)])
    return found
