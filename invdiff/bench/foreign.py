"""Samplers of other libraries, deepinv and azula, on the same weights, operators and measurements.

They draw one sample at a time, since in both libraries what else is in a batch changes a sample (:func:`together` draws all at once),
and take their random numbers from torch's global generator, seeded here for each sample. deepinv ignores a seed of 0 and its DDRM wants a singular value for every
number of the image; so seeds and values are given in the way that works. Settings are the libraries' defaults unless the
suite says otherwise.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from invdiff.bench.case import Case, Outcome
from invdiff.bench.components import Room
from invdiff.operators import Gaussian

_global = threading.Lock()  # torch's generator is one for all threads


def _draw(case: Case, one: Callable[[], Tensor]) -> Outcome:
    """Samples of ``one()``, each with a seed of its own."""
    drawn = []
    with _global, torch.random.fork_rng():
        for k in range(case.samples or 1):
            torch.manual_seed(case.seed * 1_000_003 + k + 1)
            drawn.append(one().detach().to(case.truth))
    return Outcome.of(torch.stack(drawn))


def _gaussian(case: Case, name: str) -> float:
    if not isinstance(case.noise, Gaussian):
        raise TypeError(f"{name} needs Gaussian noise, not {case.noise}")
    return float(torch.as_tensor(case.noise.sigma).max())


def _theirs(case: Case) -> Any:
    """The operator with deepinv's own noise model, which its guidances ask for."""
    from deepinv.physics import GaussianNoise

    A = copy.copy(case.A)
    A._buffers, A._modules = dict(A._buffers), dict(A._modules)
    if isinstance(case.noise, Gaussian):
        A.noise_model = GaussianNoise(_gaussian(case, "deepinv"))
    return A


def _linear(case: Case, name: str) -> None:
    if not hasattr(case.A, "prox_l2"):
        raise ValueError(f"{name} needs a linear operator")


def deepinv_dps(case: Case, num_steps: int = 1000, weight: float = 1.0, schedule: str = "vp", solver: str = "ddpm") -> Outcome:
    """deepinv's DPS."""
    from deepinv.sampling import DPS

    _check_shapes(case, "deepinv's DPS")
    method = DPS(case.prior, schedule=schedule, solver=solver, num_steps=num_steps, weight=weight, device=case.y.device)
    A = _theirs(case)
    return _draw(case, lambda: method(case.y, A, x_init=tuple(case.truth.shape)))


def deepinv_diffpir(case: Case, max_iter: int = 100, zeta: float = 0.1, lambda_: float = 7.0) -> Outcome:
    """deepinv's DiffPIR. Its noise level is read off the operator."""
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    _linear(case, "deepinv's DiffPIR")
    sigma = _gaussian(case, "deepinv's DiffPIR")
    method = DiffPIR(case.prior, L2(), sigma=sigma, max_iter=max_iter, zeta=zeta, lambda_=lambda_, device=case.y.device)
    A = _theirs(case)
    return _draw(case, lambda: method(case.y, A))


def deepinv_ddrm(case: Case, steps: int = 100, eta: float = 0.85, etab: float = 1.0) -> Outcome:
    """deepinv's DDRM, with its ladder of noise levels, from 1 down to 0 in equal steps."""
    import numpy as np
    from deepinv.physics import DecomposablePhysics
    from deepinv.sampling import DDRM

    if not isinstance(case.A, DecomposablePhysics):
        raise TypeError("deepinv's DDRM needs an operator with a singular value decomposition")
    _gaussian(case, "deepinv's DDRM")
    A = _theirs(case)
    shape = A.U_adjoint(case.y).shape  # a blur learns its singular values here
    A._buffers["mask"] = A.mask.expand(1, *shape[1:])
    method = DDRM(case.prior, sigmas=np.linspace(1, 0, steps), eta=eta, etab=etab)
    return _draw(case, lambda: method(case.y, A))


def deepinv_posterior(
    case: Case,
    num_steps: int = 100,
    guidance: Literal["dps", "pigdm", "moment-matching"] = "pigdm",
    weight: float = 1.0,
    alpha: float = 0.25,
    sigma_max: float = 20.0,
    sigma_min: float = 0.005,
) -> Outcome:
    """deepinv's PosteriorDiffusion: its variance-exploding process by Euler steps, guided by one of its data terms."""
    from deepinv import sampling

    _check_shapes(case, "deepinv's PosteriorDiffusion")
    terms = {
        "dps": lambda: sampling.DPSDataFidelity(denoiser=case.prior, weight=weight),
        "pigdm": lambda: sampling.PiGDMDataFidelity(denoiser=case.prior, weight=weight),
        "moment-matching": lambda: sampling.MomentMatchingDataFidelity(denoiser=case.prior, weight=weight),
    }
    if guidance not in terms:
        raise ValueError(f"guidance is one of {', '.join(terms)}, got {guidance!r}")
    if guidance != "dps":
        _linear(case, "this guidance")
        _gaussian(case, "this guidance")
    sde = sampling.VarianceExplodingDiffusion(sigma_max=sigma_max, sigma_min=sigma_min, alpha=alpha, device=case.y.device)
    solver = sampling.EulerSolver(timesteps=torch.linspace(1, 0.001, num_steps, dtype=torch.float64, device=case.y.device))
    method = sampling.PosteriorDiffusion(terms[guidance](), case.prior, sde, solver, device=case.y.device)
    A = _theirs(case)
    return _draw(case, lambda: method(case.y, A, x_init=tuple(case.truth.shape)))


def azula_dps(case: Case, steps: int = 64, zeta: float = 1.0) -> Outcome:
    """azula's DPS."""
    from azula.guidance.dps import DPSSampler

    return _azula(case, lambda denoiser, A: DPSSampler(denoiser, case.y, A, zeta=zeta, steps=steps, silent=True))


def azula_diffpir(case: Case, steps: int = 64, lmbda: float = 10.0, iterations: int = 1) -> Outcome:
    """azula's DiffPIR, with its DDIM sampler."""
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.sample import DDIMSampler

    variance = _gaussian(case, "azula's DiffPIR") ** 2

    def make(denoiser: Any, A: Callable[[Tensor], Tensor]) -> Any:
        offset = A(torch.zeros_like(case.truth))  # it takes a linear map, and images in [-1, 1] make an affine one of A
        guided = DiffPIRDenoiser(denoiser, case.y - offset, lambda x: A(x) - offset, variance, lmbda, iterations=iterations)
        return DDIMSampler(guided, steps=steps, silent=True)

    return _azula(case, make)


def azula_mmps(case: Case, steps: int = 64, iterations: int = 1, solver: str = "gmres") -> Outcome:
    """azula's moment matching (MMPS), with its DDIM sampler."""
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDIMSampler

    variance = torch.tensor(_gaussian(case, "azula's MMPS") ** 2)

    def make(denoiser: Any, A: Callable[[Tensor], Tensor]) -> Any:
        guided = MMPSDenoiser(denoiser, case.y, A, IsotropicCovariance(variance), solver, iterations)
        return DDIMSampler(guided, steps=steps, silent=True)

    return _azula(case, make)


def azula_tds(case: Case, steps: int = 64, std: float = 0.25) -> Outcome:
    """azula's TDS; its particles are the samples. The twist, which it asks for, is ``N(y; A x0, sigma_y^2 + r^2)``, with ``r^2`` the
    variance of x0 given the state under a white prior of spread ``std``."""
    from azula.guidance.tds import TDSSampler

    noise = _gaussian(case, "azula's TDS") ** 2

    def make(denoiser: Any, A: Callable[[Tensor], Tensor]) -> Any:
        def twist(x0: Tensor, s: Tensor) -> Tensor:
            s2 = (s / 2) ** 2  # in units of images in [0, 1]
            variance = noise + s2 * std**2 / (s2 + std**2)
            return -((case.y - A(x0)).square() / (2 * variance)).flatten(1).sum(1)

        return TDSSampler(denoiser, twist, steps=steps, silent=True)

    count = case.samples or 1
    case = replace(case, samples=1, truth=case.truth.expand(count, *case.truth.shape[1:]))
    return Outcome.of(_azula(case, make).x.unsqueeze(1))


def together(case: Case, run: str, **settings: Any) -> Outcome:
    """All samples of another library's sampler in one batch, which is many times faster: they depend on their number, as random numbers
    do. Of azula's DPS, which divides by the norm of the whole batch, they would be worse; it is refused."""
    if run not in METHODS or run == "azula_dps":
        raise ValueError(f"together: run is one of {', '.join(name for name in METHODS if name != 'azula_dps')}, got {run!r}")
    count = case.samples or 1
    y, truth = (t.repeat(count, *[1] * (t.ndim - 1)) for t in (case.y, case.truth))
    return Outcome.of(METHODS[run](replace(case, y=y, truth=truth, samples=1), **settings).x.unsqueeze(1))


def _azula(case: Case, make: Callable[[Any, Callable[[Tensor], Tensor]], Any]) -> Outcome:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule

    class Adapter(Denoiser):
        """The prior as azula has it: its state is ``alpha x + sigma n`` of images in [-1, 1]."""

        schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=2 * case.prior((x_t / alpha + 1) / 2, float(sigma / alpha / 2)) - 1)

    sampler = make(Adapter(), lambda x: case.A.A((x + 1) / 2))
    return _draw(case, lambda: (sampler(sampler.init(tuple(case.truth.shape)).to(case.y.device)) + 1) / 2)


def _check_shapes(case: Case, name: str) -> None:
    if case.truth.ndim != 4:
        raise ValueError(f"{name} takes images (B, C, H, W), not volumes")


METHODS: Room = {
    f.__name__: f
    for f in (deepinv_dps, deepinv_diffpir, deepinv_ddrm, deepinv_posterior, azula_dps, azula_diffpir, azula_mmps, azula_tds)
}
