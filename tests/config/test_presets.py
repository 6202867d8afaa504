from dataclasses import fields, replace

import pytest

from moeworks.config import (
    BalanceConfig,
    ExpertsConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    RouterConfig,
    RunConfig,
    SharedExpertsConfig,
)
from moeworks.config.count import count_flops, count_parameters
from moeworks.config.presets import DEFAULT_PRESET, PRESETS, dense_twin, preset
from moeworks.errors import ConfigError


def test_a_dense_twin_has_no_pools_of_experts():
    run = preset(DEFAULT_PRESET)
    router = replace(run.model.router, pools=("a=0-20", "b=14-31"))
    twin = dense_twin(replace(run, model=replace(run.model, router=router)))
    assert twin.model.router.pools == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_say_what_they_are_for(name):
    assert isinstance(preset(name), RunConfig)
    assert preset(name) == preset(name)
    assert PRESETS[name].__doc__


def test_default_preset_is_the_laptop():
    assert DEFAULT_PRESET == "laptop"
    assert preset() == preset("laptop")


def test_laptop_has_about_a_million_active_of_ten_million_parameters():
    count = count_parameters(preset("laptop").model)
    assert 0.5e6 <= count.active <= 2e6
    assert 5e6 <= count.total <= 20e6


def test_gpu_small_has_about_150_million_active_parameters():
    run = preset("gpu-small")
    assert 120e6 <= count_parameters(run.model).active <= 180e6
    assert (run.train.precision, run.train.compile) == ("bfloat16", True)


def test_smoke_is_tiny_and_works_on_bytes():
    run = preset("smoke")
    assert count_parameters(run.model).total < 100_000
    assert run.corpus.tokenizer == "bytes"
    assert run.train.steps <= 20


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="preset = 'laptp': unknown preset; did you mean 'laptop'"):
        preset("laptp")


@pytest.mark.parametrize("name", PRESETS)
def test_dense_twin_keeps_the_matrix_work_per_token(name):
    run = preset(name)
    twin, moe = dense_twin(run), run.model.moe
    routers = 2 * len(run.model.moe_layers) * moe.num_routes * moe.d_model
    difference = count_flops(run.model, 64, training=False) - count_flops(twin.model, 64, training=False)
    assert difference == routers


@pytest.mark.parametrize("name", PRESETS)
def test_dense_twin_has_the_same_active_parameters_but_for_the_router(name):
    moe, dense = (count_parameters(c.model) for c in (preset(name), dense_twin(preset(name))))
    assert moe.active - moe.router == dense.active == dense.total


@pytest.mark.parametrize("name", PRESETS)
def test_dense_twin_has_the_same_data_optimizer_and_loop(name):
    run, twin = preset(name), dense_twin(preset(name))
    assert (twin.data, twin.corpus, twin.optimizer, twin.train) == (
        run.data,
        run.corpus,
        run.optimizer,
        run.train,
    )
    assert twin.model.moe_layers == ()


def test_a_shortcut_has_no_dense_twin():
    run = preset("smoke")
    pattern = LayerPatternConfig(explicit=(0,), shortcut=True)
    with pytest.raises(ConfigError, match="has no dense twin"):
        dense_twin(replace(run, model=replace(run.model, pattern=pattern)))


def test_dense_twin_has_nothing_to_balance():
    run = RunConfig(
        model=ModelConfig(router=RouterConfig(selection_bias=True)),
        balance=BalanceConfig(switch_coef=0.1, z_coef=0.1, bias_rule="sign"),
    )
    balance = dense_twin(run).balance
    assert balance.bias_rule == "none"
    assert all(getattr(balance, f.name) == 0 for f in fields(balance) if f.name.endswith("_coef"))


def test_dense_twin_block_adds_up_the_experts_a_token_uses():
    model = ModelConfig(
        router=RouterConfig(top_k=3),
        experts=ExpertsConfig(d_expert=10, activation="relu2", expert_linear_bias=True),
        shared=SharedExpertsConfig(num_shared_experts=2, d_shared=7),
    )
    block = dense_twin(RunConfig(model=model)).model.mlp
    assert block == MLPConfig(d_ff=3 * 10 + 2 * 7, mlp_activation="relu2", mlp_bias=True)


def test_shared_experts_without_a_width_have_that_of_the_experts():
    model = ModelConfig(experts=ExpertsConfig(d_expert=10), shared=SharedExpertsConfig(num_shared_experts=1))
    assert dense_twin(RunConfig(model=model)).model.mlp.d_ff == 2 * 10 + 10


def test_dense_twin_of_a_dense_model_is_that_model():
    twin = dense_twin(preset("smoke"))
    assert dense_twin(twin) == twin


def test_dense_twin_refuses_dense_layers_of_another_width():
    model = replace(preset("smoke").model, pattern=LayerPatternConfig(first_dense=1), mlp=MLPConfig(d_ff=999))
    with pytest.raises(ConfigError, match=r"model\.mlp = MLPConfig\(d_ff=999.*the dense twin needs the same"):
        dense_twin(replace(preset("smoke"), model=model))
