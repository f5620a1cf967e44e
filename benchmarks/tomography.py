"""Parallel-beam tomography against deepinv's: ``python benchmarks/tomography.py [size] [views]``.

Calls are interleaved, so that a busy machine slows both alike; medians in milliseconds, and their ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import deepinv
import torch

from invdiff.operators import Tomography


def medians(calls: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(t) for name, t in times.items()}


def main(size: int = 256, views: int = 180) -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    ours = Tomography(size, views)
    ours.A(torch.zeros(1, 1, size, size))
    print(f"{size}x{size}, {views} views, one thread; building the matrix takes {time.perf_counter() - begin:.1f} s")
    theirs = deepinv.physics.Tomography(views, size, normalize=False)
    print(f"{'batch':>5} {'':12} {'invdiff':>9} {'deepinv':>9} {'ratio':>6}")
    for batch in (1, 8):
        x = torch.rand(batch, 1, size, size)
        y, z = ours.A(x), theirs.A(x)
        theirs.A_adjoint(z)  # its first call sets up
        found = medians(
            {
                "A": partial(ours.A, x),
                "A deepinv": partial(theirs.A, x),
                "A_adjoint": partial(ours.A_adjoint, y),
                "A_adjoint deepinv": partial(theirs.A_adjoint, z),
                "fbp": partial(ours.fbp, y),
                "fbp deepinv": partial(theirs.fbp, z),
            }
        )
        for name in ("A", "A_adjoint", "fbp"):
            a, b = found[name], found[f"{name} deepinv"]
            print(f"{batch:5} {name:12} {a:9.1f} {b:9.1f} {b / a:6.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
