"""Tasks: the operator, the measurement of an image and the prior, always the same, and recognised when they are.

Rounding differs between machines, so what is frozen cannot be compared by a checksum alone: its *fingerprint*, a few projections,
may differ by ``TOLERANCE`` of its size.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.physics import Physics
from torch import Tensor

from invdiff import operators, priors
from invdiff.bench.components import Component, Room, build, canonical, find, room_of, split, with_defaults
from invdiff.operators import Noise, as_noise, from_callable
from invdiff.priors import registry
from invdiff.seeds import seeded

TOLERANCE = 1e-4


def birdcage_maps(shape: tuple[int, ...], coils: int = 8, radius: float = 1.5) -> Tensor:
    """Sensitivities (coils, H, W), complex, of coils evenly spaced on a circle of ``radius`` half-sides around the image.

    Each falls off with the distance from its coil and turns its phase with the direction; ``sum_c |S_c|^2 = 1``.
    """
    h, w = shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, h).double(), torch.linspace(-1, 1, w).double(), indexing="ij")
    angles = [2 * math.pi * c / coils for c in range(coils)]
    offsets = [torch.complex(x - radius * math.cos(a), y - radius * math.sin(a)) * complex(math.cos(a), -math.sin(a)) for a in angles]
    maps = torch.stack([z.conj() / z.abs() ** 2 for z in offsets])
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)


def wedge(views: int, degrees: float) -> list[float]:
    """Angles of ``views`` evenly spaced over the first ``degrees``: limited-angle tomography."""
    return [degrees * i / views for i in range(views)]


OPERATORS: Room = (
    room_of(operators, operators.__all__)
    | {f.__name__: f for f in (birdcage_maps, wedge)}
)


def operator(component: Component, noise: Component | float, shape: tuple[int, ...]) -> tuple[Physics, Noise]:
    """The operator of a task for images of ``shape`` (C, H, W), and the law of its noise.

    In its arguments ``$shape`` is (C, H, W) and ``$side`` is H. What takes an argument ``noise`` is given it; a function of images
    (one returned by a factory of yours) becomes an operator.
    """
    law = as_noise(noise if isinstance(noise, (int, float)) else build(noise, OPERATORS))
    takes = inspect.signature(find(split(component)[0], OPERATORS)).parameters
    more = {"noise": law} if "noise" in takes else {}
    A = build(component, OPERATORS, {"$shape": shape, "$side": shape[-2]}, **more)
    if not isinstance(A, Physics):
        if isinstance(A, Noise) or not callable(A):
            raise TypeError(f"{split(component)[0]} gives a {type(A).__name__}, not an operator")
        A = from_callable(A, img_size=shape)
    if not more:
        A.noise_model = law
    return A, law


def check_image(truth: Any) -> None:
    """``ValueError`` for what is no image (1, C, H, W) or volume (1, C, D, H, W) of finite numbers."""
    found = f"of shape {tuple(truth.shape)}" if isinstance(truth, Tensor) else f"a {type(truth).__name__}"
    if not isinstance(truth, Tensor) or truth.ndim not in (4, 5) or len(truth) != 1:
        raise ValueError(f"a source returns one image (1, C, H, W), got {found}")
    if not bool(torch.isfinite(truth).all()):
        raise ValueError("the image holds NaN or infinite values")


def prior_label(prior: Component) -> str:
    """What a prior is called in records: its name or that of its file, or the component as JSON."""
    return Path(prior).name if isinstance(prior, str) else canonical(prior)


def load_prior(prior: Component) -> Any:
    """A prior by its name or file (``priors.load``), by import path, or as a component such as ``Gaussian``."""
    name = prior if isinstance(prior, str) else ""
    source, colon, _ = name.partition(":")
    if name and (not colon or source in registry.SOURCES or Path(name).suffix == ".safetensors"):
        return priors.load(name)
    return build(prior, room_of(priors, priors.__all__))


def prior_sha256(prior: Component) -> str:
    """Checksum of the file of a prior, or of the weights of one that has none; of an exact prior that of what it is made by,
    since the eigenvectors that it holds are not the same on every machine; of one without weights also that of its source code."""
    if isinstance(prior, str) and (prior in priors.names() or Path(prior).is_file()):
        path = registry.WEIGHTS / f"{prior}.safetensors" if prior in priors.names() else Path(prior)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_prior(prior)
    if hasattr(loaded, "posterior"):
        return hashlib.sha256(canonical(with_defaults(prior, room_of(priors, priors.__all__))).encode()).hexdigest()
    weights = hashlib.sha256()
    state = loaded.state_dict() if isinstance(loaded, torch.nn.Module) else {}
    for name, value in state.items():
        weights.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    if not state:
        weights.update(canonical(prior).encode())
        with suppress(OSError, TypeError):  # of what was not written in a file
            weights.update(inspect.getsource(loaded if inspect.isroutine(loaded) else type(loaded)).encode())
    return weights.hexdigest()


def measure(A: Physics, law: Noise, truth: Tensor, seed: int) -> Tensor:
    """The measurement of one image, with the noise of a seed."""
    if hasattr(A, "measure"):
        return A.measure(truth, seed)
    return law.sample(A.A(truth), seeded(seed))


def frozen(x: Tensor) -> dict[str, Any]:
    """``sha256`` and ``fingerprint`` of an image or a measurement."""
    x = torch.view_as_real(x) if x.is_complex() else x
    digest = hashlib.sha256(str(tuple(x.shape)).encode() + x.contiguous().float().numpy().tobytes())
    return {"sha256": digest.hexdigest(), "fingerprint": [float(f"{v:.7g}") for v in _projections(x)]}


def same(x: Tensor, known: dict[str, Any]) -> bool:
    """Whether ``x`` is what was frozen, up to rounding."""
    now = frozen(x)
    if now["sha256"] == known["sha256"]:
        return True
    a, b = np.array(now["fingerprint"]), np.array(known["fingerprint"])
    return bool(np.abs(a - b).max() <= TOLERANCE * max(b[0], 1e-12))


def _projections(x: Tensor) -> list[float]:
    """Root mean square, then projections on three random directions; what is replaced or moved changes them as much as itself."""
    flat = x.flatten().double()
    directions = torch.randn(3, len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [float(flat.square().mean().sqrt()), *(directions @ flat / len(flat) ** 0.5).tolist()]


def picture_of(y: Tensor, A: Any, shape: tuple[int, ...]) -> Tensor:
    """A measurement as a picture: itself where it looks like one, else its back-projection (filtered where ``A`` can)."""
    like = y.ndim == 4 and y.shape[1] in (1, 3) and y.shape[-2] * shape[-1] == y.shape[-1] * shape[-2]
    if like and not hasattr(A, "fbp"):
        return y
    if hasattr(A, "fbp"):
        return A.fbp(y)
    if hasattr(A, "A_adjoint"):
        back = A.A_adjoint(y)
        return back / back.abs().amax().clamp(min=1e-12) if back.shape[1] != 2 else back
    return y if y.ndim == 4 and y.shape[1] <= 3 else torch.zeros(1, *shape)
