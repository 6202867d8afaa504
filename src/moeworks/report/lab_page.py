"""The report of a lab: one small HTML page that needs nothing else."""

from importlib.resources import files
from pathlib import Path
from string import Template

from moeworks.files import write_atomically
from moeworks.labs.figures import Figure, Film
from moeworks.labs.summary import LabSummary, variant
from moeworks.report.fragments import escape, script_json, section, table
from moeworks.report.lab_svg import draw, heat_color
from moeworks.report.lab_words import VERDICTS, evidence_line, seeds_note, table_header, table_rows

_LEVELS = {"held": "good", "failed": "problem", "undecided": "look"}


def write_lab_page(folder: Path, summary: LabSummary) -> Path:
    """Write report.html into the lab's folder, named like the results that it shows, and return its path."""
    path = folder / f"report{variant(summary)}.html"
    write_atomically(path, build_lab_page(summary).encode())
    return path


def build_lab_page(summary: LabSummary) -> str:
    """The HTML of a lab's report."""
    films = {figure.key: figure for figure in summary.figures if isinstance(figure, Film)}
    body = [
        section("judgement", "Judgement", "", _judgement(summary)),
        section("numbers", "Numbers", seeds_note(summary), _table(summary)),
        section("pictures", "Pictures", "", *(_card(figure) for figure in summary.figures)),
        section("setting", "Setting", "", _setting(summary)),
    ]
    colors = [heat_color(step / 100) for step in range(301)]
    data = {
        "colors": colors,
        "films": {key: {"frames": film.frames, "load": film.load} for key, film in films.items()},
    }
    return Template(_asset("lab.html")).substitute(
        title=escape(f"lab {summary.name}"),
        state="a quick run" if summary.quick else VERDICTS[summary.judgement.verdict],
        claim=escape(summary.claim),
        source=escape(summary.source),
        question=escape(summary.question),
        body="".join(body),
        style=_asset("page.css"),
        data=script_json(data),
        script=_asset("lab.js") if films else "",
    )


def _judgement(summary: LabSummary) -> str:
    judgement = summary.judgement
    items = "".join(
        f'<li class="{_LEVELS[item.verdict]}"><span class="badge">{escape(item.verdict)}</span>'
        f"<div>{escape(evidence_line(item))}</div></li>"
        for item in judgement.evidence
    )
    note = f"<p>{escape(judgement.note)}</p>" if judgement.note else ""
    return (
        f"<p>The claim <strong>{escape(VERDICTS[judgement.verdict])}</strong>.</p>"
        f'<ul class="verdicts">{items}</ul>{note}'
    )


def _table(summary: LabSummary) -> str:
    header = table_header(summary)
    return table("All arms", header, table_rows(summary), numbers=range(2, len(header)))


def _card(figure: Figure) -> str:
    player = _player(figure) if isinstance(figure, Film) else ""
    return (
        f'<figure class="card"><h3>{escape(figure.title)}</h3><figcaption>{escape(figure.caption)}'
        f'</figcaption><div class="scroll">{draw(figure)}</div>{player}</figure>'
    )


def _player(film: Film) -> str:
    """A slider over all frames, and a grid for each arm that the page's script fills."""
    last = len(film.frames) - 1
    grids = "".join(
        f'<h4>{escape(name)}</h4><div class="film" data-film="{film.key}" data-arm="{arm}"></div>'
        for arm, name in enumerate(film.names)
    )
    return (
        '<div class="controls"><button type="button" class="play">▶ Play</button>'
        f'<label for="slide-{film.key}">Training</label><input type="range" id="slide-{film.key}"'
        f' class="slide" data-film="{film.key}" min="0" max="{last}" value="{last}"><output></output></div>'
        + grids
    )


def _setting(summary: LabSummary) -> str:
    return table("Setting", ("what", "value"), [(fact.name, fact.value) for fact in summary.setting])


def _asset(name: str) -> str:
    return (files("moeworks.report") / "assets" / name).read_text(encoding="utf-8")
