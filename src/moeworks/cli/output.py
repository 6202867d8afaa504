"""What the verbs share that print records: as tables for people, as JSON for programs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 160


def as_record(value: Any) -> Any:
    """`value` for json.dumps: dataclasses become objects, with their `total` where they have one."""
    if is_dataclass(value) and not isinstance(value, type):
        record = {field.name: as_record(getattr(value, field.name)) for field in fields(value)}
        return record | ({"total": value.total} if hasattr(value, "total") else {})  # pyrefly: ignore
    if isinstance(value, Mapping):
        return {str(key): as_record(item) for key, item in value.items()}
    return [as_record(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_json(record: Mapping[str, Any] | list[Any]) -> None:
    """One JSON object, or a list of them, on standard output."""
    print(json.dumps(record, indent=2, ensure_ascii=False))


def console() -> Console:
    """A console that does not squeeze tables when its output goes to a pipe."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, PIPED_WIDTH)
    return made


def facts(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """A table of names, values and explanations."""
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value, about in rows:
        table.add_row(name, Text(value, style="bold"), Text(about, style="dim"))
    return table


def grid(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table with a header whose first column is names and whose others are right-aligned; nothing wraps."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
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
