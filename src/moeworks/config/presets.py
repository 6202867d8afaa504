"""Named runs, and the dense twin of a run."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from moeworks.config.balance import BalanceConfig
from moeworks.config.model import (
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.run import CorpusConfig, OptimizerConfig, RunConfig, TrainConfig
from moeworks.errors import ConfigError, check, nearest


def _laptop() -> RunConfig:
    """About 1M active of 10M parameters on Python's own library: five minutes on two CPU cores."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=2048,
            d_model=128,
            num_layers=4,
            attention=GQAConfig(num_heads=2, num_kv_heads=2),
            router=RouterConfig(num_experts=32, top_k=2),
            experts=ExpertsConfig(d_expert=192),
        ),
        # Small batches and AdamW for the experts: at this size steps are worth more than tokens, and muon
        # on all experts would cost a third of a step.
        optimizer=OptimizerConfig(expert_optimizer="adamw", lr=6e-3, warmup_steps=30),
        corpus=CorpusConfig(validation_fraction=0.1),
        train=TrainConfig(
            steps=1000, batch_size=8, seq_len=256, log_every=20, eval_every=200, checkpoint_every=200
        ),
    )


def _smoke() -> RunConfig:
    """A tiny model on bytes for a few steps: shows in seconds that everything works."""
    return RunConfig(
        corpus=CorpusConfig(tokenizer="bytes"),
        model=ModelConfig(
            vocab_size=264,
            d_model=32,
            num_layers=2,
            max_seq_len=128,
            attention=GQAConfig(num_heads=2, num_kv_heads=2),
            router=RouterConfig(num_experts=4, top_k=2),
            experts=ExpertsConfig(d_expert=32),
        ),
        optimizer=OptimizerConfig(warmup_steps=2),
        train=TrainConfig(
            steps=12,
            batch_size=4,
            seq_len=64,
            log_every=1,
            eval_every=6,
            eval_tokens=2048,
            checkpoint_every=6,
            sample_tokens=32,
        ),
    )


def _gpu_small() -> RunConfig:
    """About 160M active of 1.2B parameters in bfloat16, compiled: for one large GPU."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=32_768,
            d_model=1024,
            num_layers=12,
            max_seq_len=2048,
            attention=GQAConfig(num_heads=16, num_kv_heads=4),
            pattern=LayerPatternConfig(first_dense=1),
            mlp=MLPConfig(d_ff=2560),
            router=RouterConfig(num_experts=64, top_k=4, selection_bias=True),
            experts=ExpertsConfig(d_expert=512),
            shared=SharedExpertsConfig(num_shared_experts=1),
        ),
        balance=BalanceConfig(global_batch_coef=1e-3, z_coef=1e-3, bias_rule="sign"),
        optimizer=OptimizerConfig(warmup_steps=200),
        train=TrainConfig(
            steps=10_000,
            batch_size=32,
            seq_len=1024,
            precision="bfloat16",
            compile=True,
            eval_every=500,
            eval_tokens=1_048_576,
            checkpoint_every=500,
        ),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "laptop": _laptop,
    "smoke": _smoke,
    "gpu-small": _gpu_small,
}
"""Every preset by name; the docstring of its function says what it is for."""

DEFAULT_PRESET = "laptop"


def preset(name: str = DEFAULT_PRESET) -> RunConfig:
    """The preset called `name`; raises ConfigError with the nearest name when there is none."""
    if name not in PRESETS:
        raise ConfigError(f"preset = {name!r}: unknown preset; {nearest(name, PRESETS)}")
    return PRESETS[name]()


def dense_twin(config: RunConfig) -> RunConfig:
    """The same run without experts: each MoE layer becomes a dense block of equal active width.

    The width is top_k * d_expert plus that of the shared experts, the activation and biases are those of
    the experts, and nothing is left to balance. Layers that were dense stay as they are.

    Raises ConfigError when the dense layers of `config` differ from that block: a model has one of them.
    """
    model = config.model
    if model.moe_layers:
        model = replace(model, mlp=_twin_block(model))
    dense = replace(model, pattern=LayerPatternConfig(explicit=()), router=replace(model.router, pools=()))
    coefs: dict[str, Any] = {
        entry.name: 0.0 for entry in fields(BalanceConfig) if entry.name.endswith("_coef")
    }
    return replace(config, model=dense, balance=replace(config.balance, bias_rule="none", **coefs))


def _twin_block(model: ModelConfig) -> MLPConfig:
    moe = model.moe
    check(
        not model.pattern.shortcut,
        "model.pattern.shortcut",
        True,
        "has no dense twin: its MoE layers have a dense block beside the MoE",
    )
    block = MLPConfig(
        d_ff=moe.top_k * moe.d_expert + moe.shared_width,
        mlp_activation=moe.activation,
        mlp_bias=moe.expert_linear_bias,
    )
    check(
        len(model.moe_layers) == model.num_layers or model.mlp == block,
        "model.mlp",
        model.mlp,
        f"the dense twin needs the same block in its former MoE layers, {block}",
    )
    return block
