"""Verdicts as every page shows them."""

from collections.abc import Sequence

from moeworks.analyse.verdicts import Level, Verdict
from moeworks.report.fragments import escape
from moeworks.report.table import plain_markdown

LEVELS: dict[Level, tuple[str, str]] = {
    "good": ("✓", "Good"),
    "look": ("!", "Look"),
    "problem": ("✕", "Problem"),
    "note": ("i", "Note"),
}
"""The sign and the word of each level: colour is never the only mark."""


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as an HTML list; empty where there is none."""
    items = []
    for verdict in verdicts:
        sign, word = LEVELS[verdict.level]
        badge = f'<span class="badge"><span aria-hidden="true">{sign}</span> {word}</span>'
        advice = f'<p class="advice">{escape(verdict.advice)}</p>' if verdict.advice else ""
        words = f"{escape(verdict.text)}{advice}<small>{escape(verdict.rule)}</small>"
        items.append(f'<li class="{verdict.level}">{badge}<div>{words}</div></li>')
    return f'<ul class="verdicts">{"".join(items)}</ul>' if items else ""


def verdict_lines(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a list in Markdown."""
    words = [" ".join(filter(None, (one.text, one.advice, f"({one.rule})"))) for one in verdicts]
    return "".join(
        f"- **{LEVELS[one.level][1]}:** {plain_markdown(text)}\n"
        for one, text in zip(verdicts, words, strict=True)
    )
