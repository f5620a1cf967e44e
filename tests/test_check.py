"""``operators.check``, the conformance kit: it finds what is wrong, and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepinv import physics as dinv
from operator_registry import uneven_kernel
from torch import Tensor

from invdiff import operators as ops


class Good(ops.Spectral):
    """Twice the image, as a healthy patient for the mutations below."""

    def __init__(self, noise: Any = 0.1) -> None:
        super().__init__(noise, mask=torch.full((1, 1, 1, 1), 2.0))


def _rows(operator: Any, law: str) -> list[Any]:
    return [row for row in ops.check(operator, (1, 8, 7), raise_on_failure=False).rows if row.law.startswith(law)]


MUTATIONS: dict[str, Callable[[Any], dict[str, Callable]]] = {
    "adjoint: ": lambda A: {"A_adjoint": lambda y, **k: 2.01 * y},
    "adjoint at": lambda A: {"A_adjoint": lambda y, **k: 2.01 * y},
    "linearity": lambda A: {"A": lambda x, **k: 2 * x + 0.1},
    "pseudo-inverse: A A+ A": lambda A: {"A_dagger": lambda y, **k: 0.4 * y},
    "pseudo-inverse: A+ A": lambda A: {"A_dagger": lambda y, **k: 0.4 * y},
    "pseudo-inverse: A A+ s": lambda A: {"A_dagger": lambda y, **k: 0.4 * y},
    "prox: gradient": lambda A: {"prox_l2": lambda z, y, g, **k: (z + 2.001 * g * y) / (1 + 4 * g)},
    "prox: grad": lambda A: {
        "prox_l2": lambda z, y, g, **k: (z + 2 * g * y) / (1 + 4 * g) * (1 if g < 9 else torch.nan)
    },
    "prox: one": lambda A: {
        "prox_l2": lambda z, y, g, **k: (z + 2 * torch.as_tensor(g).max() * y) / (1 + 4 * torch.as_tensor(g).max())
    },
    "svd: A": lambda A: {"U": lambda c: 1.001 * c, "A": lambda x, **k: 2 * x},
    "svd: B": lambda A: {"U_adjoint": lambda y, **k: 1.001 * y, "A_adjoint": lambda y, **k: 2 * y},
    "svd: f(s) = 1": lambda A: {"V": lambda c, **k: 1.001 * c},
    "svd: f(s) = s": lambda A: {"V": lambda c, **k: 1.001 * c},
    "gradient: A_vjp = a": lambda A: {"A_vjp": lambda x, v: 2.001 * v},
    "gradient: A_vjp = f": lambda A: {"A_vjp": lambda x, v: 2.001 * v},
    "batch: an": lambda A: {"A_adjoint": lambda y, **k: 2 * y + 1e-3 * y.mean(0, keepdim=True)},
    "batch: A A+": lambda A: {"A_dagger": lambda y, **k: y / 2 + 0.1 * y.mean(0, keepdim=True)},
    "dtype": lambda A: {"A": lambda x, **k: 2 * x.float()},
}


@pytest.mark.parametrize("law", MUTATIONS)
def test_check_finds_a_broken_law(law: str) -> None:
    assert all(row.passed and row.applicable for row in _rows(Good(), law))

    class Broken(Good):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__.update(MUTATIONS[law](self))

    rows = _rows(Broken(), law)
    assert rows and not all(row.passed for row in rows)
    with pytest.raises(ValueError, match="FAIL"):
        ops.check(Broken(), (1, 8, 7))


def test_check_finds_a_wrong_score_a_wrong_copy_and_a_refusal() -> None:
    class WrongScore(ops.Gaussian):
        def score(self, y: Tensor, z: Tensor) -> Tensor:
            return 1.01 * super().score(y, z)

    assert not _rows(Good(WrongScore(0.1)), "noise")[0].passed
    local = ops.from_callable(lambda x: x**2)  # a lambda cannot be pickled
    (row,) = _rows(local, "pickle")
    assert not row.passed and "lambda" in row.note
    with pytest.raises(ValueError, match="image_shape"):
        ops.check(ops.Inpainting(ops.random_mask((16, 13))), (3, 9, 9))


def test_check_takes_deepinv_and_plain_functions_and_prints_a_table() -> None:
    report = ops.check(dinv.BlurFFT((3, 18, 15), filter=uneven_kernel(1, 1, 5, 5)))
    assert report.passed and "cannot be pickled" in str(report)
    assert len(str(report).splitlines()) == len(report.rows) + 2
    assert ops.check(torch.sigmoid, (1, 8, 8)).passed


def test_check_leaves_the_operator_as_it_was() -> None:
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    ops.check(ops.from_callable(network, 0.1), (1, 8, 8))
    assert network.weight.dtype == torch.float32
