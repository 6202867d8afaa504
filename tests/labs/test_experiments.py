"""Every lab's judgement on results that nobody measured: held, failed, and undecided."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from lab_records import record, results

from moeworks.labs.experiments import LABS
from moeworks.labs.experiments.routers import ROUTERS
from moeworks.labs.lab import Arm, Lab
from moeworks.labs.results import Results
from moeworks.labs.summary import summarise


@dataclass(frozen=True)
class Case:
    """Losses and metrics by arm with which a claim holds, and changes with which it fails."""

    bits: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failing: dict[str, Any] = field(default_factory=dict)
    """Fields of a Case that take the place of these."""


_ALIVE, _DEAD = {"dead": 0.0, "max_vio": 1.0}, {"dead": 0.4, "max_vio": 9.0}

CASES: dict[str, Case] = {
    "dense": Case(
        bits={"dense": 2.0, "dense, longer": 1.98, "moe-8": 1.95, "moe-16": 1.93, "moe-32": 1.9},
        failing=dict(bits={"moe-16": 2.1}),
    ),
    "balance": Case(
        bits={"switch-1": 2.1},
        metrics={"none": _DEAD, "switch-0.01": _ALIVE, "bias": _ALIVE},
        failing=dict(metrics={"none": _ALIVE, "switch-0.01": _ALIVE, "bias": _ALIVE}),
    ),
    "routers": Case(bits={"dense": 2.2, "hash": 2.1, "learned": 2.0}, failing=dict(bits={"dense": 1.5})),
    "top-k": Case(bits={"k=1": 1.9}, failing=dict(bits={"k=1": 2.1})),
    "fine-grained": Case(
        bits={"8": 2.1, "16": 2.05, "32": 2.0, "64": 1.99}, failing=dict(bits={"64": 2.2, "8": 2.1})
    ),
    "shared": Case(bits={"1": 1.95}, failing=dict(bits={"1": 2.05})),
    "score": Case(bits={"sigmoid": 1.9}, failing=dict(bits={"sigmoid": 2.1})),
    "capacity": Case(
        bits={"0.75": 2.2, "1.0": 2.1, "1.0 training, position": 2.1},
        metrics={"1.0": {"batch_argmax_change": 0.2}, "dropless": {"batch_argmax_change": 0.0}},
        failing=dict(metrics={"1.0": {"batch_argmax_change": 0.2}, "dropless": {"batch_argmax_change": 0.1}}),
    ),
    "layers": Case(
        bits={"first dense": 1.9},
        layers={"all": {"early_max_vio": [5.0, 1.0, 1.0, 1.0]}},
        failing=dict(layers={"all": {"early_max_vio": [1.0, 5.0, 5.0, 5.0]}}),
    ),
    "specialisation": Case(
        metrics={"moe": {"knows_token": 0.6, "knows_domain_given_token": 0.01}},
        failing=dict(metrics={"moe": {"knows_token": 0.6, "knows_domain_given_token": 0.2}}),
    ),
    "stability": Case(
        bits={"high, bfloat16 router": 2.2, "high, float32 router": 2.1, "high, float32 router, z-loss": 2.0},
        failing=dict(bits={"high, float32 router, z-loss": 2.4}),
    ),
}  # fmt: skip


def _results(name: str, changes: dict[str, Any], noise: float = 0.0005) -> Results:
    case = {"bits": CASES[name].bits, "metrics": CASES[name].metrics, "layers": CASES[name].layers} | changes
    return results(_complete(LABS[name]), **case, noise=noise)


def _complete(lab: Lab) -> Lab:
    """With an arm for every router that a version of moeworks may have."""
    if lab.name != "routers":
        return lab
    there = {arm.name for arm in lab.arms}
    more = [Arm(name=name, words=words) for name, words, _ in ROUTERS if name not in there]
    return replace(lab, arms=(*lab.arms, *more))


def test_every_lab_has_a_case() -> None:
    assert list(CASES) == list(LABS)


@pytest.mark.parametrize("name", LABS)
def test_held(name: str) -> None:
    judgement = LABS[name].judge(_results(name, {}))
    assert [item.verdict for item in judgement.evidence] == ["held"] * len(judgement.evidence)
    assert judgement.verdict == "held"


@pytest.mark.parametrize("name", LABS)
def test_failed(name: str) -> None:
    judgement = LABS[name].judge(_results(name, CASES[name].failing))
    assert judgement.verdict == "failed"
    failed = [item for item in judgement.evidence if item.verdict == "failed"]
    assert failed and all(item.estimate is not None for item in failed)


@pytest.mark.parametrize("name", LABS)
def test_noise_leaves_it_undecided(name: str) -> None:
    assert LABS[name].judge(_results(name, {}, noise=5.0)).verdict == "undecided"


@pytest.mark.parametrize("name", LABS)
def test_without_cells_it_is_undecided(name: str) -> None:
    lab = LABS[name]
    assert lab.judge(Results([], [arm.name for arm in lab.arms], lab.baseline)).verdict == "undecided"


@pytest.mark.parametrize("name", LABS)
def test_a_lab_says_what_it_is_about(name: str) -> None:
    lab = LABS[name]
    assert lab.name == name
    assert lab.claim.endswith(".") and lab.source and lab.question.endswith(".")
    assert len({arm.name for arm in lab.arms}) == len(lab.arms)


@pytest.mark.parametrize("name", LABS)
def test_summary_of_unfinished_and_diverged_cells(name: str) -> None:
    lab = LABS[name]
    last = lab.arms[-1].name
    some = Results(
        [record(lab.baseline, 0, 2.0), record(last, 0, None)], [arm.name for arm in lab.arms], lab.baseline
    )
    summary = summarise(lab, some, {"seeds": "1"}, quick=True)
    assert [row.name for row in summary.rows] == [
        arm.name for arm in lab.arms if arm.name in (lab.baseline, last)
    ]
    assert summary.rows[-1].diverged == 1 if last != lab.baseline else True
