"""Verdicts on a training run: functions of its curves and counts."""

from collections.abc import Mapping, Sequence

import numpy as np

from moeworks.analyse.distributions import poisson_lower_bound, poisson_upper_bound, student_quantile
from moeworks.analyse.load import max_vio, shares
from moeworks.analyse.verdicts.balance import LOPSIDED, UNEVEN
from moeworks.analyse.verdicts.record import ERROR, Test, Verdict
from moeworks.analyse.verdicts.words import percent, plural, shortened

NEARLY_UNUSED = 0.1
"""An expert with less than this part of its fair share is nearly unused."""
IN_A_ROW = 4
"""Validations that fall (or rise) one after the other: flat ones do so in 1 of 24 cases."""
STILL_FALLING = 0.01
"""A last validation better by this part than the one before is worth longer training."""
MEMORISING = 0.15
"""Validation loss above training loss by more than this part."""
SPECIALISED = 2.0
"""An expert with this many times its share of all text in a domain prefers that domain."""


def judge_validation(steps: Sequence[int], bits: Sequence[float], text: str) -> list[Verdict]:
    """Whether validation still falls, from bits per byte of the same `text`; nothing for fewer than two."""
    if len(bits) < 2:
        return []
    words = (
        f"Validation on {text} went from {bits[0]:.3f} (step {steps[0]:,}) to {bits[-1]:.3f} bits per byte"
        f" (step {steps[-1]:,})"
    )
    last = np.array(bits[-IN_A_ROW:])
    rule = (
        f"Judged by the last validations, {', then '.join(f'{value:.3f}' for value in last)}: {IN_A_ROW} in a"
        f" row, which flat ones with noise show in 1 of 24 cases, and 1 % in the last."
    )
    test = Test(
        "last validations in a row",
        1 / 24,
        ERROR,
        "training has levelled off, and validations differ by chance",
        "two directions, each at the stated level",
    )
    if len(last) < IN_A_ROW:
        return [Verdict("note", f"{words}; whether it still falls takes {IN_A_ROW} validations.", rule)]
    change = last[-1] / last[-2] - 1
    if (np.diff(last) < 0).all() and change <= -STILL_FALLING:
        better = f"{words} and was still falling: longer training would probably help."
        return [Verdict("good", better, rule, test=test)]
    if (np.diff(last) > 0).all() and change >= STILL_FALLING:
        advice = (
            "The learning rate is too high for this stage, or the model learns its training text by heart."
        )
        return [Verdict("look", f"{words}, and it rises.", rule, advice, test)]
    return [Verdict("note", f"{words} and has levelled off.", rule, test=test)]


def judge_memorising(training: Sequence[float], unseen: float) -> list[Verdict]:
    """Whether the loss on unseen text is clearly above that of the last logged training steps."""
    mean = float(np.mean(training))
    number = len(training)
    error = float(np.std(training, ddof=1)) / number**0.5 if number > 1 else float("nan")
    highest = mean + student_quantile(1 - ERROR, number - 1) * error if number > 1 else float("nan")
    rule = (
        f"Loss on unseen text {unseen:.3f}, on training text {mean:.3f} nats per token (mean of the last"
        f" {number} logged steps, at most {highest:.3f} by how they differ). More than"
        f" {100 * MEMORISING:.0f} % above that would be a warning."
    )
    test = Test(
        "loss on unseen text over the upper bound of the training loss",
        unseen / highest - 1,
        MEMORISING,
        f"the loss on unseen text is at most {MEMORISING:.0%} above that on training text",
        "none: one figure",
    )
    if unseen / highest - 1 > MEMORISING:
        text = "The model does clearly better on text it trained on than on unseen text."
        return [Verdict("look", text, rule, test=test)]
    text = "The model does about as well on unseen text as on text it trained on."
    return [Verdict("good", text, rule, test=test)]


def judge_usage(counts: np.ndarray, layers: Sequence[str], stretch: str) -> list[Verdict]:
    """Nearly unused experts, from assignments [l, E] of a stretch of training."""
    fair = counts.mean(axis=1, keepdims=True)
    surely = poisson_upper_bound(counts, ERROR / counts.size) < NEARLY_UNUSED * fair
    idle = surely.sum(axis=1)
    experts = counts.shape[1]
    rule = (
        f"Counted over {stretch}; nearly unused means surely under {NEARLY_UNUSED:g} of the fair share"
        f" (Poisson, Bonferroni over {counts.size:,} experts)."
    )
    test = Test(
        "experts whose share is surely small",
        float(idle.sum()),
        1.0,
        f"every expert works at least {NEARLY_UNUSED:g} of its fair share",
        f"Bonferroni over {counts.size:,} experts",
    )
    if not idle.any():
        names = plural(len(layers), "MoE layer")
        text = f"Every expert is used in {'all ' if len(layers) > 1 else ''}{names}."
        return [Verdict("good", text, rule, test=test)]
    parts = [
        f"{name}: {n} of {experts} experts {'is' if n == 1 else 'are'} nearly unused"
        for name, n in zip(layers, idle.tolist(), strict=True)
        if n
    ]
    advice = (
        "Memory that hardly works. Early in training it often mends itself; if it stays, raise the balance"
        " loss (--balance.global-batch-coef) or use a selection bias (--balance.bias-rule sign)."
    )
    level = "problem" if idle.max() > experts / 4 else "look"
    return [Verdict(level, f"{shortened(parts)}.", rule, advice, test)]


def judge_stretch_load(counts: np.ndarray, layers: Sequence[str], stretch: str) -> list[Verdict]:
    """Evenness, from assignments [l, E] of a stretch of training: one batch is more uneven than many."""
    values = max_vio(counts)
    if not np.isfinite(values).any():
        return []
    fair = counts.mean(axis=1, keepdims=True)
    least = poisson_lower_bound(counts.max(axis=1), ERROR / counts.size)
    surely = least / np.where(fair > 0, fair, np.inf)[:, 0] - 1
    worst = int(np.nanargmax(values))
    value = float(values[worst])
    each = ", ".join(f"{name} {v:.2f}" for name, v in zip(layers[:12], values, strict=False))
    more = f" and {len(layers) - 12} more" if len(layers) > 12 else ""
    text = (
        f"The busiest expert of all does {1 + value:.2f} times its fair share of the work ({layers[worst]},"
        f" MaxVio {value:.2f})"
    )
    rule = (
        f"Counted over {stretch}; MaxVio by layer: {each}{more}. Surely up to {UNEVEN} counts as even, surely"
        f" above {LOPSIDED} as lopsided (Poisson, Bonferroni over {counts.size:,} experts)."
    )
    test = Test(
        "lower bound of MaxVio",
        float(surely[worst]),
        UNEVEN,
        f"no expert is more than {UNEVEN} above its fair share",
        f"Bonferroni over {counts.size:,} experts",
    )
    if surely.max() <= UNEVEN:
        even = "even" if value <= UNEVEN else "not surely uneven"
        return [Verdict("good", f"{text}: the load is {even}.", rule, test=test)]
    advice = (
        "When experts work in parallel all others wait for the busiest. It usually falls as training goes on;"
        " more balance (--balance.global-batch-coef, --balance.bias-rule sign) makes it fall sooner."
    )
    if surely.max() <= LOPSIDED:
        return [Verdict("look", f"{text}: the load is somewhat uneven.", rule, advice, test)]
    return [Verdict("problem", f"{text}: the load is lopsided.", rule, advice, test)]


def judge_preference(counts: Mapping[str, np.ndarray], layers: Sequence[str]) -> list[Verdict]:
    """The strongest preference of an expert for a domain, from assignments [l, E] of each domain.

    It is measured against the expert's share of all text, not against the uniform share: a busy expert has a
    large share of every domain without preferring any. Experts with little work on the domain do not count.
    """
    domains = list(counts)
    each = np.stack([counts[name] for name in domains], axis=1).astype(np.float64)  # [l, D, E]
    share, overall = shares(each), shares(each.sum(axis=1, keepdims=True))
    least = poisson_lower_bound(each, ERROR / each.size) / np.maximum(each.sum(axis=2, keepdims=True), 1)
    matters = (share >= 1 / share.shape[-1]) & (least > overall)
    preference = np.divide(share, overall, out=np.zeros_like(share), where=matters)
    place = np.unravel_index(preference.argmax(), share.shape)
    layer, domain, expert = map(int, place)
    rule = (
        f"{SPECIALISED:g} times its share of all validation text counts as a preference, if it is more than"
        f" chance gives tokens that choose independently (Poisson, Bonferroni over {each.size:,} cells)."
        " Whether other documents show it too: moeworks trace, then inspect."
    )
    test = Test(
        "lower bound of an expert's share of a domain over its share of all text",
        float(least[place] / max(overall[layer, 0, expert], 1e-12)),
        1.0,
        "tokens of all domains choose alike, and independently",
        f"Bonferroni over {each.size:,} cells",
    )
    if preference[place] < SPECIALISED:
        text = "No expert prefers a kind of text: each works on all of them alike."
        return [Verdict("note", text, rule, test=test)]
    text = (
        f"Experts specialise: in {layers[layer]}, expert {expert} does {percent(float(share[place]))} of the"
        f" work on {domains[domain]}, but {percent(float(overall[layer, 0, expert]))} of all the work."
    )
    return [Verdict("note", text, rule, test=test)]
