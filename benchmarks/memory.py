"""Peak memory of ``solve`` on many samples: ``python benchmarks/memory.py``, minutes, one thread, Linux.

``solve`` computes samples in chunks of at most ``PIXELS_AT_ONCE`` pixels (``invdiff/solving.py``). Each strategy runs in a process
of its own; what is printed is the largest resident memory it reached, less what it held before the call. That does not
depend on the number of steps, so that few are taken. The bound is for float32, on processors without bfloat16 arithmetic,
which this process is then told to be; with it the network takes about half.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

BOUNDS = {"diffpir": 2.0, "dps": 4.0}  # GiB, as stated at PIXELS_AT_ONCE: without and with a backward pass


def resident() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def child(strategy: str, size: int, samples: int, steps: int) -> None:
    """Print what one call of ``solve`` adds. torch is imported here, so that the parent, which a process starts from, stays small."""
    import torch

    from invdiff import operators, priors, solve

    torch.set_num_threads(1)
    net = priors.DenoisingUNet().to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def run(side: int, samples: int) -> None:
        A = operators.Inpainting(operators.random_mask((side, side), 0.5), noise=0.05)
        solve(A.measure(torch.rand(1, 3, side, side)), A, net, strategy, samples=samples, steps=steps)

    run(32, 1)  # what the libraries load at their first use is not counted
    before = resident()
    run(size, samples)
    print(resident() - before)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.child, args.size, args.samples, args.steps)
    print(
        f"{args.samples} samples of 3x{args.size}x{args.size}, GiB\n{'':10} {'bound':>6} {'float32':>9} {'as it is':>9}"
    )
    for name, bound in BOUNDS.items():
        options = [f"--{k}={getattr(args, k)}" for k in ("size", "samples", "steps")]
        command = [sys.executable, __file__, f"--child={name}", *options]
        found = []
        for environment in ({"ATEN_CPU_CAPABILITY": "avx2"}, {}):
            done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
            found.append(float(done.stdout))
        print(
            f"{name:10} {bound:6.1f} {found[0]:9.2f} {found[1]:9.2f}{'  over the bound' * (max(found) > bound)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
