"""Verdicts on load: dead experts, evenness, and batches."""

import numpy as np

from moeworks.analyse.distributions import poisson_upper_bound, rank_p_value
from moeworks.analyse.inspection import Inspection
from moeworks.analyse.intervals import Interval
from moeworks.analyse.verdicts.record import ERROR, Test, Verdict
from moeworks.analyse.verdicts.words import percent, plural, shortened
from moeworks.ops.load import DEAD_LOAD

UNEVEN, LOPSIDED = 0.5, 1.5
"""MaxVio above these deserves a look; is a problem."""
ALIVE = 0.1
"""An expert that surely works under this part of its fair share and was hardly seen is dead."""
SWINGS = 2.0
"""Batches this many times as uneven as batches of tokens in random order swing between kinds of text."""


def judge_balance(inspection: Inspection) -> list[Verdict]:
    """Verdicts on how evenly the experts are used."""
    return [*_idle(inspection), *_dead(inspection), *_evenness(inspection), *_batches(inspection)]


def _idle(inspection: Inspection) -> list[Verdict]:
    """Layers without any assignment."""
    total = inspection.experts.assignments.sum(axis=1)
    parts = [f"layer {n} chose no expert for any token" for n, used in _layers(inspection, total) if not used]
    if not parts:
        return []
    rule = "No assignment at all: a threshold that no score reaches, or columns that were not recorded."
    return [Verdict("problem", f"{shortened(parts)}.", rule, "Their figures are left out below.")]


def _layers(inspection: Inspection, values: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(inspection.header.layers, values.tolist(), strict=True))


def _dead(inspection: Inspection) -> list[Verdict]:
    load, counts = inspection.analysis.load, inspection.experts.assignments
    experts = inspection.header.num_experts
    fair = counts.mean(axis=1, keepdims=True)
    used = fair[:, 0] > 0
    rule = (
        f"Dead: under {percent(DEAD_LOAD)} of the fair share, {fair[used].mean() if used.any() else 0:,.0f}"
        f" assignments each; an expert that works {ALIVE:.0%} of its fair share would be seen so rarely in"
        f" {ERROR:.0%} of traces, for all {counts.size:,} experts together (Poisson, Bonferroni)."
    )
    rare = used[:, None] & (counts < DEAD_LOAD * fair)
    surely = rare & (poisson_upper_bound(counts, ERROR / counts.size) < ALIVE * fair)
    test = Test(
        "experts whose share is surely small",
        float(surely.sum()),
        1.0,
        f"every expert works at least {ALIVE:.0%} of its fair share",
        f"Bonferroni over {counts.size:,} experts",
    )
    if not rare.any():
        layers = plural(int(used.sum()), "MoE layer")
        every = "the MoE layer" if used.sum() == 1 else f"all {layers}"
        return [Verdict("good", f"No expert is dead in {every}.", rule)] if used.any() else []
    if not surely.any():
        text = (
            f"{plural(int(rare.sum()), 'expert')} got no work or hardly any, which so few tokens leave to"
            " chance."
        )
        return [Verdict("note", text, rule, "Trace more text to tell dead experts from rare ones.", test)]
    parts = [
        f"layer {number}: {dead} of {experts} experts dead"
        for number, dead in _layers(inspection, surely.sum(axis=1))
        if dead
    ]
    advice = (
        "Dead experts are memory without use: the router collapsed early, or these texts lack what they"
        " know. Trace other texts; in training raise the balance loss or the rate of the selection bias, or"
        " start them anew; for serving they can be pruned or kept on slow memory."
    )
    level = "problem" if load.dead[used].max() > experts / 8 else "look"
    return [Verdict(level, f"{shortened(parts)}.", rule, advice, test)]


def interval_words(interval: Interval, place: int, digits: int = 2) -> str:
    """The interval at `place` as words."""
    if not interval.known[place]:
        return "how much it varies between documents is not known"
    low, high = float(interval.low[place]), float(interval.high[place])
    return f"{interval.level:.0%} interval {low:.{digits}f} to {high:.{digits}f} over documents"


def _evenness(inspection: Inspection) -> list[Verdict]:
    interval = inspection.analysis.max_vio
    if not np.isfinite(interval.estimate).any():
        return []
    # The layer that is surely the most uneven; where nothing is sure, the one that looks so.
    ranked = interval.low if interval.known.any() else interval.estimate
    worst = int(np.nanargmax(ranked))
    value, least = float(interval.estimate[worst]), float(interval.low[worst])
    number = inspection.header.layers[worst]
    expert = int(np.nanargmax(inspection.experts.load[worst]))
    text = f"Expert {expert} of layer {number} does {1 + value:.2f} times its fair share of the work"
    rule = (
        f"MaxVio {value:.2f} ({interval_words(interval, worst)}, for all experts and layers together); up to"
        f" {UNEVEN} counts as even, above {LOPSIDED} as lopsided, judged by the lower end."
    )
    test = Test(
        "lower end of MaxVio's interval",
        least,
        UNEVEN,
        f"no expert of any layer is more than {UNEVEN} above its fair share",
        "Bonferroni over experts and layers",
    )
    advice = (
        "When experts work in parallel all wait for the busiest. If these texts are like the training data,"
        " training balanced too little; if they are special, some skew is knowledge. For serving, replicate"
        " busy experts: moeworks simulate placement."
    )
    if least > LOPSIDED:
        return [Verdict("problem", f"{text}: the load is lopsided.", rule, advice, test)]
    if least > UNEVEN:
        return [Verdict("look", f"{text}: the load is somewhat uneven.", rule, advice, test)]
    if np.nanmax(interval.estimate) <= UNEVEN:
        worst = int(np.nanargmax(interval.estimate))
        largest = f"{1 + float(interval.estimate[worst]):.2f}"
        text = f"The busiest expert of all does {largest} times its fair share of the work: the load is even."
        return [Verdict("good", text, rule, test=test)]
    if interval.known[worst]:
        text += ", which may be chance: whether the load is even is not known from these documents."
    else:
        text += " here: whether the load is even over other texts is not known from one document."
    return [Verdict("note", text, rule, "Trace more texts.", test)]


def _batches(inspection: Inspection) -> list[Verdict]:
    table = inspection.analysis.batch_load
    if not len(table.shuffled) or not np.isfinite(table.max_vio).all():
        return []
    batch, shuffled = float(table.max_vio.mean()), float(table.shuffled.mean())
    p_value = rank_p_value(batch, table.shuffled)
    if p_value > ERROR or batch < SWINGS * shuffled or batch < UNEVEN:
        return []
    rule = (
        f"Mean over layers: MaxVio {batch:.2f} in batches of {table.batch_tokens:,} tokens, {shuffled:.2f}"
        f" when the tokens are in random order (p = {p_value:.3f}); {SWINGS:g} times as much, and above"
        f" {UNEVEN}, counts as swinging."
    )
    test = Test(
        "mean MaxVio of batches", p_value, ERROR, "the tokens are in random order", "none: one figure"
    )
    text = "The load is more even over all texts than in any stretch of them: busy experts take turns."
    advice = (
        "Experts specialise in kinds of text. Mix requests in a batch, or let placement follow the traffic."
    )
    return [Verdict("note", text, rule, advice, test)]
