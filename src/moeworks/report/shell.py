"""The frame of every page: one HTML file that needs nothing else, not even a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from moeworks.report.fragments import Panel, escape, script_json
from moeworks.report.theme import SEQUENTIAL, template


@dataclass(frozen=True)
class PageWords:
    """What stands above and below the content; plain text but for `footer`, which is HTML."""

    kind: str
    state: str
    title: str
    subtitle: str
    footer: str


def asset(name: str) -> str:
    """The text of a file in assets/."""
    return (files("moeworks.report") / "assets" / name).read_text(encoding="utf-8")


def fill_page(
    words: PageWords,
    headline: str,
    body: str,
    panels: Sequence[Panel],
    data: dict[str, object] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """The whole HTML. `data` is what the `scripts`, names of assets, find beside the panels' figures."""
    payload = {
        "figures": {panel.key: panel.figure for panel in panels},
        "themes": {name: template(name) for name in ("light", "dark")},
        "sequential": SEQUENTIAL,
        **(data or {}),
    }
    return Template(asset("page.html")).substitute(
        kind=escape(words.kind),
        title=escape(words.title),
        subtitle=escape(words.subtitle),
        state=escape(words.state),
        headline=headline,
        body=body,
        footer=words.footer,
        style=asset("page.css") + (asset("trace.css") if scripts else ""),
        data=script_json(payload),
        plotly=get_plotlyjs(),
        script="\n".join(asset(name) for name in ("page.js", *scripts)),
    )
