"""The panels that are worked with: their lists, sliders and places, for the page's scripts to fill."""

from collections.abc import Sequence

from moeworks.analyse.neighbours import MARGIN
from moeworks.report.fragments import Panel, card, details, escape
from moeworks.report.trace import tables
from moeworks.report.trace.absent import why_absent
from moeworks.report.trace.metrics import map_metrics
from moeworks.report.trace.subject import Subject, drawn_domains


def _options(names: Sequence[str]) -> str:
    return "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(names))


def _select(key: str, label: str, names: Sequence[str], more: str = "") -> str:
    return f'<label for="{key}">{label}</label><select id="{key}"{more}>{_options(names)}</select>'


def _layer_select(subject: Subject, key: str) -> str:
    return _select(key, "Layer", subject.layers, ' class="pick-layer"')


def metric_list(subject: Subject) -> str:
    """The list of metrics in groups, and the sentence on the chosen one."""
    groups: dict[str, list[str]] = {}
    for place, metric in enumerate(map_metrics(subject)):
        option = f'<option value="{place}">{escape(metric.name)}</option>'
        groups.setdefault(metric.group, []).append(option)
    options = "".join(
        f'<optgroup label="{escape(name)}">{"".join(entries)}</optgroup>' for name, entries in groups.items()
    )
    return (
        '<div class="controls"><label for="metric">Show</label>'
        f'<select id="metric">{options}</select></div><p id="metric-about" class="about"></p>'
    )


def readout() -> str:
    """A line that says what the keyboard stands on."""
    return '<p id="map-readout" class="readout" aria-live="polite"></p>'


def expert_card(subject: Subject) -> str:
    """The card of one expert, which the script fills."""
    experts = [str(i) for i in range(subject.inspection.header.num_experts)]
    controls = _layer_select(subject, "card-layer") + _select("card-expert", "Expert", experts)
    missing = why_absent(subject)
    notes = [missing[name] for name in ("token ids", "texts", "similarity") if name in missing]
    return (
        '<section class="card" aria-labelledby="card-title"><h3 id="card-title" tabindex="-1">Expert</h3>'
        f'<div class="controls">{controls}</div><div id="card-body"></div>{_notes(notes)}</section>'
    )


def _notes(sentences: Sequence[str]) -> str:
    return "".join(f'<p class="missing">{escape(sentence)}</p>' for sentence in sentences)


def text_view(subject: Subject) -> str:
    """Texts with a colour for each token."""
    missing = why_absent(subject)
    k = subject.inspection.header.top_k
    noun = "choice" if subject.ranked else "slot"
    ranks = [f"first {noun}", *(f"{noun} {rank}" for rank in range(2, k + 1))]
    texts = [f"{i + 1}: {title}" for i, title in enumerate(_titles(subject))]
    controls = (
        _select("text-pick", "Text", texts)
        + _layer_select(subject, "text-layer")
        + '<label for="text-slider">or</label><input type="range" id="text-slider" class="layer-slider"'
        f' min="0" max="{len(subject.layers) - 1}" aria-label="Layer of the text view">'
        + (_select("text-rank", "Colour by", ranks) if k > 1 else "")
        + '<label class="check"><input type="checkbox" id="text-numbers">Show expert numbers</label>'
    )
    names = ("token ids", "texts", "weights", "logits")
    notes = [missing[name] for name in names if name in missing]
    return (
        '<div class="card"><h3>Which expert took which token?</h3><p class="about">Colours are the'
        " experts that work most on this text in this layer; the rest is grey. Point at a token, or click it"
        " and use the arrow keys: up and down change the layer.</p>"
        f'<div class="controls">{controls}</div><div id="text-legend" class="legend"></div>'
        '<div class="text-and-token"><div id="text-body" class="text" role="listbox"'
        ' aria-label="Tokens of the text" aria-describedby="token-detail"></div>'
        '<div id="token-detail" class="detail" aria-live="polite">Choose a token.</div></div>'
        f"{_notes(notes)}</div>"
    )


def _titles(subject: Subject) -> list[str]:
    """What the list of texts calls them."""
    sample = subject.inspection.sample
    pairs = zip(sample.domains, sample.sequences.tolist(), strict=True)
    return [f"{name or 'text'}, sequence {number}" for name, number in pairs]


def domain_cards(subject: Subject, drawn: Sequence[Panel]) -> list[str]:
    """The panels on domains with their lists; nothing without panels."""
    if not drawn:
        return []
    chart, strip = drawn
    names = [subject.domains[place] for place in drawn_domains(subject)]
    layers = f'<div class="controls">{_layer_select(subject, "domain-layer")}</div>'
    both = (
        f'<div class="controls">{_layer_select(subject, "strip-layer")}'
        f"{_select('strip-domain', 'Domain', names)}</div>"
    )
    table = tables.preference_table(subject)
    after = "" if table is None or not table.rows else details(table.label, table.html())
    return [card(chart, layers, after), card(strip, both)]


def graph(subject: Subject) -> str:
    """The co-activation graph beside its pairs."""
    table = tables.pair_table(subject)
    everything = details("The strongest pairs of all layers", table.html()) if table.rows else ""
    surely = subject.inspection.neighbours
    return (
        '<div class="card"><h3>Pairs that meet more often than their loads say</h3><p class="about">A dot'
        " is an expert, larger with more load; a line joins two that tokens choose together, thicker and"
        " darker the more often beyond what their loads alone give (lift). Those that meet are neighbours."
        f" Drawn are pairs that surely meet {MARGIN:g} times as often, for all {surely.looked_at:,} pairs"
        " together.</p>"
        f'<div class="controls">{_layer_select(subject, "graph-layer")}</div>'
        '<div class="graph-and-pairs"><div id="graph"></div><div id="graph-pairs" class="scroll"'
        f' role="region" tabindex="0" aria-label="Pairs of the layer"></div></div>{everything}</div>'
    )
