"""What ``solve`` adds to the network: ``python benchmarks/overhead.py``, minutes, one thread.

After every step of a strategy the bare network is timed on the same images, with a backward pass where the strategy takes one;
the ratio is the time of ``solve`` over that of as many bare evaluations. So both see the same load of the machine, and processor
time leaves out what other programs take. 1.00 is no overhead; the aim is at most 1.05.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from invdiff import operators, priors, solve, solvers

TASKS = {
    "inpainting": lambda side: operators.Inpainting(operators.random_mask((side, side), 0.5), noise=0.05),
    "downsampling": lambda side: operators.Downsampling(4, kernel="bicubic", noise=0.02),
}


def network(name: str | None) -> priors.DenoisingUNet:
    """The prior of that name or path; untrained without one, which takes just as long."""
    if name:
        return priors.load(name)
    return priors.DenoisingUNet().to(memory_format=torch.channels_last).eval().requires_grad_(False)


def evaluate(net: priors.DenoisingUNet, x: Tensor, backward: bool) -> float:
    """Seconds of one bare evaluation at some noise level."""
    begin = time.process_time()
    if backward:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.grad(net(x, 0.3), x, torch.ones_like(x))
    else:
        with torch.no_grad():
            net(x, 0.3)
    return time.process_time() - begin


def ratio(strategy: solvers.Strategy, net: priors.DenoisingUNet, A: operators.Linear, y: Tensor, x: Tensor) -> float:
    """Time of ``solve`` over the time of as many bare evaluations, taken in between its steps."""
    bare = 0.0

    def after_a_step(done: int, total: int) -> None:
        nonlocal bare
        bare += evaluate(net, x, strategy.gradient)

    begin = time.process_time()
    result = solve(y, A, net, strategy, samples=len(x), batch_size=len(x), progress=after_a_step)
    whole = time.process_time() - begin
    return (whole - bare) / (bare * result.nfe / strategy.steps)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1, help="images computed together")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prior", help="name or path; default: an untrained network of the same shape")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    net, x = network(args.prior), torch.rand(args.samples, 3, args.size, args.size)
    print(f"{args.samples} x 3x{args.size}x{args.size}, {args.steps} steps, one thread, median of {args.rounds} rounds")
    for backward in (False, True):
        seconds = median(evaluate(net, x, backward) for _ in range(3))
        print(f"the bare network{', with a backward pass' if backward else ''}: {seconds:.3f} s")
    print(f"{'':10}" + "".join(f"{task:>14}" for task in TASKS))
    for name in solvers.names():
        strategy = type(solvers.get(name))(steps=args.steps)
        line = ""
        for make in TASKS.values():
            A = make(args.size)
            y = A.measure(x[:1])
            line += f"{median(ratio(strategy, net, A, y, x) for _ in range(args.rounds)):14.3f}"
        print(f"{name:10}{line}{'  (with a backward pass)' if strategy.gradient else ''}", flush=True)


if __name__ == "__main__":
    main()
