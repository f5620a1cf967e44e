"""What the particle strategies share: an ensemble of weighted states carried down the ladder (sequential Monte Carlo).

Notation: ``s > t`` neighbouring levels, ``D`` the prior's estimate at ``s``. The prior's own step is the Gaussian

    p(x' | x) = N(q x + (1 - q) d, tau^2),   q = t^2 / s^2,   tau^2 = t^2 (1 - q),

with ``d`` extrapolated from the last two ``D`` (SDE-DPM-Solver++(2M), Lu et al. 2022, second order in the weak sense;
with ``d = D`` alone variances fall short by a share of the order of the step in log sigma); the last step, to ``t =
0``, is ``N(D, s^2 v / (s^2 + v))``, ``v`` the prior's variance. A *twist* ``g_s(x)`` is a guess of ``p(y | x)`` at
level ``s``, ``g_0`` the likelihood. A particle that moves by a proposal ``q(x' | x)`` has its weight multiplied by
``p(x' | x) g_t(x') / (q(x' | x) g_s(x))``. So whatever twist and proposal, the weighted particles tend to the posterior
under the prior's steps as their number grows; these only decide how many it takes.

Particles of one image interact, those of different images never do: a :class:`~invdiff.problem.Problem` is one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from invdiff.problem import EnsembleNoise, Problem
from invdiff.samplers import ladder, reverse
from invdiff.solvers.base import Guided, Strategy

FEW = 8  # measured numbers up to which particles can be many enough for weights to put a twist right
Rows = dict[str, Tensor]  # what is known of each particle, first axis the particles


def effective_size(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2`` along the first axis: how many equally weighted particles are worth these."""
    w = log_weights.softmax(0)
    return 1 / w.square().sum(0)


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """Indices (K,) in which particle ``k`` occurs ``K w_k`` times, rounded up or down, on average exactly; ``u`` uniform in [0, 1).

    Kitagawa 1996, "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models", appendix.
    """
    n = len(log_weights)
    edges = log_weights.double().softmax(0).cumsum(0)
    places = (torch.arange(n, dtype=torch.float64, device=edges.device) + u.double()) / n
    return torch.searchsorted(edges, places, right=True).clamp(max=n - 1)


@dataclass(frozen=True)
class Particles(Strategy):
    """Base class. ``particles`` is how many are drawn where ``solve`` is not told (``samples=``).

    ``threshold``: the particles are resampled when their effective number falls under this share of them (0 never, 1
    always). The ladder has ``steps`` levels evenly spaced in log sigma; ``None`` takes 20 and 0.01 times the prior's
    spread for its ends, within the prior's range. The result keeps the final weights: resampling once more would only
    add to the error of every mean.

    ``proposal``, any guided strategy, pushes the particles to where it puts the image: by ``(1 - t^2 / s^2) (x0_y - D)``, ``x0_y``
    its estimate (one more evaluation a level). With many measured numbers ``MMPS()`` brings the particles of FK, and a little those of
    FPS, nearer to the posterior; those of AFDPS farther, whose weights go by a twist that knows less (``docs/exactness.md``).
    """

    particles: ClassVar[int] = 64
    warm: ClassVar[bool] = False

    steps: int = 100
    threshold: float = 0.5
    sigma_max: float | None = None
    sigma_min: float | None = None
    proposal: Guided | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold > 1:
            raise ValueError(f"{type(self).__name__}: threshold lies in [0, 1], got {self.threshold}")
        if not isinstance(self.proposal, Guided | None):
            raise TypeError(
                f"{type(self).__name__}: proposal is a strategy that guides, DPS(), MCG(), PiGDM(), TMPD(), MMPS(), DDNM() or DiffPIR(), got {self.proposal!r}"
            )

    def check(self, p: Problem) -> None:
        high, low = self.levels(p)
        if self.steps > 1 and not high > low:
            raise ValueError(f"{type(self).__name__}: the first level must be above the last, got sigma_max {high:.3g} and sigma_min {low:.3g}")
        if self.proposal is not None:
            self.proposal.check(p)

    def start(self, p: Problem, s: float) -> Tensor:
        """States at the first level: by default under the prior, taken for white and Gaussian there."""
        mean, spread = wide(p, s)
        return mean + spread * p.randn()

    def look(self, p: Problem, x: Tensor, s: float) -> Rows:
        """What is to be known of states ``x`` at level ``s``, a row each: ``x0``, the prior's estimate, ``value``, the log twist,
        and ``pull``, what is to be added to ``x0``, if anything is.

        It may be given some of the particles only, as many as memory allows.
        """
        raise NotImplementedError

    def move(
        self, p: Problem, x: Tensor, known: Rows, mean: Tensor, tau: float, s: float, t: float
    ) -> tuple[Tensor, Tensor]:
        """States at ``t`` and ``log N(x'; mean, tau^2) - log q(x' | x)``; ``mean`` is that of the prior's step, pushed.

        To ``t = 0`` the second includes the likelihood. Constants common to all particles may be left out.
        """
        raise NotImplementedError

    def push(self, p: Problem, pull: Tensor) -> Tensor:
        """What of ``pull`` the particles are to follow."""
        return pull

    def remember(self, known: Rows, before: Rows, step: int) -> Rows:
        """What is known after ``step`` steps, with what is kept of the level before."""
        return {**known, "last": before["x0"]}

    def resample(self, p: Problem, log_weights: Tensor) -> tuple[Tensor, Tensor] | None:
        """Indices of those that go on, and their log weights; None keeps all as they are."""
        if float(effective_size(log_weights)) >= self.threshold * len(log_weights):
            return None
        return systematic(log_weights, ensemble(p).uniform()), torch.zeros_like(log_weights)

    def sample(self, p: Problem) -> Tensor:
        """The particles; ``p.report`` gets ``log_weights`` (K,) and ``parents`` (steps, K), from which each came."""
        levels = ladder(self.steps, *self.levels(p))
        x = self.start(p, levels[0])
        known = p.in_slices(lambda part, x: self._look(part, x, levels[0]), x)
        weights, parents, before = known["value"], [], math.nan

        def move(x: Tensor, s: float, t: float) -> Tensor:
            nonlocal known, weights, before
            chosen = self.resample(p, weights)
            parents.append(torch.arange(len(x), device=x.device) if chosen is None else chosen[0])
            if chosen is not None:
                x, known, weights = x[chosen[0]], {k: v[chosen[0]] for k, v in known.items()}, chosen[1]
            mean, tau = _prior_step(p, x, known, before, s, t)
            pushed = mean + (1 - (t / s) ** 2) * self.push(p, known["pull"]) if t and "pull" in known else mean
            x, ratio = self.move(p, x, known, pushed, tau, s, t)
            if pushed is not mean:
                ratio = ratio + ((x - pushed).square() - (x - mean).square()).flatten(1).sum(1) / (2 * tau**2)
            weights = weights + ratio - known["value"]
            if t:
                known = self.remember(p.in_slices(lambda part, x: self._look(part, x, t), x), known, len(parents))
                weights, before = weights + known["value"], s
            return x

        x = reverse(move, x, levels, p.tick)
        p.report.update(log_weights=weights.log_softmax(0), parents=torch.stack(parents))
        return x

    def _look(self, p: Problem, x: Tensor, s: float) -> Rows:
        known = self.look(p, x, s)
        return known if self.proposal is None else {**known, "pull": self.proposal.estimate(p, x, s).x0 - known["x0"]}

    def levels(self, p: Problem) -> tuple[float, float]:
        """Ends of the ladder."""
        high = min(20 * p.prior.std, p.prior.sigma_max) if self.sigma_max is None else self.sigma_max
        low = 0.01 * p.prior.std if self.sigma_min is None else self.sigma_min
        return high, max(low, p.prior.sigma_min)


def ensemble(p: Problem) -> EnsembleNoise:
    """The noise of the particles, which all come from one generator."""
    return cast(EnsembleNoise, p.randn)


def remaining(p: Problem, s: float) -> float:
    """Variance of x0 given the state at level ``s``, under a white Gaussian prior: ``s^2 v / (s^2 + v)``."""
    return s**2 * p.prior.std**2 / (s**2 + p.prior.std**2)


def wide(p: Problem, s: float) -> tuple[Tensor, float]:
    """Mean (rows, C, H, W) and standard deviation of the states at level ``s`` under a white Gaussian prior."""
    mean = torch.as_tensor(p.prior.mean, dtype=p.y.dtype, device=p.y.device)
    return mean.expand(len(p.y), *p.randn.shape), math.sqrt(s**2 + p.prior.std**2)


def widened(p: Problem, tempering: float | None) -> float:
    """``tempering``, by default 2 where few numbers are measured and 1 otherwise.

    A twist that is narrower than the truth makes a few weights huge, a wider one none; but with many measured numbers
    weights can no longer put it right, and the particles stay where it put them.
    """
    if tempering is not None:
        return tempering
    return 2.0 if float(p.size[0]) <= FEW else 1.0


def misfit(p: Problem, y: Tensor, x: Tensor, state: float, noise: Tensor) -> Tensor:
    """``r^T (noise^2 + state A A^T)^{-1} r``, ``r = y - A x``, shape (rows,); ``A`` is linear, ``noise`` (1, 1, 1, 1).

    It is the least value of ``|y - A z|^2 / noise^2 + |z - x|^2 / state``, at the proximal point ``z``: near a least value rounding
    counts little, however small the noise.
    """
    z = p.A.prox_l2(x, y, _share(noise, state, len(x))) if state else x
    far = ((y - p.A.A(z)) / noise.view(-1, *[1] * (y.ndim - 1))).square().flatten(1).sum(1)
    return far + (z - x).square().flatten(1).sum(1) / state if state else far


def condition(p: Problem, y: Tensor, mean: Tensor, tau: float, state: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from ``N(x; mean, tau^2) N(y; A x, noise^2 + state A A^T)``, and the log of its integral up to a constant.

    By perturbation: a draw of (x, y) from the two is moved to where it fits the ``y`` given, with one proximal step.
    """
    total = tau**2 + state
    x = mean + tau * p.randn()
    drawn = y + noise.view(-1, *[1] * (y.ndim - 1)) * ensemble(p)(y.shape[1:])
    if state:
        drawn = drawn + math.sqrt(state) * p.A.A(p.randn())
    x = x + tau**2 / total * (p.A.prox_l2(x, drawn, _share(noise, total, len(x))) - x)
    return x, -misfit(p, y, mean, total, noise) / 2


def _share(noise: Tensor, state: float, rows: int) -> Tensor:
    return (state / noise**2).expand(rows, *noise.shape[1:])


def _prior_step(p: Problem, x: Tensor, known: Rows, before: float, s: float, t: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the prior's step; ``known["last"]`` is the estimate at level ``before``."""
    d = known["x0"]
    if t == 0:
        return d, math.sqrt(remaining(p, s))
    if "last" in known:
        d = d + (d - known["last"]) * math.log(s / t) / (2 * math.log(before / s))
    q = (t / s) ** 2
    return q * x + (1 - q) * d, t * math.sqrt(1 - q)
