"""``invdiff bench suites | run | report | compare | tune``: options and messages; imports the rest only when needed."""

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
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite (`invdiff bench suites` lists them) or a YAML file, a frozen one too.")],
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
        with display.bar:
            only = {"task": task or [], "method": method or [], "image": image or []}
            found = start(
                suite, out, images=images, workers=workers, executor=executor, only=only, again=again, report=display
            )
    finally:
        if executor is not None:
            executor.shutdown(wait=False)
    counts = ", ".join(f"{number} {status}" for status, number in sorted(found.counts.items()))
    typer.echo(f"{out}: {found.total} runs ({found.skipped} were there already): {counts}")
    if found.counts["failed"]:
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `invdiff bench run` wrote.")]) -> None:
    """Write a page of the results, report.html, and tables and plots beside it."""
    from invdiff.bench.report import write

    typer.echo(f"page: {write(folder, say=lambda text: typer.echo(text, err=True))}")


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


@app.command()
def tune(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task of the suite.")],
    solver: Annotated[str, typer.Option(help="The strategy whose settings are searched.")],
    images: Annotated[Path, typer.Option(help="Folder of training images: others than those the suite measures on.")],
    out: Annotated[Path, typer.Option(help="Folder for preset.yaml and study.db; a stopped search goes on there.")],
    suite: Annotated[str, typer.Option(help="A suite or a YAML file.")] = "photos",
    prior: Annotated[str, typer.Option(help="A prior or a .safetensors file.")] = "natural",
    trials: Annotated[int, typer.Option(help="How many settings are tried, those that OUT holds included.")] = 40,
    metric: Annotated[str, typer.Option(help="What is optimised.")] = "psnr",
    samples: Annotated[int, typer.Option(help="Samples a run.")] = 2,
    seed: Annotated[int, typer.Option(help="Of samples and search.")] = 0,
    vary: Annotated[list[str] | None, typer.Option(metavar="NAME=LOW:HIGH", help="A setting to search, such as weight=0.1:10; may be repeated. [default: its weights and fractions]", show_default=False)] = None,
) -> None:  # fmt: skip
    """Search a strategy's settings on training images and write them as a preset."""
    from invdiff import priors
    from invdiff.bench import tune as tuning

    def tell(done: int, best: float) -> None:
        typer.echo(f"{done}/{trials}: best {metric} {best:.5g}", err=True)

    on = tuning.examples(task, images, suite)
    path = tuning.search(
        on, solver, priors.load(prior), out=out, ranges=_ranges(vary), trials=trials, metric=metric, samples=samples, seed=seed, report=tell
    )  # fmt: skip
    typer.echo(f"preset: {path}")


def _ranges(given: list[str] | None) -> dict[str, tuple[float, float]] | None:
    try:
        parts = [text.split("=") for text in given or []]
        return {name: (float(low), float(high)) for name, limits in parts for low, high in [limits.split(":")]} or None
    except ValueError:
        raise ValueError(f"--vary is NAME=LOW:HIGH, such as weight=0.1:10, got {given}") from None


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
        self.line = self.bar.add_task("starting", total=None, left="")
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
        self.bar.update(self.line, total=progress.total, completed=progress.done, description=what, left=left)
        if self.bar.disable and last is not None:
            scores = ", ".join(f"{k} {v:.4g}" for k, v in last["metrics"].items() if v is not None)
            typer.echo(f"{progress.done}/{progress.total} {what}: {scores or last['status']}{f'; {left}' if left else ''}", err=True)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
