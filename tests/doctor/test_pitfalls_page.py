"""docs/pitfalls.md and the checks tell the same; pages that the code names are there."""

import re
from pathlib import Path

import pytest

from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.pitfalls import PITFALLS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "pitfalls.md").read_text("utf-8")
SECTIONS = {
    int(number): text for number, text in re.findall(r"### Pitfall (\d+)\n(.*?)(?=\n##|\Z)", PAGE, re.S)
}


def test_the_page_has_every_pitfall_and_no_other():
    assert list(SECTIONS) == sorted(PITFALLS)


@pytest.mark.parametrize("number", PITFALLS)
def test_a_section_names_the_pitfall_its_checks_and_tests(number):
    section = SECTIONS[number]
    assert PITFALLS[number][1:] in section
    assert "*How it shows:*" in section
    checks = re.search(r"Checks: ([^.]*)\.", section)
    assert checks is not None
    assert re.findall("`([^`]+)`", checks[1]) == [c.name for c in INVARIANTS if number in c.pitfalls]
    for file in re.findall("`(tests/[^`]+)`", section):
        names = re.findall(
            r"^def test_pitfall_(\d\d)(?:_and_(\d\d))?", (ROOT / file).read_text("utf-8"), re.M
        )
        assert f"{number:02}" in {part for pair in names for part in pair}


def test_pages_that_the_code_names_exist():
    named = {
        path
        for file in (ROOT / "src").rglob("*.py")
        for path in re.findall(r"\bdocs/[\w/.-]+\.md\b", file.read_text("utf-8"))
    }
    assert "docs/pitfalls.md" in named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
