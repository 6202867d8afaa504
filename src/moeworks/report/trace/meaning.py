"""Verdicts on what experts know, how they follow a text, and how two traces differ."""

import numpy as np

from moeworks.report.trace.subject import Subject
from moeworks.report.verdict import Verdict
from moeworks.report.words import percent, plural

SPECIALISED = 2.0
"""An expert with this many times its share of all text in a domain prefers that domain."""
TELLING = 2.0
"""Cells outside the null band, over the share that chance puts there."""
STICKY = 0.05
"""Repeat rate above the chance inside documents by this much: neighbours share experts."""
DRIFTS = 0.02
"""Bits of divergence above sampling."""
MEETS = 2.0
"""A pair that meets this many times as often as its loads say."""
SAME, OTHER = 0.95, 0.7
"""Overlap above which two traces route alike, and below which they do not."""


def judge_meaning(subject: Subject) -> list[Verdict]:
    """Specialisation, words, consistency, drift, pairs, and the comparison."""
    return [
        *_specialisation(subject), *_words_or_topics(subject), *_consistency(subject), *_drift(subject),
        *_pairs(subject), *_comparison(subject),
    ]  # fmt: skip


def _specialisation(subject: Subject) -> list[Verdict]:
    table = subject.inspection.analysis.domains
    if table is None:
        return []
    outside = float(table.beyond().mean())
    # A domain's experts with little work on it have large ratios of small numbers.
    matters = table.beyond() & (table.specialisation >= table.specialisation.mean(axis=1, keepdims=True))
    preference = np.where(matters, table.preference(), 0)
    layer, expert, domain = np.unravel_index(preference.argmax(), preference.shape)
    strongest = float(preference[layer, expert, domain])
    rule = (
        f"{percent(outside)} of the cells lie outside the band that 95 % would be in if domains meant nothing"
        f" (labels permuted over documents); {SPECIALISED:g} times its share of all text is a preference."
    )
    if outside < TELLING * 0.05:
        text = "Domains make no difference that chance would not: the experts read all kinds of text alike."
        advice = "Usual for small or young models; too few documents hide it as well. Trace more of each."
        return [Verdict("note", text, rule, advice)]
    if strongest < SPECIALISED:
        text = "Experts lean towards domains, but none strongly."
        return [Verdict("note", text, rule, "See the panel on domains for which, and how much.")]
    text = (
        f"Experts specialise: expert {expert} of {subject.layers[layer]} works on"
        f" {percent(float(table.specialisation[layer, expert, domain]))} of the tokens of"
        f" {subject.domains[domain]}, {strongest:.1f} times its share of all text."
    )
    advice = (
        "Whether that is the topic or only its words is another verdict. Specialists suit tuning of few"
        " experts, caching by kind of request, and pruning for one domain."
    )
    return [Verdict("note", text, rule, advice)]


def _words_or_topics(subject: Subject) -> list[Verdict]:
    table = subject.inspection.analysis.information
    if table is None or table.domain_given_token is None or not table.excess().any():
        return []
    about, beyond = float(table.excess().mean()), float(table.excess_given_token().mean())
    share = beyond / max(about, 1e-12)
    rule = (
        f"Mean over layers: the choice tells {about:.4f} bits of the domain above chance, {beyond:.4f}"
        " of them when the token id is known already; under a quarter counts as words."
    )
    advice = (
        "An expert of words reacts to the token alone; one of topics sees the context. Early layers are"
        " mostly of words, later ones less: compare them in the panel on domains."
    )
    if share < 0.25:
        text = "The experts' choice of domains is mostly their choice of words: tokens decide, not the topic."
    else:
        text = (
            f"The experts see more than words: {percent(min(share, 1))} of what they know of the domain is"
            " not in the token."
        )
    return [Verdict("note", text, rule, advice)]


def _consistency(subject: Subject) -> list[Verdict]:
    table = subject.inspection.analysis.repeats
    rate, document = float(table.repeat_rate.estimate.mean()), float(table.document_chance.mean())
    chance = float(table.chance.mean())
    rule = (
        f"Mean over layers: neighbours share {percent(rate)} of their experts, two tokens of one document"
        f" {percent(document)}, tokens by load alone {percent(chance)}; {STICKY:g} more is sticky."
    )
    if rate - document > STICKY:
        text = "Routing is sticky: a token tends to keep the experts of the one before it."
        advice = "Good for caches of experts and for prefetching: moeworks simulate cache."
    elif document - chance > STICKY:
        text = "Routing follows the document, not the neighbour: a text has its experts, in no order."
        advice = "A cache warms up over a document; the last token does not predict the next one's experts."
    else:
        text = "Routing hardly depends on the token before: each token chooses anew."
        advice = "Caches of experts hit about as often as load alone says, and speculation touches many."
    return [Verdict("note", text, rule, advice)]


def _drift(subject: Subject) -> list[Verdict]:
    table = subject.inspection.analysis.drift
    above = table.divergence - table.divergence_null
    if not np.isfinite(above).any():
        return []
    layer, place = np.unravel_index(np.nanargmax(above), above.shape)
    value = float(above[layer, place])
    rule = (
        "Largest Jensen-Shannon divergence of the load in a range of positions above sampling alone; from"
        f" {DRIFTS} bits on."
    )
    if value < DRIFTS:
        text = "The load does not depend on the position in the context."
        return [Verdict("good", text, rule)]
    where = f"{table.edges[place]:,} to {table.edges[place + 1] - 1:,}"
    text = (
        f"The load changes along the context: at positions {where} {subject.layers[layer]} works otherwise"
        " than elsewhere."
    )
    advice = (
        f"By {value:.3f} bits. At the very start it is the first token's own experts and harmless; far out it"
        " means that long contexts leave what training balanced."
    )
    return [Verdict("note" if place == 0 else "look", text, rule, advice)]


def _pairs(subject: Subject) -> list[Verdict]:
    table = subject.inspection.neighbours
    tops = [(float(lifts[0]), place) for place, lifts in enumerate(table.lifts) if len(lifts)]
    if not tops:
        return []
    lift, place = max(tops)
    i, j = table.edges[place][0]
    rule = f"Tokens that chose both, over what their loads give; {MEETS:g} times as often is a pair."
    if lift < MEETS:
        return [Verdict("note", "No pair of experts meets much more often than its loads say.", rule)]
    text = (
        f"Experts {i} and {j} of {subject.layers[place]} work together: {lift:.1f} times as often as their"
        f" loads say, on {plural(int(table.counts[place][0]), 'token')}."
    )
    advice = "Pairs can share a device to save traffic; two that always meet do the work of one."
    return [Verdict("note", text, rule, advice)]


def _comparison(subject: Subject) -> list[Verdict]:
    compared = subject.inspection.comparison
    if compared is None:
        return []
    if compared.overlap is None:
        why = (
            "they have no layers in common with as many experts"
            if compared.difference is None
            else "no text is in both, or they choose differently many experts"
        )
        text = f"The traces cannot be held together token by token, for {why}."
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
    rule = f"By chance {percent(by_chance)} there; above {SAME:.0%} is alike, below {OTHER:.0%} different."
    if value >= SAME:
        return [Verdict("good", f"{text}: they route alike.", rule)]
    advice = (
        "Between two engines or precisions of one model this much is a bug or a numerical gap; between two"
        " steps of training the router is still moving; between two trainings it means nothing, for experts"
        " have no names."
    )
    return [Verdict("look" if value >= OTHER else "problem", f"{text}.", rule, advice)]
