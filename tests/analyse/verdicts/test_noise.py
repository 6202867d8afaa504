"""How often verdicts fire on noise, and that they find what is planted.

200 traces of noise, of all kinds in turn, must pass each verdict's test in at most its stated 5 %, with a
binomial tolerance of 2.5 standard errors: 17 of 200. benchmarks/noise_verdicts.py measures more of them.
"""

import math

import numpy as np
import pytest
from noise import EXPERTS, KINDS, LAYERS, drawn, noise, trace_of_layers

from moeworks.analyse.inspection import inspect_trace
from moeworks.analyse.verdicts import Verdict, judge_trace
from moeworks.analyse.verdicts.record import ERROR

TRACES = 200
# What is no noise: topics give experts in common and pairs, and make the load of few documents uneven;
# tokens in runs stick together.
REAL = {
    "work together": ("topics",),
    "Routing follows the document": ("topics",),
    "the load is": ("topics",),
    "sticky": ("sticky",),
}
ALARMS = {
    "drift": ("The load changes along the context", "The load depends on the position"),
    "pairs": ("work together",),
    "domains": ("Experts specialise", "Experts lean towards domains"),
    "words": ("see more than words", "not surely more than its words", "mostly their choice of words"),
    "sticky": ("sticky",),
    "documents": ("Routing follows the document",),
    "uneven": ("the load is somewhat uneven", "the load is lopsided"),
    "dead": ("experts dead",),
    "swings": ("busy experts take turns",),
    "recording": ("Mend the recording",),
}


def fires(verdicts: list[Verdict], kind: str, words: tuple[str, ...]) -> bool:
    """Whether a verdict has any of the words, where they are no truth of this kind of noise."""
    true = {part for part, kinds in REAL.items() if kind in kinds}
    return any(
        part in f"{one.text} {one.advice}" and not any(known in one.text for known in true)
        for one in verdicts
        for part in words
    )


@pytest.fixture(scope="module")
def judged() -> list[tuple[str, list[Verdict]]]:
    kinds = [KINDS[seed % len(KINDS)] for seed in range(TRACES)]
    return [(kind, judge_trace(inspect_trace(noise(kind, seed)))) for seed, kind in enumerate(kinds)]


@pytest.mark.parametrize("name", ALARMS)
def test_noise_is_told_at_most_as_often_as_stated(judged, name):
    number = sum(fires(verdicts, kind, ALARMS[name]) for kind, verdicts in judged)
    assert number <= TRACES * ERROR + 2.5 * math.sqrt(TRACES * ERROR * (1 - ERROR))


def test_every_verdict_that_can_be_mistaken_names_its_test(judged):
    for _, verdicts in judged:
        for one in verdicts:
            if one.test is not None:
                assert one.test.level == ERROR
                assert all((one.test.statistic, one.test.null, one.test.correction))


def test_one_document_says_not_known(judged):
    for kind, verdicts in judged:
        if kind == "one-document":
            words = " ".join(f"{one.text} {one.rule}" for one in verdicts)
            assert "not known" in words
            assert "nan" not in words


def planted(effect: str, seed: int):
    """A trace of 24 documents with one effect."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(24), 60)
    position = np.tile(np.arange(60), 24)
    label = rng.permutation(np.arange(24) % 2)
    layers = []
    for place in range(LAYERS):
        liking = np.zeros((len(document), EXPERTS))
        if effect == "domains" and place == 1:
            liking[:, 5] = 2.5 * label[document]
        if effect == "drift" and place == 1:
            liking[:, :4] = 1.5 * (position >= 30)[:, None]
        if effect == "uneven":
            liking[:, 3] = 1.5
        ids = drawn(rng, liking)
        if effect == "pairs" and place == 1:
            ids[rng.random(len(ids)) < 0.05] = (8, 9)
        if effect == "sticky":
            before = np.maximum(np.arange(len(ids)) - 1, 0)
            ids = np.where((rng.random(len(ids)) < 0.3)[:, None], ids[before], ids)
        layers.append(ids)
    if effect != "domains":
        return trace_of_layers(layers, document, rng)
    return trace_of_layers(layers, document, rng, label)


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ("domains", "Experts lean towards domains"),
        ("drift", "layer 1 works otherwise"),
        ("uneven", "Expert 3 of layer"),
        ("pairs", "Experts 8 and 9 of layer 1 work together"),
        ("sticky", "Routing is sticky"),
    ],
)
def test_what_is_planted_is_found(effect, words):
    """At least 9 of 10 times."""
    found = sum(
        any(words in one.text for one in judge_trace(inspect_trace(planted(effect, seed))))
        for seed in range(10)
    )
    assert found >= 9
