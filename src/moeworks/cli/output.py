"""What every verb prints with: one console, tables for people, JSON for programs.

No text is ever taken for markup: names of domains, files and tokens may hold brackets, `:smile:` and control
characters. Styles are given apart, as `style=` or in a rich Text.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from moeworks.cli.streams import is_quiet, result_stream
from moeworks.records import json_text

PIPED_WIDTH = 240
"""Columns where no terminal limits them: the widest table, intervals of a lab in every column, fits."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen(Console):
    """A rich console that takes text as text, and does not cut or wrap what goes to a pipe or file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if not self.is_terminal:
            self.width = max(self.width, PIPED_WIDTH)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print `objects`; lines of plain text are left to the terminal to wrap, so that paths can be
        copied."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(item, str | Text) for item in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of `renderable`, in which control characters are visible and do nothing."""
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(visible_controls(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Streams decide about readers that went away, not rich, which would leave with code 1."""


def console(*, stderr: bool = False, quiet: bool = False) -> Screen:
    """The console of standard output, or of standard error, which --quiet silences."""
    return Screen(stderr=stderr, quiet=quiet or (stderr and is_quiet()))


def visible_controls(text: str) -> str:
    r"""`text` with a visible mark in the place of each control character but tab and line feed.

    >>> visible_controls("a\x1b[2Jb\n")
    'a␛[2Jb\n'
    """
    return _CONTROL.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def write_text(text: str) -> None:
    """Write a model's text to standard output at once: as it is, but harmless to a terminal."""
    sys.stdout.write(visible_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(record: Mapping[str, Any] | list[Any]) -> None:
    """One JSON object, or a list of them, on standard output; NaN and the infinities are null."""
    stream = result_stream()
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    stream.write(json_text(record, ascii_only=not encoding.startswith("utf")) + "\n")


def progress_bar(*columns: ProgressColumn, transient: bool = True, shown: bool = True) -> Progress:
    """A bar on a terminal's standard error; nothing elsewhere, with --quiet, or unless `shown`."""
    screen = console(stderr=True)
    return Progress(*columns, console=screen, transient=transient, disable=not (shown and screen.is_terminal))


def text_column(template: str) -> TextColumn:
    """A column of a bar, as rich.progress.TextColumn formats it, without markup."""
    return TextColumn(template, markup=False)


def usual_columns(template: str) -> tuple[ProgressColumn, ...]:
    """A text, a bar and the time."""
    return (text_column(template), BarColumn(bar_width=20), TimeElapsedColumn())


def facts(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """A table of names, values and explanations."""
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value, about in rows:
        table.add_row(name, Text(value, style="bold"), Text(about, style="dim"))
    return table


def grid(title: str, header: Iterable[str], rows: Iterable[Iterable[str]], *, names: int = 1) -> Table:
    """A table with a header; its first `names` columns are left-aligned, the others right. Nothing wraps."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < names else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def notes(rows: Iterable[tuple[str, str]], style: str = "dim") -> Table:
    """Names and sentences, which wrap beside their names."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, words in rows:
        table.add_row(name, Text(words, style=style))
    return table
