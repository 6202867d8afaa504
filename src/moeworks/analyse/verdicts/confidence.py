"""Verdicts on the router's confidence."""

from collections.abc import Callable

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.intervals import Interval
from moeworks.analyse.verdicts.balance import interval_words
from moeworks.analyse.verdicts.record import Test, Verdict
from moeworks.analyse.verdicts.words import percent

DECIDED, UNDECIDED = 0.9, 0.95
"""A first choice with more of the weight than this decides alone; more entropy than this is undecided."""
OVERRULED, BIASED = 0.01, 0.5
"""Share of tokens with a negative margin that is worth telling; that is too much."""


def judge_confidence(inspection: Inspection) -> list[Verdict]:
    """Verdicts on weights, entropy and margins, as far as they are recorded."""
    table = inspection.analysis.confidence
    verdicts = []
    k = inspection.header.top_k
    if table.first_weight is not None and k > 1:
        verdicts += _above(inspection, table.first_weight, DECIDED, "largest weight's mean share", _decided)
    if table.entropy is not None:
        verdicts += _above(inspection, table.entropy, UNDECIDED, "mean relative entropy", _undecided)
    if table.overruled is not None:
        verdicts += _above(inspection, table.overruled, OVERRULED, "share of negative margins", _overruled)
    return verdicts


def _above(
    inspection: Inspection,
    interval: Interval,
    limit: float,
    statistic: str,
    words: Callable[[Inspection, Interval, int, Test], Verdict],
) -> list[Verdict]:
    """The verdict on the layer whose lower end is highest, if that is above the limit."""
    if not interval.known.any():
        return []
    worst = int(np.nanargmax(interval.low))
    least = float(interval.low[worst])
    null = f"the mean over documents is at most {limit:g} in every layer"
    test = Test(statistic, least, limit, null, f"Bonferroni over {len(interval.low)} layers")
    return [words(inspection, interval, worst, test)] if least > limit else []


def _decided(inspection: Inspection, interval: Interval, worst: int, test: Test) -> Verdict:
    others = inspection.header.top_k - 1
    share = percent(float(interval.estimate[worst]))
    rule = (
        f"The largest weight's mean share ({interval_words(interval, worst)}, for all layers together); whose"
        f" lower end is above {percent(DECIDED)} decides alone."
    )
    text = f"In layer {inspection.header.layers[worst]} the first choice has {share} of the weight."
    whose = "other expert of a token costs" if others == 1 else f"other {others} experts of a token cost"
    advice = (
        f"The {whose} as much and hardly count: a smaller top-k would do here, or weights without"
        " renormalising."
    )
    return Verdict("look", text, rule, advice, test)


def _undecided(inspection: Inspection, interval: Interval, worst: int, test: Test) -> Verdict:
    rule = (
        f"Mean entropy of the router's scores over log E ({interval_words(interval, worst)}, for all layers"
        f" together); whose lower end is above {UNDECIDED} hardly decides."
    )
    number = inspection.header.layers[worst]
    text = f"The router of layer {number} is undecided: its scores are nearly all alike."
    advice = (
        f"Relative entropy {float(interval.estimate[worst]):.2f}. Usual early in training, and in sigmoid"
        " routers, whose scores are near one another. Late in softmax routers it means a too strong balance"
        " loss or z-loss, or inputs that cannot be told apart."
    )
    return Verdict("look", text, rule, advice, test)


def _overruled(inspection: Inspection, interval: Interval, worst: int, test: Test) -> Verdict:
    share = percent(float(interval.estimate[worst]))
    text = (
        f"In layer {inspection.header.layers[worst]} {share} of the tokens get an expert that their logits"
        " would not choose."
    )
    rule = (
        f"Negative margins ({interval_words(interval, worst, 3)}, for all layers together): a selection bias"
        f" or groups of experts change the choice. From {OVERRULED:.0%} on."
    )
    advice = (
        "Part of loss-free balancing. Above a half the bias rather than the text chooses: lower its rate."
    )
    level = "look" if interval.low[worst] > BIASED else "note"
    return Verdict(level, text, rule, advice, test)
