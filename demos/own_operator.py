"""Bring an instrument of your own: write it, let the library examine it, solve with it.

The instrument is a window with two panes: it shows the scene and, weaker and shifted, its ghost. Two methods are enough;
pseudo-inverse and proximal step come from the base class, which is a deepinv ``LinearPhysics``.
"""

from __future__ import annotations

import argparse
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from invdiff import operators, priors, solve
from invdiff.demo import photograph

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="own_operator.png", help="the picture to write")
parser.add_argument("--prior", default="natural", help="a prior that ships, or a .safetensors file")
parser.add_argument("--quick", action="store_true", help="a small image and few steps")
args = parser.parse_args()


class Ghost(operators.Linear):
    """``y = 0.55 x + 0.45 shift(x) + noise``, with a periodic shift of 9 rows and 14 columns."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return 0.55 * x + 0.45 * x.roll((9, 14), (-2, -1))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return 0.55 * y + 0.45 * y.roll((-9, -14), (-2, -1))


class Mistaken(Ghost):
    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return self.A(y)  # shifts the ghost the wrong way


A = Ghost(noise=0.03)
print(operators.check(A))  # raises ValueError if a law is broken, as the next one does
broken = [row for row in operators.check(Mistaken(noise=0.03), raise_on_failure=False).rows if not row.passed]
print("\nwith a wrong adjoint:", *broken, sep="\n")

truth = photograph("coffee")[..., 64:128, 64:128] if args.quick else photograph("coffee")
y = A.measure(truth, seed=0)
result = solve(y, A, priors.load(args.prior), steps=3 if args.quick else None)

figure = Figure(figsize=(13, 3.6), layout="constrained")
panels = {"measured": y, "pseudo-inverse": A.A_dagger(y), "solve": result.x, "truth": truth}
for axis, (title, image) in zip(figure.subplots(1, 4), panels.items()):
    axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy())
    axis.set_title(f"{title}, error {float((image - truth).square().mean().sqrt()):.3f}")
    axis.axis("off")
figure.savefig(args.out)
print(args.out)
