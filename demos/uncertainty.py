"""Can the spread of the samples be trusted? Count how often the truth lies among them.

If samples and truth come from the same law, the truth is equally likely to take each of the 20 places in the order
of 19 samples and itself, so it lies between the smallest and the largest sample in 18 of 20 pixels: 90 %. A strategy
whose intervals hold it less often is overconfident.
"""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure

from invdiff import operators, priors, solve
from invdiff.demo import photograph

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="uncertainty.png", help="the picture to write")
parser.add_argument("--prior", default="natural", help="a prior that ships, or a .safetensors file")
parser.add_argument("--quick", action="store_true", help="a small image and few steps")
args = parser.parse_args()

side, steps = (32, 3) if args.quick else (128, 40)
truth = photograph("astronaut")[..., 40 : 40 + side, 70 : 70 + side]
mask = operators.random_mask(truth.shape, keep=0.5, seed=0)
A = operators.Inpainting(mask, noise=0.05)
y = A.measure(truth, seed=0)
prior = priors.load(args.prior)

figure = Figure(figsize=(13, 6.4), layout="constrained")
coverage = {}
for row, name in zip(figure.subplots(2, 4), ("diffpir", "dps")):
    result = solve(y, A, prior, name, samples=19, steps=steps)
    rank = (result.samples < truth).sum(0)  # 0 to 19: how many samples are below the truth, pixel by pixel
    missing = rank[(mask == 0).expand_as(rank)]
    coverage[name] = float(((missing > 0) & (missing < 19)).float().mean())
    print(f"{name}: 90 % intervals hold the truth in {100 * coverage[name]:.0f} % of the missing pixels")

    error = (result.x - truth).abs()[0].mean(0)
    row[0].imshow(result.x[0].clamp(0, 1).permute(1, 2, 0).numpy())
    row[1].imshow(result.std[0].mean(0).numpy(), cmap="magma", vmin=0, vmax=0.15)
    row[2].imshow(error.numpy(), cmap="magma", vmin=0, vmax=0.15)
    row[3].hist(missing.flatten().numpy(), bins=range(21), density=True, align="left")
    row[3].axhline(1 / 20, color="black", linestyle="--")
    titles = (f"{name}: mean", "standard deviation", "error", f"place of the truth, {100 * coverage[name]:.0f} % inside")
    for axis, title in zip(row, titles):
        axis.set_title(title)
    for axis in row[:3]:
        axis.axis("off")
figure.savefig(args.out)
print(args.out)
