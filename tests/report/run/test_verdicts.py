"""Verdicts follow from thresholds that they state."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeworks.analyse.verdicts import Verdict
from moeworks.analyse.verdicts.training import judge_preference, judge_usage, judge_validation
from moeworks.config import CapacityConfig, RunConfig
from moeworks.report.run.run_data import EvalRecord, RoutingRecord, RunData, read_run
from moeworks.report.run.verdicts import judge_run

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
    assert verdict.rule.startswith("Counted over steps 271 to 300; nearly unused means surely under 0.1 of")


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
    verdict = find(with_counts(run, np.array([[0, 999, 999, 999]] * 8)), "nearly unused")
    assert verdict.text.endswith("layer 3: 1 of 4 experts is nearly unused; and 4 more layers.")


def test_so_few_tokens_are_no_evidence(run: RunData) -> None:
    few = np.array([[0, 1, 1, 1], [1, 1, 1, 1], [0, 4, 0, 0], [1, 1, 1, 1]])
    assert find(with_counts(run, few), "Every expert is used").level == "good"
    assert find(with_counts(run, few), "not surely uneven").level == "good"


@pytest.mark.parametrize(
    ("max_vio", "level", "words"),
    [
        (0.49, "good", "is even"),
        (0.55, "look", "somewhat uneven"),
        (1.4, "look", "uneven"),
        (1.6, "problem", "lopsided"),
    ],
)
def test_evenness(run: RunData, max_vio: float, level: str, words: str) -> None:
    """Over the last tenth of the steps, not over one batch."""
    counts = np.full((4, 10), 100_000)
    counts[2] -= round(100_000 * max_vio / 9)
    counts[2, 7] = round(100_000 * (1 + max_vio))
    early = RoutingRecord(100, np.tile(np.eye(10, dtype=int)[0] * 1000, (4, 1)))
    records = (early, *(RoutingRecord(step, counts // 2) for step in (290, 300)))
    verdict = find(replace(run, routing=records), "busiest expert")
    assert verdict.level == level
    share = f"{1 + max_vio:.2f} times its fair share of the work (layer 2, MaxVio {max_vio:.2f})"
    assert share in verdict.text
    assert words in verdict.text
    assert "steps 101 to 300; MaxVio by layer: layer 0 0.00, layer 1 0.00, layer 2" in verdict.rule


@pytest.mark.parametrize(
    ("bits", "level", "words"),
    [
        ((3.0, 2.4, 2.0, 1.98), "good", "still falling"),
        ((3.0, 2.4, 2.0, 1.99), "note", "levelled off"),
        ((3.0, 2.4, 2.5, 1.9), "note", "levelled off"),  # the last one alone is no trend
        ((3.0, 2.0, 2.02, 2.04, 2.1), "look", "it rises"),
        ((3.0, 2.4, 2.0, 2.1), "note", "levelled off"),
        ((3.0, 2.0, 1.9), "note", "takes 4 validations"),
    ],
)
def test_validation(run: RunData, bits: tuple[float, ...], level: str, words: str) -> None:
    verdict = find(with_validation(run, *bits), "went from 3.000 (step 100)")
    assert (verdict.level, words in verdict.text) == (level, True)


def test_validation_says_which_text_each_figure_is_of(run: RunData) -> None:
    """The periodic validations read a part, the last one everything: two figures for one step."""
    assert run.summary is not None
    whole = replace(
        run.summary.eval,
        bits_per_byte=1.373,
        domains={name: replace(one, tokens=9 * one.tokens) for name, one in run.summary.eval.domains.items()},
    )
    changed = replace(run, summary=replace(run.summary, eval=whole))
    verdict = find(changed, "Validation on the same")
    assert f"the same {run.evals[-1].tokens:,} tokens each time went from" in verdict.text
    assert f"All {whole.tokens:,} tokens of validation text: 1.373, the figure above." in verdict.rule


def test_flat_validations_with_noise_are_seldom_told() -> None:
    """Of 400 flat curves at most 5 % fall or rise by what is said, with three standard errors."""
    rng = np.random.default_rng(0)
    curves = 1.4 + 0.05 * rng.standard_normal((400, 8))
    found = [judge_validation(range(8), curve.tolist(), "text")[0].text for curve in curves]
    for words in ("still falling", "it rises"):
        assert sum(words in text for text in found) <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_one_validation_says_nothing_about_progress(run: RunData) -> None:
    assert not [
        verdict for verdict in judge_run(with_validation(run, 2.0)) if "Validation on" in verdict.text
    ]


def test_memorising(run: RunData) -> None:
    assert find(run, "about as well on unseen text").level == "good"
    assert run.summary is not None
    worse = replace(run.summary, eval=replace(run.summary.eval, loss=3.0))
    verdict = find(replace(run, summary=worse), "clearly better on text it trained on")
    assert verdict.level == "look"
    assert "More than 15 % above that would be a warning" in verdict.rule


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


def test_counts_that_differ_by_chance_are_seldom_told() -> None:
    """200 runs of even experts, validated on two domains that mean nothing."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(200):
        counts = {name: rng.poisson(20, size=(2, 16)) for name in ("a", "b")}
        names = ["layer 0", "layer 1"]
        named += "specialise" in judge_preference(counts, names)[0].text
        named += "nearly unused" in judge_usage(rng.poisson(3, size=(2, 16)), names, "steps 1 to 2")[0].text
    assert named <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5
