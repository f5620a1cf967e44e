"""Samplers against the closed-form probability flow of a Gaussian, where nothing is left to chance."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from invdiff.samplers import (
    DDIM,
    DDPM,
    DEIS,
    PNDM,
    DPMSolver2M,
    DPMSolver3M,
    Estimate,
    Euler,
    Heun,
    PredictorCorrector,
    Renoise,
    Sampler,
    SDEDPMSolver2M,
    StochasticHeun,
    ladder,
    reverse,
)

SPREAD = 0.3
STOCHASTIC = [
    DDIM(eta=0.5),
    DDPM(),
    SDEDPMSolver2M(),
    StochasticHeun(),
    PredictorCorrector(),
    PredictorCorrector(Euler()),
]
EVERY = [
    *STOCHASTIC,
    *(DDIM(), Renoise(), Renoise(eta=0.5), Euler(), Heun(), StochasticHeun(churn=0)),
    *(DPMSolver2M(), DPMSolver3M(), DEIS(), DEIS(order=4), PNDM()),
]


def denoise(x: torch.Tensor, s: float) -> Estimate:
    x0 = x * SPREAD**2 / (SPREAD**2 + s**2)
    return Estimate(x0, (x - x0) / s)


def run(sampler: Sampler, x: torch.Tensor, levels: list[float], seed: int = 0) -> torch.Tensor:
    g, memory = torch.Generator().manual_seed(seed), {}

    def randn() -> torch.Tensor:
        return torch.randn(x.shape, generator=g, dtype=x.dtype)

    return reverse(lambda x, s, t: sampler.step(denoise, x, s, t, randn, memory), x, levels, lambda: None)


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic sampler draws no noise")


def flow_error(sampler: Sampler, levels: list[float]) -> float:
    """Error at the last level of the deterministic flow from the first, relative to the exact solution."""
    exact = math.sqrt((SPREAD**2 + levels[-1] ** 2) / (SPREAD**2 + levels[0] ** 2))
    return abs(float(run(sampler, torch.ones(1, dtype=torch.float64), levels)) / exact - 1)


def order_of(sampler: Sampler, coarse: list[float], fine: list[float]) -> float:
    ratio = (len(fine) - 1) / (len(coarse) - 1)
    return math.log(flow_error(sampler, coarse) / flow_error(sampler, fine)) / math.log(ratio)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        *((Euler(), 1), (DDIM(), 1), (Heun(), 2), (StochasticHeun(churn=0), 2), (DPMSolver2M(), 2), (DPMSolver3M(), 3)),
        *((DEIS(order=k), k) for k in (1, 2, 3, 4)),
        *((PNDM(order=1), 1), (PNDM(order=2), 2), (PNDM(), 2)),
    ],
    ids=str,
)
def test_order_of_convergence(sampler: Sampler, order: int) -> None:
    """From a level so high that the first steps, of lower order, add nothing, to the middle of the change from noise to
    image: beyond it the errors of odd order cancel, by symmetry in log sigma."""
    measured = order_of(sampler, ladder(161, 1000.0, SPREAD)[:-1], ladder(641, 1000.0, SPREAD)[:-1])
    assert abs(measured - order) < 0.25, f"{sampler}: order {measured:.2f}, expected {order}"


def test_pndm_is_of_its_full_order_where_levels_are_evenly_spaced() -> None:
    """Its weights are those of even steps, which the ladder does not have. The first steps are of lower order: not counted."""

    def error(steps: int) -> float:
        levels = torch.linspace(2.0, 1.0, steps + 1, dtype=torch.float64).tolist()
        memory: dict[str, torch.Tensor] = {}
        x = torch.ones(1, dtype=torch.float64)
        for s, t in pairwise(levels):
            x = PNDM().step(denoise, x, s, t, no_noise, memory)
            if len(memory["levels"]) < 4:  # what the exact flow gives
                x = torch.full_like(x, math.sqrt((SPREAD**2 + t**2) / (SPREAD**2 + 4)))
        return abs(float(x) / math.sqrt((SPREAD**2 + 1) / (SPREAD**2 + 4)) - 1)

    assert abs(math.log2(error(32) / error(64)) - 4) < 0.4


def test_multistep_reproduces_polynomials() -> None:
    """Exact where the estimate is a polynomial in log sigma of lower degree than the order, on uneven levels."""
    levels = [1.0, 0.7, 0.4, 0.3, 0.12]

    def value(s: float) -> torch.Tensor:
        return torch.tensor([1 + 2 * math.log(s) - math.log(s) ** 2], dtype=torch.float64)

    def moved(sampler: Sampler) -> float:
        memory: dict[str, torch.Tensor] = {}
        for s, t in pairwise(levels):
            x = sampler.step(lambda x, s: Estimate(value(s), value(s)), torch.ones(1).double(), s, t, no_noise, memory)
        return float(x)

    s, t = levels[-2:]
    z = torch.linspace(math.log(s), math.log(t), 20001, dtype=torch.float64)
    v = 1 + 2 * z - z**2
    assert moved(DEIS(order=3)) == pytest.approx(1 + float(torch.trapezoid(v * z.exp(), z)), abs=1e-7)
    assert moved(DPMSolver3M()) == pytest.approx(t / s - t * float(torch.trapezoid(v * (-z).exp(), z)), abs=1e-7)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_stochastic_samplers_keep_mean_and_spread(sampler: Sampler) -> None:
    """The law of the draws at a low level is the prior's, to discretisation (2.5 %) and Monte Carlo (3 standard errors)."""
    n = 20000
    g = torch.Generator().manual_seed(1)
    x = math.sqrt(4 + SPREAD**2) * torch.randn(n, dtype=torch.float64, generator=g)
    out = run(sampler, x, ladder(100, 2.0, 0.01))
    mean, spread = float(out.mean()) / SPREAD, float(out.std()) / SPREAD
    assert abs(mean) < 3 / math.sqrt(n) and abs(spread - 1) < 0.03, (mean, spread)


def test_sde_solver_converges_faster_than_the_ancestral_step() -> None:
    """Variance after few steps, without chance: the coefficient of every draw, by running each alone."""

    def spread(sampler: Sampler, steps: int) -> float:
        levels, parts = ladder(steps, 2.0, 0.01), []
        for k in range(steps):  # the start, then the draw of each step but the last
            draws = iter(torch.eye(steps, dtype=torch.float64)[k].view(steps, 1))
            x, memory = next(draws) * math.sqrt(4 + SPREAD**2), dict[str, torch.Tensor]()
            for s, t in pairwise(levels):
                x = sampler.step(denoise, x, s, t, partial(next, draws), memory)
            parts.append(float(x) ** 2)
        return math.sqrt(sum(parts)) / SPREAD

    first, second = abs(spread(DDPM(), 40) - 1), abs(spread(SDEDPMSolver2M(), 40) - 1)
    assert second < first / 3, (first, second)


def test_settings_of_samplers_are_checked() -> None:
    for make, message in (
        (lambda: DEIS(order=5), "order is 1, 2, 3 or 4"),
        (lambda: StochasticHeun(churn=0.5), "churn lies in"),
        (lambda: PredictorCorrector(corrections=-1), "corrections is a whole number"),
        (lambda: PredictorCorrector(snr=0.0), "snr lies in"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_last_step_returns_the_estimate(sampler: Sampler) -> None:
    x = torch.randn(5, dtype=torch.float64)
    assert torch.equal(run(sampler, x, [0.1, 0.0]), denoise(x, 0.1).x0)


def test_ancestral_step_has_the_closed_form_law() -> None:
    """Given x at level s, DDPM draws x' at level t with mean x0 + t^2/s^2 (x - x0) and variance t^2 (1 - t^2/s^2)."""
    x, s, t = torch.full((100000,), 0.7, dtype=torch.float64), 1.0, 0.6
    out = run(DDPM(), x, [s, t])
    x0 = float(denoise(x[:1], s).x0)
    assert abs(float(out.mean()) - (x0 + t**2 / s**2 * (0.7 - x0))) < 0.01
    assert abs(float(out.var()) / (t**2 * (1 - t**2 / s**2)) - 1) < 0.02


def test_ladder() -> None:
    levels = ladder(3, 1.0, 0.01)
    assert levels == pytest.approx([1.0, 0.1, 0.01, 0.0])
    with pytest.raises(ValueError, match="steps >= 1"):
        ladder(0, 1.0, 0.1)
    with pytest.raises(ValueError, match="sigma_min <= sigma_max"):
        ladder(3, 0.1, 1.0)


@pytest.mark.parametrize("kind", [DDIM, DDPM, Renoise])
@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_is_a_share(kind: type[DDIM], eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta lies in \[0, 1\]"):
        kind(eta=eta)


def test_a_state_that_is_not_finite_raises() -> None:
    with pytest.raises(FloatingPointError, match="no longer finite"):
        reverse(lambda x, s, t: x / 0, torch.zeros(2), [1.0, 0.0], lambda: None)
    with pytest.raises(FloatingPointError, match="a thousand times too large"):
        reverse(lambda x, s, t: 1e4 * x, torch.ones(2), [1.0, 0.0], lambda: None)
