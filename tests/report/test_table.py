"""Tables in HTML and Markdown."""

import pytest

from moeworks.report.table import Table, number, plain_markdown

HOSTILE = "<script>|`a`"


def test_both_writings():
    table = Table("Load", ["layer", "dead"], [["layer 0", 3], [HOSTILE, 4]])
    assert table.markdown() == (
        "**Load**\n\n| layer | dead |\n| --- | ---: |\n| layer 0 | 3 |\n| \\<script\\>\\|\\`a\\` | 4 |\n"
    )
    html = table.html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert 'scope="row"' in html


def test_columns_of_words():
    assert "| --- | --- | ---: |" in Table("x", ["a", "b", "c"], [], words=2).markdown()


def test_a_cell_is_one_line():
    assert plain_markdown("a\n\n b\t*c*") == "a b \\*c\\*"


@pytest.mark.parametrize(
    ("value", "text"), [(0.125, "0.12"), (1234.5, "1,234.50"), (None, "–"), (float("nan"), "–"), (3, "3.00")]
)
def test_numbers(value, text):
    assert number(value) == text
