"""Verdicts on how routing follows a text: neighbours, documents, positions."""

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.intervals import Interval
from moeworks.analyse.verdicts.record import ERROR, Test, Verdict
from moeworks.analyse.verdicts.words import percent

STICKY = 0.05
"""A repeat rate above its null by this much: neighbours, or tokens of a document, share experts."""
DRIFTS = 0.02
"""Bits of divergence above sampling that are worth telling."""


def judge_text(inspection: Inspection) -> list[Verdict]:
    """Verdicts on consistency and drift."""
    return [*_consistency(inspection), *_drift(inspection)]


def _consistency(inspection: Inspection) -> list[Verdict]:
    table = inspection.analysis.repeats
    if table is None:
        return []
    near, topical = table.near, table.topical
    rate, document = float(np.mean(table.repeat_rate.estimate)), float(table.document_chance.mean())
    rule = (
        f"Mean over layers: neighbours share {percent(rate)} of their experts, two tokens of one document"
        f" {percent(document)}: {_gap(near)} more. Two tokens of a document share {_gap(topical)} more than"
        f" those of different documents. From {STICKY:g} on, with the lower end above 0."
    )
    sticky, follows = (
        Test(statistic, _lower_end(gap), 0.0, null, "two verdicts, each at half the error")
        for statistic, gap, null in (
            ("experts that neighbours share, above any two tokens of the document", near,
             "the tokens of a document are in random order"),
            ("experts that two tokens of a document share, above those of different documents", topical,
             "all documents choose alike"),
        )
    )  # fmt: skip
    if not near.known:
        text = "Whether a token keeps the experts of the one before it is not known from one document."
        return [Verdict("note", text, rule, "Trace more texts.")]
    if near.estimate > STICKY and near.low > 0:
        text = "Routing is sticky: a token tends to keep the experts of the one before it."
        advice = "Good for caches of experts and for prefetching: moeworks simulate cache."
        return [Verdict("note", text, rule, advice, sticky)]
    if topical.known and topical.estimate > STICKY and topical.low > 0:
        text = "Routing follows the document, not the neighbour: a text has its experts, in no order."
        advice = "A cache warms up over a document; the last token does not predict the next one's experts."
        return [Verdict("note", text, rule, advice, follows)]
    text = "Routing hardly depends on the token before: each token chooses anew."
    advice = "Caches of experts hit about as often as load alone says, and speculation touches many."
    return [Verdict("note", text, rule, advice, sticky)]


def _lower_end(gap: Interval) -> float:
    return float(gap.low)


def _gap(gap: Interval) -> str:
    """A difference of rates and its interval."""
    if not np.isfinite(gap.estimate):
        return "not known how much"
    known = f"{float(gap.low):.3f} to {float(gap.high):.3f}" if gap.known else "interval not known"
    return f"{float(gap.estimate):.3f} ({known})"


def _drift(inspection: Inspection) -> list[Verdict]:
    table = inspection.analysis.drift
    if not np.isfinite(table.p_value):
        text = "Whether the position in the context matters is not known from so few tokens."
        rule = "It takes two ranges of positions with 500 tokens each."
        return [Verdict("note", text, rule, "Trace more or longer texts.")]
    above = table.divergence - table.divergence_null
    layer, place = np.unravel_index(np.nanargmax(table.excess), above.shape)
    value = float(above[layer, place])
    rule = (
        f"Jensen-Shannon divergence of the load in a range of positions, above sampling alone; from {DRIFTS}"
        f" bits on, and beyond the largest of all layers and ranges when the positions of each sequence are"
        f" rotated at random (p = {table.p_value:.3f})."
    )
    test = Test(
        "largest standardised divergence of any layer and range",
        table.p_value,
        ERROR,
        "the load is the same at all positions of a sequence",
        f"the largest of {table.excess.size} in each rotation",
    )
    if table.p_value > ERROR:
        text = "The load does not depend on the position in the context beyond chance."
        return [Verdict("good", text, rule, test=test)]
    if value < DRIFTS:
        text = "The load depends on the position in the context, but hardly."
        return [Verdict("good", text, rule, f"By {value:.4f} bits at most.", test)]
    where = f"{table.edges[place]:,} to {table.edges[place + 1] - 1:,}"
    text = (
        f"The load changes along the context: at positions {where} layer {inspection.header.layers[layer]}"
        " works otherwise than elsewhere."
    )
    advice = (
        f"By {value:.3f} bits. At the very start it is the first token's own experts and harmless; far out it"
        " means that long contexts leave what training balanced."
    )
    return [Verdict("note" if place == 0 else "look", text, rule, advice, test)]
