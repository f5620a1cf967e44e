"""The one call: ``solve(y, A, prior)``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from deepinv.physics import DecomposablePhysics, LinearPhysics, NoiseModel, Physics
from torch import Tensor

from invdiff.operators import Decoded, Noise, as_noise, from_callable
from invdiff.operators.base import select_images
from invdiff.priors import LatentPrior, as_prior
from invdiff.priors.condition import Condition, select, told
from invdiff.problem import EnsembleNoise, Problem, RowNoise, out_of_memory
from invdiff.result import Result, weighted_mean
from invdiff.seeds import check_seed
from invdiff.solvers import Strategy, choose, get
from invdiff.solvers.auto import DEFAULT_SAMPLES, Budget, say_once
from invdiff.solvers.particles import effective_size

Progress = Callable[[int, int], None]

# Rows of a chunk are bounded by pixels: with the networks that ship, 2 GiB without and 4 GiB with a backward pass.
PIXELS_AT_ONCE = {False: 16 * 256 * 256, True: 6 * 256 * 256}


def solve(
    y: Tensor,
    A: Physics | Callable[[Tensor], Tensor],
    prior: Any,
    solver: str | Strategy = "auto",
    *,
    samples: int | None = None,
    noise: float | Tensor | NoiseModel | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    condition: Condition = None,
    budget: Budget = "balanced",
    start: Tensor | None = None,
    progress: bool | Progress = False,
) -> Result:
    """Draw images from p(x | y) for the measurement ``y = A(x) + noise``.

    Main arguments:

    ``y``
        The measurement, batch first, floating point.
    ``A``
        The forward operator: any deepinv ``Physics``, or a plain differentiable callable (its image is then taken to have
        the shape of ``y``; ``operators.from_callable`` can say otherwise).
    ``prior``
        A denoiser ``prior(x, sigma)``: from ``priors.load``, from deepinv, or any module or function with that call. With a
        ``priors.LatentPrior`` latents are drawn, and the result holds the images they decode to.
    ``solver``
        A name from ``invdiff.solvers.names()``, a preset such as ``"diffpir@superres"`` from ``invdiff.solvers.presets()``, a strategy
        object such as ``DPS(weight=0.5)``, or ``"auto"``: chosen by what ``A`` offers and by the noise, and said on stderr, each
        choice once.

    Other arguments:

    ``samples``
        Images drawn for each measurement; their mean is ``result.x``. ``None`` draws 4: the mean of several samples is up to
        3 dB nearer to the truth than one of them, and ``result.std`` needs several. (Where there is only noise to remove,
        ``solver="auto"`` with ``None`` evaluates the prior once: that is the posterior mean.) Of the particle strategies it is
        the number of particles, 64 by default; ``result.log_weights`` are theirs.
    ``noise``
        Overrides ``A.noise_model``: a standard deviation, or a noise model.
    ``steps``
        Overrides the number of levels of the strategy.
    ``seed``
        A whole number from 0 to 2^32 - 1. The same seed gives the same samples on the same kind of device, whatever the batch, chunking
        and, but for particles, number of samples (``"auto"`` takes one strategy for a batch, by its noisiest image).
    ``batch_size``
        Samples computed together; ``None`` bounds their pixels so that the prior that ships takes at most 2 GiB, 4 GiB with a
        strategy that differentiates it (one sample of more than 640 pixels a side takes more). Halved and tried again when
        memory runs out.
    ``condition``
        What the prior is told of the images: a class label, a prompt or an embedding, one for all images or one an image
        (:mod:`invdiff.priors.condition`). The prior is called as ``prior(x, sigma, condition=...)``.
    ``budget``
        What ``solver="auto"`` may spend: "fast" (2 samples, no more than 30 steps), "balanced" (the image nearest to the truth, whose
        samples are too sure of themselves) or "exact" (8 samples with the spread of the posterior, several times slower).
        :data:`invdiff.solvers.auto.RULES` is the table it goes by, ``result.reason`` says which entry.
    ``start``
        Images (B, C, H, W), or one a sample (K, B, C, H, W), to begin from: the state at the first level is these plus noise of that level, so
        give the strategy a ``sigma_max`` that leaves of them what is known. Of posterior samples, such as those of a measurement
        that differs little, nothing is lost, and the levels above are saved. Not for particles, DDRM and DDNM+.
    ``progress``
        True shows a bar; a callable gets ``(steps done, steps in all)``.

    Returns a :class:`~invdiff.result.Result`. Raises ``ValueError`` or ``TypeError`` for input that cannot work, before
    any network evaluation; ``FloatingPointError`` if the run diverges. Never returns anything but finite images.
    """
    begin = time.perf_counter()
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a torch tensor, got {type(y).__name__}; try torch.as_tensor(y)")
    if not isinstance(A, Physics):
        if not callable(A):
            raise TypeError(f"A must be a deepinv Physics or a callable, got {type(A).__name__}")
        A = from_callable(A, img_size=tuple(y.shape[1:]))
    latent = prior if isinstance(prior, LatentPrior) else None
    prior = as_prior(prior) if latent is None else latent.denoiser
    rows_told = told(prior, condition, len(y), y.device)
    law = as_noise(A.noise_model if noise is None else noise)
    with torch.no_grad():
        y = _check_measurement(y, A, latent or prior, law)
        shape = _image_shape(y, A)
    pixels, image = math.prod(shape[1:]), shape
    seen, decode = A, None  # the operator that the strategy sees, and what makes images of its samples
    if latent is not None:
        decode = partial(latent.decode, size=(shape[-2], shape[-1]))
        shape = latent.latent_shape(shape)
        seen = Decoded(A, decode, shape)
        _check_decoder(decode, shape, image, y)
    if solver == "auto":
        strategy, count, reason = choose(seen, law, samples, budget)
    elif budget != "balanced":
        raise ValueError(f"budget={budget!r} is for solver='auto', got {solver!r}, which has settings of its own (steps=, samples=)")
    else:
        strategy, reason = get(solver), "as asked"
        count = samples if samples is not None else strategy.particles or DEFAULT_SAMPLES
    if steps is not None:
        strategy = replace(strategy, steps=steps)
    least = {"samples": (count, 1), "batch_size": (1 if batch_size is None else batch_size, 1)}
    check_seed(seed)
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be at least {low} and a whole number, got {value!r}")

    begins = None if start is None else _beginnings(start, strategy, (count, len(y), *image), y, latent)

    # Rows of one noise level go together: the ladder of levels follows it. Particles of one image are not parted.
    rows = [(k, b) for k in range(count) for b in range(len(y))]
    noise_of = [law.select([b]).sigma for b in range(len(y))]
    rows.sort(key=lambda row: (float(noise_of[row[1]]), row[1] if strategy.particles else 0))
    at_once = batch_size or max(1, min(len(rows), PIXELS_AT_ONCE[strategy.gradient] // pixels))
    chunk = count if strategy.particles else at_once

    def problem(part: list[tuple[int, int]], tick: Callable[[], None], joint: bool = bool(strategy.particles)) -> Problem:
        images = [b for _, b in part]
        given = None if rows_told is None else select(rows_told, images)
        randn = RowNoise(seed, part, shape, y.device, y.dtype)
        if joint:  # the particles of an image share its operator and its generator
            randn = EnsembleNoise(seed, images[0], len(part), shape, y.device, y.dtype)
        shared = images[:1] if joint else images
        A, noise = select_images(seen, shared, len(y)), law.select(shared)
        first = None if begins is None else torch.stack([begins[k, b] for k, b in part])
        return Problem(y[images], A, prior, noise, randn, tick, given, at_once=at_once, begin=first)

    try:
        strategy.check(problem(rows[:1], lambda: None))
        if solver == "auto":
            say_once(f"auto takes {strategy}: {reason}")
    except ValueError as error:
        if latent is None:
            raise
        raise ValueError(f"{error}. With a latent prior the operator acts behind a decoder, and is nonlinear") from error
    outputs: list[Tensor] = []
    reports: dict[int, dict[str, Tensor]] = {}  # of particles, by image
    nfe = backward = 0
    with torch.no_grad(), _reporter(progress, strategy.steps) as report:
        while len(outputs) < len(rows):
            done = len(outputs)
            level = noise_of[rows[done][1]]
            part = [row for row in rows[done : done + chunk] if noise_of[row[1]] == level]
            p = problem(part, report(done, len(part), len(rows)))
            try:
                x = strategy.sample(p)
                if decode is not None:
                    x = torch.cat([decode(some) for some in x.split(p.at_once or len(x))])
            except (RuntimeError, MemoryError) as error:
                if chunk == 1 or strategy.particles or not out_of_memory(error):
                    raise
                chunk = max(1, len(part) // 2)
                if y.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            outputs.extend(x)
            reports[part[0][1]] = p.report
            nfe, backward = max(nfe, p.nfe), max(backward, p.backward)
        drawn = torch.stack([x for _, x in sorted(zip(rows, outputs), key=lambda pair: pair[0])])
        drawn = drawn.view(count, len(y), *drawn.shape[1:])
        if not bool(torch.isfinite(drawn).all()):
            raise FloatingPointError(f"{strategy} returned values that are not finite; take more steps or check the noise")
        ensemble = {}
        if strategy.particles:
            ensemble = {k: torch.stack([reports[b][k] for b in range(len(y))], -1) for k in ("log_weights", "parents")}
            ensemble["ess"] = effective_size(ensemble["log_weights"])
        mean = weighted_mean(drawn, ensemble.get("log_weights"))
        residual = _residual(y, A, law, problem([(0, b) for b in range(len(y))], lambda: None, joint=False), mean)
    seconds = time.perf_counter() - begin
    return Result(drawn, residual, nfe, seconds, strategy, seed, reason, backward=backward, **ensemble)


def _beginnings(start: Tensor, strategy: Strategy, shape: tuple[int, ...], y: Tensor, latent: LatentPrior | None) -> Tensor:
    """``start`` as one image, or latent, a row: shape (K, B, ...)."""
    if not strategy.warm:
        raise ValueError(f"{type(strategy).__name__} cannot begin from images (start=); take DPS, DiffPIR, MMPS or another that can")
    if not isinstance(start, Tensor) or start.shape not in (shape, shape[1:]):
        raise ValueError(f"start has shape {shape[1:]}, or {shape} for an image a sample, got {getattr(start, 'shape', type(start).__name__)}")
    if not bool(torch.isfinite(start).all()):
        raise ValueError("start holds NaN or infinite values")
    start = start.to(y).expand(shape)
    if latent is None:
        return start
    with torch.no_grad():
        return torch.stack([latent.encode(images) for images in start])


def _check_decoder(decode: Callable[[Tensor], Tensor], latents: tuple[int, ...], image: tuple[int, ...], y: Tensor) -> None:
    """Refuse a latent prior of other images than the operator's, which shapes that broadcast would hide."""
    with torch.no_grad():
        found = tuple(decode(torch.zeros(1, *latents, dtype=y.dtype, device=y.device)).shape[1:])
    if found != image:
        raise ValueError(
            f"this latent prior decodes latents of shape {latents} to images of shape {found}, the operator takes {image}; give images "
            "of its channels, or LatentPrior the factor of its decoder"
        )


def _image_shape(y: Tensor, A: Physics) -> tuple[int, ...]:
    """(C, H, W) of the image: what the adjoint returns, or ``img_size``, or the shape of ``y``."""
    if isinstance(A, LinearPhysics):
        return tuple(A.A_adjoint(y).shape[1:])
    return tuple(getattr(A, "img_size", None) or y.shape[1:])


def _check_measurement(y: Tensor, A: Physics, prior: Any, law: Noise) -> Tensor:
    """Refuse a measurement that cannot be one of ``A``; return it without what lies in directions ``A`` never measures."""
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"y must be float32 or float64, got {y.dtype}; images lie in [0, 1]: y.float() / 255 for 8-bit ones")
    if y.ndim < 2 or len(y) == 0:
        raise ValueError(f"y must have a batch axis and at least one measurement, got shape {tuple(y.shape)}; try y[None]")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y holds NaN or infinite values; mask them out (operators.Inpainting) or repair them first")
    g = torch.Generator().manual_seed(0)
    try:
        shape = _image_shape(y, A)
        mean = torch.as_tensor(prior.mean, dtype=y.dtype).cpu()
        u = (mean + prior.std * torch.randn((1, *shape), generator=g, dtype=y.dtype)).to(y.device)
        z = A.A(u.expand(len(y), *shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"y of shape {tuple(y.shape)} does not fit the operator {type(A).__name__}: {reason}") from error
    if not isinstance(z, Tensor):
        raise TypeError(f"A must return a tensor, got {type(z).__name__}")
    if z.shape != y.shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, but the operator maps images of shape {tuple(u.shape[1:])} to {tuple(z.shape)}"
        )
    if isinstance(law.sigma, Tensor) and law.sigma.numel() not in (1, len(y)):
        raise ValueError(f"noise has {law.sigma.numel()} levels for {len(y)} images; give one, or one an image")
    if not bool(z.flatten(1).any(1).all()):
        raise ValueError("the operator measures nothing (its output is zero for every image): is its mask all zeros?")
    spread, level = float(z.square().mean().sqrt()), float(law.variance(z).mean().sqrt())
    size = float(y.square().mean().sqrt())
    if size > 20 * max(spread, level):
        raise ValueError(
            f"y (root mean square {size:.3g}) is far outside the operator's range for images of this prior (about "
            f"{spread:.3g}); rescale it: images lie in [0, 1], so divide 8-bit values by 255"
        )
    if isinstance(A, DecomposablePhysics) and isinstance(A.mask, Tensor) and bool((A.mask == 0).any()):
        inside = A.U(torch.where(A.mask != 0, A.U_adjoint(y), 0.0))
        outside = float((y - inside).square().mean().sqrt())
        if outside > max(6 * level, 1e-2 * size):
            raise ValueError(
                f"y is outside the operator's range: it holds values (root mean square {outside:.3g}) where the operator "
                "measures nothing; is it the mask or kernel this measurement was made with?"
            )
        return inside.to(y.dtype)
    return y


def _residual(y: Tensor, A: Physics, law: Noise, p: Problem, x: Tensor) -> Tensor:
    """Root mean square of ``(y - A x) / std(noise)`` over the measured numbers, an image; undivided without noise."""
    z = A.A(x)
    variance = law.variance(z)
    scaled = (y - z).square() / torch.where(variance > 0, variance, 1.0)
    return (scaled.flatten(1).sum(1) / p.size.flatten()).sqrt()


@contextmanager
def _reporter(progress: bool | Progress, steps: int) -> Iterator[Callable[[int, int, int], Callable[[], None]]]:
    """Yields ``report(first row, rows of the chunk, rows in all)``, which makes the ``tick`` of a chunk."""

    def ticker(show: Progress) -> Callable[[int, int, int], Callable[[], None]]:
        def report(start: int, rows: int, total: int) -> Callable[[], None]:
            done = start * steps

            def tick() -> None:
                nonlocal done
                done += rows
                show(done, total * steps)

            return tick

        return report

    if callable(progress):
        yield ticker(progress)
    elif not progress:
        yield ticker(lambda done, total: None)
    else:
        from rich.progress import Progress as Bar

        with Bar(transient=True) as bar:
            task = bar.add_task("solving", total=None)
            yield ticker(lambda done, total: bar.update(task, completed=done, total=total))
