"""``invdiff bench suites | run | report | compare``: options and messages; imports the rest only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from invdiff.bench.running import Progress

app = typer.Typer(help="Benchmark suites: strategies, tasks and images, run once and the same again.", no_args_is_help=True)


@app.command()
def suites() -> None:
    """List the suites that ship."""
    from invdiff.bench import suite

    for name in suite.suites():
        found = suite.read(name)
        typer.echo(f"{name:12} {found.about}")
        images = f"{len(found.images)} images" if found.images else "images of yours (--images)"
        typer.echo(f"{'':12} {images}; tasks: {', '.join(found.tasks)}")
        typer.echo(f"{'':12} methods: {', '.join(found.methods)}")


@app.command()
def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite (`invdiff bench suites` lists them) or a YAML file (docs/suites.md), a frozen one too.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; what is there already is not run again.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Only this image; may be repeated.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of image files to take instead of the suite's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one a core, for suites of one thread]", show_default=False)] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on the Dask cluster at this address instead.")] = None,
    resources: Annotated[str | None, typer.Option(help="What a run of a network asks of Dask workers, e.g. GPU=1.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also run again what failed or was refused.")] = False,
) -> None:  # fmt: skip
    """Run a suite, or what is missing of it. It can be killed at any moment and started again.

    Writes suite.yaml, from which the same scores come again, runs/*.json and pictures/*.png. Exit code 1: some runs failed.
    """
    from invdiff.bench.running import run as start
    from invdiff.bench.workers import Dask

    if resources and not dask:
        raise ValueError("--resources are of Dask workers; give --dask ADDRESS too")
    executor = Dask(dask, _resources(resources)) if dask else None
    try:
        display = _Display()
        if display.bar.disable:
            typer.echo("preparing images, operators and workers", err=True)
        with display.bar:
            only = {"task": task or [], "method": method or [], "image": image or []}
            found = start(
                suite, out, images=images, workers=workers, executor=executor, only=only, again=again, report=display
            )
    finally:
        if executor is not None:
            executor.shutdown(wait=False)
    counts = ", ".join(f"{number} {status}" for status, number in sorted(found.counts.items()))
    before = f" ({found.skipped} of them there before)" if found.skipped else ""
    typer.echo(f"{out}: {found.total} run{'s' * (found.total != 1)}{before}: {counts}")
    if found.counts["failed"]:
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `invdiff bench run` wrote.")]) -> None:
    """Write a page of the results, report.html; the same in short, report.md, for a repository; tables and plots."""
    from invdiff.bench.report import write

    page = write(folder, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"page: {page}, in short {page.with_suffix('.md')}")


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of the results to compare with.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the new ones.")],
) -> None:
    """Say what got better or worse beyond noise. Exit code 1: something got worse."""
    from invdiff.bench.compare import compare as differences

    text, regressions = differences(old, new)
    typer.echo(text)
    if regressions:
        raise typer.Exit(1)


def _resources(text: str | None) -> dict[str, float]:
    try:
        return {name: float(number) for name, number in (part.split("=") for part in (text or "").split(",") if part)}
    except ValueError:
        raise ValueError(f"--resources is NAME=NUMBER,..., such as GPU=1, got {text!r}") from None


class _Display:
    """A bar with an estimate of what remains; without a terminal, a line a run."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self.line = self.bar.add_task("preparing", total=None, left="")
        self.told = 0

    def __call__(self, progress: Progress) -> None:
        for note in progress.problems[self.told :]:
            self.console.print(f"note: {note}", highlight=False, soft_wrap=True)
        self.told = len(progress.problems)
        left = "" if progress.remaining is None else f"about {_duration(progress.remaining)} left"
        last, what = progress.last, "running"
        if last is not None:
            what = " ".join(last["spec"][k] for k in ("task", "image", "method"))
            if last["status"] != "ok":
                self.console.print(f"{last['status']}: {what}: {last['error']}", highlight=False, soft_wrap=True, markup=False)
        elif self.bar.disable:
            typer.echo(f"{progress.total - progress.done} of {progress.total} runs to do", err=True)
        self.bar.update(self.line, total=progress.total, completed=progress.done, description=what, left=left)
        if self.bar.disable and last is not None:
            scores = ", ".join(f"{k} {v:.4g}" for k, v in last["metrics"].items() if v is not None)
            typer.echo(f"{progress.done}/{progress.total} {what}: {scores or last['status']}{f'; {left}' if left else ''}", err=True)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
