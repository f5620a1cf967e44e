"""How far is a strategy from the truth? With a Gaussian prior the posterior is known, so it can be measured.

*bias*: error of the samples' mean, in posterior standard deviations (an exact sampler has about 1 / sqrt(samples)).
*spread*: standard deviation of the samples over that of the posterior (exact: 1), in known and in missing pixels.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure

from invdiff import operators, priors, solve, solvers

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="exact_posterior.png", help="the picture to write")
parser.add_argument("--quick", action="store_true", help="few samples")
args = parser.parse_args()

side, samples = (12, 16) if args.quick else (24, 128)
covariance = priors.Stationary.from_kernel(lambda r: 0.15**2 * torch.exp(-r / 3), (1, side, side))
prior = priors.Gaussian(0.5, covariance)  # an exact denoiser, used like any other prior
truth = prior.sample(1, seed=0)

mask = operators.random_mask((side, side), keep=0.5, seed=0)
A = operators.Inpainting(mask, noise=0.05)
y = A.measure(truth, seed=0)
exact = prior.posterior(y, A)

means, stds = {"exact": exact.mean}, {"exact": exact.std[None]}
bias, known, missing = {}, {}, {}
print(f"{'':10} bias  spread: known  missing   evaluations")
for name in solvers.names():
    result = solve(y, A, prior, name, samples=samples)
    means[name], stds[name] = result.mean, result.std
    ratio = (result.std / exact.std).square()[0, 0]
    bias[name] = float(((result.mean - exact.mean) / exact.std).square().mean().sqrt())
    known[name], missing[name] = float(ratio[mask == 1].mean().sqrt()), float(ratio[mask == 0].mean().sqrt())
    print(f"{name:10} {bias[name]:.2f}          {known[name]:.2f}     {missing[name]:.2f}   {result.nfe:11}")

figure = Figure(figsize=(2 * len(means), 4.4), layout="constrained")
for column, name in zip(figure.subplots(2, len(means)).T, means):
    column[0].imshow(means[name][0, 0].numpy(), cmap="gray", vmin=0.1, vmax=0.9)
    column[0].set_title(name)
    column[1].imshow(stds[name][0, 0].numpy(), cmap="magma", vmin=0, vmax=0.15)
    for axis in column:
        axis.axis("off")
figure.suptitle("mean (above) and standard deviation (below) of the posterior and of the samples")
figure.savefig(args.out)
print(args.out)
