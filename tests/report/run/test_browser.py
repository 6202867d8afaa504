"""The page in a real browser, headless and without a network."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moeworks.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

RunMaker = Callable[..., Path]
Z = "id => document.getElementById(id).data[0].z"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(moe_run: Path) -> str:
    return write_report(moe_run).as_uri()


class Visit:
    """A page, opened, with what it said and asked for."""

    def __init__(self, browser: object, url: str, **options: object) -> None:
        self.page = browser.new_context(**options).new_page()  # pyrefly: ignore[missing-attribute]
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)


@pytest.fixture(scope="module")
def visit(browser: object, report: str) -> Visit:
    return Visit(browser, report, viewport={"width": 1200, "height": 900}, color_scheme="light")


def test_the_page_loads_without_complaints_and_without_a_network(visit: Visit) -> None:
    assert visit.page.locator(".plot .main-svg").count() >= 11
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
    assert len(visit.requests) == 1


def test_the_slider_changes_the_load_map_and_says_where_it_is(visit: Visit) -> None:
    slider = visit.page.get_by_label("Training step")
    last = visit.page.evaluate(Z, "load")
    assert visit.page.locator("output").text_content() == "steps 291 to 300"
    slider.focus()
    visit.page.keyboard.press("Home")
    assert visit.page.locator("output").text_content() == "steps 1 to 10"
    first = visit.page.evaluate(Z, "load")
    assert first != last
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("output").text_content() == "steps 11 to 20"
    visit.page.keyboard.press("End")
    assert visit.page.evaluate(Z, "load") == last


def test_play_starts_over_runs_and_pauses(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Play").click()
    sync_api.expect(visit.page.locator("output")).to_have_text(re.compile("steps (?!1 |11 )"))
    visit.page.get_by_role("button", name="Pause").press("Enter")
    stopped = visit.page.get_by_label("Training step").input_value()
    visit.page.wait_for_timeout(600)
    assert visit.page.get_by_label("Training step").input_value() == stopped
    assert visit.page.get_by_role("button", name="Play").count() == 1


def test_the_layer_list_changes_map_and_table(visit: Visit) -> None:
    first = visit.page.evaluate(Z, "domains")
    tables = visit.page.locator(".by-layer")
    assert [tables.nth(i).is_visible() for i in range(4)] == [True, False, False, False]
    visit.page.get_by_label("Layer", exact=True).select_option("layer 2")
    assert visit.page.evaluate(Z, "domains") != first
    assert [tables.nth(i).is_visible() for i in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("figure", "words"),
    [("load", "times its fair share"), ("domains", "spread evenly"), ("loss", "nats per token")],
)
def test_hovering_shows_words(visit: Visit, figure: str, words: str) -> None:
    area = visit.page.locator(f"#{figure} .nsewdrag").first
    area.scroll_into_view_if_needed()
    area.hover()
    sync_api.expect(visit.page.locator(f"#{figure} .hoverlayer")).to_contain_text(words)


def test_colours_follow_the_theme_and_print_is_light(visit: Visit) -> None:
    color = "document.getElementById('load').layout.template.layout.font.color"
    light = visit.page.evaluate(color)
    visit.page.emulate_media(color_scheme="dark")
    tick = visit.page.locator("#load .xtick text").first
    sync_api.expect(tick).to_have_css("fill", "rgb(232, 233, 236)")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.evaluate(color) == light
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert visit.page.evaluate(color) != light
    visit.page.emulate_media(color_scheme="light")
    assert visit.complaints == []


def test_a_phone_needs_no_sideways_scrolling(browser: object, report: str) -> None:
    visit = Visit(browser, report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate("document.getElementById('load').layout.xaxis.dtick") == 4
    assert visit.complaints == []


@pytest.mark.parametrize(
    "options", [{"dense": True}, {"finished": False, "lines": 1}, {"finished": False, "lines": 12}]
)
def test_other_runs_load_without_complaints(
    browser: object, make_run: RunMaker, options: dict[str, object]
) -> None:
    visit = Visit(browser, write_report(make_run(**options)).as_uri())
    assert visit.page.locator(".plot .main-svg").count() >= 5
    assert visit.complaints == []


def test_hostile_text_runs_nothing(browser: object, make_run: RunMaker) -> None:
    text = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    visit = Visit(browser, write_report(make_run(text, sample=text, domains=(text, "email"))).as_uri())
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("h1").text_content() == text
    assert visit.page.locator("pre.sample").text_content() == "def " + text
    assert visit.complaints == []
