"""What every operator of ours adds to deepinv's ``Physics``.

Notation: ``y = A(x) + noise``; ``A`` the forward operator, ``A_adjoint`` its adjoint, ``A_dagger`` the
Moore-Penrose pseudo-inverse, ``prox_l2(z, y, gamma)`` the minimiser of ``gamma/2 |A x - y|^2 + 1/2 |x - z|^2``.

* ``noise=`` is a level (float) or a :class:`~invdiff.operators.Noise`; it becomes ``noise_model``.
* ``measure(x, seed)`` draws a noisy measurement, the same for an image alone or in a batch.
* Operators can be pickled: they are rebuilt from their constructor's arguments.
* Linear systems are solved by conjugate gradients in which every image stops on its own, so that
  the others in a batch do not change its result.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from deepinv import physics as dinv
from torch import Tensor

from invdiff.operators.noise import Noise, as_noise
from invdiff.seeds import seeded


def _rebuild(cls: type, args: tuple, kwargs: dict, buffers: dict[str, Tensor]) -> Any:
    operator = cls(*args, **kwargs)
    for name, value in buffers.items():
        setattr(operator, name, value)
    return operator


class Nonlinear(dinv.Physics):
    """Base of the operators without an adjoint; ``A_vjp`` comes from automatic differentiation."""

    per_image: tuple[str, ...] = ()  # buffers that may hold one entry an image of the batch, on their first axis
    img_size: tuple[int, ...] | None = None  # (C, H, W) where the operator fixes it

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.__dict__["_constructor"] = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        given: inspect.BoundArguments = self.__dict__["_constructor"]
        arguments = dict(given.arguments)
        if isinstance(self.noise_model, Noise) and "noise" in given.signature.parameters:
            arguments["noise"] = self.noise_model  # it may have been changed since
        now = inspect.BoundArguments(given.signature, arguments)  # type: ignore[arg-type]
        buffers = {k: v for k, v in self.named_buffers(recurse=False) if k not in self._non_persistent_buffers_set}
        return _rebuild, (type(self), now.args[1:], now.kwargs, buffers)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        function, arguments = self.__reduce__()[:2]
        return function(*copy.deepcopy(arguments, memo))

    def measure(self, x: Tensor, seed: int = 0) -> Tensor:
        """Noisy measurement of ``x``; image ``i`` draws from a generator seeded by ``(seed, i)``."""
        z, noise = self.A(x), as_noise(self.noise_model)
        generators = [seeded(seed, i) for i in range(len(z))]
        noise.variance(z)  # raises where the levels are not one an image
        return torch.cat([noise.select([i]).sample(z[i : i + 1], g) for i, g in enumerate(generators)])


class Linear(Nonlinear, dinv.LinearPhysics):
    """Base of the linear operators: a subclass gives ``A`` and ``A_adjoint``; closed forms replace the rest."""

    def __init__(self, noise: float | Tensor | dinv.NoiseModel | None = None, **kwargs: Any) -> None:
        super().__init__(noise_model=as_noise(noise), **kwargs)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``, by conjugate gradients on ``gamma A^T A + 1``."""
        back = self.A_adjoint(y)
        start = torch.zeros_like(back) + (0.0 if z is None else z)
        g = torch.as_tensor(gamma, dtype=back.dtype, device=back.device)
        g = g.view(-1, *[1] * (back.ndim - 1)) if g.ndim else g
        return conjugate_gradient(lambda v: g * self.A_adjoint_A(v) + v, g * back + start, start)

    def A_dagger(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Least-squares solution of smallest norm, by conjugate gradients on the normal equations from zero."""
        back = self.A_adjoint(y)
        return conjugate_gradient(self.A_adjoint_A, back)


class Spectral(Linear, dinv.DecomposablePhysics):
    """Base of the operators with a singular value decomposition ``A = U diag(mask) V^T``.

    A subclass gives ``U, U_adjoint, V, V_adjoint`` and ``mask`` (the singular values). The decomposition may be
    thin or redundant: what holds is ``A = U mask V_adjoint`` and that, for any function ``f`` of the singular values
    with ``f(0) = 0``, ``V(f(mask) V_adjoint(x))`` is ``f`` of ``(A^T A)^(1/2)`` applied to ``x``.
    An operator for images of any size sets ``mask`` when it transforms one: transform first, then read ``mask``.
    """

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        c = self.V_adjoint(x)
        return self.U(self.mask * c)

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        c = self.U_adjoint(y)
        return self.V(self.mask * c)

    def A_adjoint_A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        c = self.V_adjoint(x)
        return self.V(self.mask**2 * c)

    def A_A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        c = self.U_adjoint(y)
        return self.U(self.mask**2 * c)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2 = z + A^T (A A^T + 1/gamma)^{-1} (y - A z)``, in closed form."""
        start = 0.0 * self.A_adjoint(y) + (0.0 if z is None else z)
        c = self.U_adjoint(y - self.A(start))
        g = torch.as_tensor(gamma, dtype=start.dtype, device=start.device)
        g = g.reshape(-1, *[1] * (c.ndim - 1)) if g.ndim else g
        return start + self.V(g * self.mask / (g * self.mask**2 + 1) * c)

    def A_dagger(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Pseudo-inverse; singular values under ``1e-4`` of the largest (of an image) count as zero."""
        c = self.U_adjoint(y)
        largest = self.mask.amax(tuple(range(1, self.mask.ndim)), keepdim=True)
        return self.V(torch.where(self.mask > 1e-4 * largest, 1 / self.mask, 0.0) * c)


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    x: Tensor | None = None,
    *,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
    steps: int = 300,
    tolerance: float = 1e-6,
) -> Tensor:
    """Solve ``matvec(x) = b`` for a symmetric positive definite ``matvec``, image by image (first axis).

    An image is left as it is once ``|r| <= tolerance |b|``, where ``r`` is its residual and
    ``|r|^2 = <r, precondition(r)>``; the others go on.

    :param x: image to start from, zero by default.
    :param precondition: a symmetric positive definite approximation of the inverse of ``matvec``.
    :return: the solution; a ``RuntimeWarning`` says how far it got where an image is not solved after ``steps`` steps.
    """
    dims, tiny = tuple(range(1, b.ndim)), torch.finfo(b.dtype).tiny
    x, r = (torch.zeros_like(b), b) if x is None else (x, b - matvec(x))
    p = precondition(r)
    rr = (r * p).sum(dims, keepdim=True)
    goal = tolerance**2 * (b * precondition(b)).sum(dims, keepdim=True)
    for _ in range(steps):
        live = ~(rr <= goal)  # an image with NaN goes on, so that it shows
        if not bool(live.any()):
            break
        q = matvec(p)
        curvature = (p * q).sum(dims, keepdim=True)
        step = torch.where(live & ~(curvature <= 0), rr / curvature.clamp(min=tiny), 0.0)
        x, r = x + step * p, r - step * q
        s = precondition(r)
        new = (r * s).sum(dims, keepdim=True)
        p = torch.where(live, s + new / rr.clamp(min=tiny) * p, p)
        rr = torch.where(live, new, rr)
    unsolved = ~(rr <= goal)
    if bool(unsolved.any()):
        reached = tolerance * float((rr / goal.clamp(min=tiny))[unsolved].max()) ** 0.5
        warnings.warn(
            f"conjugate gradients stopped after {steps} steps at a relative residual of {reached:.0e}, "
            f"not {tolerance:.0e}: the result is approximate",
            RuntimeWarning,
            stacklevel=2,
        )
    return x


# Buffers of deepinv's own operators that may hold one entry an image of the batch.
_DEEPINV_PER_IMAGE = ("mask", "filter", "angle", "coil_maps")


def select_images(A: dinv.Physics, images: list[int], batch: int) -> dinv.Physics:
    """The operator that treats image ``images[i]`` of a batch of ``batch`` at place ``i``; ``A`` itself where all share one."""
    names = [
        name
        for name in getattr(A, "per_image", _DEEPINV_PER_IMAGE)
        if isinstance(value := getattr(A, name, None), Tensor) and value.ndim >= 4 and value.shape[0] == batch > 1
    ]
    children = {
        name: part
        for name, child in A.named_children()
        if isinstance(child, (dinv.Physics, torch.nn.ModuleList))
        and (part := select_images(child, images, batch)) is not child
    }
    if not names and not children:
        return A
    part = object.__new__(type(A))
    part.__dict__.update(A.__dict__)
    part._buffers, part._modules = dict(A._buffers), {**A._modules, **children}
    for name in names:
        setattr(part, name, getattr(A, name)[images])
    return part
