"""Configs: frozen dataclasses without torch, how they are read and written, and what they count to."""

from moeworks.config.balance import BalanceConfig
from moeworks.config.model import (
    CapacityConfig,
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.run import CorpusConfig, OptimizerConfig, RunConfig, TrainConfig

__all__ = [
    "BalanceConfig",
    "CapacityConfig",
    "CorpusConfig",
    "ExpertsConfig",
    "GQAConfig",
    "LayerPatternConfig",
    "MLPConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RouterConfig",
    "RunConfig",
    "SharedExpertsConfig",
    "TrainConfig",
]
