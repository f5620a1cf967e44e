"""The border that a valid blur does not see, and the linear system on it that stands between that blur and a closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from invdiff.operators.base import conjugate_gradient

WIDEST = 128  # lines of a band to precondition: the inverses take memory by their square and time by their cube


def extend(e: Tensor, damping: Tensor, size: tuple[int, int]) -> Tensor:
    """Extend ``e`` (B, C, h, w) to a torus of ``size`` so that ``D f``, with ``D`` a filter, is zero on what is added.

    A proximal step of a circular blur ``C`` filters the misfit ``f`` by ``D = (1 + gamma C C^T)^{-1}`` and adds ``gamma C^T D f``
    to the image. Where ``f`` is measured on a part of the torus only, ``D f`` must be zero on the rest, the band of the last rows
    and of the last columns: ``D_bb u = -D_be e`` for the values ``u`` on the band (the formula of Woodbury).
    That is far smaller than the system of the image, and a matter of two Fourier transforms a step.

    It is solved by conjugate gradients. On the rows alone ``D_bb`` is a convolution along them, so that in Fourier it splits into
    a small matrix for each frequency; on the columns likewise. The sum of both inverses is the preconditioner, an additive
    Schwarz method with the corner as the overlap. A band of more than ``WIDEST`` lines, that of a large kernel, does without:
    its inverses would cost more than the steps that they save.

    :param damping: the filter, ``rfft2``-shaped, with values in (0, 1].
    :return: the extended ``f``, (B, C, *size), with ``e`` in its first rows and columns.
    """
    (height, width), (h, w) = size, e.shape[-2:]

    def split(u: Tensor) -> tuple[Tensor, Tensor]:
        rows, corner = (height - h, width), (height - h) * width
        return u[..., :corner].unflatten(-1, rows), u[..., corner:].unflatten(-1, (h, width - w))

    def join(rows: Tensor, columns: Tensor) -> Tensor:
        return torch.cat([rows.flatten(-2), columns.flatten(-2)], -1)

    def filtered(f: Tensor) -> Tensor:
        f = torch.fft.irfft2(damping * torch.fft.rfft2(f), s=size)
        return join(f[..., h:, :], f[..., :h, w:])

    def spread(u: Tensor) -> Tensor:
        rows, columns = split(u)
        return torch.cat([F.pad(columns, (w, 0)), rows], -2)

    def schwarz() -> Callable[[Tensor], Tensor]:
        across = torch.fft.ifft(damping, dim=-2)  # of the difference of two rows, for each frequency along them
        on_rows = _inverses(across.mT, height - h)
        on_columns = _inverses(torch.fft.rfft(torch.fft.irfft(across, n=width), dim=-2), width - w)

        def precondition(r: Tensor) -> Tensor:
            rows, columns = split(r)
            columns = torch.cat([columns, rows[..., w:]], -2)
            rows = torch.fft.irfft(torch.einsum("...fij,...jf->...if", on_rows, torch.fft.rfft(rows)), n=width)
            columns = torch.einsum("...fij,...fj->...fi", on_columns, torch.fft.rfft(columns, dim=-2))
            columns = torch.fft.irfft(columns, n=height, dim=-2)
            return join(rows + F.pad(columns[..., h:, :], (w, 0)), columns[..., :h, :])

        return precondition

    precondition = schwarz() if max(height - h, width - w) <= WIDEST else lambda r: r
    start = F.pad(e, (0, width - w, 0, height - h))
    # The tolerance keeps the proximal step within 1e-3 of the range of an image up to gamma = 1e4, whatever it starts from.
    u = conjugate_gradient(lambda u: filtered(spread(u)), -filtered(start), precondition=precondition, tolerance=3e-6)
    return start + spread(u)


def _inverses(line: Tensor, lines: int) -> Tensor:
    """Inverses (..., F, lines, lines) of the Toeplitz matrices whose entries are ``line`` (..., F, n) at ``i - j``."""
    i = torch.arange(lines, device=line.device)
    rounding = 10 * torch.finfo(line.dtype).eps * torch.eye(lines, device=line.device)
    return torch.linalg.inv(line[..., i[:, None] - i] + rounding)
