"""Fill in the missing half of a photograph's pixels, and show how sure the result is: the four lines of the README."""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure

from invdiff import operators, priors, solve
from invdiff.demo import photograph

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="inpaint_photo.png", help="the picture to write")
parser.add_argument("--prior", default="natural", help="a prior that ships, or a .safetensors file")
parser.add_argument("--quick", action="store_true", help="a small image and few steps")
args = parser.parse_args()

truth = photograph("astronaut")  # (1, 3, 256, 256) in [0, 1]
if args.quick:
    truth = truth[..., 64:128, 96:160]

# What a camera with dead pixels would record: 1 in the mask is known, 0 is missing; noise of standard deviation 0.05.
mask = operators.random_mask(truth.shape, keep=0.5, seed=0)
A = operators.Inpainting(mask, noise=0.05)
y = A.measure(truth, seed=0)

result = solve(y, A, priors.load(args.prior), steps=3 if args.quick else None)


def psnr(x: torch.Tensor) -> float:
    return -10 * float((x.clamp(0, 1) - truth).square().mean().log10())


one = result.samples[0]
print(f"one sample {psnr(one):.2f} dB, mean of {len(result.samples)} samples {psnr(result.x):.2f} dB")
print(f"residual {float(result.residual[0]):.2f} (in units of the noise), {result.nfe} network evaluations a sample")

panels = {"measured": y, "one sample": one, "mean of the samples": result.x, "truth": truth}
figure = Figure(figsize=(16, 3.6), layout="constrained")
axes = figure.subplots(1, 5)
for axis, (title, image) in zip(axes, panels.items()):
    axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy())
    axis.set_title(title)
axes[4].set_title("standard deviation")
figure.colorbar(axes[4].imshow(result.std[0].mean(0).numpy(), cmap="magma"), ax=axes[4])
for axis in axes:
    axis.axis("off")
figure.savefig(args.out)
print(args.out)
