"""The page of a trace: everything about its routing in one HTML file."""

from collections.abc import Sequence
from typing import Any

from moeworks.analyse.verdicts import judge_trace
from moeworks.analyse.verdicts.words import plural, short_number
from moeworks.report.fragments import Panel, card, details, escape, grid, section, tile, tile_list
from moeworks.report.shell import PageWords, asset, fill_page
from moeworks.report.table import Table
from moeworks.report.trace import panels, tables
from moeworks.report.trace.controls import (
    domain_cards,
    expert_card,
    graph,
    metric_list,
    readout,
    text_view,
)
from moeworks.report.trace.domain_panels import domain_panels
from moeworks.report.trace.payload import trace_payload
from moeworks.report.trace.subject import Subject
from moeworks.report.verdict import verdict_list

SCRIPTS = ("trace.js", "trace_map.js", "trace_card.js", "trace_text.js", "trace_domains.js", "trace_graph.js")


def build_trace_page(subject: Subject) -> str:
    """The HTML of the report of a trace."""
    body, drawn = _body(subject)
    header = subject.inspection.header
    words = PageWords(
        kind="Routing report",
        state=f"compared with {subject.other_name}" if subject.inspection.comparison else "one trace",
        title=subject.name,
        subtitle=_subtitle(subject),
        footer=f"{escape(header.model)} · recorded by {escape(header.engine)}",
    )
    data: dict[str, Any] = {"trace": trace_payload(subject)}
    return fill_page(words, _headline(subject), body, drawn, data, SCRIPTS)


def _subtitle(subject: Subject) -> str:
    header = subject.inspection.header
    return (
        f"Which experts worked on which token: every token visits {subject.choices} of"
        f" {plural(header.num_experts, 'expert')} in each of {plural(len(header.layers), 'MoE layer')}."
    )


def _headline(subject: Subject) -> str:
    inspection = subject.inspection
    header = inspection.header
    assignments = int(inspection.experts.assignments.sum())
    domains = max(len(subject.domains), 1)
    return tile_list(
        [
            tile(short_number(inspection.tokens), "tokens", "Pieces of text, a few letters each."),
            tile(f"{inspection.documents:,}", "documents", f"Texts, of {plural(domains, 'kind')}."),
            tile(f"{len(header.layers)}", "MoE layers", "Each has experts and a router of its own."),
            tile(
                f"{header.num_experts}", "experts", f"In each layer; {subject.choices} of them for a token."
            ),
            tile(short_number(assignments), "assignments", "Choices of one expert for one token."),
        ]
    )


def _body(subject: Subject) -> tuple[str, list[Panel]]:
    """The sections in reading order, and the figures that they hold."""
    chart = panels.map_panel(subject)
    domains, no_domains = domain_panels(subject)
    compared, load = panels.comparison_panels(subject), panels.load_panels(subject)
    knowledge, follows = panels.knowledge_panels(subject), panels.consistency_panels(subject)
    sure = panels.confidence_panels(subject)
    sections = [
        section("words", "In words", "", verdict_list(judge_trace(subject.inspection))),
        asset("guide.html"),
        section(
            "comparison", "Two traces side by side",
            f"This trace, {subject.name}, and {subject.other_name}, layer by layer.", _grid(compared),
            _side_by_side(subject),
        ),
        section(
            "experts", "Experts", "", card(chart, metric_list(subject), readout()), expert_card(subject)
        ),
        section("text", "Token by token", "", text_view(subject)),
        section("balance", "Balance", "", _grid(load)),
        section(
            "domain", "Specialisation",
            "A domain is a kind of text: a folder, a file or a label of the data.",
            *domain_cards(subject, domains), no_domains, _grid(knowledge), _token_list(subject),
        ),
        section("graph-title", "Who works with whom?", "", graph(subject)),
        section("consistency", "Along the text", "", _grid(follows)),
        section("confidence", "The router's confidence", "", _grid(sure)),
        section("about", "About this trace", "", _about(subject)),
    ]  # fmt: skip
    shown = [*compared, *load, *knowledge, *follows, *sure]
    return "".join(sections), [chart, *domains, *(one.panel for one in shown if one.panel is not None)]


def _grid(shown: Sequence[panels.Card]) -> str:
    return grid(one.html for one in shown) if shown else ""


def _token_list(subject: Subject) -> str:
    table = tables.expert_token_table(subject)
    return "" if table is None else details(table.label, table.html())


def _side_by_side(subject: Subject) -> str:
    """Domain specialisation of both traces."""
    table = tables.domain_comparison_table(subject)
    return "" if table is None or not table.rows else details(table.label, table.html())


def _about(subject: Subject) -> str:
    found: list[Table | None] = [tables.identity_table(subject), tables.finding_table(subject)]
    content = "".join(table.html() for table in found if table is not None)
    return f'<div class="card">{content}</div>'
