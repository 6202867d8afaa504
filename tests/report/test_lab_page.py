"""A lab's HTML page, its Markdown and the index."""

import json
import re
from html.parser import HTMLParser

import pytest
from lab_records import record, results

from moeworks.errors import DataError
from moeworks.labs.experiments import LABS
from moeworks.labs.results import Results
from moeworks.labs.summary import LabSummary, read_summary, summarise
from moeworks.report.lab_docs import index_markdown, lab_markdown, write_index, write_lab_docs
from moeworks.report.lab_page import build_lab_page, write_lab_page
from moeworks.report.lab_words import narrow_table, table_header, table_rows


def summary(name: str, *, quick: bool = False) -> LabSummary:
    return summarise(LABS[name], results(LABS[name]), {"seeds": "4"}, quick=quick)


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", LABS)
def test_page(tmp_path, name: str) -> None:
    found = summary(name)
    path = write_lab_page(tmp_path, found)
    page = path.read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert path.name == "report.html"
    assert len(page) < 400_000
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    for row in table_rows(found):
        assert row[0] in page


def test_film_has_its_data() -> None:
    page = build_lab_page(summary("balance"))
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert data
    film = json.loads(data[1])["films"]["film"]
    assert len(film["load"]) == 3 and len(film["load"][0]) == len(film["frames"])


def test_quick_page_says_so(tmp_path) -> None:
    path = write_lab_page(tmp_path, summary("shared", quick=True))
    assert path.name == "report-quick.html"
    assert "a quick run" in path.read_text()


def test_text_is_escaped() -> None:
    lab = LABS["shared"]
    found = summarise(lab, results(lab), {"texts": "<script>alert(1)</script>"}, quick=False)
    assert "<script>alert" not in build_lab_page(found)


def test_table_names_divergence() -> None:
    lab = LABS["stability"]
    rows = [record(arm.name, 0, None if n == 1 else 2.0) for n, arm in enumerate(lab.arms)]
    found = summarise(lab, Results(rows, [a.name for a in lab.arms], lab.baseline), {}, quick=False)
    assert table_header(found)[-1] == "diverged"
    table = table_rows(found)
    assert [row[-1] for row in table][:3] == ["0 of 1", "1 of 1", "0 of 1"]
    assert "–" in table[1]
    assert all(len(row) == len(table_header(found)) for row in table)


def test_docs(tmp_path) -> None:
    found = [summary("shared"), summary("balance")]
    for one in found:
        write_lab_docs(tmp_path / one.name, one)
        assert read_summary(tmp_path / one.name) == one
        page = (tmp_path / one.name / "README.md").read_text()
        pictures = re.findall(r"\]\((\S+\.svg)\)", page)
        assert len(pictures) == len(one.figures)
        assert all((tmp_path / one.name / picture).is_file() for picture in pictures)
    index = write_index(tmp_path, found).read_text()
    for link in re.findall(r"\]\((\S+)\)", index):
        assert (tmp_path / link).is_file()


def test_docs_never_replace_a_page_that_is_not_theirs(tmp_path) -> None:
    one = summary("shared")
    for write, folder in (
        (write_lab_docs, tmp_path / "a"),
        (lambda f, s: write_index(f, [s]), tmp_path / "b"),
    ):
        write_index(tmp_path, [one])
        folder.mkdir()
        (folder / "README.md").write_text("# My project")
        with pytest.raises(DataError, match=r"README\.md: exists and is no page of a lab"):
            write(folder, one)
        assert [path.name for path in folder.iterdir()] == ["README.md"]
        assert (folder / "README.md").read_text() == "# My project"


def test_markdown_tables_have_equal_columns() -> None:
    text = lab_markdown(summary("balance")) + index_markdown([summary("balance")])
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in block.strip().splitlines()}) == 1


def test_narrow_table_keeps_the_numbers() -> None:
    found = summary("balance")
    header, rows = narrow_table(found)
    assert header[:4] == ["arm", "FLOPs a token", "CPU s", "bits per byte"]
    assert header[-1] == table_header(found)[-1]
    assert all(len(row) == len(header) for row in rows)
    assert [row[-1] for row in rows] == [row[-1] for row in table_rows(found)]
