"""Conditions and guidance, where the conditional priors are Gaussians and everything is known in closed form."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff import operators, priors, solve
from invdiff.priors import ClassifierFree, cfg_plus_plus, sampling
from invdiff.priors.condition import per_image, select, takes_condition
from invdiff.samplers import DDIM, Estimate, Euler, ladder
from invdiff.solvers import DPS

SIZE = (1, 5, 3)


class Classes(nn.Module):
    """Class k is N(mean_k, variance_k); without a condition all classes are equally likely."""

    mean, std, sigma_min, sigma_max = 0.5, 0.2, 0.002, 20.0

    def __init__(self) -> None:
        super().__init__()
        means = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64).view(3, 1, 1, 1).expand(3, *SIZE)
        self.classes = [priors.Gaussian(mean, v) for mean, v in zip(means, (0.01, 0.02, 0.04))]
        self.all = priors.GaussianMixture([1, 1, 1], means, [c.covariance for c in self.classes])
        self.calls = 0

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Any = None) -> Tensor:
        self.calls += 1
        if condition is None:
            return self.all(x, sigma)
        assert len(condition) == len(x)
        levels = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1).expand(len(x))
        return torch.cat([self.classes[int(c)](x[[i]], levels[[i]]) for i, c in enumerate(condition)])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What a condition is


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (2, torch.tensor([2, 2, 2])),
        ([2, 0, 1], torch.tensor([2, 0, 1])),
        (torch.tensor([2, 0, 1]), torch.tensor([2, 0, 1])),
        (torch.ones(1, 4), torch.ones(3, 4)),
        ("cat", ["cat", "cat", "cat"]),
        (("cat", "dog", ""), ["cat", "dog", ""]),
    ],
)
def test_one_for_all_or_one_an_image(condition: Any, expected: Any) -> None:
    got = per_image(condition, 3)
    assert torch.equal(got, expected) if isinstance(expected, Tensor) else got == expected
    picked = select(got, [1, 1, 0])
    assert all(bool(torch.as_tensor(a == b).all()) for a, b in zip(picked, (expected[1], expected[1], expected[0])))


@pytest.mark.parametrize(
    "wrong", [[1, 2], ["cat", "dog"], torch.ones(4), torch.ones(2, 4), torch.tensor(1), 0.5, {}, []]
)
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a condition for 3 images is a label, a prompt") as error:
        per_image(wrong, 3)
    assert "\n" not in str(error.value)


def test_which_priors_take_one() -> None:
    assert takes_condition(Classes()) and takes_condition(priors.as_prior(Classes()))
    assert takes_condition(priors.as_prior(lambda x, sigma, condition: x))
    assert takes_condition(ClassifierFree(Classes(), 2)) and takes_condition(priors.Patched(Classes(), 8, 2))
    net = priors.DenoisingUNet(widths=(8, 8), blocks=1)
    for prior in (net, priors.Patched(net, 8, 2), priors.as_prior(lambda x, sigma: x), Classes().classes[0]):
        assert not takes_condition(prior)


# In solve


def problem() -> tuple[Tensor, operators.Inpainting]:
    A = operators.Inpainting(
        torch.stack([operators.random_mask(SIZE, 0.5, seed=i)[None] for i in range(3)]), noise=0.05
    )
    return A.measure(0.5 + 0.2 * randn(3, *SIZE)), A


def test_each_image_is_drawn_from_its_own_class() -> None:
    """As if the prior of that class alone had been given, whatever the batch, its chunks and the number of samples."""
    y, A = problem()
    prior = Classes()
    whole = solve(y, A, prior, "dps", steps=5, samples=4, condition=[2, 0, 1]).samples
    chunked = solve(y, A, prior, "dps", steps=5, samples=4, condition=torch.tensor([2, 0, 1]), batch_size=5).samples
    assert float((whole - chunked).abs().max()) < 1e-10
    for i, k in enumerate([2, 0, 1]):
        fixed = priors.as_prior(prior.classes[k], mean=0.5, std=0.2, sigma_min=0.002, sigma_max=20.0)
        alone = solve(y, A, fixed, "dps", steps=5, samples=4).samples
        assert float((whole[:, i] - alone[:, i]).abs().max()) < 1e-10
    shared = solve(y, A, prior, "dps", steps=5, samples=4, condition=2).samples
    assert float((shared[:, 0] - whole[:, 0]).abs().max()) < 1e-10
    free = solve(y, A, prior, "dps", steps=5, samples=4).samples
    assert float((free - shared).abs().max()) > 1e-2


def test_bad_conditions_are_refused_before_any_evaluation() -> None:
    y, A = problem()

    def never(x: Tensor, sigma: float) -> Tensor:
        raise RuntimeError("the prior was called")

    with pytest.raises(TypeError, match="takes no condition.*leave condition= out"):
        solve(y, A, never, condition=1)
    with pytest.raises(ValueError, match="for 3 images"):
        solve(y, A, Classes(), condition=[1, 2])
    with pytest.raises(TypeError, match=r"got never"):
        ClassifierFree(never, 2.0)
    prior = Classes()
    with pytest.raises(ValueError, match="give solve, or this prior, a condition="):
        solve(y, A, ClassifierFree(prior, 2.0))
    assert prior.calls == 0


def test_what_is_drawn_follows_the_condition() -> None:
    """Each class is a Gaussian: the mean and spread of what is drawn are its own, over chunks too."""
    prior, n = Classes(), 60
    drawn = priors.sample(prior, (n, *SIZE), steps=25, condition=[0, 2] * (n // 2))
    for k, mean, std in ((0, 0.2, 0.1), (2, 0.8, 0.2)):
        x = drawn[(k == 2) :: 2]
        assert abs(float(x.mean()) - mean) < 5 * std / x.numel() ** 0.5 and abs(float(x.std()) / std - 1) < 0.15
    one, each = (priors.sample(prior, (2, *SIZE), steps=5, condition=c) for c in (2, [2, 2]))
    assert torch.equal(one, each) and float((one - priors.sample(prior, (2, *SIZE), steps=5)).abs().max()) > 1e-2


def test_chunks_of_samples_have_their_own_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, labels = Classes(), [0, 1, 2, 0, 2]
    whole = priors.sample(prior, (5, *SIZE), steps=5, condition=labels)
    monkeypatch.setattr(sampling, "TOGETHER", 2 * SIZE[1] * SIZE[2])
    torch.testing.assert_close(priors.sample(prior, (5, *SIZE), steps=5, condition=labels), whole)


def test_what_cannot_be_drawn_from_is_named() -> None:
    shape = (2, *SIZE)
    assert priors.sample(lambda x, sigma: 0 * x, shape, steps=2).shape == shape  # any denoiser, as in solve
    with pytest.raises(TypeError, match="takes no condition.*leave condition= out"):
        priors.sample(lambda x, sigma: x, shape, condition=1)
    with pytest.raises(ValueError, match="for 2 images"):
        priors.sample(Classes(), shape, condition=[0, 1, 2])
    with pytest.raises(TypeError, match=r"called as prior\(x, sigma\)"):
        priors.sample("natural", shape)


# Guidance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guidance_is_its_formula(dtype: torch.dtype) -> None:
    prior, x = Classes(), randn(3, *SIZE).to(dtype)
    sigma, label = torch.tensor([0.1, 0.3, 1.0], dtype=dtype), torch.tensor([0, 1, 2])
    free, bound = prior(x, sigma), prior(x, sigma, condition=label)
    close = {"rtol": 0.0, "atol": 20 * torch.finfo(dtype).eps}
    for weight in (0.0, 1.0, 3.5):
        guided = ClassifierFree(prior, weight)(x, sigma, condition=label)
        assert guided.dtype == dtype
        torch.testing.assert_close(guided, free + weight * (bound - free), **close)
        torch.testing.assert_close(
            ClassifierFree(prior, weight)(x[1:2], 0.3, condition=label[1:2]), guided[1:2], **close
        )
    interval = ClassifierFree(prior, lambda s: 3.0 * (torch.as_tensor(s) > 0.2))(x, sigma, condition=label)
    torch.testing.assert_close(interval[0], free[0], **close)
    torch.testing.assert_close(interval[1:], (3 * bound - 2 * free)[1:], **close)
    away = ClassifierFree(prior, 2.0, null=0)(x, sigma, condition=label)
    other = prior(x, sigma, condition=torch.tensor([0, 0, 0]))
    torch.testing.assert_close(away, 2 * bound - other, **close)


def test_guidance_is_bayes_rule_to_the_power_of_the_weight() -> None:
    """Its score is that of ``p(x) p(class | x)^weight``, with the class probabilities of the diffused mixture."""
    prior, x, sigma, k = Classes(), randn(2, *SIZE), 0.4, 2
    x.requires_grad_()
    unconditional = prior.all.log_density(x, sigma)
    posterior = prior.classes[k].log_density(x, sigma) - unconditional
    (score,) = torch.autograd.grad((unconditional + 2.5 * posterior).sum(), x)
    guided = ClassifierFree(prior, 2.5)(x.detach(), sigma, condition=torch.tensor([k, k]))
    torch.testing.assert_close((guided - x.detach()) / sigma**2, score)


def test_two_evaluations_are_counted_as_two() -> None:
    y, A = problem()
    prior = Classes()
    result = solve(y, A, ClassifierFree(prior, 2.0), "dps", steps=4, samples=1, condition=1)
    assert result.nfe == prior.calls == 8
    assert ClassifierFree(ClassifierFree(prior, 2.0), 3.0).evaluations == 4


@pytest.mark.parametrize("sampler", [DDIM(eta=0.0), Euler()])
def test_cfg_plus_plus_is_guidance_that_grows_with_the_number_of_steps(sampler: DDIM | Euler) -> None:
    prior, label, strength = Classes(), torch.tensor([2, 0]), 0.6
    levels = ladder(7, 3.0, 0.02)
    guided = ClassifierFree(prior, cfg_plus_plus(strength, levels))

    def estimate(x: Tensor, s: float) -> Estimate:
        x0 = guided(x, s, condition=label)
        return Estimate(x0, (x - x0) / s)

    x = expected = 0.5 + 3 * randn(2, *SIZE)
    for s, t in pairwise(levels):
        x = sampler.step(estimate, x, s, t, lambda: randn(2, *SIZE), {})
        free = prior(expected, s)
        bound = prior(expected, s, condition=label)
        expected = free + strength * (bound - free) + t / s * (expected - free)
    torch.testing.assert_close(x, expected)


def test_cfg_plus_plus_in_solve_needs_the_same_ladder() -> None:
    y, A = problem()
    guided = ClassifierFree(Classes(), cfg_plus_plus(0.6, ladder(6, 1.0, 0.02)))
    strategy = DPS(steps=6, sigma_max=1.0, sigma_min=0.02, sampler=DDIM(eta=0.0))
    assert solve(y, A, guided, strategy, samples=1, condition=1).nfe == 12
    with pytest.raises(ValueError, match="levels of its ladder only, and .* is none"):
        solve(y, A, guided, strategy, samples=1, condition=1, steps=5)


def test_ladders_and_strengths_that_make_no_cfg_plus_plus() -> None:
    for strength, levels in ((7.5, [1.0, 0.5, 0.0]), (0.5, [1.0, 1.0, 0.0]), (0.5, [0.5, 1.0, 0.0])):
        with pytest.raises(ValueError, match="descending levels"):
            cfg_plus_plus(strength, levels)


def test_labels_of_numpy() -> None:
    assert per_image(np.int64(3), 2).tolist() == [3, 3]  # type: ignore[union-attr]
    assert per_image(np.array([1, 2]), 2).tolist() == [1, 2]  # type: ignore[union-attr]
    assert per_image([np.int64(1)] * 2, 2).tolist() == [1, 1]  # type: ignore[union-attr]
