"""The command line: ``invdiff restore | demo | priors | solvers | train | sample | tune | bench``.

Heavy libraries are imported inside the commands, so that ``--help`` and typing mistakes answer at once. Mistakes end in
one line ``error: ...`` and exit code 2; exit code 1 means that some pictures of many failed, 130 that you stopped it.
With ``INVDIFF_DEBUG=1`` in the environment the traceback comes before the line.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from invdiff import __version__
from invdiff.bench import cli as bench

# What work can raise; RuntimeError is torch's, out of memory included.
ERRORS = (ValueError, TypeError, LookupError, OSError, ArithmeticError, ImportError, MemoryError, RuntimeError)


def _one_line(error: Exception) -> str:
    if os.environ.get("INVDIFF_DEBUG") == "1":
        traceback.print_exception(type(error), error, error.__traceback__)
    return " ".join(str(error).split()) or type(error).__name__


class _Commands(TyperGroup):
    """Commands whose errors are one line, not a traceback or a box."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # what click's errors of usage have, wherever typer keeps click
                raise
            typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            code = 2
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # RuntimeErrors, but no mistakes
            raise
        except ERRORS as error:
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("stopped; what was finished is kept, nothing is half-written", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Restore images with pretrained diffusion priors.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench.app, name="bench")
main = app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"invdiff {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@contextmanager
def _bar() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        yield bar


def _follow(bar: Progress, line: TaskID, what: str) -> Callable[[float], None]:
    """Reports of the share done, to the bar; without a terminal a line every ten seconds."""
    said = time.monotonic()

    def report(done: float) -> None:
        nonlocal said
        bar.update(line, completed=done)
        if bar.disable and time.monotonic() > said + 10:
            said = time.monotonic()
            typer.echo(f"{what}: {done:.0%} done", err=True)

    return report


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A picture, a folder, or a quoted pattern like 'in/*.png'.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The restored picture; a folder when INPUT is many.")],
    task: Annotated[str, typer.Option(help="inpaint, deblur, superres or denoise.")],
    mask: Annotated[Path | None, typer.Option(help="inpaint: white is known, black is filled. For many: a file for all, or a folder of NAME.png.")] = None,
    kernel: Annotated[str | None, typer.Option(help="deblur: gaussian:SIGMA, motion:LENGTH,ANGLE, disk:RADIUS, or a picture of the kernel.")] = None,
    scale: Annotated[int | None, typer.Option(help="superres: how many times larger.")] = None,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of the noise, white being 1. [default: inpaint 0.01, deblur and superres 0.02, denoise estimated]", show_default=False)] = None,
    solver: Annotated[str, typer.Option(help="A strategy or a preset; `invdiff solvers` lists them; or a file of `invdiff tune`.")] = "auto",
    budget: Annotated[str, typer.Option(help="Of --solver auto: fast, balanced or exact; `invdiff solvers auto` has the table.")] = "balanced",
    steps: Annotated[int | None, typer.Option(help="Steps of the strategy. [default: its own, in `invdiff solvers NAME`]", show_default=False)] = None,
    samples: Annotated[int | None, typer.Option(help="Images drawn; the result is their mean. 1 gives a single, sharper sample. [default: fast 2, balanced 4, exact 8]", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    uncertainty: Annotated[Path | None, typer.Option(help="Also write the standard deviation, as .png; for many: a folder.")] = None,
    prior: Annotated[str, typer.Option(help="A prior (`invdiff priors` lists them), a .safetensors file or the folder of `invdiff train`.")] = "natural",
    batch_size: Annotated[int | None, typer.Option(help="Samples computed together; less needs less memory.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: cuda where there is one]", show_default=False)] = None,
) -> None:  # fmt: skip
    """Restore photographs: fill in, deblur, enlarge or denoise.

    Pictures of many that have a result already are skipped: delete the result to have it made again.
    """
    from invdiff.restore import Job, Restorer, Settings, find_jobs, is_many

    settings = Settings(task, mask, kernel, scale, noise, solver, budget, steps, samples, seed, prior, batch_size, device)  # type: ignore[arg-type]
    if is_many(source):
        _restore_many(settings, find_jobs(source, output, mask, uncertainty))
        return
    job = Job(Path(source), output, mask, uncertainty)
    job.check()
    with _bar() as bar:
        line = bar.add_task(Path(source).name, total=1.0)
        report = Restorer(settings)(job, _follow(bar, line, Path(source).name))
    _tell(job, report)


def _restore_many(settings: Any, jobs: list[Any]) -> None:
    from invdiff.restore import Restorer

    for job in jobs:
        job.check()
    todo = [job for job in jobs if not job.done]
    restorer = Restorer(settings) if todo else None
    failed = []
    with _bar() as bar:
        whole = bar.add_task("all", total=len(todo))
        for i, job in enumerate(todo):
            line = bar.add_task(job.source.name, total=1.0)
            try:
                for path in filter(None, (job.target, job.uncertainty)):
                    path.parent.mkdir(parents=True, exist_ok=True)

                follow = _follow(bar, line, job.source.name)

                def progress(done: float, follow: Callable[[float], None] = follow, i: int = i) -> None:
                    follow(done)
                    bar.update(whole, completed=i + done)

                _tell(job, restorer(job, progress))  # type: ignore[misc]
            except ERRORS as error:
                failed.append(f"{job.source}: {_one_line(error).removeprefix(f'{job.source}: ')}")
                typer.echo(f"error: {failed[-1]}", err=True)
            bar.remove_task(line)
    typer.echo(
        f"{len(todo) - len(failed)} restored, {len(jobs) - len(todo)} skipped (already there), {len(failed)} failed"
    )
    for failure in failed:
        typer.echo(f"  failed: {failure}")
    if failed:
        raise typer.Exit(1)


def _tell(job: Any, report: Any) -> None:
    for notice in report.notices:
        typer.echo(f"note: {notice}", err=True)
    typer.echo(
        f"{job.target}: {report.size[1]}x{report.size[0]}, noise {report.noise:.3g}, {report.nfe} network evaluation{'s' * (report.nfe != 1)} a "
        f"sample, {report.seconds:.1f} s, {report.solver}"
    )
    if report.white is not None:
        typer.echo(f"{job.uncertainty}: standard deviation, white is {report.white:.6g}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sheet.")] = Path("invdiff-demo"),
    images: Annotated[
        str, typer.Option(help="few: three photographs, one corruption each; all: all four under all three.")
    ] = "few",
    prior: Annotated[str, typer.Option(help="A prior or a .safetensors file.")] = "natural",
) -> None:
    """Degrade and restore photographs that come with scikit-image; compare with total variation.

    By default each of three photographs gets one corruption; --images all puts all four under all three.
    """
    from invdiff.demo import run

    said = ""
    with _bar() as bar:
        line = bar.add_task("demo", total=1.0)

        def report(done: float, what: str) -> None:
            nonlocal said
            bar.update(line, completed=done, description=what)
            if bar.disable and what != said:  # no terminal, no bar: one line for each piece of work
                typer.echo(what, err=True)
            said = what

        path, table = run(out, images, prior, report)
    Console().print(table)
    typer.echo(f"sheet: {path}")


@app.command("priors")
def list_priors(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The prior whose card is printed; also a weights file or a folder of `invdiff train`.", show_default=False)] = None,
) -> None:
    """List the priors that ship: what they know, size and noise, quality, terms of their data; or print the card of one."""
    from invdiff import priors
    from invdiff.priors import cards

    if name is not None:
        typer.echo(cards.read(name))
        return
    for shipped in priors.names():
        for i, line in enumerate(priors.describe(shipped).splitlines()):
            typer.echo(f"{'' if i else shipped:12} {line}")


@app.command("solvers")
def list_solvers(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The strategy to describe.", show_default=False)] = None,
) -> None:
    """List the strategies and the presets (settings that were searched for a task), or describe one: formula, settings, BibTeX entry."""
    from inspect import cleandoc

    from invdiff import solvers

    if name == "auto":
        typer.echo(solvers.auto.table())
        return
    if name is not None:
        strategy = solvers.get(name)
        typer.echo("\n\n".join([cleandoc(type(strategy).__doc__ or ""), f"Settings: {strategy!r}", strategy.reference]))
        return
    for known in solvers.names():
        typer.echo(f"{known:12} {_first_sentence(type(solvers.get(known)).__doc__ or '')}")
    for preset in solvers.presets():
        typer.echo(f"{preset:18} {solvers.get(preset)}")


def _first_sentence(text: str) -> str:
    return text.strip().partition("\n")[0]


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A recipe that ships, or a YAML file.")],
    data: Annotated[Path | None, typer.Option(help="Folder of images; none for a recipe that draws them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the weights; a stopped run goes on from there. [default: runs/NAME of the recipe]", show_default=False)] = None,
    start: Annotated[str | None, typer.Option(help="Begin with the weights of this prior (fine-tuning): a name, a .safetensors file or a folder of an earlier run.")] = None,
    lora: Annotated[int | None, typer.Option(help="Leave the weights of --start alone and train adapters of this rank, e.g. 8: a file under 1 MB.")] = None,
    held: Annotated[Path | None, typer.Option(help="Folder of held-out images to measure on. [default: some of DATA, not trained on]", show_default=False)] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop training after this time, that of earlier runs in the folder included; measuring comes on top.")] = None,
    steps: Annotated[int | None, typer.Option(help="Override the recipe's number of steps.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:  # fmt: skip
    """Train a prior, on a folder of images or on images that the recipe draws."""
    from dataclasses import replace

    from invdiff.priors.recipe import Recipe
    from invdiff.priors.training import train as run

    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is positive, got {value}")
    chosen = Recipe.load(recipe)
    if steps is not None:
        chosen = replace(chosen, steps=steps)
    told = 0.0
    with _bar() as bar:
        line = bar.add_task(chosen.name, total=1.0)

        def report(step: int, done: float, loss: float) -> None:
            nonlocal told
            what = f"{chosen.name}: step {step}, loss {loss:.4f}"
            bar.update(line, completed=done, description=what)
            if bar.disable and done >= told + 0.02:  # no terminal, no bar: fifty lines at most
                told = done
                typer.echo(f"{what}, {done:.0%} done", err=True)

        folder = out or Path("runs") / chosen.name
        path = run(chosen, data, folder, start=start, lora=lora, held=held, minutes=minutes, device=device, report=report)
    typer.echo(f"weights: {path}")


@app.command()
def sample(
    prior: Annotated[str, typer.Argument(metavar="NAME", help="A prior (`invdiff priors` lists them), a .safetensors file or the folder of `invdiff train`.")],
    n: Annotated[int, typer.Option("--n", help="How many images.")] = 16,
    size: Annotated[int | None, typer.Option(help="Their side in pixels. [default: that of the training, in the card]", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    steps: Annotated[int, typer.Option(help="Noise levels, and evaluations of the network.")] = 40,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("sheet.png"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: cuda where there is one]", show_default=False)] = None,
) -> None:  # fmt: skip
    """Draw images from a prior, without any measurement, and lay them out on a sheet; of complex ones the magnitude."""
    import torch

    from invdiff import priors
    from invdiff.io import check_writable, write_image
    from invdiff.priors.cards import header
    from invdiff.priors.sampling import sheet

    check_writable(out)
    model = priors.load(prior).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    learned = int(header(prior).get("size", 0))
    side = (learned or 64) if size is None else size
    if learned and not 1 / 2 < side / learned < 2:
        typer.echo(f"note: {prior} learned from images of {learned}x{learned}; much larger or smaller ones have the texture, seldom the whole", err=True)
    with _bar() as bar:
        what = f"{n} images of {side}x{side}"
        shape = (n, getattr(model, "channels", None) or 3, side, side)
        images = priors.sample(
            model, shape, seed=seed, steps=steps, progress=_follow(bar, bar.add_task(what, total=1.0), what)
        )
    for notice in write_image(out, sheet(images)):
        typer.echo(f"note: {notice}", err=True)
    typer.echo(f"sheet: {out}")


@app.command()
def tune(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task of the suite.")],
    solver: Annotated[str, typer.Option(help="The strategy whose settings are searched.")],
    images: Annotated[Path, typer.Option(help="Folder of training images: others than those the suite measures on.")],
    out: Annotated[Path, typer.Option(help="Folder for preset.yaml and study.db; a stopped search goes on there.")],
    suite: Annotated[str, typer.Option(help="A suite or a YAML file.")] = "photos",
    prior: Annotated[str | None, typer.Option(help="A prior or a .safetensors file. [default: that of the suite's task]", show_default=False)] = None,
    trials: Annotated[int, typer.Option(help="How many settings are tried, those that OUT holds included.")] = 40,
    metric: Annotated[str, typer.Option(help="What is optimised.")] = "psnr",
    samples: Annotated[int, typer.Option(help="Samples a run.")] = 2,
    held: Annotated[Path | None, typer.Option(help="Folder of further images, on which the gain is measured at the end.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples and search.")] = 0,
    vary: Annotated[list[str] | None, typer.Option(metavar="NAME=LOW:HIGH", help="A setting to search, such as weight=0.1:10; may be repeated. [default: its weights and fractions]", show_default=False)] = None,
) -> None:  # fmt: skip
    """Search a strategy's settings on training images and write them as a preset, for --solver and solve."""
    from invdiff.bench import tasks
    from invdiff.bench import tune as tuning
    from invdiff.bench.images import files
    from invdiff.solvers.preset import read

    def tell(done: int, best: float) -> None:
        typer.echo(f"{done}/{trials}: best {metric} {best:.5g}", err=True)

    if held is not None and held.resolve() == images.resolve():
        raise ValueError(f"--held {held} is the folder that is searched on; give other images, or leave --held out")
    on = tuning.examples(task, images, suite)
    others = [] if held is None else tuning.examples(task, held, suite)
    named = {"images": images, **({} if held is None else {"held_images": held})}
    law = prior or tuning.prior_of(task, suite)
    notes = {"task": task, "suite": suite, "prior": law} | {kind: sorted(files(folder)) for kind, folder in named.items()}
    path = tuning.search(
        on, solver, tasks.load_prior(law), out=out, ranges=tuning.ranges(vary), trials=trials, metric=metric, samples=samples, seed=seed,
        held=others, notes=notes, report=tell,
    )  # fmt: skip
    found = read(path)["found"]
    for name in ("training", *(["held"] if others else [])):
        ends = found[name]["difference_95"]
        within = "" if ends is None else f", 95 % interval [{ends[0]:+.3g}, {ends[1]:+.3g}]"
        typer.echo(f"{metric} on {found[name]['images']} {name} images: {found[name]['difference']:+.3g}{within}")
    typer.echo(f"preset: {path}")
