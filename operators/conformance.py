"""Does an operator keep the laws that solvers rely on? ``check(A)`` measures them and prints a table.

Notation: ``B`` stands for ``A_adjoint``, ``A+`` for ``A_dagger``, ``<., .>`` for the inner product; every error is relative,
and the largest over the images of a batch.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.base import Linear, Nonlinear, select_images
from invdiff.operators.noise import as_noise
from invdiff.operators.simple import from_callable


@dataclass(frozen=True)
class Row:
    """One law measured in one precision; ``measured`` is None where there is no number, and ``note`` says why."""

    law: str
    dtype: str
    measured: float | None
    limit: float
    note: str = ""
    applicable: bool = True

    @property
    def passed(self) -> bool:
        return not self.applicable or (self.measured is not None and self.measured <= self.limit)

    def __str__(self) -> str:
        measured = "-" if self.measured is None else f"{self.measured:.1e}"
        verdict = "pass" if self.passed else "FAIL"
        verdict = verdict if self.applicable else "not applicable"
        return f"{self.law:38} {self.dtype:8} {measured:>8} {self.limit:8.0e}  {verdict}  {self.note}".rstrip()


@dataclass(frozen=True)
class Report:
    """What :func:`check` found; print it for a table."""

    operator: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        head = f"{'law':38} {'dtype':8} {'measured':>8} {'limit':>8}"
        return "\n".join([self.operator, head, *map(str, self.rows)])


def check(
    A: dinv.Physics | Callable[[Tensor], Tensor],
    image_shape: tuple[int, ...] | None = None,
    *,
    raise_on_failure: bool = True,
) -> Report:
    """Measure the laws of an operator: ours, your own, any deepinv physics, or a plain function.

    Args:
        A: the operator; it is not changed.
        image_shape: (C, H, W) of the images to try; by default the operator's ``img_size``, or else (3, 37, 31).
        raise_on_failure: raise if a law is broken.

    Laws that do not apply (an adjoint of a nonlinear operator, an odd size where sizes are fixed) are listed as such.

    Raises:
        ValueError: with the table as its message, if a law is broken.
        ValueError: the operator does not take images of ``image_shape``.
    """
    physics = A if isinstance(A, dinv.Physics) else from_callable(A)
    shape = tuple(image_shape or getattr(physics, "img_size", None) or (3, 37, 31))
    rows = {}
    for dtype in (torch.float32, torch.float64):
        try:
            case = _Case(physics, shape, dtype)
        except Exception as error:
            raise ValueError(
                f"{type(physics).__name__} does not take an image batch of {shape} in {dtype} ({error}); "
                "give image_shape=(C, H, W)"
            ) from error
        for law, (measure, *limits) in LAWS.items():
            limit = limits[dtype == torch.float64]
            if limit is not None:
                rows[law, dtype] = _measure(law, measure, limit, case)
    order = [(law, dtype) for law in LAWS for dtype in (torch.float32, torch.float64)]
    report = Report(type(physics).__name__, tuple(rows[key] for key in order if key in rows))
    if raise_on_failure and not report.passed:
        raise ValueError(f"an operator breaks the laws that solvers rely on\n{report}")
    return report


class _NotApplicable(Exception):
    pass


def _measure(law: str, measure: Callable[[_Case], float], limit: float, case: _Case) -> Row:
    name = str(case.dtype).removeprefix("torch.")
    try:
        with torch.no_grad():
            return Row(law, name, float(measure(case)), limit)
    except _NotApplicable as reason:
        return Row(law, name, None, limit, str(reason), applicable=False)
    except Exception as error:  # noqa: BLE001 (whatever the operator raises, the law is broken)
        return Row(law, name, None, limit, f"{type(error).__name__}: {error}".splitlines()[0][:120])


class _Case:
    """An operator in one precision, and random images and measurements for it."""

    def __init__(self, physics: dinv.Physics, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.original = physics
        twin = copy.deepcopy(physics) if isinstance(physics, Nonlinear) else physics.clone()
        self.A = twin.double() if dtype == torch.float64 else twin.float()  # to(dtype) would make complex buffers real
        self.dtype, self.shape = dtype, shape
        tensors = [*self.A.buffers(), *self.A.parameters()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        batches = {len(getattr(m, k)) for m in self.A.modules() for k in getattr(m, "per_image", ())} - {1}
        self.batch = max(batches, default=3)
        self.y_shape = self.A.A(self.image(0)).shape

    def _random(self, shape: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def image(self, seed: int) -> Tensor:
        """Standard normal pixels, (B, C, H, W)."""
        return self._random((self.batch, *self.shape), seed)

    def picture(self, seed: int) -> Tensor:
        """Pixels in [0.1, 0.9]: what nonlinear operators and photon noise expect."""
        return 0.1 + 0.8 * self.image(seed).sigmoid()

    def measurement(self, seed: int) -> Tensor:
        return self._random(tuple(self.y_shape), seed)

    def linear(self) -> dinv.LinearPhysics:
        if not isinstance(self.A, dinv.LinearPhysics):
            raise _NotApplicable("the operator is not linear")
        return self.A

    def svd(self) -> dinv.DecomposablePhysics:
        if not isinstance(self.A, dinv.DecomposablePhysics):
            raise _NotApplicable("the operator has no singular value decomposition")
        return self.A


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image, (B,)."""
    return (a * b).flatten(1).sum(1)


def _norm(a: Tensor) -> Tensor:
    return a.flatten(1).norm(dim=1)


def _worst(error: Tensor, scale: Tensor) -> float:
    """Largest of ``error / scale``; 0 where both vanish, and NaN stays NaN."""
    return float(torch.where(error == 0, 0.0, error / scale).max())


def _largest(errors: Iterable[float]) -> float:
    """Unlike ``max``, NaN if any of them is."""
    return float(torch.tensor(list(errors), dtype=torch.float64).max())


def _adjoint_error(A: dinv.LinearPhysics, x: Tensor, y: Tensor) -> float:
    z = A.A(x)
    return _worst((_dot(z, y) - _dot(x, A.A_adjoint(y))).abs(), _norm(z) * _norm(y))


def _adjoint(case: _Case) -> float:
    A = case.linear()
    return _largest(_adjoint_error(A, case.image(2 * i), case.measurement(2 * i + 1)) for i in range(4))


def _odd_size(case: _Case) -> float:
    A = case.linear()
    if getattr(A, "img_size", None) is not None:
        raise _NotApplicable("the operator fixes the image size")
    x = case._random((case.batch, case.shape[0], 37, 31), 1)
    try:
        y = A.A(x)
    except Exception as error:
        if isinstance(A, Nonlinear) and not isinstance(error, ValueError):
            raise  # ours must say what is wrong
        raise _NotApplicable(f"refused: {error}"[:120]) from error
    return _adjoint_error(A, x, case._random(tuple(y.shape), 2))


def _linearity(case: _Case) -> float:
    A, x, z = case.linear(), case.image(1), case.image(2)
    parts = 2 * A.A(x), 3 * A.A(z)
    return _worst(_norm(A.A(2 * x - 3 * z) - parts[0] + parts[1]), _norm(parts[0]) + _norm(parts[1]))


def _pinv_consistent(case: _Case) -> float:
    A = case.linear()
    y = A.A(case.image(1))
    return _worst(_norm(A.A(A.A_dagger(y)) - y), _norm(y))


def _oblique(u: Tensor, projected: Tensor) -> float:
    """How far a projection is from an orthogonal one, whose remainder is orthogonal to its result."""
    return _worst(_dot(projected, u - projected).abs(), _dot(u, u))


def _pinv_rows(case: _Case) -> float:
    A, x = case.linear(), case.image(1)
    return _oblique(x, A.A_dagger(A.A(x)))


def _pinv_columns(case: _Case) -> float:
    A, y = case.linear(), case.measurement(1)
    return _oblique(y, A.A(A.A_dagger(y)))


def _prox_gradient(case: _Case, gamma: float | Tensor) -> float:
    """Gradient of ``gamma/2 |Ax - y|^2 + 1/2 |x - z|^2`` at the prox, over the sum of the norms of its parts."""
    A, z, y = case.linear(), case.image(1), case.measurement(2)
    g = gamma.view(-1, *[1] * (z.ndim - 1)) if isinstance(gamma, Tensor) else gamma
    x = A.prox_l2(z, y, gamma)
    back = g * A.A_adjoint(y)
    return _worst(_norm(g * A.A_adjoint(A.A(x)) - back + x - z), _norm(back) + _norm(z))


def _prox(case: _Case) -> float:
    return _largest(_prox_gradient(case, gamma) for gamma in (0.1, 1.0, 100.0))


def _prox_per_image(case: _Case) -> float:
    if not isinstance(case.linear(), Linear):
        raise _NotApplicable("asked of operators derived from invdiff.operators.Linear only")
    return _prox_gradient(case, torch.logspace(-1, 2, case.batch, dtype=case.dtype, device=case.device))


def _filtered(A: dinv.DecomposablePhysics, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    c = A.V_adjoint(x)
    return A.V(f(torch.as_tensor(A.mask, device=x.device).abs()) * c)


def _svd_forward(case: _Case) -> float:
    A, x = case.svd(), case.image(1)
    y, c = A.A(x), A.V_adjoint(x)
    return _worst(_norm(A.U(A.mask * c) - y), _norm(y))


def _svd_adjoint(case: _Case) -> float:
    A, y = case.svd(), case.measurement(1)
    x, c = A.A_adjoint(y), A.U_adjoint(y)
    return _worst(_norm(A.V(torch.as_tensor(A.mask).conj() * c) - x), _norm(x))


def _svd_projector(case: _Case) -> float:
    A, x = case.svd(), case.image(1)
    p = _filtered(A, x, lambda s: (s > 0).to(s))
    return _largest([_oblique(x, p), _worst(_norm(_filtered(A, p, lambda s: (s > 0).to(s)) - p), _norm(p))])


def _svd_filter(case: _Case) -> float:
    A, x = case.svd(), case.image(1)
    p = _filtered(A, x, lambda s: s**2 / (1 + s**2))
    gram = A.A_adjoint(A.A(x))
    return _worst(_norm(A.A_adjoint(A.A(p)) + p - gram), _norm(gram))


def _autograd(case: _Case) -> float:
    x, v = case.picture(1), case.measurement(2)
    with torch.enable_grad():
        x.requires_grad_()
        (grad,) = torch.autograd.grad(case.A.A(x), x, v)
    return _worst(_norm(case.A.A_vjp(x.detach(), v) - grad), _norm(grad))


def _finite_differences(case: _Case) -> float:
    if getattr(case.A, "surrogate_gradient", False):
        raise _NotApplicable("the operator is flat in places and documents another gradient")
    x, e, v, h = case.picture(1), case.image(2), case.measurement(3), 1e-5
    slope = (case.A.A(x + h * e) - case.A.A(x - h * e)) / (2 * h)
    return _worst((_dot(v, slope) - _dot(case.A.A_vjp(x, v), e)).abs(), _norm(v) * _norm(slope))


def _alone(case: _Case) -> dinv.Physics:
    """The operator for the first image only."""
    return select_images(case.A, [0], case.batch)


def _batch_error(case: _Case, call: Callable[[dinv.Physics, Tensor], Tensor], v: Tensor) -> float:
    a, b = call(_alone(case), v[:1]), call(case.A, v)[:1]
    return _worst(_norm(a - b), _norm(a))


def _batch(case: _Case) -> float:
    x, y = case.picture(1), case.measurement(2)
    errors = [_batch_error(case, lambda A, v: A.A(v), x)]
    if isinstance(case.A, dinv.LinearPhysics):
        errors.append(_batch_error(case, lambda A, v: A.A_adjoint(v), y))
        errors.append(_batch_error(case, lambda A, v: A.prox_l2(torch.zeros_like(x[: len(v)]), v, 10.0), y))
    if isinstance(case.A, dinv.DecomposablePhysics):
        errors.append(_batch_error(case, lambda A, v: A.A_dagger(v), y))
    return _largest(errors)


def _batch_pinv(case: _Case) -> float:
    """Compared as measurements, since conjugate gradients amplify rounding where ``A`` has small singular values."""
    y = case.linear().A(case.picture(1))
    return _batch_error(case, lambda A, v: A.A(A.A_dagger(v)), y)


def _dtype(case: _Case) -> float:
    x = case.picture(1)
    y = case.A.A(x)
    results = [y, case.A.A_vjp(x, y)]
    if isinstance(case.A, dinv.LinearPhysics):
        results += [case.A.A_adjoint(y), case.A.A_dagger(y), case.A.prox_l2(x, y, 1.0)]
    return float(sum(r.dtype != case.dtype for r in results))


def _pickle(case: _Case) -> float:
    try:
        twin = pickle.loads(pickle.dumps(case.original))
    except Exception as error:
        if isinstance(case.original, Nonlinear):
            raise
        raise _NotApplicable(f"deepinv's own operators cannot be pickled ({error})"[:120]) from error
    x = case.picture(1)
    y = case.original.A(x)
    return _worst(_norm(twin.A(x) - y), _norm(y))


def _score(case: _Case) -> float:
    try:
        noise = as_noise(case.A.noise_model)
    except (TypeError, ValueError) as error:
        raise _NotApplicable(str(error)[:120]) from error
    z = case.A.A(case.picture(1))
    if not bool((noise.variance(z) > 0).all()):
        raise _NotApplicable("there is no noise")
    y, e, h = noise.sample(z, torch.Generator().manual_seed(0)), case.measurement(2), 1e-6
    slope = (noise.log_likelihood(y, z + h * e) - noise.log_likelihood(y, z - h * e)) / (2 * h)
    score = noise.score(y, z)
    return _worst((slope - _dot(score, e)).abs(), _norm(score) * _norm(e))


# law: (measure, largest error allowed in float32, in float64); None: not measured in this precision
LAWS: dict[str, tuple[Callable[[_Case], float], float | None, float | None]] = {
    "adjoint: <Ax, y> = <x, By>": (_adjoint, 1e-5, 1e-10),
    "adjoint at 37x31": (_odd_size, 1e-5, 1e-10),
    "linearity: A(2x - 3z) = 2Ax - 3Az": (_linearity, 1e-5, 1e-10),
    # an iterative A+ resolves small singular values in part only; closed forms reach 1e-3
    "pseudo-inverse: A A+ A = A": (_pinv_consistent, 1e-2, 1e-2),
    "pseudo-inverse: A+ A symmetric": (_pinv_rows, 5e-2, 5e-2),
    "pseudo-inverse: A A+ symmetric": (_pinv_columns, 5e-2, 5e-2),
    "prox: gradient is zero": (_prox, 1e-5, 1e-5),
    "prox: one gamma an image": (_prox_per_image, 1e-5, 1e-5),
    "svd: A = U s V*": (_svd_forward, 1e-5, 1e-5),
    "svd: B = V s U*": (_svd_adjoint, 1e-5, 1e-5),
    "svd: f(s) = 1 makes a projector": (_svd_projector, 1e-5, 1e-5),
    "svd: f(s) = s^2 / (1 + s^2)": (_svd_filter, 1e-5, 1e-5),
    "gradient: A_vjp = autograd": (_autograd, 1e-5, 1e-10),
    "gradient: A_vjp = finite differences": (_finite_differences, None, 1e-5),
    "batch: an image alone = in a batch": (_batch, 1e-5, 1e-10),
    "batch: A A+ alone = in a batch": (_batch_pinv, 1e-3, 1e-3),
    "dtype: results have that of x": (_dtype, 0.0, 0.0),
    "pickle: the copy measures the same": (_pickle, 0.0, None),
    "noise: score = finite differences": (_score, None, 1e-5),
}
