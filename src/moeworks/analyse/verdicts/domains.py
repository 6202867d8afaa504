"""Verdicts on domains and words."""

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.verdicts.record import ERROR, Test, Verdict
from moeworks.analyse.verdicts.words import percent

SPECIALISED = 2.0
"""An expert with this many times its share of all text in a domain prefers that domain."""
MOSTLY_WORDS = 0.25
"""With under this part of it left when the token is known, what experts know of the domain is its words."""


def judge_domains(inspection: Inspection) -> list[Verdict]:
    """Verdicts on specialisation, and whether it is one of topics or of words."""
    return [*_specialisation(inspection), *_words_or_topics(inspection)]


def domain_names(inspection: Inspection) -> tuple[str, ...]:
    """Names of the domains that were compared; empty where there is one only."""
    table = inspection.analysis.domains
    return () if table is None else tuple(name or "(none)" for name in table.domains)


def _specialisation(inspection: Inspection) -> list[Verdict]:
    table = inspection.analysis.domains
    if table is None:
        return []
    outside, p_value = float(table.beyond().mean()), table.outside_p_value
    rule = (
        f"{percent(outside)} of the cells lie outside the band that 95 % would be in if domains meant"
        f" nothing; so many do with p = {p_value:.3f} when labels are permuted over documents. Preferences"
        f" named are beyond what {ERROR:.0%} of permutations reach anywhere; {SPECIALISED:g} times its share"
        " of all text is a strong one."
    )
    test = Test(
        "share of cells outside their bands",
        p_value,
        ERROR,
        "documents have their labels by chance",
        "the share is one figure; preferences by the largest of all cells in each permutation",
    )
    if p_value > ERROR:
        text = "Domains make no difference that chance would not: the experts read all kinds of text alike."
        advice = "Usual for small or young models; too few documents hide it as well. Trace more of each."
        return [Verdict("note", text, rule, advice, test)]
    # A domain's experts with little work on it have large ratios of small numbers.
    matters = table.preferred() & (table.specialisation >= table.specialisation.mean(axis=1, keepdims=True))
    preference = np.where(matters, table.preference(), 0)
    layer, expert, domain = np.unravel_index(preference.argmax(), preference.shape)
    strongest = float(preference[layer, expert, domain])
    if strongest < SPECIALISED:
        text = "Experts lean towards domains, but none surely and strongly."
        return [Verdict("note", text, rule, "See the panel on domains for which, and how much.", test)]
    text = (
        f"Experts specialise: expert {expert} of layer {inspection.header.layers[layer]} works on"
        f" {percent(float(table.specialisation[layer, expert, domain]))} of the tokens of"
        f" {domain_names(inspection)[domain]}, {strongest:.1f} times its share of all text."
    )
    advice = (
        "Whether that is the topic or only its words is another verdict. Specialists suit tuning of few"
        " experts, caching by kind of request, and pruning for one domain."
    )
    return [Verdict("note", text, rule, advice, test)]


def _words_or_topics(inspection: Inspection) -> list[Verdict]:
    table = inspection.analysis.information
    if table is None or table.domain_given_token_p_value is None or table.domain_p_value > ERROR:
        return []
    about, beyond = float(table.excess().mean()), float(table.excess_given_token().mean())
    share = beyond / max(about, 1e-12)
    p_value = table.domain_given_token_p_value
    rule = (
        f"Mean over layers: the choice tells {about:.4f} bits of the domain above chance"
        f" (p = {table.domain_p_value:.3f} when labels are permuted over documents), {beyond:.4f} of them"
        f" when the token id is known already (p = {p_value:.3f}); under {MOSTLY_WORDS:.0%} counts as words."
    )
    advice = (
        "An expert of words reacts to the token alone; one of topics sees the context. Early layers are"
        " mostly of words, later ones less: compare them in the panel on domains."
    )
    test = Test(
        "information about the domain given the token id, mean over layers",
        p_value,
        ERROR,
        "documents have their labels by chance",
        "none: one figure",
    )
    if p_value > ERROR:
        text = "What the experts know of the domain is not surely more than its words."
    elif share < MOSTLY_WORDS:
        text = "The experts' choice of domains is mostly their choice of words: tokens decide, not the topic."
    else:
        text = (
            f"The experts see more than words: {percent(min(share, 1))} of what they know of the domain is"
            " not in the token."
        )
    return [Verdict("note", text, rule, advice, test)]
