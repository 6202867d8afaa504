"""What each choice refuses, and that it survives JSON."""

import re
from typing import get_args

import pytest
from random_layers import make_config

from moeworks.config import (
    BalanceConfig,
    CapacityConfig,
    ChoiceConfig,
    CustomChoice,
    ExpertChoice,
    ModelConfig,
    RouterConfig,
    RunConfig,
    SinkhornChoice,
    ThresholdChoice,
    TopKChoice,
    TopPChoice,
)
from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import ConfigError

KINDS = get_args(ChoiceConfig)


def run_config(router: dict, **balance) -> RunConfig:
    options = dict(global_batch_coef=0.0) | balance
    return RunConfig(model=ModelConfig(router=RouterConfig(**router)), balance=BalanceConfig(**options))


@pytest.mark.parametrize("kind", KINDS)
def test_survives_json(kind):
    config = RouterConfig(num_experts=8, choice=kind(), **(dict(top_k=4) if kind.sparse else {}))
    assert from_dict(RouterConfig, to_dict(config)) == config
    assert to_dict(config)["choice"]["kind"] == kind.kind


def test_configs_from_before_there_were_choices_are_top_k():
    old = to_dict(RouterConfig())
    for name in ("choice", "gumbel_noise", "noise_steps"):
        del old[name]
    assert from_dict(RouterConfig, old) == RouterConfig()
    assert RouterConfig().choice == TopKChoice()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.sparse])
def test_slots_hold_top_k_and_are_not_more_than_experts(kind):
    config = make_config(choice=kind(), top_k=3)
    assert 3 <= config.slots <= config.num_routes
    assert kind.variable == (kind in (ExpertChoice, TopPChoice, ThresholdChoice, CustomChoice))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(choice=ExpertChoice(capacity_factor=0)), "capacity_factor = 0: must be positive, and at most"),
        (dict(choice=ExpertChoice(capacity_factor=4.0)), "experts / top_k = 3"),
        (dict(choice=ExpertChoice(momentum=1.0)), "momentum = 1.0: must lie in [0, 1)"),
        (dict(choice=ExpertChoice(scope="sequence")), "scope = 'sequence': needs causal = 'no'"),
        (dict(choice=ExpertChoice(max_experts=1)), "max_experts = 1: must lie between top_k = 2 and the"),
        (dict(choice=CustomChoice(max_experts=7)), "max_experts = 7"),
        (dict(choice=SinkhornChoice(iterations=0)), "iterations = 0"),
        (dict(choice=SinkhornChoice(temperature=0.0)), "temperature = 0.0"),
        (dict(choice=TopPChoice(p=0.0)), "p = 0.0: must lie in (0, 1]"),
        (
            dict(choice=TopPChoice(), score_order="after_top_k"),
            "score_order = 'after_top_k': must be",
        ),
        (dict(choice=ThresholdChoice(threshold=0.0)), "threshold = 0.0"),
        (dict(choice=ThresholdChoice(rate=0.0)), "rate = 0.0"),
        (dict(choice=ThresholdChoice(min_experts=3)), "min_experts = 3: must lie between 0 and top_k = 2"),
        (dict(choice=ThresholdChoice(mean_experts=2.0)), "mean_experts = 2.0: must lie between min_experts"),
        (
            dict(choice=SinkhornChoice(), score="sparsemixer", renormalize=False),
            "router.score = 'sparsemixer': must be another with router.choice = 'sinkhorn'",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_config(**options)


@pytest.mark.parametrize(
    ("router", "balance", "message"),
    [
        (
            dict(selection_bias=True, num_groups=2, top_k_groups=1),
            dict(bias_rule="quantile", bias_rate=0.1),
            "bias_rule = 'quantile': needs model.router.num_groups = 1, not 2",
        ),
        (
            dict(noisy_top_k=True, noise_steps=9),
            dict(load_coef=0.1),
            "load_coef = 0.1: needs model.router.choice",
        ),
        (
            dict(noisy_top_k=True, choice=TopPChoice()),
            dict(load_coef=0.1),
            "load_coef = 0.1: needs model.router.choice = top_k",
        ),
    ],
)
def test_what_a_run_refuses(router, balance, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_config(router, **balance)


def test_a_quantile_rate_is_a_share():
    with pytest.raises(ConfigError, match=r"bias_rate = 2.0: must not exceed 1 with bias_rule = 'quantile'"):
        BalanceConfig(bias_rule="quantile", bias_rate=2.0)


def test_what_looks_ahead():
    for choice, training, evaluation in [
        (TopKChoice(), False, False),
        (ExpertChoice(), True, False),
        (ExpertChoice(causal="always"), False, False),
        (ExpertChoice(causal="no"), True, True),
        (SinkhornChoice(), True, False),
        (TopPChoice(), False, False),
    ]:
        assert bool(choice.looks_ahead(training=True)) == training
        assert bool(choice.looks_ahead(training=False)) == evaluation
    limited = CapacityConfig(capacity_factor=1.0, drop_policy="batch_priority")
    assert limited.looks_ahead(training=True)
    assert not limited.looks_ahead(training=False)
