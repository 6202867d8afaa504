"""The verdict on experts that work together."""

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.neighbours import ERROR, MARGIN
from moeworks.analyse.verdicts.record import Test, Verdict
from moeworks.analyse.verdicts.words import plural

MEETS = 2.0
"""A pair that meets this many times as often as its loads say is worth telling."""


def judge_pairs(inspection: Inspection) -> list[Verdict]:
    """The pair that surely meets the most above what its loads say."""
    table = inspection.neighbours
    if inspection.header.top_k == 1 or not table.looked_at:
        return []
    rule = (
        f"Tokens that chose both, over what their loads give; {MEETS:g} times as often is a pair worth"
        f" telling, if it is surely more than {MARGIN:g} (Poisson bound, widened by how far documents"
        f" differ, Bonferroni over {table.looked_at:,} pairs)."
    )
    tops = [(float(bounds[0]), place) for place, bounds in enumerate(table.bounds) if len(bounds)]
    bound, place = max(tops, default=(0.0, 0))
    test = Test(
        "largest lower bound of a pair's lift",
        bound,
        MARGIN,
        f"no pair meets more than {MARGIN:g} times as often as its loads say",
        f"Bonferroni over {table.looked_at:,} pairs of all layers",
        ERROR,
    )
    lift = float(table.lifts[place][0]) if tops else 0.0
    if lift < MEETS:
        text = "No pair of experts surely meets much more often than its loads say."
        return [Verdict("note", text, rule, test=test)]
    i, j = table.edges[place][0]
    text = (
        f"Experts {i} and {j} of layer {table.layers[place]} work together: {lift:.1f} times as often as"
        f" their loads say, surely {bound:.1f} times, on {plural(int(table.counts[place][0]), 'token')}."
    )
    advice = "Pairs can share a device to save traffic; two that always meet do the work of one."
    return [Verdict("note", text, rule, advice, test)]
