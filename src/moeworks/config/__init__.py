"""Configs: frozen dataclasses without torch, how they are read and written, and what they count to."""

from moeworks.config.alarms import AlarmConfig
from moeworks.config.balance import BalanceConfig
from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    IndexerConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import (
    CapacityConfig,
    ExpertsConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.rope import RopeConfig
from moeworks.config.run import CorpusConfig, OptimizerConfig, RunConfig, TrainConfig

__all__ = [
    "AlarmConfig",
    "BalanceConfig",
    "CapacityConfig",
    "CorpusConfig",
    "ExpertsConfig",
    "GQAConfig",
    "GatedDeltaConfig",
    "IndexerConfig",
    "LayerPatternConfig",
    "MLAConfig",
    "MLPConfig",
    "MixerConfig",
    "MixtureOfAttentionConfig",
    "MoEConfig",
    "ModelConfig",
    "NormConfig",
    "OptimizerConfig",
    "RopeConfig",
    "RouterConfig",
    "RunConfig",
    "SharedExpertsConfig",
    "TrainConfig",
]
