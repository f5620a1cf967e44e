"""Evaluations a second of every prior that ships: ``python benchmarks/speed.py``, ten minutes, all cores.

Every prior denoises one image of 64 to 512 pixels a side, on one and on two threads of the CPU and, where there is one, on a GPU, as it
is loaded and compiled (one of latents those of such an image); ``--quick``, two minutes, leaves out the compiled network. All variants of a size take turns, round by round, so
that they see the same load of the machine; a figure is the median over the rounds, of time on the clock. Prints and writes ``docs/speed.md``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from invdiff import __version__, priors
from invdiff.files import write_atomically
from invdiff.priors.network import has_bf16

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SIZES = (64, 128, 256, 512)
THREADS = (1, 2)


def processor() -> str:
    """The CPU's name; on Linux that of ``/proc/cpuinfo``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def variants(name: str, threads: tuple[int, ...], compiled: bool) -> dict[tuple[str, str], tuple[Any, int]]:
    """(where, how) to (the prior as it runs there, threads)."""
    places = [(f"{n} thread{'s' * (n > 1)}", "cpu", n) for n in threads]
    if torch.cuda.is_available():
        places.append((torch.cuda.get_device_name(), "cuda", 1))
    found = {}
    for where, device, n in places:
        for how in ("as loaded", "compiled")[: 1 + compiled]:
            net = priors.load(name).to(device)
            if how == "compiled":  # one for each number of threads, which compiled code has in it
                net.compile()
            found[where, how] = net, n
    return found


def seconds(net: Any, size: int, threads: int, at_least: float) -> float:
    """Of one evaluation of one image: the mean of as many as fit in ``at_least`` seconds, and of one at least."""
    torch.set_num_threads(threads)
    device = next(net.parameters()).device
    of_latents = isinstance(net, priors.LatentPrior)
    x = torch.rand(1, *(net.latent_shape((size, size)) if of_latents else (net.channels, size, size)), device=device)
    evaluate = net.denoiser if of_latents else net
    count, begin = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - begin < at_least:
        with torch.no_grad():
            evaluate(x, 0.3)
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - begin) / count


def measure(
    names: list[str],
    sizes: tuple[int, ...],
    threads: tuple[int, ...],
    compiled: bool,
    rounds: int,
    at_least: float,
    say: Callable[[str], None],
) -> list[list[str]]:
    """Rows of the table: prior, where, how, and evaluations a second at each size."""
    rows = []
    for name in names:
        found = variants(name, threads, compiled)
        cells: dict[tuple[str, str], list[str]] = {key: [] for key in found}
        for size in sizes:
            times: dict[tuple[str, str], list[float]] = {key: [] for key in found}
            for i in range(rounds + 1):
                for key, (net, n) in found.items():
                    taken = seconds(net, size, n, at_least if i else 0.0)
                    if i:  # the first is not counted: memory is laid out, and a network is compiled
                        times[key].append(taken)
            for key, values in times.items():
                cells[key].append(f"{1 / median(values):.3g}")
            say(f"{name} {size}: {', '.join(f'{where} {how} {cells[where, how][-1]}' for where, how in found)}")
        rows += [[f"`{name}`", *key, *values] for key, values in cells.items()]
    return rows


def page(rows: list[list[str]], sizes: tuple[int, ...], rounds: int) -> str:
    """The table and what it was measured on, as Markdown."""
    bf16 = "in bfloat16" if has_bf16(torch.device("cpu")) else "in float32"
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    head = ["prior", "on", "network", *(f"{size}x{size}" for size in sizes)]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"# Speed\n\nEvaluations a second of one image, by its size in pixels; what `python benchmarks/speed.py --rounds {rounds}` measured on "
        f"{date.today()}: medians of the rounds, in which all variants of a size took turns. "
        f"A prior of latents denoises those of the image, without its encoding and decoding.\n\n{table}\n\n"
        f"CPU: {processor()}, {torch.backends.cpu.get_cpu_capability()}, where the networks compute {bf16}. GPU: {', '.join(cards) or 'none'}. "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, invdiff {__version__}.\n"
        + "\n*compiled*: after `prior.compile()`.\n" * any("compiled" in row for row in rows)
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="+", default=priors.names(), help="names or paths; default: all that ship")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, a variant and round")
    parser.add_argument("--quick", action="store_true", help="not compiled")
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    sizes = tuple(args.sizes)
    before = torch.get_num_threads()
    rows = measure(args.priors, sizes, THREADS, not args.quick, args.rounds, args.seconds, lambda line: print(line, flush=True))
    torch.set_num_threads(before)
    write_atomically(args.out, lambda p: p.write_text(page(rows, sizes, args.rounds), encoding="utf-8"))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
