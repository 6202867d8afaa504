"""Pieces of HTML. Everything that comes from a run passes through html.escape here."""

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moeworks.report.theme import Figure


def escape(text: object) -> str:
    """`text` as HTML text or a quoted attribute."""
    return html.escape(str(text), quote=True)


def inert(text: str) -> str:
    """`text` as plotly draws it letter by letter: neither its pseudo-HTML nor a placeholder of a template."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")


@dataclass(frozen=True)
class Panel:
    """A figure with its words. `key` names it in the page; `alt` is its text alternative."""

    key: str
    title: str
    caption: str
    alt: str
    figure: Figure


def plot(panel: Panel) -> str:
    """The place where the page's script draws the figure."""
    columns = len(panel.figure["data"][0]["x"]) if "frames" in panel.figure else 0
    # So many experts that a cell would be thinner than 4 pixels: the map scrolls sideways instead.
    width = f' style="min-width:{4 * columns}px"' if columns > 64 else ""
    return (
        f'<div class="scroll"><div class="plot" id="{panel.key}" role="img" aria-label="{escape(panel.alt)}"'
        f"{width}></div></div>"
    )


def card(panel: Panel, controls: str = "", after: str = "") -> str:
    """A figure with title, caption and perhaps controls above and a table below."""
    wide = " wide" if "frames" in panel.figure else ""
    return (
        f'<figure class="card{wide}"><h3>{escape(panel.title)}</h3>'
        f"<figcaption>{escape(panel.caption)}</figcaption>{controls}{plot(panel)}{after}</figure>"
    )


def absent_card(title: str, why: str) -> str:
    """In the place of a figure that cannot be drawn: why, and what it needs."""
    return f'<div class="card absent"><h3>{escape(title)}</h3><p>{escape(why)}</p></div>'


def grid(panels: Iterable[Panel | str]) -> str:
    """Cards side by side, of panels or as HTML: three abreast if that leaves no hole, else two."""
    cards = [panel if isinstance(panel, str) else card(panel) for panel in panels]
    abreast = "three" if len(cards) % 3 == 0 else "two"
    return f'<div class="grid {abreast}">{"".join(cards)}</div>'


def section(key: str, title: str, intro: str, *content: str) -> str:
    """A section of the page; empty when all of its content is."""
    if not any(content):
        return ""
    intro = f'<p class="intro">{escape(intro)}</p>' if intro else ""
    heading = f'<h2 id="{key}">{escape(title)}</h2>{intro}'
    return f'<section aria-labelledby="{key}">{heading}{"".join(content)}</section>'


def tile(value: str, name: str, words: str) -> str:
    """One number that counts, with its name and a sentence."""
    content = f"<b>{escape(value)}</b><span>{escape(words)}</span>"
    return f'<div class="tile"><dt>{escape(name)}</dt><dd>{content}</dd></div>'


def tile_list(tiles: Iterable[str]) -> str:
    """Tiles side by side."""
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def table(
    label: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()
) -> str:
    """A table whose first column names its rows. `numbers` are the right-aligned columns."""
    right = set(numbers)
    cells = [f'<th scope="col"{_number(i in right)}>{escape(name)}</th>' for i, name in enumerate(header)]
    body = []
    for row in rows:
        first, *rest = row
        values = "".join(f"<td{_number(i in right)}>{escape(value)}</td>" for i, value in enumerate(rest, 1))
        body.append(f'<tr><th scope="row">{escape(first)}</th>{values}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(right: bool) -> str:
    return ' class="number"' if right else ""


def details(summary: str, content: str) -> str:
    """Content that opens on request."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def script_json(value: object) -> str:
    """JSON that can stand inside a script element: no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
