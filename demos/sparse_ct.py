"""Tomography from few views: filtered back-projection against ``solve`` with a prior."""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure

from invdiff import operators, priors, solve
from invdiff.phantoms import shepp_logan

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="sparse_ct.png", help="the picture to write")
parser.add_argument("--prior", default="phantom", help="a prior that ships, or a .safetensors file")
parser.add_argument("--quick", action="store_true", help="a small image and few steps")
args = parser.parse_args()

side, views, steps = (32, 12, 3) if args.quick else (128, 30, None)
truth = shepp_logan(side)[None]

# Line integrals in units of the image's side; the noise is in the same unit.
A = operators.Tomography(side, views, noise=0.002)
y = A.measure(truth, seed=0)

# Two priors: phantoms, learned by a network, and smooth random fields, which know only
# the mean, the spread and the correlation length.
fields = priors.Stationary.from_kernel(lambda r: 0.25**2 * torch.exp(-r / 6), (1, side, side))
results = {
    "prior of phantoms": solve(y, A, priors.load(args.prior), steps=steps),
    "prior of random fields": solve(y, A, priors.Gaussian(0.15, fields), steps=steps),
}
images = {"filtered back-projection": A.fbp(y), **{name: r.x for name, r in results.items()}, "truth": truth}
errors = {name: float((x - truth).square().mean().sqrt()) for name, x in images.items()}
for name, error in errors.items():
    print(f"{name:26} root mean square error {error:.4f}")

figure = Figure(figsize=(16, 3.6), layout="constrained")
axes = figure.subplots(1, 5)
axes[0].imshow(y[0, 0].numpy(), cmap="gray", aspect="auto")
axes[0].set_title(f"measured: {views} views")
for axis, (name, x) in zip(axes[1:], images.items()):
    axis.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(name if name == "truth" else f"{name}, error {errors[name]:.3f}")
    axis.axis("off")
figure.savefig(args.out)
print(args.out)
