"""Learning-rate schedules against their closed forms."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import OptimizerConfig
from moeworks.train.schedule import lr_scale

SCHEDULES = ("cosine", "wsd", "constant")


def _curve(total: int, config: OptimizerConfig) -> list[float]:
    return [lr_scale(step, total, config) for step in range(total + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_never_zero(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=4)
    assert _curve(100, config)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak_rate(schedule: str) -> None:
    assert lr_scale(0, 100, OptimizerConfig(schedule=schedule, warmup_steps=0)) == 1.0


def test_cosine_is_half_a_cosine_between_warm_up_and_end() -> None:
    config = OptimizerConfig(schedule="cosine", warmup_steps=20, final_fraction=0.1)
    for step in range(20, 120):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 20) / 100)) / 2
        assert lr_scale(step, 120, config) == pytest.approx(expected, abs=1e-15)
    assert lr_scale(70, 120, config) == pytest.approx(0.55)


def test_wsd_is_stable_and_then_linear() -> None:
    config = OptimizerConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.25, final_fraction=0.2)
    curve = _curve(80, config)
    assert curve[10:61] == [1.0] * 51
    assert curve[60:] == pytest.approx([1 - 0.8 * n / 20 for n in range(21)])


def test_wsd_decay_takes_only_what_the_warm_up_leaves() -> None:
    config = OptimizerConfig(schedule="wsd", warmup_steps=6, decay_fraction=1.0)
    assert _curve(10, config)[5:] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_wsd_without_decay_stays_until_the_end() -> None:
    config = OptimizerConfig(schedule="wsd", warmup_steps=0, decay_fraction=0.0)
    assert _curve(10, config)[:10] == [1.0] * 10


def test_constant_ignores_the_end() -> None:
    config = OptimizerConfig(schedule="constant", warmup_steps=2)
    assert [lr_scale(step, 10, config) for step in (0, 1, 2, 9, 10, 99)] == [0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_step_is_above_the_end_value_and_later_ones_stay_on_it(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=2, final_fraction=0.0)
    assert lr_scale(99, 100, config) > 0
    assert lr_scale(100, 100, config) == lr_scale(1000, 100, config) == 0.0


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = OptimizerConfig(schedule="cosine", warmup_steps=20)
    assert _curve(5, config)[:5] == [n / 20 for n in range(1, 6)]


configs = st.builds(
    OptimizerConfig,
    schedule=st.sampled_from(SCHEDULES),
    warmup_steps=st.integers(0, 60),
    decay_fraction=st.floats(0, 1),
    final_fraction=st.floats(0, 1),
)


@given(config=configs, total=st.integers(1, 200), step=st.integers(0, 250))
def test_always_within_zero_and_one(config: OptimizerConfig, total: int, step: int) -> None:
    assert 0.0 <= lr_scale(step, total, config) <= 1.0


@given(config=configs, total=st.integers(1, 200))
def test_rises_in_the_warm_up_and_never_after_it(config: OptimizerConfig, total: int) -> None:
    curve = _curve(total, config)[:total]
    warm, rest = curve[: config.warmup_steps], curve[config.warmup_steps :]
    assert warm == sorted(warm)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rest))


@given(config=configs, total=st.integers(1, 200))
def test_continuous(config: OptimizerConfig, total: int) -> None:
    """No step is larger than the steepest slope: 1 / warm-up, 1 / decay, or pi / 2 / cosine."""
    decay = min(total * config.decay_fraction, total - config.warmup_steps)
    slopes = {
        "constant": 0.0,
        "cosine": math.pi / 2 / max(1, total - config.warmup_steps),
        "wsd": 1 / decay if decay > 1 else 1.0,
    }
    steepest = max(slopes[config.schedule], 1 / max(1, config.warmup_steps))
    curve = _curve(total, config)[:total]
    for before, after in pairwise(curve):
        assert abs(after - before) <= steepest + 1e-9
