import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import (
    BalanceConfig,
    CapacityConfig,
    CorpusConfig,
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    RouterConfig,
    RunConfig,
    SharedExpertsConfig,
    TrainConfig,
)
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.model import GATED
from moeworks.config.presets import PRESETS, preset
from moeworks.errors import ConfigError

small = st.integers(1, 64)
positive = st.floats(1e-12, 1e12)
maybe_positive = st.none() | positive
activations = st.sampled_from([*sorted(GATED), "relu", "gelu", "relu2"])

models = st.builds(
    ModelConfig,
    vocab_size=small,
    d_model=small.map(lambda n: 8 * n),
    num_layers=st.just(6),
    tie_embeddings=st.booleans(),
    norm_eps=positive,
    attention=st.builds(GQAConfig, head_dim=st.none() | small.map(lambda n: 2 * n), rope_theta=positive),
    pattern=st.builds(
        LayerPatternConfig,
        first_dense=st.integers(0, 7),
        every=small,
        explicit=st.none() | st.lists(st.integers(0, 5), unique=True).map(tuple),
    ),
    mlp=st.builds(MLPConfig, d_ff=small, mlp_activation=activations, mlp_bias=st.booleans()),
    router=st.builds(RouterConfig, num_experts=small.map(lambda n: n + 1), selection_bias=st.just(True)),
    experts=st.builds(ExpertsConfig, d_expert=small, activation=activations),
    shared=st.builds(SharedExpertsConfig, num_shared_experts=st.integers(0, 3), d_shared=st.none() | small),
    capacity=st.builds(CapacityConfig, capacity_factor=maybe_positive, eval_capacity_factor=maybe_positive),
)
runs = st.builds(
    RunConfig,
    data=st.lists(st.text(), min_size=1).map(tuple),
    corpus=st.builds(CorpusConfig, tokenizer=st.text(), domain_field=st.none() | st.text()),
    model=models,
    balance=st.builds(
        BalanceConfig,
        switch_coef=st.floats(0, 1),
        bias_rule=st.sampled_from(["none", "sign", "proportional"]),
    ),
    optimizer=st.builds(OptimizerConfig, lr=positive, name=st.sampled_from(["muon", "adamw"])),
    train=st.builds(
        TrainConfig,
        seq_len=small,
        compile=st.booleans(),
        threads=st.none() | small,
        sample_prompt=st.text(),
        loggers=st.sampled_from([(), ("wandb",), ("tensorboard", "wandb")]),
    ),
)


@given(runs)
def test_a_run_survives_json(config):
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@given(models)
def test_a_model_survives_without_json(model):
    assert from_dict(ModelConfig, to_dict(model)) == model


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(preset(name))))) == preset(name)


def test_the_flat_moe_config_survives():
    moe = MoEConfig(d_model=8, d_expert=4, num_experts=6, top_k=2)
    assert from_dict(MoEConfig, to_dict(moe)) == moe


def test_tuples_become_lists_and_back():
    pattern = LayerPatternConfig(explicit=(1, 3))
    assert to_dict(pattern) == {"first_dense": 0, "every": 1, "explicit": [1, 3], "shortcut": False}
    assert from_dict(LayerPatternConfig, {"explicit": [1, 3]}).explicit == (1, 3)


def test_missing_keys_take_their_defaults():
    assert from_dict(RunConfig, {}) == RunConfig()
    run = from_dict(RunConfig, {"train": {"steps": 7}})
    assert (run.train.steps, run.train.seq_len, run.model) == (7, TrainConfig().seq_len, ModelConfig())


def test_an_int_is_a_float_and_becomes_one():
    lr = from_dict(OptimizerConfig, {"lr": 1}).lr
    assert lr == 1.0
    assert type(lr) is float


def message(data: object, cls: type = RunConfig, path: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, data, path)
    return str(caught.value)


def test_unknown_key_names_its_path_and_the_nearest_name():
    text = message({"model": {"router": {"top_kk": 3}}})
    assert text == "model.router.top_kk: unknown field; did you mean 'top_k'?"


def test_unknown_key_far_from_all_names_lists_them():
    text = message({"zzz": 1})
    assert text == "zzz: unknown field; known: alarms, balance, corpus, data, model, optimizer, train"


def test_key_that_is_no_string_is_unknown():
    assert message({"corpus": {7: 1}}).startswith("corpus.7: unknown field; known: cache_dir, ")


def test_given_path_stands_before_all_others():
    assert message({"stepz": 1}, TrainConfig, "config.train").startswith("config.train.stepz: unknown field")
    assert message({"steps": "1"}, TrainConfig, "config.train").startswith("config.train.steps = '1'")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"train": {"steps": "3"}}, "train.steps = '3': must be int"),
        ({"train": {"steps": 2.5}}, "train.steps = 2.5: must be int"),
        ({"train": {"steps": 2.0}}, "train.steps = 2.0: must be int"),
        ({"train": {"steps": True}}, "train.steps = True: must be int"),
        ({"train": {"steps": None}}, "train.steps = None: must be int"),
        ({"train": {"threads": "2"}}, "train.threads = '2': must be int or None"),
        ({"train": {"compile": 1}}, "train.compile = 1: must be bool"),
        ({"train": {"compile": "false"}}, "train.compile = 'false': must be bool"),
        (
            {"train": {"precision": "fp8"}},
            "train.precision = 'fp8': must be 'float32', 'bfloat16' or 'float64'",
        ),
        ({"train": {"loggers": ["mail"]}}, "train.loggers[0] = 'mail': must be 'tensorboard' or 'wandb'"),
        ({"optimizer": {"lr": "0.1"}}, "optimizer.lr = '0.1': must be float"),
        ({"optimizer": {"lr": True}}, "optimizer.lr = True: must be float"),
        ({"corpus": {"tokenizer": 3}}, "corpus.tokenizer = 3: must be str"),
        ({"data": "texts/"}, "data = 'texts/': must be list of str"),
        ({"data": ["texts/", 3]}, "data[1] = 3: must be str"),
        (
            {"model": {"pattern": {"explicit": [0, "1"]}}},
            "model.pattern.explicit[1] = '1': must be int",
        ),
        (
            {"model": {"pattern": {"explicit": {"a": 1}}}},
            "model.pattern.explicit = {'a': 1}: must be list of int or None",
        ),
        ({"model": {"router": [2]}}, "model.router = [2]: must be an object with the fields of RouterConfig"),
        ({"model": None}, "model = None: must be an object with the fields of ModelConfig"),
        ([], "config = []: must be an object with the fields of RunConfig"),
    ],
)
def test_wrong_type_names_path_value_and_expected_type(data, expected):
    assert message(data) == expected


def test_missing_key_without_default():
    assert message({}, MoEConfig) == "d_model: missing, and it has no default"
    assert message({}, MoEConfig, "layer") == "layer.d_model: missing, and it has no default"


def test_broken_rule_is_reported_as_the_config_words_it():
    text = message({"model": {"router": {"top_k": 99}}})
    assert text == "router.top_k = 99: must lie between 1 and the number of experts, 8"


@dataclass(frozen=True)
class Scales:
    scale: float = 1.0


@given(st.floats(allow_nan=False))
def test_floats_are_exact(value):
    assert from_dict(Scales, json.loads(json.dumps(to_dict(Scales(value))))) == Scales(value)


def test_nan_stays_nan():
    assert math.isnan(from_dict(Scales, json.loads(json.dumps(to_dict(Scales(math.nan))))).scale)
