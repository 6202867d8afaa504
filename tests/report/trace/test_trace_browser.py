"""The page of a trace in a real browser, headless and without a network."""

import shutil
from pathlib import Path

import pytest
import tokenizers
from traces import random_trace

from moeworks.analyse.inspection import inspect_trace
from moeworks.data.pieces import Pieces
from moeworks.report import Subject, trace_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
HOSTILE = "</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):
    words = {word: i for i, word in enumerate([HOSTILE, "▁b", "<0xE3>", "d\n", "e"])}
    pieces = Pieces(tokenizers.Tokenizer(tokenizers.models.BPE(words, [])))
    trace = random_trace(tokens=400, domains=(HOSTILE, "%{z}"))
    inspection = inspect_trace(trace, other=random_trace(1, tokens=400, domains=("code", "prose")))
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(trace_report(Subject(inspection, HOSTILE, pieces, HOSTILE)))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()


def test_it_loads_quietly_and_hostile_text_runs_nothing(page) -> None:
    assert page.said == []
    assert len(page.asked) == 1
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").text_content() == HOSTILE


def test_every_metric_can_be_shown(page) -> None:
    for place in range(page.locator("#metric option").count()):
        page.locator("#metric").select_option(index=place)
        assert page.locator("#map-readout").text_content().startswith("layer 0, expert 0: ")
    assert page.said == []


def test_the_keyboard_opens_a_card_from_the_map(page) -> None:
    page.locator("#map-area").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#map-readout").text_content().startswith("layer 1, expert 1: ")
    page.keyboard.press("Enter")
    assert page.locator("#card-title").text_content() == "Expert 1 of layer 1"
    assert page.evaluate("document.activeElement.id") == "card-title"


def test_tokens_show_their_experts_by_pointer_and_keyboard(page) -> None:
    token = page.locator("#text-body .token").nth(2)
    token.hover()
    assert "of the weight" in page.locator("#token-detail").text_content()
    token.click()
    page.keyboard.press("ArrowRight")
    assert page.locator("#text-body .token").nth(3).get_attribute("aria-selected") == "true"
    page.locator("#text-slider").fill("2")
    assert page.locator("#card-title").text_content() == "Expert 1 of layer 2"
    assert page.said == []
