"""The verdict on two traces side by side."""

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.verdicts.balance import interval_words
from moeworks.analyse.verdicts.record import Verdict
from moeworks.analyse.verdicts.words import percent, plural

SAME, OTHER = 0.95, 0.7
"""Overlap above which two traces route alike, and below which they do not."""


def judge_comparison(inspection: Inspection) -> list[Verdict]:
    """How far two traces choose the same experts. A fact of the tokens that both hold, not of other texts."""
    compared = inspection.comparison
    if compared is None:
        return []
    if compared.overlap is None:
        why = (
            "they have no layers in common with as many experts"
            if compared.difference is None
            else "no text is in both, or they choose differently many experts"
        )
        text = f"The traces cannot be compared token by token, for {why}."
        rule = f"{plural(compared.matched, 'token')} of the same sequences."
        advice = "Trace both models on the same --data, with the same tokenizer; distributions are below."
        return [Verdict("note", text, rule, advice)]
    overlap, chance = compared.overlap.estimate, compared.chance
    worst = int(np.argmin(overlap))
    value = float(overlap[worst])
    by_chance = float("nan") if chance is None else float(chance[worst])
    text = (
        f"On the same {plural(compared.matched, 'token')} the traces share {percent(float(overlap.mean()))}"
        f" of their experts on average, least in layer {compared.layers[worst]}: {percent(value)}"
    )
    rule = (
        f"Counted on these tokens ({interval_words(compared.overlap, worst)}). Routers with these loads that"
        f" ignore the token would share {percent(by_chance)} there; above {SAME:.0%} is alike, below"
        f" {OTHER:.0%} different."
    )
    if value >= SAME:
        return [Verdict("good", f"{text}: they route alike.", rule)]
    advice = (
        "Between two engines or precisions of one model this much is a bug or a numerical gap; between two"
        " steps of training the router is still moving; between two trainings it means nothing, for experts"
        " have no names."
    )
    return [Verdict("look" if value >= OTHER else "problem", f"{text}.", rule, advice)]
