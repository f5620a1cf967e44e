"""DPS, DiffPIR and DDRM here and in other libraries: ``python benchmarks/peers.py --prior FILE``, a quarter of an hour, one thread.

Both sides get the same weights, operator and measurement (operators and priors of invdiff work inside deepinv), one sample, and
their own default settings. Time: of one network evaluation, both sides with ten steps by turns, as medians of processor time.
Quality: PSNR with as many steps as each side takes by default, mean over the photographs.
azula takes part in DPS if it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import fmean, median
from typing import Any

import deepinv
import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor

from invdiff import demo, operators, priors, solve

Restore = Callable[[Tensor, Any, int | None], Tensor]  # (y, A, steps or None for the default) -> image


class Counted(Denoiser):
    """A prior that counts its evaluations."""

    def __init__(self, prior: priors.DenoisingUNet) -> None:
        super().__init__()
        self.prior, self.count = prior, 0
        self.mean, self.std, self.sigma_min, self.sigma_max = prior.mean, prior.std, prior.sigma_min, prior.sigma_max

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        self.count += 1
        return self.prior(x, sigma)


def ours(name: str, prior: Counted) -> Restore:
    return lambda y, A, steps: solve(y, A, prior, name, samples=1, steps=steps).x


def deepinvs(name: str, prior: Counted) -> Restore:
    def restore(y: Tensor, A: Any, steps: int | None) -> Tensor:
        if name == "dps":
            method = deepinv.sampling.DPS(prior, **({"num_steps": steps + 1} if steps else {}))
        elif name == "diffpir":
            fidelity = deepinv.optim.data_fidelity.L2()
            method = deepinv.sampling.DiffPIR(prior, fidelity, **({"max_iter": steps} if steps else {}))
        else:
            method = deepinv.sampling.DDRM(prior, sigmas=np.linspace(1, 0, steps) if steps else None)
        torch.manual_seed(0)
        return method(y, A).float()

    return restore


def azulas(prior: Counted) -> Restore:
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.noise import VPSchedule

    class Adapter(Base):
        """Its state is ``alpha x + sigma n`` of images in [-1, 1]."""

        schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=2 * prior((x_t / alpha + 1) / 2, float(sigma / alpha / 2)) - 1)

    def restore(y: Tensor, A: Any, steps: int | None) -> Tensor:
        torch.manual_seed(0)
        sampler = DPSSampler(
            Adapter(), y, lambda x: A.A((x + 1) / 2), silent=True, **({"steps": steps} if steps else {})
        )
        shape = A.A_adjoint(y).shape
        return (sampler(sampler.init(shape)) + 1) / 2

    return restore


def tasks(side: int) -> dict[str, operators.Spectral]:
    """The demo's inpainting and deblurring; deepinv's DDRM asks for singular values of every channel."""
    mask, kernel = operators.random_mask((side, side), keep=0.5, seed=0), operators.gaussian_kernel(2.0)
    return {
        "inpainting": operators.Inpainting(mask.expand(3, -1, -1).clone(), noise=0.05),
        "blur": operators.Blur(kernel.expand(1, 3, -1, -1).clone(), noise=0.02, boundary="circular"),
    }


def milliseconds(restore: Restore, y: Tensor, A: Any, prior: Counted) -> float:
    """Processor time of one evaluation, in a run of ten."""
    prior.count, begin = 0, time.process_time()
    restore(y, A, 10)
    return 1e3 * (time.process_time() - begin) / prior.count


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--prior", default="natural", help="name or path of a prior")
    parser.add_argument("--images", nargs="+", default=["astronaut", "coffee"], help="of scikit-image, in colour")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    demo.SIDE = args.size
    prior = Counted(priors.load(args.prior))
    pairs = {name: [("deepinv", deepinvs(name, prior))] for name in ("dps", "diffpir", "ddrm")}
    if find_spec("azula"):
        pairs["dps"].append(("azula", azulas(prior)))
    else:
        print("azula is not installed: left out")
    print(f"3x{args.size}x{args.size}, one thread, one sample; ratio: theirs over ours")
    print(f"{'':28} {'ms an evaluation':^26} {'evaluations':^16} {'PSNR, dB':^22}")
    print(
        f"{'':28} {'theirs':>9} {'ours':>8} {'ratio':>7} {'theirs':>8} {'ours':>7} {'theirs':>8} {'ours':>6} {'gain':>6}"
    )
    for task, A in tasks(args.size).items():
        truths = [demo.photograph(name) for name in args.images]
        ys = [A.measure(truth, seed=0) for truth in truths]
        for name, others in pairs.items():
            mine = ours(name, prior)
            sides = [("invdiff", mine), *others]
            times = [[milliseconds(f, ys[0], A, prior) for _, f in sides] for _ in range(args.rounds + 1)][1:]
            found = []
            for _, f in sides:
                prior.count = 0
                psnr = fmean(demo.scores(f(y, A, None), truth)[0] for y, truth in zip(ys, truths))
                found.append((psnr, prior.count // len(ys)))
            speed = [median(column) for column in zip(*times)]
            for (library, _), ms, (psnr, nfe) in zip(others, speed[1:], found[1:]):
                print(
                    f"{task:11} {name:8} {library:7} {ms:9.1f} {speed[0]:8.1f} {ms / speed[0]:7.2f} "
                    f"{nfe:8} {found[0][1]:7} {psnr:8.2f} {found[0][0]:6.2f} {found[0][0] - psnr:+6.2f}",
                    flush=True,
                )
        prior.count, restore = 0, ours("auto", prior)
        psnr = fmean(demo.scores(restore(y, A, None), truth)[0] for y, truth in zip(ys, truths))
        print(f"{task:11} {'auto':8} {'invdiff':34} {'':8} {prior.count // len(ys):7} {'':8} {psnr:6.2f}", flush=True)


if __name__ == "__main__":
    main()
