"""What the layer x expert map can show: one matrix a metric, with its words."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeworks.report.trace.subject import Subject, drawn_domains

Scale = Literal["fair", "difference", "plain"]
"""Colours: around the fair share 1; around 0; from the smallest to the largest."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One choice of the map's list."""

    key: str
    name: str
    group: str
    scale: Scale
    hover: str
    """Behind "Layer l, expert e: "; {} is the value."""
    about: str
    """One sentence: what it is, and what is remarkable."""
    values: np.ndarray
    """float [l, E]."""


def map_metrics(subject: Subject) -> list[Metric]:
    """All metrics that the trace allows, load first."""
    return [*_work(subject), *_router(subject), *_words(subject), *_domains(subject), *_change(subject)]


def _work(subject: Subject) -> list[Metric]:
    table = subject.inspection.experts
    k = subject.inspection.header.top_k
    first = "with the largest weight" if subject.ranked else "in the first recorded slot (no weights)"
    metrics = [
        Metric("load", "Load", "Work", "fair", "{} times its fair share of the work",
               "Assignments over the mean of the layer: 1 is the fair share, 0 a dead expert.", table.load),
        Metric("excess", "Above the fair share (MaxVio)", "Work", "plain", "{} above its fair share of 1",
               "How far an expert is above its fair share; the largest of a layer is the layer's MaxVio.",
               np.maximum(table.load - 1, 0)),
        Metric("first", "First choice", "Work", "plain", "first choice of {} of its tokens",
               f"Share of an expert's tokens that have it {first} of {subject.choices}; {1 / k:.2f} where the"
               " order is chance.", table.first),
        Metric("keeps", "Keeps the next token", "Work", "plain", "works on the next token too with chance {}",
               "Chance that a token's successor in the text uses the expert again: high means long runs.",
               table.keeps),
    ]  # fmt: skip
    if table.dropped is not None:
        metrics.append(
            Metric("dropped", "Dropped assignments", "Work", "plain", "{} of its assignments were dropped",
                   "Share of an expert's assignments that found it full (capacity).", table.dropped)
        )  # fmt: skip
    return metrics


def _router(subject: Subject) -> list[Metric]:
    table = subject.inspection.experts
    choices = [
        ("weight", "Weight when chosen", "has {} of its tokens' weight, on average",
         "Mean share of a token's mixing weights that goes to the expert: how much the router counts on it."),
        ("entropy", "Router undecided (entropy)", "its tokens' scores have entropy {} of the largest",
         "Mean entropy of the router's scores over the expert's tokens, over log E: 1 is undecided, 0 sure."
         " With pools the largest is that of a pool, below 1."),
        ("margin", "Margin in logits", "its tokens' choice is decided by {} logits",
         "Mean distance between the last expert taken and the best one left out: small means a close call."),
    ]  # fmt: skip
    return [
        Metric(key, name, "Router's confidence", "plain", hover, about, getattr(table, key))
        for key, name, hover, about in choices
        if getattr(table, key) is not None
    ]


def _words(subject: Subject) -> list[Metric]:
    table = subject.inspection.vocabulary
    if table is None:
        return []
    about = (
        "How often the expert works on the very tokens that it works on, by token id, above chance:"
        " 0 is indifferent to words, 1 is chosen by the word alone."
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        above = (table.knowing - table.knowing_null) / (1 - table.knowing_null)
    return [
        Metric(
            "words", "Vocabulary specialisation", "Specialisation", "plain", "word by word {}", about, above
        )
    ]


def _domains(subject: Subject) -> list[Metric]:
    table = subject.inspection.analysis.domains
    if table is None:
        return []
    preference = table.preference()
    about = (
        "The expert's share of this domain over its share of all text: 1 is no preference. The panel on"
        " domains says which of these differences chance explains."
    )
    strongest = np.where(table.preferred() & (preference > 1), preference, 1).max(axis=2)
    return [
        Metric("any-domain", "Strongest domain preference", "Specialisation", "fair",
               "{} times its share of all text in its favourite domain",
               "The largest preference beyond what chance gives any cell; 1 where there is none.",
               strongest),
        *(
            Metric(f"domain-{place}", f"Preference for {name}", "Specialisation", "fair",
                   f"{{}} times its share of all text in {name}", about, preference[:, :, place])
            for place, name in ((place, subject.domains[place]) for place in drawn_domains(subject))
        ),
    ]  # fmt: skip


def _change(subject: Subject) -> list[Metric]:
    inspection = subject.inspection
    compared = inspection.comparison
    if compared is None or compared.difference is None:
        return []
    values = np.full(inspection.experts.load.shape, np.nan)
    values[[inspection.header.layers.index(number) for number in compared.layers]] = compared.difference
    about = f"Load in {subject.other_name} minus load here, in fair shares: orange works more there."
    return [
        Metric(
            "change", f"Load difference to {subject.other_name}", "Comparison", "difference",
            "{} fair shares more in the other trace", about, values,
        )
    ]  # fmt: skip
