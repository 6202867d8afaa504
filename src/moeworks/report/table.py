"""Tables that a page shows as HTML and a text as Markdown: the words behind every figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from moeworks.report import fragments


@dataclass(frozen=True)
class Table:
    """The first column names the rows."""

    label: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    """The first columns hold words; those behind them numbers, aligned to the right."""

    def html(self) -> str:
        """The table in a box that scrolls."""
        numbers = range(self.words, len(self.header))
        return fragments.table(self.label, self.header, self.rows, numbers=numbers)

    def markdown(self) -> str:
        """The table as GitHub's Markdown has it."""
        marks = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        lines = [[plain_markdown(value) for value in line] for line in (self.header, *self.rows)]
        lines.insert(1, marks)
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{plain_markdown(self.label)}**\n\n{body}\n"


def plain_markdown(value: object) -> str:
    """`value` as one line of Markdown without markup, also inside a table."""
    text = " ".join(str(value).split())
    for character in "\\`*_<>[]|":
        text = text.replace(character, "\\" + character)
    return text


def number(value: object, digits: int = 2) -> str:
    """A figure of a table: 0.123 -> "0.12"; "–" for NaN and None."""
    if value is None:
        return "–"
    exact = float(value)  # pyrefly: ignore[bad-argument-type]
    return "–" if exact != exact else f"{exact:,.{digits}f}"
