"""HTML pieces escape what they are given."""

import json
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from moeworks.report.fragments import Panel, card, details, escape, grid, script_json, section, table

HOSTILE = "</script><script>alert('x')</script> \" onload=\"y & <!--"


class Tags(HTMLParser):
    """Collects start tags, attribute values and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser


PANEL = Panel("loss", "Loss", "Lower.", "Falls.", {"data": [{"x": ["0", "1"]}], "layout": {}})


@given(st.text())
def test_escaped_text_reads_as_it_was(text: str) -> None:
    safe = parse(f'<p title="{escape(text)}">x</p>')
    assert safe.tags == ["p"]
    # HTML parsers turn carriage returns and NULs in a document into other characters.
    if not set(text) & set("\r\0"):
        assert safe.attributes == [("title", text)]


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_script_json_survives_and_cannot_end_its_element(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&")


def test_a_hostile_table_has_no_foreign_tags() -> None:
    html = parse(table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, HOSTILE], ["b", 3]], numbers=[1]))
    assert html.tags == [
        "div",
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        "tr",
        "th",
        "td",
        "tr",
        "th",
        "td",
    ]
    assert html.text.count(HOSTILE) == 3
    assert html.attributes.count(("class", "number")) == 3
    assert ("aria-label", HOSTILE) in html.attributes
    assert ("tabindex", "0") in html.attributes


def test_a_hostile_card_has_no_foreign_tags() -> None:
    html = parse(card(replace(PANEL, title=HOSTILE, caption=HOSTILE, alt=HOSTILE)))
    assert html.tags == ["figure", "h3", "figcaption", "div", "div"]
    assert ("aria-label", HOSTILE) in html.attributes


def test_a_plot_has_a_text_alternative() -> None:
    attributes = parse(card(PANEL)).attributes
    assert ("role", "img") in attributes
    assert ("aria-label", "Falls.") in attributes
    assert ("id", "loss") in attributes


def test_only_wide_heat_maps_scroll_sideways() -> None:
    def style(columns: int) -> list[str | None]:
        figure = {"data": [{"x": [str(i) for i in range(columns)]}], "layout": {}, "frames": []}
        return [
            value for name, value in parse(card(replace(PANEL, figure=figure))).attributes if name == "style"
        ]

    assert style(64) == []
    assert style(256) == ["min-width:1024px"]


def test_a_grid_leaves_no_hole() -> None:
    assert 'class="grid three"' in grid([PANEL] * 3)
    assert 'class="grid two"' in grid([PANEL] * 4)
    assert 'class="grid two"' in grid([PANEL] * 5)


def test_a_section_without_content_is_left_out() -> None:
    assert section("a", "A", "intro", "", "") == ""
    html = parse(section("a", HOSTILE, HOSTILE, "<hr>"))
    assert html.tags == ["section", "h2", "p", "hr"]


def test_details_escape_their_summary() -> None:
    assert parse(details(HOSTILE, "<hr>")).tags == ["details", "summary", "hr"]
