"""Verdicts follow from thresholds that they state."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeworks.config import CapacityConfig, RunConfig
from moeworks.report.run.run_data import EvalRecord, RoutingRecord, RunData, read_run
from moeworks.report.run.verdicts import judge_run
from moeworks.report.verdict import Verdict

RunMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def run(moe_run: Path) -> RunData:
    return read_run(moe_run)


def find(run: RunData, words: str) -> Verdict:
    (verdict,) = [verdict for verdict in judge_run(run) if words in verdict.text]
    return verdict


def with_counts(run: RunData, counts: np.ndarray) -> RunData:
    return replace(run, routing=(RoutingRecord(10, counts),))


def with_validation(run: RunData, *bits: float) -> RunData:
    evals = [EvalRecord(100 * n, 1.0, 2.0, value, {}) for n, value in enumerate(bits, 1)]
    return replace(run, evals=tuple(evals))


def test_the_nearly_unused_expert_of_the_example_is_named(run: RunData) -> None:
    verdict = find(run, "nearly unused")
    assert verdict.level == "look"
    assert verdict.text == "Layer 2: 1 of 32 experts is nearly unused."
    assert verdict.rule == "Counted over steps 291 to 300; nearly unused means under 0.1 of the fair share."


def test_usage_at_the_threshold(run: RunData) -> None:
    even = np.full((4, 10), 1000)
    assert find(with_counts(run, even), "Every expert is used in all 4 MoE layers.").level == "good"
    at_threshold = even.copy()
    at_threshold[1, 0] = 99  # mean 909.9, threshold 90.99
    assert find(with_counts(run, at_threshold), "Every expert").level == "good"
    below = even.copy()
    below[1, :2] = 50
    below[3, 0] = 0
    verdict = find(with_counts(run, below), "nearly unused")
    assert verdict.text == (
        "Layer 1: 2 of 10 experts are nearly unused; layer 3: 1 of 10 experts is nearly unused."
    )
    assert verdict.level == "look"
    below[3, :6] = 0
    assert find(with_counts(run, below), "nearly unused").level == "problem"


def test_many_layers_are_shortened(make_run: RunMaker) -> None:
    run = read_run(make_run(layers=8, experts=4, lines=1, finished=False))
    verdict = find(with_counts(run, np.array([[0, 1, 1, 1]] * 8)), "nearly unused")
    assert verdict.text.endswith("layer 3: 1 of 4 experts is nearly unused; and 4 more layers.")


@pytest.mark.parametrize(
    ("max_vio", "level", "words"),
    [
        (0.5, "good", "is even"),
        (0.51, "look", "somewhat uneven"),
        (1.5, "look", "uneven"),
        (1.6, "problem", "lopsided"),
    ],
)
def test_evenness(run: RunData, max_vio: float, level: str, words: str) -> None:
    last = replace(run.train[-1], max_vio=(0.1, 0.2, max_vio, 0.0))
    verdict = find(replace(run, train=(last,)), "busiest expert")
    assert verdict.level == level
    assert (
        f"{1 + max_vio:.2f} times its fair share of the work (layer 2, MaxVio {max_vio:.2f})" in verdict.text
    )
    assert words in verdict.text


@pytest.mark.parametrize(
    ("bits", "level", "words"),
    [
        ((3.0, 2.0, 1.98), "good", "still falling"),
        ((3.0, 2.0, 1.99), "note", "levelled off"),
        ((3.0, 2.0, 2.0), "note", "levelled off"),
        ((3.0, 2.0, 2.1), "look", "worse than the one before"),
    ],
)
def test_validation(run: RunData, bits: tuple[float, ...], level: str, words: str) -> None:
    verdict = find(with_validation(run, *bits), "Validation went from 3.000 (step 100)")
    assert (verdict.level, words in verdict.text) == (level, True)


def test_one_validation_says_nothing_about_progress(run: RunData) -> None:
    assert not [
        verdict for verdict in judge_run(with_validation(run, 2.0)) if "Validation went" in verdict.text
    ]


def test_memorising(run: RunData) -> None:
    assert find(run, "about as well on unseen text").level == "good"
    assert run.summary is not None
    worse = replace(run.summary, eval=replace(run.summary.eval, loss=3.0))
    verdict = find(replace(run, summary=worse), "clearly better on text it trained on")
    assert verdict.level == "look"
    assert "More than 15 % above would be a warning" in verdict.rule


def test_dropping_is_judged_only_where_there_is_a_limit(
    run: RunData, config_with: Callable[..., RunConfig]
) -> None:
    assert not [verdict for verdict in judge_run(run) if "drop" in verdict.text]
    limited = replace(run, config=config_with(capacity=CapacityConfig(capacity_factor=1.0)))
    assert find(limited, "nothing was dropped").level == "good"
    last = replace(run.train[-1], dropped=(0.0, 0.125, 0.0, 0.0))
    verdict = find(replace(limited, train=(last,)), "dropped")
    assert (verdict.level, verdict.text) == ("look", "Up to 12.5 % of the assignments are dropped (layer 1).")


def specialisation(run: RunData, **counts: np.ndarray) -> str:
    assert run.summary is not None
    changed = replace(run, summary=replace(run.summary, domain_tokens_per_expert=counts))
    (verdict,) = [verdict for verdict in judge_run(changed) if "prefer" in verdict.rule]
    return verdict.text


def test_an_expert_that_prefers_a_domain_is_named(run: RunData) -> None:
    html, email = np.full((4, 8), 1000), np.full((4, 8), 10)
    email[2, 5] = 90
    assert specialisation(run, html=html, email=email) == (
        "Experts specialise: in layer 2, expert 5 does 56.2 % of the work on email,"
        " but 13.4 % of all the work."
    )


def test_an_expert_that_is_busy_everywhere_prefers_nothing(run: RunData) -> None:
    busy = np.full((4, 8), 10)
    busy[2, 5] = 90
    assert specialisation(run, html=busy, email=3 * busy).startswith("No expert prefers a kind of text")


def test_a_preference_of_an_expert_with_little_work_does_not_count(run: RunData) -> None:
    html, email = np.full((4, 8), 1000), np.full((4, 8), 1000)
    html[:, 0], email[:, 0] = 1, 20
    assert specialisation(run, html=html, email=email).startswith("No expert prefers a kind of text")


def test_an_unfinished_run_says_so_first(make_run: RunMaker) -> None:
    first = judge_run(read_run(make_run(lines=12, finished=False)))[0]
    assert first.text == "The run is not finished: 120 of 300 steps are logged."


def test_a_dense_run_is_judged_by_its_learning_only(make_run: RunMaker) -> None:
    verdicts = judge_run(read_run(make_run(dense=True)))
    assert len(verdicts) == 2
    assert not any("expert" in verdict.text for verdict in verdicts)


def test_a_run_without_lines_has_one_verdict(run: RunData) -> None:
    empty = replace(run, train=(), routing=(), evals=(), summary=None)
    assert [verdict.level for verdict in judge_run(empty)] == ["note"]
