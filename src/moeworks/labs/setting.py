"""The configs of a lab's cells: one small model and corpus for all labs, a lab's setting, an arm's overrides.

Equal compute is counted, not guessed: see Arm.match.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeworks.config import (
    CorpusConfig,
    ExpertsConfig,
    GQAConfig,
    ModelConfig,
    OptimizerConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.count import count_flops
from moeworks.labs.lab import Arm, Lab


def base_config(data: tuple[str, ...], cache_dir: str | None = None) -> RunConfig:
    """About 0.2M active of 0.9M parameters: some 40 seconds of one CPU core for a million tokens.

    Muon for all hidden matrices, so that dense blocks and experts are trained alike; after 250 steps it is
    0.6 bits per byte ahead of AdamW here. These learning rates are 0.17 ahead of 0.4 times them after 120
    steps, and 0.04 ahead of twice them.
    """
    return RunConfig(
        data=data,
        corpus=CorpusConfig(validation_fraction=0.2, cache_dir=cache_dir),
        model=ModelConfig(
            vocab_size=1024,
            d_model=64,
            num_layers=4,
            max_seq_len=128,
            attention=GQAConfig(num_heads=2, num_kv_heads=2),
            router=RouterConfig(num_experts=16, top_k=2),
            experts=ExpertsConfig(d_expert=64),
        ),
        optimizer=OptimizerConfig(lr=0.015, muon_lr=0.05, warmup_steps=20),
        train=TrainConfig(batch_size=16, seq_len=128, device="cpu", threads=1),
    )


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """`config` with values by dotted path. Raises ConfigError for an unknown path or a bad value."""
    tree = to_dict(config)
    for path, value in overrides.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return from_dict(RunConfig, tree)


def arm_config(
    lab: Lab, arm: Arm, data: tuple[str, ...], *, steps: int, seed: int, cache_dir: str | None = None
) -> RunConfig:
    """The run of one cell; `steps` is that of the lab's budget.

    Raises ConfigError when an override breaks a rule.
    """
    base = base_config(data, cache_dir)
    config = _unmatched(lab, arm, base)
    if arm.match is not None:
        target = training_flops(_unmatched(lab, lab.arm(lab.baseline), base))
        config = match_flops(config, arm.match, target)
    train = replace(config.train, steps=max(round(arm.steps * steps), 1), seed=seed)
    warmup = min(config.optimizer.warmup_steps, max(train.steps // 5, 1))
    return replace(config, train=train, optimizer=replace(config.optimizer, warmup_steps=warmup))


def training_flops(config: RunConfig) -> int:
    """FLOPs to train on one token, as count_flops counts them."""
    return count_flops(config.model, config.train.seq_len, training=True)


def match_flops(config: RunConfig, path: str, target: int) -> RunConfig:
    """`config` with the whole number at `path`, 1 or more, that brings FLOPs per token closest to `target`.

    FLOPs are linear in every width.
    """
    one, two = (training_flops(with_overrides(config, {path: width})) for width in (1, 2))
    return with_overrides(config, {path: max(round(1 + (target - one) / (two - one)), 1)})


def _unmatched(lab: Lab, arm: Arm, base: RunConfig) -> RunConfig:
    return with_overrides(base, {**lab.setting, **arm.overrides})
