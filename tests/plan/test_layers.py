from collections import Counter

import pytest

from moeworks.config.count_mixers import count_mixer
from moeworks.families import BY_PRESET, published
from moeworks.plan.layers import mixer_counts, mixers_of


@pytest.mark.parametrize("name", BY_PRESET)
def test_every_layer_is_in_it_once(name):
    model = published(name)
    assert sum(layers for _, layers in mixers_of(model)) == model.num_layers
    assert Counter(dict(mixers_of(model))) == Counter(model.mixer_of_layers)


def test_counts_are_those_of_one_layer():
    model = published("qwen3-next-80b-a3b")
    assert [layers for _, _, layers in mixer_counts(model)] == [36, 12]
    assert all(count == count_mixer(mixer, model.d_model) for mixer, count, _ in mixer_counts(model))
