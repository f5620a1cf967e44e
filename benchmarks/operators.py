"""Speed of our operators against deepinv's: ``python benchmarks/operators.py``, one thread, a minute.

For each pair the two sides take turns, and the medians are compared: 2.0 means ours takes half the time.
Where both iterate (valid blur) ours goes on until the image is right to 1e-3, deepinv's to its default tolerance of 1e-4 or
50 steps, which is too few at ``gamma = 2500`` (noise of 0.02).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from deepinv import physics as dinv

from invdiff import operators as ops

Call = Callable[[], object]


def pairs(side: int) -> dict[str, tuple[Call, Call]]:
    """Name -> (our call, deepinv's call), on one colour image."""
    shape, x, z = (3, side, side), torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)
    kernel = ops.gaussian_kernel(2.0)
    table: dict[str, tuple[Call, Call]] = {}

    def compare(name: str, ours: ops.Linear, theirs: dinv.LinearPhysics) -> None:
        mine, other = ours.A(x), theirs.A(x)
        table[f"{name}: A"] = (lambda: ours.A(x), lambda: theirs.A(x))
        table[f"{name}: adjoint"] = (lambda: ours.A_adjoint(mine), lambda: theirs.A_adjoint(other))
        table[f"{name}: prox"] = (lambda: ours.prox_l2(z, mine, 10.0), lambda: theirs.prox_l2(z, other, 10.0))
        near = 0.9 * x  # a denoised image is
        table[f"{name}: prox 2500"] = (
            lambda: ours.prox_l2(near, mine, 2500.0),
            lambda: theirs.prox_l2(near, other, 2500.0),
        )
        table[f"{name}: pseudo-inverse"] = (lambda: ours.A_dagger(mine), lambda: theirs.A_dagger(other))

    image = kernel[None, None]
    compare("blur, circular", ops.Blur(kernel), dinv.BlurFFT(shape, filter=image))
    compare("blur, valid", ops.Blur(kernel, boundary="valid"), dinv.Blur(filter=image, padding="valid"))
    for kind in ("bicubic", "gaussian"):
        small = ops.Downsampling(4, "bicubic" if kind == "bicubic" else ops.gaussian_kernel(2.0, size=16))
        theirs = dinv.Downsampling(img_size=shape, filter=kind, factor=4, padding="circular")
        compare(f"downsampling x4, {kind}", small, theirs)
    return table


def milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    for side in (128, 256):
        print(f"\n3x{side}x{side:<24} ours, ms  deepinv, ms   ratio")
        for name, calls in pairs(side).items():
            times = [[milliseconds(call) for call in calls] for _ in range(9)][2:]
            ours, theirs = (median(column) for column in zip(*times))
            print(f"{name:32} {ours:9.2f} {theirs:12.2f} {theirs / ours:7.1f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
