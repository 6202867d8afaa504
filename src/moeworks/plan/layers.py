"""The mixers of a model, each once with the number of its layers."""

from collections import Counter

from moeworks.config.count_mixers import MixerCount, count_mixer
from moeworks.config.mixers import MixerConfig
from moeworks.config.model import ModelConfig


def mixers_of(model: ModelConfig) -> list[tuple[MixerConfig, int]]:
    """Each mixer that some layer has, and in how many layers."""
    layers = {0: model.num_layers} if model.layer_mixers is None else Counter(model.layer_mixers)
    kinds = (model.attention, *model.mixers)
    return [(kinds[choice], count) for choice, count in sorted(layers.items())]


def mixer_counts(model: ModelConfig) -> list[tuple[MixerConfig, MixerCount, int]]:
    """Each mixer that some layer has, what it holds and does in one layer, and in how many layers."""
    return [(mixer, count_mixer(mixer, model.d_model), layers) for mixer, layers in mixers_of(model)]
