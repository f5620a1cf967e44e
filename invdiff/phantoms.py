"""Phantoms for tomography: sums of ellipses, random or Shepp and Logan's, drawn at any resolution.

    from invdiff.phantoms import phantom, shepp_logan
    truth = phantom(256, seed=3)          # (1, 256, 256), in [0, 1]

A phantom is a table of ellipses in the square [-1, 1]^2, y upwards, one a row: what it adds to the value, its half axes
``a`` and ``b``, its centre ``x`` and ``y``, and the angle in radians by which it is turned counterclockwise. The table, not
the picture, is random, so that one seed is one object at every size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.seeds import seeded

# Shepp and Logan 1974, "The Fourier reconstruction of a head section", with the contrasts of Toft 1996, "The Radon
# transform", table B.3; angles in degrees.
_SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


def phantom(size: int, seed: int = 0) -> Tensor:
    """The random phantom of a seed, (1, size, size) in [0, 1]: the same object whatever the size."""
    return draw(random_ellipses(seeded(seed)), size)


def shepp_logan(size: int) -> Tensor:
    """The Shepp-Logan phantom with Toft's contrasts, (1, size, size) in [0, 1]."""
    return draw(_shepp_logan_table(), size)


def draw(ellipses: Tensor, size: int, top: int = 0, left: int = 0, side: int | None = None) -> Tensor:
    """Draw a table of ellipses (n, 6) with ``size`` pixels across the square, clipped to [0, 1].

    ``top``, ``left`` and ``side`` cut a window out of the picture, (1, side, side); by default the whole. A pixel that an
    outline crosses gets the share of it that lies inside, to first order in the distance of its centre from the outline.
    ``ValueError`` if the table has another shape, or the window does not lie in the picture.
    """
    side = size if side is None else side
    if ellipses.ndim != 2 or ellipses.shape[1] != 6:
        raise ValueError(f"ellipses are rows of value, a, b, x, y, angle, shape (n, 6); got {tuple(ellipses.shape)}")
    if not (side > 0 and 0 <= top <= size - side and 0 <= left <= size - side):
        raise ValueError(
            f"a window of {side} pixels at ({top}, {left}) does not lie in a picture of {size}x{size}; "
            "take 0 <= top, left <= size - side"
        )
    value, a, b, x, y, angle = ellipses.double()[:, :, None, None].unbind(1)
    centres = torch.arange(side, dtype=torch.float64) + 0.5
    dx = 2 * (left + centres) / size - 1 - x  # (n, 1, side)
    dy = 1 - 2 * (top + centres[:, None]) / size - y  # (n, side, 1)
    u = (dx * angle.cos() + dy * angle.sin()) / a
    v = (dy * angle.cos() - dx * angle.sin()) / b
    # The outline is f = 1, f = sqrt(u^2 + v^2); (f - 1) / |grad f| is the distance from it, in units of the square.
    f = torch.hypot(u, v)
    distance = (f - 1) * f / torch.hypot(u / a, v / b).clamp(min=1e-12)
    distance = torch.where(f > 0, distance, -torch.minimum(a, b))  # the centre itself is that far inside
    share = (0.5 - distance * size / 2).clamp(0, 1)
    return (value * share).sum(0, keepdim=True).clamp(0, 1).float()


def random_ellipses(generator: torch.Generator) -> Tensor:
    """Draw a table of ellipses: three times in four a body with random inclusions, else a varied Shepp-Logan head."""
    table = _body if float(_uniform(0, 1, (), generator)) < 0.75 else _head
    return table(generator)


def _body(g: torch.Generator) -> Tensor:
    """An outer ellipse, in half of the cases with a denser rim, and 4 to 32 inclusions of all sizes with centres inside."""
    n = int(torch.randint(4, 33, (), generator=g))
    outer = torch.cat(
        [
            _uniform(0.15, 0.5, (1,), g),
            _uniform(0.5, 0.9, (2,), g),
            _uniform(-0.1, 0.1, (2,), g),
            _uniform(0, 6.3, (1,), g),
        ]
    )
    rows = [outer]
    if float(_uniform(0, 1, (), g)) < 0.5:
        inner = outer.clone()
        inner[1:3] *= _uniform(0.85, 0.97, (1,), g)
        inner[0] = -_uniform(0.1, 0.4, (), g)
        outer[0] -= inner[0]
        rows.append(inner)
    value = _uniform(0.03, 0.4, (n,), g) * torch.where(_uniform(0, 1, (n,), g) < 0.4, -1.0, 1.0)
    axes = _uniform(math.log(0.015), math.log(0.35), (n, 1), g) + _uniform(-0.7, 0.0, (n, 2), g)
    radius, polar = 0.85 * _uniform(0, 1, (n,), g).sqrt(), _uniform(0, 6.3, (n,), g)
    u, v = outer[1] * radius * polar.cos(), outer[2] * radius * polar.sin()
    cos, sin = outer[5].cos(), outer[5].sin()
    x, y = outer[3] + u * cos - v * sin, outer[4] + u * sin + v * cos
    inclusions = torch.stack([value, *axes.exp().unbind(1), x, y, _uniform(0, 6.3, (n,), g)], 1)
    return torch.cat([torch.stack(rows), inclusions])


def _head(g: torch.Generator) -> Tensor:
    """Shepp and Logan's ellipses, each varied in contrast, size, place and angle; then all turned and scaled together."""
    table = _shepp_logan_table()
    n = len(table)
    table[2:, 0] *= _uniform(0.3, 2.0, (n - 2,), g)
    table[2:, 1:3] *= _uniform(0.75, 1.25, (n - 2, 2), g)
    table[2:, 3:5] += 0.03 * torch.randn((n - 2, 2), generator=g)
    table[2:, 5] += 0.2 * torch.randn(n - 2, generator=g)
    table[0, 0] = _uniform(0.5, 1.0, (), g)
    table[1, 0] = _uniform(0.2, 0.4, (), g) - table[0, 0]
    table[1, 1:3] = table[0, 1:3] * _uniform(0.88, 0.97, (1,), g)
    turn, scale = 0.3 * torch.randn((), generator=g), _uniform(0.7, 1.05, (), g)
    x, y = table[:, 3].clone(), table[:, 4].clone()
    table[:, 3], table[:, 4] = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
    table[:, 1:5] *= scale
    table[:, 5] += turn
    return table


def _shepp_logan_table() -> Tensor:
    table = torch.tensor(_SHEPP_LOGAN)
    table[:, 5] *= math.pi / 180
    return table


def _uniform(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)
