"""Rules of sampling and generation."""

import pytest

from moeworks.config.generate import GenerationConfig, SamplingConfig
from moeworks.errors import ConfigError


@pytest.mark.parametrize("options", [{}, dict(temperature=0), dict(top_p=1e-9), dict(top_p=1.0, top_k=1)])
def test_values_at_the_bounds(options):
    SamplingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature = -0.1: must not be negative"),
        (dict(top_p=0.0), r"top_p = 0.0: must lie in \(0, 1\]"),
        (dict(top_p=1.5), r"top_p = 1.5"),
        (dict(top_k=0), "top_k = 0: must be at least 1"),
        (dict(min_p=-0.1), r"min_p = -0.1: must lie in \[0, 1\]"),
        (dict(min_p=1.1), r"min_p = 1.1"),
        (dict(repetition_penalty=0.0), "repetition_penalty = 0.0: must be positive"),
        (dict(repetition_penalty=float("inf")), "repetition_penalty = inf"),
        (dict(temperature=float("nan")), "temperature = nan"),
    ],
)
def test_values_that_mean_nothing(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=-1), "max_new_tokens = -1: must not be negative"),
        (dict(stop=("a", "")), "it would end every text"),
        (dict(prefill_chunk=0), "prefill_chunk = 0: must be at least 1"),
    ],
)
def test_generation_that_means_nothing(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**options)
