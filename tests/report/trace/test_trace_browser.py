"""The page of a trace in a real browser, headless and without a network."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from traces import random_trace

from moeworks.analyse.inspection import inspect_trace
from moeworks.data.pieces import Pieces
from moeworks.report import Subject, trace_report
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
WIDTHS = """[...document.querySelectorAll("select, input, .card, h1")]
.map((element) => element.getBoundingClientRect().right - innerWidth)"""
HOSTILE = "</script><img src=x onerror='window.hacked=1'>"


def opened(browser, path: Path, **options):
    page = browser.new_page(**options)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {word: i for i, word in enumerate([HOSTILE, "▁b", "<0xE3>", "d\n", "e"])}
    pieces = Pieces(tokenizers.Tokenizer(tokenizers.models.BPE(words, [])))
    trace = random_trace(tokens=400, domains=(HOSTILE, "%{z}"))
    inspection = inspect_trace(trace, other=random_trace(1, tokens=400, domains=("code", "prose")))
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(trace_report(Subject(inspection, HOSTILE, pieces, HOSTILE)))
    return path


@pytest.fixture(scope="module")
def page(browser, path):
    return opened(browser, path)


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


def test_it_fits_a_phone(browser, path) -> None:
    narrow = opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme="dark")
    assert max(narrow.evaluate(WIDTHS)) <= 0
    assert narrow.said == []


def test_a_printed_page_hides_what_only_a_screen_can_do(browser, path) -> None:
    printed = opened(browser, path)
    printed.emulate_media(media="print")
    assert not printed.locator("#text-slider").is_visible()
    assert not printed.locator("#token-detail").is_visible()
    assert len(printed.pdf()) > 10_000


def test_tokens_with_fewer_experts(browser, tmp_path) -> None:
    """Empty slots are no experts; a token without any says so."""
    header = TraceHeader(num_experts=4, top_k=2, layers=(0,), fields=("logits",), empty_slots=True)
    ids = np.array([[0, 1], [2, 4], [4, 4]] * 10, np.uint8)
    columns = LayerColumns(ids, logits=np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16))
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(30), (columns,))])
    (tmp_path / "t.html").write_bytes(trace_report(Subject(inspect_trace(trace), "t")))
    page = opened(browser, tmp_path / "t.html")
    tokens = page.locator("#text-body .token")
    assert tokens.nth(1).get_attribute("aria-label").endswith("expert 2")
    assert tokens.nth(2).get_attribute("aria-label").endswith("no expert")
    for place, choices, runners_up in [(0, 2, 2), (1, 1, 2), (2, 1, 0)]:
        tokens.nth(place).hover()
        lists = page.locator("#token-detail ol")
        assert lists.nth(0).locator("li").count() == choices
        assert lists.count() == (2 if runners_up else 1)
    assert "no expert works on this token" in page.locator("#token-detail").text_content()
    assert page.said == []


def test_writing_from_right_to_left_reorders_no_other_token(browser, tmp_path) -> None:
    """An override in a token, and names of files that plotly would read as markup or placeholders."""
    words = ["a", "\u202eb", "\u05d0\u05d1", "\x07c", "d"]
    pieces = Pieces(tokenizers.Tokenizer(tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [])))
    trace, other = random_trace(tokens=400), random_trace(1, tokens=400)
    name = 'a%{x}<a href="https:evil">c</a>'
    subject = Subject(inspect_trace(trace, other=other), name, pieces, name + "2")
    (tmp_path / "t.html").write_bytes(trace_report(subject))
    page = opened(browser, tmp_path / "t.html")
    tokens = page.locator("#text-body .token")
    text = "".join(tokens.all_text_contents())
    assert "\u202e" not in text and "\x07" not in text
    assert "<U+202E>b" in text and "<U+0007>c" in text
    assert tokens.first.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    # Boxes of a line follow each other from left to right, in the order of the text.
    boxes = [tokens.nth(i).bounding_box() for i in range(12)]
    lines = [(a, b) for a, b in itertools.pairwise(boxes) if abs(a["y"] - b["y"]) < 2]
    assert all(a["x"] < b["x"] for a, b in lines)
    assert page.locator(".plot a").count() == 0
    assert name.replace("%{", "%\u200b{") in page.locator("#both-max-vio .legend").first.text_content()
    assert page.said == []


def test_a_trace_of_single_tokens_and_of_idle_layers_has_a_page(browser, tmp_path) -> None:
    header = TraceHeader(
        num_experts=4, top_k=2, layers=(0, 1), fields=("weights", "entropy", "margin"), empty_slots=True
    )
    used, idle = np.array([[0, 1], [2, 4]] * 15, np.uint8), np.full((30, 2), 4, np.uint8)
    half = np.full(30, 0.5, np.float16)
    columns = tuple(
        LayerColumns(ids, weights=(ids < 4).astype(np.float16), entropy=half, margin=half)
        for ids in (used, idle)
    )
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(30, sequence=np.arange(30)), columns)])
    subject = Subject(inspect_trace(trace), "t")
    for kind in ("md", "json", "png", "html"):
        (tmp_path / f"t.{kind}").write_bytes(trace_report(subject, kind))
    page = opened(browser, tmp_path / "t.html")
    assert "layer 1 chose no expert" in page.locator("body").text_content().replace("Layer", "layer")
    assert "No token follows another" in page.locator("body").text_content()
    assert "every token visits up to 2 of 4 experts" in page.locator("body").text_content()
    assert page.said == []
