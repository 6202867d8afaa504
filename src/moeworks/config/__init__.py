"""Configs: frozen dataclasses without torch, how they are read and written, and what they count to."""

from moeworks.config.alarms import AlarmConfig
from moeworks.config.balance import BalanceConfig
from moeworks.config.choices import (
    AssignmentChoice,
    BanditChoice,
    ChoiceConfig,
    CustomChoice,
    ExpertChoice,
    HashChoice,
    PolicyGradientChoice,
    RandomChoice,
    RoundRobinChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopKChoice,
    TopPChoice,
)
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
    "AssignmentChoice",
    "BalanceConfig",
    "BanditChoice",
    "CapacityConfig",
    "ChoiceConfig",
    "CorpusConfig",
    "CustomChoice",
    "ExpertChoice",
    "ExpertsConfig",
    "GQAConfig",
    "GatedDeltaConfig",
    "HashChoice",
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
    "PolicyGradientChoice",
    "RandomChoice",
    "RopeConfig",
    "RoundRobinChoice",
    "RouterConfig",
    "RunConfig",
    "SharedExpertsConfig",
    "SinkhornChoice",
    "ThresholdChoice",
    "TopKChoice",
    "TopPChoice",
    "TrainConfig",
]
