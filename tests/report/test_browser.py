"""The page in a real browser: it asks for nothing, draws everything, sorts, filters, answers to pointer and keys."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from finished_sweep import make_evidence, make_full_plasticity, make_settling_trials
from playwright.sync_api import Browser, Page, sync_playwright

from unfreeze.evidence.sets import pool_sweeps
from unfreeze.records import ScoreWorth, Worth
from unfreeze.report.figures import all_charts
from unfreeze.report.page import html_report
from unfreeze.report.sets import sets_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORTH = Worth(mean=0.012, low=-math.inf, high=0.026, positive=0.94, p=0.058, bayes_factor=2.1)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox: it cannot be had as root, and the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def evidence() -> Any:
    found = make_evidence(plasticity=make_full_plasticity())
    model = dataclasses.replace(found.model, num_tokens=65, width=64)
    worths = (ScoreWorth(score="reference", num_trials=32, worth=WORTH), *found.worths[1:])
    return dataclasses.replace(found, model=model, worths=worths)


@pytest.fixture(scope="module")
def file(evidence: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_report(evidence), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, file: Path, said: list[str]) -> Iterator[Page]:
    """With all charts drawn; ``said``: what its console said and what it asked the network for."""
    page = browser.new_page(viewport={"width": 1400, "height": 860})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]")
    page.get_by_role("button", name="Stay").click()  # a trial of this sweep still runs
    yield page
    page.close()


def test_it_says_nothing_and_asks_for_nothing_but_itself(page: Page, said: list[str], file: Path) -> None:
    assert [text for text in said if not text.startswith("data:,")] == [file.as_uri()]


def test_of_a_running_sweep_it_loads_itself_anew_unless_told_to_stay(browser: Browser, file: Path) -> None:
    page, loads = browser.new_page(), []
    page.on("load", lambda loaded: loads.append(loaded))
    page.clock.install()
    page.goto(file.as_uri())
    with page.expect_navigation():
        page.clock.fast_forward(31_000)
    assert len(loads) == 2
    page.get_by_role("button", name="Stay").click()
    page.clock.fast_forward(100_000)
    assert len(loads) == 2
    assert page.get_by_role("button", name="Stay").get_attribute("aria-pressed") == "true"
    page.close()


def test_every_chart_is_drawn(page: Page, evidence: Any) -> None:
    count = "[...document.querySelectorAll('.chart')].map(c => [c.id, c.querySelectorAll('.role-mark path').length])"
    drawn = dict(page.evaluate(count))
    assert list(drawn) != []
    assert set(drawn) == {chart.name for chart in all_charts(evidence)}
    assert [name for name, marks in drawn.items() if marks == 0] == []


def test_the_answer_and_the_verdict_are_seen_without_scrolling(page: Page) -> None:
    for place in (".answer", ".word", "#accuracy_against_plasticity_reference"):
        box = page.locator(place).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 860
    assert page.evaluate("document.documentElement.scrollWidth") == 1400


def trials(page: Page, column: int) -> list[str]:
    return page.locator(f"#trials tbody tr:not([hidden]) td:nth-child({column})").all_inner_texts()


def test_trials_sort_both_ways_and_what_has_no_number_stays_last(page: Page) -> None:
    heading = page.get_by_role("button", name="val. accuracy")
    heading.click()
    rising = [float(text.rstrip("%")) for text in trials(page, 4)]
    assert rising == sorted(rising)
    assert page.locator("#trials th[aria-sort=ascending]").inner_text().startswith("val. accuracy")
    heading.press("Enter")
    assert [float(text.rstrip("%")) for text in trials(page, 4)] == rising[::-1]
    page.get_by_role("button", name="trial", exact=True).click()
    assert trials(page, 1)[0] == "trial-00000"


def test_trials_are_filtered_by_words_and_state(page: Page) -> None:
    page.locator("#filter").fill("mha search")
    assert trials(page, 2) != []
    assert all("mha" in text for text in trials(page, 2))
    page.locator("#state").select_option("failed")
    assert page.get_by_role("status").first.inner_text() == "1 of 13 trials"
    page.locator("#filter").fill("")
    page.locator("#state").select_option("")
    assert len(trials(page, 1)) == 13


def test_pointing_at_a_mark_tells_its_values(page: Page) -> None:
    chart = page.locator("#accuracy_against_plasticity_reference")
    chart.scroll_into_view_if_needed()
    chart.locator(".mark-symbol path").first.hover()
    text = page.locator("#tip").inner_text()
    assert "selection" in text
    assert "val. accuracy" in text
    assert "%" in text
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_arrow_keys_go_from_mark_to_mark(page: Page) -> None:
    page.locator("#component_by_rate").focus()
    found = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        found.append(page.locator("#tip").inner_text())
    assert found[0] == found[2] != found[1]
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")])
def test_accessible_at_every_width_and_in_either_light(page: Page, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 860})
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_paper_it_is_dark_on_white(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    ink, card = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (ink, card) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    assert page.locator("nav").is_hidden()
    page.evaluate("document.body.style.width = '600px'")  # about that of paper, on which nothing is drawn anew
    widths = page.locator("figure svg").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert max(widths) <= 600


def test_the_page_of_several_sweeps(browser: Browser, tmp_path: Path) -> None:
    found = {name: make_evidence(tuple(make_settling_trials(worth))) for name, worth in (("a", 0.02), ("b", 0.03))}
    images = dataclasses.replace(found["b"].data, digest="d" * 64)
    found = {name: dataclasses.replace(each, sweep=name) for name, each in found.items()}
    found["b"] = dataclasses.replace(found["b"], data=images)
    (tmp_path / "sweeps.html").write_text(sets_page(found, pool_sweeps(found)), encoding="utf-8")
    page, said = browser.new_page(viewport={"width": 390, "height": 860}, color_scheme="dark"), []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "sweeps.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    assert said == []
    assert page.locator("#worth_by_set .mark-symbol path").count() == 3  # two sets and their average
    assert Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}).violations_count == 0
    page.close()
