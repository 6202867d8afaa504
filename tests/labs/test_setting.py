"""Every cell of every lab has a config, and compute that is said to be equal is equal."""

import pytest

from moeworks.config.count import count_flops
from moeworks.errors import ConfigError
from moeworks.labs.experiments import LABS
from moeworks.labs.lab import Arm, Lab
from moeworks.labs.setting import arm_config, base_config, match_flops, training_flops, with_overrides

DATA = ("stdlib:",)


@pytest.mark.parametrize("name", LABS)
def test_every_arm_has_a_config(name: str) -> None:
    lab = LABS[name]
    configs = [arm_config(lab, arm, DATA, steps=10, seed=3) for arm in lab.arms]
    assert len({str(config) for config in configs}) + sum(arm.router_in_bfloat16 for arm in lab.arms) >= len(
        configs
    )
    assert {config.train.seed for config in configs} == {3}
    assert {config.train.batch_size * config.train.seq_len for config in configs} == {2048}
    assert all(config.optimizer.warmup_steps <= config.train.steps for config in configs)
    assert lab.baseline in [arm.name for arm in lab.arms]


@pytest.mark.parametrize("name", LABS)
def test_equal_compute(name: str) -> None:
    """An arm that is matched differs from the baseline by half a step of the width that is matched."""
    lab = LABS[name]
    target = training_flops(arm_config(lab, lab.arm(lab.baseline), DATA, steps=10, seed=0))
    for arm in lab.arms:
        if arm.match is None:
            continue
        flops = training_flops(arm_config(lab, arm, DATA, steps=10, seed=0))
        assert abs(flops / target - 1) < 0.03, arm.name


def test_match_flops_finds_the_nearest_width() -> None:
    config = base_config(DATA)
    path = "model.experts.d_expert"
    for width in (1, 17, 64):
        target = training_flops(with_overrides(config, {path: width}))
        assert match_flops(config, path, target + 3).model.experts.d_expert == width
    assert match_flops(config, path, 1).model.experts.d_expert == 1


def test_training_flops_are_those_of_count() -> None:
    config = base_config(DATA)
    assert training_flops(config) == count_flops(config.model, config.train.seq_len, training=True)


def test_overrides() -> None:
    config = base_config(DATA)
    changed = with_overrides(config, {"model.router.top_k": 4, "train.seq_len": 64})
    assert (changed.model.router.top_k, changed.train.seq_len) == (4, 64)
    assert with_overrides(config, {}) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.router.top_kk", 2, "model.router.top_kk: unknown field; did you mean 'top_k'"),
        ("modell.router.top_k", 2, "modell: unknown field"),
        ("model.router.top_k", 99, "router.top_k = 99"),
        ("model.router.top_k", "2", "model.router.top_k = '2': must be int"),
    ],
)
def test_bad_overrides(path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_overrides(base_config(DATA), {path: value})


def test_steps_of_an_arm_are_a_multiple() -> None:
    lab = LABS["dense"]
    longer = Arm(name="x", words="", overrides=lab.arm("dense").overrides, steps=1.5)
    assert arm_config(lab, longer, DATA, steps=10, seed=0).train.steps == 15
    assert isinstance(lab, Lab)
