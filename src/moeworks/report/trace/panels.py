"""Which figures a trace gets, with their titles, captions, text alternatives and tables."""

from dataclasses import dataclass

from moeworks.analyse.verdicts.words import plural
from moeworks.report.fragments import Panel, absent_card, card, details
from moeworks.report.lines import describe_figure
from moeworks.report.table import Table
from moeworks.report.theme import Figure
from moeworks.report.trace import figures, tables
from moeworks.report.trace.absent import why_absent
from moeworks.report.trace.subject import Subject

_CHANCE = " The dashed line is chance."
_DEPTHS = " Colours run from the first layer (blue) to the last (pink)."


@dataclass(frozen=True)
class Card:
    """A card of the page, and the figure that it holds if it could be drawn."""

    html: str
    panel: Panel | None = None


def _card(
    key: str, title: str, caption: str, figure: Figure | None, table: Table | None, why: str = ""
) -> Card:
    if figure is None:
        return Card(absent_card(title, why or "The trace does not hold what this needs."))
    place = "layer" if figure["layout"]["xaxis"]["title"]["text"] == "layer" else "place"
    alt = f"{title}. {describe_figure(figure, place)}"
    if table is not None:
        alt += ". The table below has the numbers."
    panel = Panel(key, title, caption, alt, figure)
    return Card(card(panel, "", "" if table is None else details("The numbers", table.html())), panel)


def map_panel(subject: Subject) -> Panel:
    """The layer x expert map."""
    inspection = subject.inspection
    caption = (
        "Each row is a layer, each cell an expert. Choose what to see; click a cell, or move with the arrow"
        " keys and press Enter, for the card of that expert below."
    )
    alt = (
        f"Heat map of {plural(inspection.header.num_experts, 'expert')} in"
        f" {plural(len(subject.layers), 'MoE layer')}. The table of load has each layer."
    )
    return Panel("map", "Every expert at a glance", caption, alt, figures.draw_map(subject))


def load_panels(subject: Subject) -> list[Card]:
    """Balance, layer by layer."""
    return [
        _card(
            "max-vio", "Busiest expert by layer",
            "How far the busiest expert is above its fair share: 0 is perfect, 1 twice the share. Bars are"
            " intervals over documents, which hold for all layers together.",
            figures.draw_max_vio(subject), tables.load_table(subject),
        ),
        _card(
            "effective", "Experts in effect",
            "A balanced layer of this many experts would be as even as this one. The dashed line is all there"
            " are.",
            figures.draw_effective(subject), None,
        ),
    ]  # fmt: skip


def knowledge_panels(subject: Subject) -> list[Card]:
    """Bits about domains and words."""
    missing = why_absent(subject)
    caption = (
        "What knowing the expert tells about the text. Where the domain beyond the words is above 0, experts"
        " see the topic and not the token alone."
    )
    if "token ids" in missing:
        caption += " This trace has no token ids, so that only the domain as a whole is drawn."
    figure = figures.draw_information(subject)
    table = tables.information_table(subject)
    return [_card("information", "Words or topics?", caption, figure, table, missing.get("domains", ""))]


def consistency_panels(subject: Subject) -> list[Card]:
    """How routing follows the text."""
    curves = tables.curve_tables(subject)
    alone = "No token follows another in its sequence: record whole texts, as moeworks trace does."
    return [
        _card(
            "repeats", "Does the next token keep its experts?",
            "Share of experts that two neighbours have in common, with intervals over documents. What is"
            " above the dotted line comes from being near, not from the topic." + _CHANCE,
            figures.draw_repeats(subject), tables.consistency_table(subject), alone,
        ),
        _card(
            "lags", "How fast a text forgets",
            "Experts in common by distance." + _CHANCE + _DEPTHS,
            figures.draw_lags(subject), curves["lags"], alone,
        ),
        _card(
            "sets", "Working sets",
            "Different experts that some tokens in a row use: what must be in fast memory. The dashed line is"
            " even load without memory." + _DEPTHS,
            figures.draw_working_sets(subject), curves["sets"],
        ),
        _card(
            "drift", "Does the position matter?",
            "How the load at these positions differs from that elsewhere; the dashed line is what sampling"
            " alone gives." + _DEPTHS,
            figures.draw_drift(subject), curves["drift"],
            "It takes two ranges of positions with 500 tokens each: trace more or longer texts.",
        ),
    ]  # fmt: skip


def confidence_panels(subject: Subject) -> list[Card]:
    """How sure the router is."""
    missing, table = why_absent(subject), tables.confidence_table(subject)
    no_margin = missing.get("margin", "All experts are chosen, so that there is no margin.")
    band = "The line is the median token, the bands hold 50 % and 90 % of the tokens. "
    return [
        _card(
            "weights", "Who gets the weight?",
            "Mean share of a token's weight by rank. Equal bars mean that all choices count alike.",
            figures.draw_weights(subject), table, missing.get("weights", ""),
        ),
        _card(
            "entropy", "How undecided is the router?",
            band + "Entropy of the scores over log E: 1 is undecided, 0 certain. With pools of experts the"
            " largest is that of a pool, below 1.",
            figures.draw_quantiles(subject, "entropy_quantiles", "relative entropy"), None,
            missing.get("entropy", ""),
        ),
        _card(
            "margin", "How close are the calls?",
            band + "Logits between the last expert taken and the best one left; below 0 a bias decided.",
            figures.draw_quantiles(subject, "margin_quantiles", "margin in logits"), None, no_margin,
        ),
    ]  # fmt: skip


def comparison_panels(subject: Subject) -> list[Card]:
    """Two traces side by side."""
    if subject.inspection.comparison is None:
        return []
    no_overlap = (
        "Experts can be held together token by token only where both traces hold the same texts (equal token"
        " ids and positions), layers, experts and top-k: trace both models on the same --data."
    )
    by_layer, *sides = tables.comparison_tables(subject)
    return [
        _card(
            "overlap", "Same token, same experts?",
            "Share of a token's experts that both traces chose, with intervals over documents." + _CHANCE,
            figures.draw_overlap(subject), None, no_overlap,
        ),
        _card(
            "moved", "How much work moved?",
            "The share of a layer's work that other experts do in the other trace.",
            figures.draw_divergence(subject), by_layer,
            "The traces have no layers in common with equally many experts.",
        ),
        _card(
            "both-max-vio", "Busiest expert", "MaxVio of both traces: 0 is balanced.",
            figures.draw_both(subject, "max_vio", "MaxVio"), sides[0] if sides else None,
        ),
        _card(
            "both-effective", "Experts in effect", "Of both traces: more is more even.",
            figures.draw_both(subject, "effective_experts", "experts"), sides[-1] if sides else None,
        ),
    ]  # fmt: skip
