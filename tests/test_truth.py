"""The suite ``truth``: its judge measures what it says, every strategy is in it, and its page is of today's."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import bench, operators, solvers
from invdiff.bench import Outcome, components, images, performing, tasks, truth, truth_digits, truth_page
from invdiff.bench import suite as suites
from invdiff.bench.case import Case

PAGE = Path(__file__).parents[1] / "docs" / "exactness.md"
SUITE = suites.read("truth")
EXACT = [name for name, task in SUITE.tasks.items() if components.split(task.judge)[1] == {}]  # the others are told a law
QUICK = [name for name in EXACT if not name.startswith("half-32")]


def case(task: str, samples: int = 256, image: int = 0) -> Case:
    found = SUITE.tasks[task]
    true = SUITE.images[found.images[image]]
    x = components.build(true.source, images.IMAGES)
    A, law = tasks.operator(found.operator, found.noise, tuple(x.shape[1:]))
    return Case(tasks.measure(A, law, x, found.seed + true.seed), A, law, tasks.load_prior(found.prior), x, samples, true.seed)


def run(suite: suites.Suite, out: Path) -> dict[tuple[str, str], bench.Record]:
    with ThreadPoolExecutor(1) as executor:
        bench.run(suite, out, executor=executor)
    return {(r["spec"]["method"], r["spec"]["image"]): r for r in bench.load(out)[0]}


def part(task: str, *methods: str, measurements: int = 4) -> suites.Suite:
    """One task of the suite."""
    chosen = replace(SUITE.tasks[task], images=SUITE.tasks[task].images[:measurements])
    asked = {k: replace(m := SUITE.methods[k], tasks=[task] if m.tasks else []) for k in methods}
    return replace(SUITE, tasks={task: chosen}, images={k: SUITE.images[k] for k in chosen.images}, methods=asked)


@pytest.mark.parametrize("task", QUICK)
def test_exact_samples_are_found_exact_and_the_prior_not(task: str) -> None:
    given = case(task)
    exact, prior = (truth.judge(method(given), given) for method in (truth.exact, truth.ignorant))
    others = [truth.judge(truth.exact(replace(given, seed=seed)), given) for seed in range(1, 8)]
    bias, ratio = (fmean(scores[name] ** 2 for scores in (exact, *others)) ** 0.5 for name in ("bias", "sliced_w2_ratio"))
    assert 0.6 < bias * 256**0.5 < 1.4 and 0.6 < ratio < 1.5, (bias, ratio)
    assert abs(exact["coverage_50"] - 0.5) < 0.06 and abs(exact["coverage_90"] - 0.9) < 0.04, exact
    for name in exact.keys() & {"spread_measured", "spread_unmeasured"}:
        assert abs(exact[name] - 1) < 0.06 and prior[name] > 1.05, (name, exact, prior)
    assert exact.get("weights_error", 0) < 0.09
    assert prior["sliced_w2_ratio"] > 2, prior


def test_what_is_measured_of_a_shifted_and_of_a_narrow_sample() -> None:
    """A shift by one posterior standard deviation is a bias of 1; half the deviations from the mean are half the spread."""
    given = case("half-0.1", 4096)
    known = truth.reference(given)
    x = truth.exact(given).samples
    assert x is not None
    mean, std = (v.view(given.truth.shape).float() for v in (known.mean, known.std))
    shifted, narrow = (truth.judge(Outcome.of(s), given) for s in (x + std, mean + 0.5 * (x - mean)))
    assert abs(shifted["bias"] - 1) < 0.05 and abs(shifted["spread_measured"] - 1) < 0.03
    assert narrow["bias"] < 0.05 and abs(narrow["spread_measured"] - 0.5) < 0.02 and abs(narrow["spread_unmeasured"] - 0.5) < 0.02
    assert abs(narrow["coverage_50"] - 0.264) < 0.02 and shifted["sliced_w2_ratio"] > 10 < narrow["sliced_w2_ratio"]


def test_samples_of_one_mode_have_the_weights_of_one_mode() -> None:
    given = case("four", 64)
    known = truth.reference(given)
    assert known.weights is not None and torch.allclose(known.weights, torch.tensor([0.8, 0.2, 0, 0], dtype=torch.float64), atol=1e-3)
    mode = given.prior.means[1].expand(64, 1, 1, 1, 2)
    assert truth.judge(Outcome.of(mode), given)["weights_error"] == pytest.approx(0.8, abs=1e-3)
    assert set(truth.judge(Outcome(mode[0]), given)) == {"bias"}


def test_the_grid_agrees_with_the_closed_form() -> None:
    given = case("four")
    grid, closed = truth.on_grid(given, given.prior), truth.closed_form(given, given.prior)
    for name in ("mean", "std", "weights"):
        torch.testing.assert_close(getattr(grid, name), getattr(closed, name), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="two values"):
        truth.on_grid(case("many-8-1"), given.prior)


def test_posteriors_of_digits_are_those_of_their_measurements() -> None:
    for y, A, law in truth_digits.cases():
        given = Case(y, A, law, None, torch.zeros(1, 1, 28, 28), 256, 0)
        known = truth.reference(given, truth_digits.Stored())
        x = truth.exact(given, truth_digits.Stored())
        assert (A.A(known.mean.view(1, 1, 28, 28).float()) - y).abs().max() < 2 * 0.05
        scores = truth.judge(x, given, truth_digits.Stored())
        assert scores["bias"] < 0.15 and 0.6 < scores["sliced_w2_ratio"] < 1.6 and "coverage_50" not in scores
    with pytest.raises(ValueError, match="has no posterior of this measurement"):
        truth.reference(replace(given, y=y + 1), truth_digits.Stored())
    with pytest.raises(ValueError, match="give the law"):
        truth.reference(replace(given, prior=Wiener()))


def test_a_matrix_keeps_the_laws_of_operators() -> None:
    assert operators.check(truth.Matrix(truth.random_matrix(3, [1, 2, 4]), [1, 2, 4], noise=0.1)).passed


def test_every_strategy_is_in_the_suite() -> None:
    for name in ["auto", *solvers.names()]:
        method = SUITE.methods[name]
        particles = None if name == "auto" else solvers.get(name).particles or None
        assert method.run == name and method.samples == particles and not method.tasks, name
    assert all("truth:judge" in components.split(task.judge)[0] for task in SUITE.tasks.values())


class Wiener(torch.nn.Module):
    """A denoiser that knows nothing of this package: right for white images of mean 0.5 and spread 0.2."""

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return 0.5 + 0.04 / (0.04 + sigma**2) * (x - 0.5)


FOREIGN = """
name: foreign
samples: 64
metrics: [chi_square]
images: {one: {source: {drawn: {prior: &law {"invdiff.priors:Gaussian": {mean: 0.5, covariance: {"mine:variance": {}}}}, shape: [1, 4, 4]}}}}
tasks:
  half:
    operator: {"deepinv.physics:Inpainting": {img_size: $shape, mask: {random_mask: {shape: $shape, keep: 0.5}}}}
    noise: 0.1
    prior: "mine:Wiener"
    judge: {"invdiff.bench.truth:judge": {law: *law}}
methods:
  exact: {run: {"invdiff.bench.truth:exact": {law: *law}}}
  mmps:
  deepinv-pigdm: {run: {together: {run: deepinv_posterior, sigma_max: 4.0}}}
"""
MINE = """
import torch
from test_truth import Wiener
def variance():
    return torch.full((1, 4, 4), 0.04)
"""


def test_a_denoiser_and_an_operator_of_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_truth", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    Path("foreign.yaml").write_text(FOREIGN)
    found = run(suites.read("foreign.yaml"), tmp_path / "out")
    assert {r["status"] for r in found.values()} == {"ok"}, [r["error"] for r in found.values()]
    for method in ("exact", "mmps"):
        scores: dict[str, Any] = found[method, "one"]["metrics"]
        assert scores["bias"] < 0.3 and 0.8 < scores["spread_measured"] < 1.2 and scores["sliced_w2_ratio"] < 1.5, (method, scores)
    assert (found["deepinv-pigdm", "one"]["metrics"]["bias"] or 9) < 0.5


# The page


def cells(page: str) -> dict[str, dict[str, list[str]]]:
    """Every table of a page: the cells of each row by the column's head, tables of one column's name one after the other."""
    found: dict[str, dict[str, list[str]]] = {}
    head: list[str] = []
    for line in page.splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else []
        if row and not row[0]:
            head = row
        elif row and row[0] != "---":
            for column, cell in zip(head[1:], row[1:]):
                found.setdefault(row[0].strip("`"), {}).setdefault(column, []).append(cell)
    return found


def test_the_page_has_what_was_measured(tmp_path: Path) -> None:
    methods = ("exact", "exact-64", "diffpir", "afdps", "fk-64", "fk-256")
    found = run(part("four", *methods, measurements=2), tmp_path / "out")
    truth_page.main([str(tmp_path / "out"), str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert (
        all((tmp_path / name).is_file() and f"]({name})" in text for name in ("page.png", "page-cost.png"))
        and "invdiff bench run truth" in text
    )
    shown = cells(text)
    assert list(shown) == ["exact", "exact-64", "diffpir", "afdps", "fk-64", "fk-256"]
    weights, distance, thousands = shown["fk-256"]["four"][0].split(" / ")
    grown = [found["fk-256", image]["metrics"]["weights_error"] or 0 for image in ("four-1", "four-2")]
    assert float(weights.split(" ±")[0]) == pytest.approx(fmean(grown), abs=6e-4) and thousands == "26"
    ess, ancestors = (float(cell.split(" ±")[0]) for cell in shown["afdps"]["four"][3].split(" / "))
    assert 1 <= ess <= 64 and 1 <= ancestors <= 64
    bias, weights, distance, coverage = shown["diffpir"]["four"]
    values = [found["diffpir", image]["metrics"] for image in ("four-1", "four-2")]
    for cell, name in ((bias, "bias"), (weights, "weights_error"), (distance, "sliced_w2_ratio")):
        assert float(cell.split(" ±")[0]) == pytest.approx(fmean(v[name] or 0 for v in values), abs=0.006)
    assert " / " in coverage and shown["diffpir"]["evaluations"] == ["50"] and shown["afdps"]["samples"] == ["64"]


def test_what_was_refused_is_on_the_page(tmp_path: Path) -> None:
    run(part("ring", "exact", "diffpir", measurements=1), tmp_path / "out")
    truth_page.main([str(tmp_path / "out"), str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "- `diffpir` refused ring: " in text and "diffpir" not in cells(text) and "page.png" not in text


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, list[str]]]:
    return cells(PAGE.read_text(encoding="utf-8"))


def test_the_page_has_todays_strategies_and_problems(written: dict[str, dict[str, list[str]]]) -> None:
    assert {"auto", *solvers.names()} <= set(written)
    assert set(EXACT) <= set(written["exact"])
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in solvers.names() if f"- `{name}`: `{solvers.get(name)!r}`" not in text] == []
    assert f"{len(truth_digits.SEEDS) * truth_digits.DRAWS} draws" in text


@pytest.mark.parametrize("name", ["diffpir", "pigdm"])
def test_the_page_is_of_todays_strategies(name: str, written: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    task = "dense-0.1"
    scores = [r["metrics"] for r in run(part(task, name), tmp_path / "out").values()]
    names = ("bias", "spread_measured", "spread_unmeasured", "sliced_w2_ratio")
    for score, cell in zip(names, written[name][task]):
        now, page = fmean(s[score] or 0 for s in scores), float(cell.split(" ±")[0])
        assert page == pytest.approx(now, rel=0.02, abs=0.02), f"{score} of {name}: run the suite truth again, and write its page"


def test_cases_of_the_suite_are_those_of_its_runs(tmp_path: Path) -> None:
    """What these tests judge is what the engine judges."""
    frozen = suites.freeze(part("many-8-1", "exact", measurements=1))
    done = performing.perform(performing.jobs(frozen)[0]).record
    given = case("many-8-1", 512)
    assert done["metrics"]["bias"] == pytest.approx(truth.judge(truth.exact(given), given)["bias"])
