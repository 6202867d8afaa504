"""Findings as HTML."""

from moeworks.analyse.verdicts import Verdict
from moeworks.report.verdict import verdict_list


def test_verdicts_are_told_apart_by_words_and_escaped() -> None:
    html = verdict_list([Verdict("good", "a < b", "r & s"), Verdict("problem", "c", "d")])
    assert "✓</span> Good" in html
    assert "✕</span> Problem" in html
    assert "a &lt; b<small>r &amp; s</small>" in html
    assert verdict_list([]) == ""


def test_advice_is_part_of_the_finding() -> None:
    html = verdict_list([Verdict("look", "a", "b", "do <this>")])
    assert 'a<p class="advice">do &lt;this&gt;</p><small>b</small>' in html
