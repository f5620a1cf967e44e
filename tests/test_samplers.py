"""Samplers against the closed-form probability flow of a Gaussian, where nothing is left to chance."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.samplers import DDIM, DDPM, DPMSolver2M, Estimate, Euler, Heun, Renoise, Sampler, ladder, reverse

SPREAD = 0.3
EVERY = [DDIM(), DDIM(eta=0.5), DDPM(), Renoise(), Renoise(eta=0.5), Euler(), Heun(), DPMSolver2M()]


def denoise(x: torch.Tensor, s: float) -> Estimate:
    x0 = x * SPREAD**2 / (SPREAD**2 + s**2)
    return Estimate(x0, (x - x0) / s)


def run(sampler: Sampler, x: torch.Tensor, levels: list[float], seed: int = 0) -> torch.Tensor:
    g, memory = torch.Generator().manual_seed(seed), {}

    def randn() -> torch.Tensor:
        return torch.randn(x.shape, generator=g, dtype=x.dtype)

    return reverse(lambda x, s, t: sampler.step(denoise, x, s, t, randn, memory), x, levels, lambda: None)


def flow_error(sampler: Sampler, steps: int) -> float:
    """Error at level 0.01 of the deterministic flow from level 2, relative to the exact solution."""
    levels = ladder(steps, 2.0, 0.01)[:-1]
    exact = math.sqrt((SPREAD**2 + 0.01**2) / (SPREAD**2 + 2.0**2))
    return abs(float(run(sampler, torch.ones(1, dtype=torch.float64), levels)) / exact - 1)


@pytest.mark.parametrize(("sampler", "order"), [(Euler(), 1), (DDIM(), 1), (Heun(), 2), (DPMSolver2M(), 2)])
def test_order_of_convergence(sampler: Sampler, order: int) -> None:
    coarse, fine = flow_error(sampler, 65), flow_error(sampler, 257)
    measured = math.log(coarse / fine) / math.log(256 / 64)
    assert abs(measured - order) < 0.25, f"{sampler}: order {measured:.2f}, expected {order}"


@pytest.mark.parametrize("sampler", [DDIM(eta=0.5), DDPM()])
def test_stochastic_samplers_keep_the_spread(sampler: Sampler) -> None:
    x = 2.0 * torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spread = float(run(sampler, x, ladder(200, 2.0, 0.01)).std())
    assert abs(spread / SPREAD - 1) < 0.03, f"{sampler}: spread {spread:.4f}, expected {SPREAD}"


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
