"""The report's page in a real browser: sorting, filters, the slider, no errors, nothing wider than a phone.

Needs playwright (extra ``test``) and a Chromium that is installed, such as Debian's package ``chromium``; skipped without.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic

from invdiff.bench import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'invdiff[test]'")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed (looked for {', '.join(BROWSERS)})")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # CI may be root
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(synthetic.benchmark(tmp_path_factory.mktemp("page"), side=32, images=4), say=lambda text: None)


@pytest.fixture
def page(browser: Any, html: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, which must have neither logged an error nor asked for anything but itself when the test is over."""
    with browser.new_context(**getattr(request, "param", {})) as context:
        opened = context.new_page()
        errors: list[str] = []
        asked: list[str] = []
        opened.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
        opened.goto(html.as_uri())
        opened.wait_for_selector("#table tbody tr")
        yield opened
        assert errors == [] and asked == [html.as_uri()]


def column(page: Any, title: str) -> list[float | None]:
    """What the table shows, top to bottom; None where there is no value."""
    titles = [text.strip(" ▲▼") for text in page.locator("#table thead button").all_inner_texts()]
    k = titles.index(title)
    return page.evaluate(
        "k => [...document.querySelectorAll('#table tbody tr')].map(r => r.cells[k].dataset.value).map(v => v == null ? null : +v)", k
    )


def attributes(page: Any, name: str) -> list[str]:
    return page.evaluate("n => [...document.querySelectorAll('#table tbody tr')].map(r => r.dataset[n])", name)


def test_columns_sort_both_ways_with_what_has_no_value_last(page: Any) -> None:
    head = page.locator("#table").get_by_role("button", name="CRPS")
    head.click()
    values = column(page, "CRPS")
    there = [v for v in values if v is not None]
    assert len(there) > 5 and there == sorted(there), "less is better: smallest first"
    assert values[: len(there)] == there and None in values
    assert page.locator("th[aria-sort=ascending]").count() == 1
    head.click()
    values = [v for v in column(page, "CRPS") if v is not None]
    assert values == sorted(values, reverse=True)
    page.locator("#table").get_by_role("button", name="PSNR").click()
    values = [v for v in column(page, "PSNR") if v is not None]
    assert values == sorted(values, reverse=True), "more is better: largest first"


def test_filters_hold_everywhere(page: Any) -> None:
    assert len(attributes(page, "task")) == 6 * 3 + 5, "mcg lacks a task, so that it has no mean over all"
    page.select_option("#task", label="superres")
    assert set(attributes(page, "task")) == {"superres"}
    page.locator("#methods-summary").click()
    page.get_by_label("dps", exact=True).uncheck()
    assert attributes(page, "method") == ["total-variation", "ddrm", "diffpir", "auto", "mcg"]
    assert "5 of 6" in page.locator("#methods-summary").inner_text()
    assert page.locator(".point").count() == 4 and page.locator("#grid .card").count() == 2 + 5
    page.get_by_role("button", name="None", exact=True).click()
    assert attributes(page, "method") == [] and "No strategy" in page.locator("#results-hint").inner_text()


def test_differences_from_a_strategy(page: Any) -> None:
    page.select_option("#task", label="deblur")
    means = dict(zip(attributes(page, "method"), column(page, "PSNR"), strict=True))
    page.select_option("#reference", label="ddrm")
    gains = dict(zip(attributes(page, "method"), column(page, "PSNR"), strict=True))
    assert gains["ddrm"] == means["ddrm"]
    for method in ("total-variation", "dps", "auto"):  # on both sides of the reference
        assert gains[method] == pytest.approx(means[method] - means["ddrm"], abs=2e-3)
    assert page.locator("tr[data-method=auto] td .better").count() >= 2
    assert page.locator("tr[data-method=total-variation] td .worse").count() >= 2


def test_a_row_opens_with_the_command_that_runs_it_again(page: Any) -> None:
    page.locator("tr[data-task=deblur][data-method=dps] button").click()
    assert "--task deblur --method dps" in page.locator("tr.detail code").last.inner_text()


def test_failures_and_refusals_are_shown(page: Any) -> None:
    text = page.locator("#failures").inner_text()
    assert "the result is not finite" in text and "refused" in text and "<b>bold</b>" in text
    assert "6 of 6" not in text and "failed" in page.locator("tr[data-task=inpaint][data-method=mcg]").inner_text()


def cut(page: Any) -> float:
    return float(page.evaluate("parseFloat(getComputedStyle(document.getElementById('layer-right')).clipPath.match(/[\\d.]+%/)[0])"))


def test_the_slider_moves_by_key_by_mouse_and_zooms(page: Any) -> None:
    assert cut(page) == 50
    page.locator("#slider").focus()
    page.keyboard.press("End")
    assert cut(page) == 100
    stage = page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 60)
    page.mouse.up()
    assert cut(page) == pytest.approx(25, abs=1) and float(page.locator("#slider").input_value()) == pytest.approx(25, abs=1)
    page.locator("#zoom").fill("4")
    wide = page.locator("#layer-left img").first.bounding_box()["width"]
    assert wide == pytest.approx(4 * box["width"], rel=0.01)
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 230, box["y"] + 100)
    page.mouse.up()
    assert cut(page) == pytest.approx(25, abs=1), "zoomed, the picture moves instead"
    assert page.evaluate("document.getElementById('stage').style.getPropertyValue('--x')") == "30px"


def test_pictures_are_decoded_and_can_be_chosen(page: Any) -> None:
    page.select_option("#picture-image", label="coffee")
    page.locator(".card", has_text="ddrm").click()
    assert page.locator("#tag-right").inner_text() == "ddrm" and page.locator("#about h3").inner_text() == "ddrm, inpaint, coffee"
    for view, text in (("std", "ddrm, uncertainty"), ("error", "ddrm, error"), ("x", "ddrm")):
        page.select_option("#view", view)
        assert page.locator("#tag-right").inner_text() == text
        assert page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"), view
    assert page.locator(".card:disabled", has_text="failed").count() == 1, "mcg failed on this one"


def test_the_plot_tells_its_numbers_by_mouse_and_by_key(page: Any) -> None:
    page.select_option("#quality", label="CRPS")
    page.select_option("#cost", label="Time (s)")
    assert page.locator(".point").count() == 4, "total variation has no CRPS, mcg lacks a task"
    page.locator(".point").first.focus()
    assert "CRPS" in page.locator(".tip").inner_text() and "Time (s)" in page.locator(".tip").inner_text()


PHONE = {"viewport": {"width": 375, "height": 800}, "has_touch": True}


@pytest.mark.parametrize("page", [PHONE, {**PHONE, "color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone_and_text_can_be_read(page: Any) -> None:
    page.select_option("#reference", label="ddrm")
    page.locator("tr[data-task=deblur][data-method=dps] button").click()
    page.locator("#protocol summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    small = page.evaluate(
        "[...document.querySelectorAll('main *, header *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".filter(e => e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 10).map(e => e.outerHTML.slice(0, 80))"
    )
    assert small == []
    assert page.evaluate(CONTRAST) == []


# Text whose contrast with its ground is under 4.5, as WCAG 2 computes it.
CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => parse(c).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const luminance = c => { const [r, g, b] = light(c); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (parse(c)[3] !== 0) return c; } };
  return [...document.querySelectorAll('main *, header *, form *')].filter(e => e.getClientRects().length && !e.closest('#stage, svg, :disabled'))
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 60)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


def test_everything_that_is_operated_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input, [role=img], [role=region], img')].filter(e => !(e.textContent.trim() || e.labels?.length"
        " || e.getAttribute('aria-label') || e.hasAttribute('alt'))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
