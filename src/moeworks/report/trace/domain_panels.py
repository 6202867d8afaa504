"""The panels on domains, which the page's script fills for the layer and the domain that is chosen."""

from moeworks.report.fragments import Panel, absent_card, inert
from moeworks.report.heat_map import colorbar, heat_map, row_height, rows
from moeworks.report.lines import axis, line_figure
from moeworks.report.theme import SATURATION, Figure
from moeworks.report.trace.absent import why_absent
from moeworks.report.trace.subject import Subject, drawn_domains


def draw_preferences(subject: Subject) -> Figure:
    """Domain x expert of the first layer."""
    table = subject.inspection.analysis.domains
    assert table is not None
    drawn = drawn_domains(subject)
    values = table.preference()[0][:, drawn].T
    return heat_map(
        [str(i) for i in range(values.shape[1])],
        [inert(subject.domains[place]) for place in drawn],
        [],
        {"data": [{"type": "heatmap", "z": rows(values, 3)}]},
        150 + len(drawn) * row_height(len(drawn)),
        zmin=0,
        zmax=SATURATION,
        hovertemplate="Expert %{x} in %{y}: %{z:.3g} times its share of all text<extra></extra>",
        colorbar=colorbar("times its share of all text", (0, 1, 2, 3), ("0", "1", "2", "3 +")),
    )


def draw_strip(subject: Subject) -> Figure:
    """Share of a domain's tokens by expert, its null band, and the words' share; empty until it is filled."""
    band = {
        "type": "bar", "name": "chance: labels permuted over documents", "x": [], "y": [], "base": [],
        "marker": {"color": "rgba(139,146,155,0.45)"}, "hoverinfo": "skip",
    }  # fmt: skip
    base = {"type": "scatter", "mode": "markers", "x": [], "y": [], "hovertemplate": "%{y:.2%}"}
    point = base | {"name": "this domain", "marker": {"size": 8, "symbol": "circle"}}
    words = base | {"name": "its words alone", "marker": {"size": 8, "symbol": "diamond-open"}}
    share = axis("share of the domain's tokens", tickformat=".0%", rangemode="tozero")
    figure = line_figure(
        [band, point, words], "share", "", "expert", yaxis=share, bargap=0.25, hovermode="x unified"
    )
    figure["layout"]["xaxis"] = axis("expert")
    return figure


def domain_panels(subject: Subject) -> tuple[list[Panel], str]:
    """The two panels, or none and the sentence that says why."""
    table = subject.inspection.analysis.domains
    if table is None:
        return [], absent_card("Which expert reads what?", why_absent(subject)["domains"])
    left = len(table.domains) - len(drawn_domains(subject))
    more = f" The {left} smallest domains are left out." if left else ""
    chart = Panel(
        "preferences",
        "Which expert reads what?",
        "Each row is a kind of text, each cell an expert of the layer: its share of that text over its share"
        f" of all. Neutral is no preference, orange more, blue less.{more}",
        "Heat map of domain by expert for the chosen layer. The table of strongest preferences is below.",
        draw_preferences(subject),
    )
    strip = Panel(
        "strip",
        "More than chance?",
        "Points are the share of the domain's tokens that an expert works on. The grey band holds 95 % of"
        " what chance gives; orange points lie above it, blue ones below: one in twenty does by chance."
        " A diamond is what a router would do"
        " that knows the words and nothing else.",
        "Shares of the chosen domain by expert, with the band that chance gives.",
        draw_strip(subject),
    )
    return [chart, strip], ""
