"""What each strategy must do where the answer is known. Fixed points that are not posteriors: ``test_fixed_points.py``."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch
from torch import Tensor

from invdiff import demo, operators, priors, solve, solvers
from invdiff.baseline import best_tv, psnr
from invdiff.bench import truth
from invdiff.bench.suite import read
from invdiff.operators import Linear
from invdiff.priors import covariance
from invdiff.problem import Problem, RowNoise
from invdiff.samplers import DDPM, DPMSolver2M
from invdiff.solvers import DDNM, DDRM, DPS, MCG, MMPS, DDNMPlus, DiffPIR, PiGDM, REDDiff, Tweedie, names
from invdiff.solvers.base import likelihood_step

SIDE, SPREAD = 6, 0.2


def white() -> priors.Gaussian:
    variance = torch.full((1, SIDE, SIDE), SPREAD**2, dtype=torch.float64)
    return priors.Gaussian(torch.full((1, SIDE, SIDE), 0.4, dtype=torch.float64), covariance.Diagonal(variance))


def smooth() -> priors.Gaussian:
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    matrix = SPREAD**2 * torch.exp(-torch.cdist(grid, grid) / 3)
    return priors.Gaussian(
        torch.full((1, SIDE, SIDE), 0.4, dtype=torch.float64), covariance.Dense(matrix, (1, SIDE, SIDE))
    )


def half_missing(noise: float) -> operators.Inpainting:
    return operators.Inpainting(operators.random_mask((SIDE, SIDE), 0.5, seed=1), noise=noise)


def problem(prior: priors.Gaussian, A: Linear, y: Tensor) -> Problem:
    randn = RowNoise(0, [(0, 0)], (1, SIDE, SIDE), y.device, y.dtype)
    return Problem(y, A, prior, operators.as_noise(A.noise_model), randn)


def measured(prior: priors.Gaussian, A: Linear) -> Tensor:
    return A.measure(prior.sample(1, seed=0).double(), seed=0)


def deviations(samples: Tensor, prior: priors.Gaussian, y: Tensor, A: Linear) -> tuple[float, float]:
    """Rms error of the mean in posterior standard deviations, and the sample spread over the posterior's."""
    posterior = prior.posterior(y, A)
    std = posterior.std.reshape(1, SIDE, SIDE)
    bias = ((samples.mean(0)[0] - posterior.mean[0]) / std).square().mean().sqrt()
    return float(bias), float(samples.std(0)[0].square().mean().sqrt() / std.square().mean().sqrt())


@pytest.mark.parametrize("strategy", [PiGDM(), DPS()], ids=["pigdm", "dps"])
def test_the_gaussian_start_saves_the_levels_above_it(strategy: PiGDM | DPS) -> None:
    """From the centre of the posterior under the prior's mean and spread at 4 spreads, 50 levels do what 80 do from noise at 60."""
    prior, A = smooth(), half_missing(0.05)
    y = measured(prior, A)
    near, far = (
        deviations(solve(y, A, prior, dataclasses.replace(strategy, steps=n, sigma_max=k * SPREAD), samples=64).samples, prior, y, A)
        for n, k in ((50, 4), (80, 60))
    )
    assert near[0] < far[0] + 0.02 and abs(near[1] - 1) < abs(far[1] - 1) + 0.02, (near, far)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("sampler", "steps"), [(DDPM(), 200), (DPMSolver2M(), 60)])
def test_pigdm_is_exact_for_a_white_gaussian_prior(noise: float, sampler: DDPM, steps: int) -> None:
    prior, A = white(), half_missing(noise)
    y = measured(prior, A)
    strategy = PiGDM(steps=steps, sampler=sampler, sigma_max=50 * SPREAD, sigma_min=0.1 * min(noise, SPREAD))
    bias, ratio = deviations(solve(y, A, prior, strategy, samples=1000).samples, prior, y, A)
    assert bias < 0.07, f"bias {bias:.3f} posterior standard deviations (Monte-Carlo floor 0.03)"
    assert abs(ratio - 1) < 0.04, f"spread {ratio:.3f} of the posterior's"


@pytest.mark.parametrize("name", names())
def test_defaults_mean_the_same_at_every_scale(name: str) -> None:
    """Image, noise and prior multiplied by a number: the samples are multiplied by it, and nothing else changes."""
    unit, noise = smooth(), 0.25 * SPREAD
    y = measured(unit, half_missing(noise))
    reference = solve(y, half_missing(noise), unit, name, steps=10, samples=2).samples
    for factor in (0.1, 100.0):
        matrix = unit.covariance.matrix() * factor**2
        prior = priors.Gaussian(unit.mean * factor, covariance.Dense(matrix, (1, SIDE, SIDE)))
        scaled = solve(factor * y, half_missing(factor * noise), prior, name, steps=10, samples=2).samples
        assert float((scaled / factor - reference).abs().max()) < 1e-5


def test_settings_are_of_their_kind() -> None:
    for wrong in ({"weight": "x"}, {"residual": [1]}, {"weight": None}, {"weight": True}, {"sampler": "DDIM"}):
        with pytest.raises(TypeError, match=r"DPS: (weight|residual|sampler) must be a"):
            DPS(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.5])
def test_dps_default_is_near_the_posterior(noise: float) -> None:
    prior, A = smooth(), half_missing(noise * SPREAD)
    y = measured(prior, A)
    bias, ratio = deviations(solve(y, A, prior, "dps", samples=300).samples, prior, y, A)
    assert bias < 0.25 and abs(ratio - 1) < 0.15, (bias, ratio)


@pytest.mark.parametrize("strategy", [DDNM(steps=30), MCG(steps=30)], ids=["ddnm", "mcg"])
@pytest.mark.parametrize("A", [half_missing(0.0), operators.Downsampling(2)], ids=["mask", "downsampling"])
def test_projections_fit_a_noiseless_measurement(strategy: DDNM, A: Linear) -> None:
    prior = smooth()
    y = measured(prior, A)
    x = solve(y, A, prior, strategy, samples=3).samples.flatten(0, 1)
    assert float((A.A(x) - y).abs().max()) < 1e-4


@pytest.mark.parametrize("strategy", [DDNMPlus(steps=30), DDRM(steps=30)], ids=["ddnm+", "ddrm"])
def test_spectral_strategies_approach_a_noiseless_measurement(strategy: DDRM) -> None:
    """At the level of the noise that ``y`` is taken to have, 1e-3 of the spread, the measured directions of the state are ``y``."""
    prior, A = smooth(), half_missing(0.0)
    y = measured(prior, A)
    x = solve(y, A, prior, dataclasses.replace(strategy, sigma_min=1.001e-3 * SPREAD), samples=3).samples.flatten(0, 1)
    assert float((A.A(x) - y).abs().max()) < 1e-4  # sqrt(sigma_min^2 - b^2) = 9e-6 of fresh noise


def test_ddrm_step_in_the_unmeasured_directions_is_the_plain_one() -> None:
    """Where nothing is measured DDRM is unconditional sampling with share eta^2 of fresh noise."""
    prior, A = white(), half_missing(0.05)
    y = measured(prior, A)
    p = problem(prior, A, y)
    x, z = p.randn(), problem(prior, A, y)
    z.randn()  # the state took the first draw; the step takes the second
    moved = DDRM(eta=0.6).move(p, x, 0.5, 0.2, {})
    x0 = prior(x, 0.5)
    plain = x0 + 0.8 * 0.2 * (x - x0) / 0.5 + 0.6 * 0.2 * z.randn()
    hidden = (A.mask == 0).expand_as(x)
    assert float((moved - plain)[hidden].abs().max()) < 1e-12


def test_reddiff_stops_at_the_posterior_mean_of_a_white_prior() -> None:
    """It is the stationary point at every level ``s``; at a high one the gradient has little fresh noise, ``z / s``."""
    prior, A = white(), half_missing(0.05)
    y = measured(prior, A)
    x = solve(y, A, prior, REDDiff(steps=1000, sigma_max=1e5 * SPREAD, sigma_min=1e5 * SPREAD), samples=1).x
    assert float((x - prior.posterior(y, A).mean).abs().max()) < 1e-4


def test_diffpir_knows_what_noise_is_left_where_an_operator_measures_nothing() -> None:
    """A box of 8x8 on 16x16 pixels never sees two thirds of the frequencies, in which ``solve`` removes the noise of ``y``."""
    prior, A = truth.correlated(16), operators.Blur(truth.box(8), noise=0.1)
    y = A.measure(prior.sample(4, seed=0).view(4, 1, 16, 16).float(), seed=0)
    posterior = prior.posterior(y, A)
    x = solve(y, A, prior, "diffpir", samples=16).x
    assert float(((x - posterior.mean) / posterior.std).square().mean().sqrt()) < 0.2


def test_diffpir_estimate_is_the_proximal_point() -> None:
    """The gradient of its objective vanishes, with the paper's weight and the calibrated one."""
    prior, A = smooth(), half_missing(0.05)
    y = measured(prior, A)
    p = problem(prior, A, y)
    x, s = p.randn(), 0.3
    for strategy in (DiffPIR(calibrated=False, weight=3.0), DiffPIR()):
        x0, z = prior(x, s), strategy.estimate(p, x, s).x0
        c = DiffPIR._error(p, x0, s) if strategy.calibrated else s**2
        slope = A.A_adjoint(A.A(z) - y) / 0.05**2 + strategy.weight * (z - x0) / c
        assert float(slope.abs().max()) < 1e-6 * float((A.A_adjoint(y) / 0.05**2).abs().max())


def test_dps_step_against_finite_differences() -> None:
    prior, A = smooth(), half_missing(0.05)
    y = measured(prior, A)
    p = problem(prior, A, y)
    x, s = 0.4 + 0.1 * p.randn(), 0.3

    def misfit(x: Tensor) -> float:
        return float((y - A.A(prior(x, s))).square().sum() / (2 * 0.05**2))

    _, step = likelihood_step(p, x, s, 1.0, 0.0)
    h, slope = 1e-5, torch.zeros(SIDE * SIDE, dtype=torch.float64)
    for i, e in enumerate(torch.eye(SIDE * SIDE, dtype=torch.float64).view(-1, 1, 1, SIDE, SIDE)):
        slope[i] = (misfit(x + h * e) - misfit(x - h * e)) / (2 * h)
    cosine = -(slope * step.flatten()).sum() / (slope.norm() * step.norm())
    assert float(cosine) > 1 - 1e-8


def test_poisson_noise_in_the_dark() -> None:
    """Pixels without a photon must not take the step over: the result is nearer to the truth than the counts."""
    variance = torch.full((1, SIDE, SIDE), 0.02**2, dtype=torch.float64)
    prior = priors.Gaussian(torch.full((1, SIDE, SIDE), 0.03, dtype=torch.float64), covariance.Diagonal(variance))
    truth = prior.sample(16, seed=0).clamp(min=0).double()
    A = operators.Denoising(noise=operators.Poisson(gain=0.05))
    y = A.measure(truth)
    x = solve(y, A, prior, "dps", samples=8, steps=40).x
    assert float((x - truth).square().mean()) < 0.3 * float((y - truth).square().mean())


def test_dps_step_never_overshoots() -> None:
    """Along the step the misfit has not yet begun to rise again, however large the weight."""
    prior, A = smooth(), operators.Blur(torch.ones(3, 3, dtype=torch.float64), noise=1e-3)
    y = measured(prior, A)
    p = problem(prior, A, y)
    x = 0.4 + 0.3 * p.randn()
    for weight, residual in ((1.0, 0.0), (1.0, 1.0), (1e6, 0.0), (1e6, 1.0)):
        x0, step = likelihood_step(p, x, 0.3, weight, residual)
        misfits = [float((y - A.A(x0 + a * step)).square().sum()) for a in (0.0, 0.9, 1.0)]
        assert misfits[0] > misfits[1] > misfits[2]


def test_denoising_takes_one_evaluation() -> None:
    prior, A = smooth(), operators.Denoising(noise=0.1)
    y = measured(prior, A)
    result = solve(y, A, prior)
    assert isinstance(result.solver, Tweedie) and result.nfe == 1
    assert torch.allclose(result.x, prior.posterior(y, A).mean, atol=1e-9)
    assert not isinstance(solve(y, A, prior, samples=2).solver, Tweedie)


@pytest.mark.parametrize("task", demo.TASKS, ids=lambda task: task.name)
def test_the_default_beats_total_variation_with_the_prior_that_ships(task: demo.Task) -> None:
    """On a part of a photograph, against the weight that is best for the truth."""
    truth = demo.photograph("astronaut")[..., 30:94, 100:164]
    full = task.operator(task.noise)
    A = operators.Inpainting(full.mask[..., :64, :64], noise=task.noise) if task.name == "inpaint" else full
    y = A.measure(truth, seed=0)
    x = solve(y, A, priors.load("natural")).x
    ours, theirs = float(psnr(x, truth)), float(best_tv(y, A, truth, [task.noise * 2.0**k for k in range(-5, 1)]).psnr)
    assert ours > theirs + (1.0 if task.name == "inpaint" else 0.2), f"{ours:.2f} dB, total variation {theirs:.2f} dB"


def test_auto_says_once_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    prior, A = smooth(), half_missing(0.05)
    solvers.auto.say_once.cache_clear()
    for _ in range(2):
        result = solve(measured(prior, A), A, prior, steps=2, samples=1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and result.reason in said[0] and "DPS" in said[0]


def test_the_table_of_auto_holds_every_task_and_budget_of_the_suite_that_measured_it() -> None:
    with solvers.auto.MEASURED.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} <= {rule.kind for rule in solvers.auto.RULES}
    tasks = {task.title for task in read("noise").tasks.values()}
    assert {(row["task"], row["budget"]) for row in rows} == {(t, b) for t in tasks for b in ("fast", "balanced", "exact")}
    text = solvers.auto.table()
    assert all(f"{row['task']}: {row['psnr']} dB, {row['passes']} passes" in text for row in rows)


def test_auto_goes_by_the_level_of_the_noise() -> None:
    """The weight of a blur's proximal steps changes with it."""
    kernel = torch.ones(3, 3)
    taken = {level: solvers.choose(operators.Blur(kernel), operators.as_noise(level), None)[0] for level in (0.01, 0.05)}
    assert (taken[0.01].weight, taken[0.05].weight) == (0.25, 0.1)  # type: ignore[attr-defined]


def test_auto_goes_by_what_the_operator_offers() -> None:
    prior = smooth()
    blur = operators.Blur(torch.ones(3, 3), noise=0.05)
    for A, kind in ((half_missing(0.05), DPS), (blur, DiffPIR), (operators.Saturation(2.0, noise=0.05), DPS)):
        result = solve(A.measure(prior.sample(1, seed=0).double()), A, prior, steps=2, samples=1)
        assert isinstance(result.solver, kind) and result.reason


def test_auto_goes_by_the_budget() -> None:
    prior, few = smooth(), {"steps": 2, "noise": 0.05}
    blur, nonlinear = operators.Blur(torch.ones(3, 3), noise=0.05), operators.Saturation(2.0, noise=0.05)
    expected = {
        "fast": (DiffPIR, DiffPIR, DPS, Tweedie, 2),
        "balanced": (DPS, DiffPIR, DPS, Tweedie, 4),
        "exact": (MMPS, MMPS, DPS, MMPS, 8),
    }
    for budget, (*kinds, count) in expected.items():
        for A, kind in zip((half_missing(0.05), blur, nonlinear, operators.Denoising(0.05)), kinds, strict=True):
            result = solve(A.measure(prior.sample(1, seed=0).double()), A, prior, budget=budget, **few)  # type: ignore[arg-type]
            assert isinstance(result.solver, kind), (budget, A)
            assert len(result.samples) == (1 if kind is Tweedie else count)
            assert repr(solvers.auto.RULES[0].exact) in solvers.auto.table()
    y = blur.measure(prior.sample(1, seed=0).double())
    for budget in expected:
        with pytest.raises(ValueError, match="samples must be at least 1"):
            solve(y, blur, prior, samples=0, budget=budget)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fast, balanced, exact"):
        solve(y, blur, prior, budget="cheap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for solver='auto'"):
        solve(y, blur, prior, "dps", budget="exact")
