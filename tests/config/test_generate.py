"""Rules of sampling and generation."""

import math

import pytest

from moeworks.config.generate import GenerationConfig, SamplingConfig, sampling_advice
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


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({}, {}),
        ({"top_k": -1}, {}),
        ({"top_k": 0, "top_p": 1.0}, {"top_p": 1.0}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"do_sample": True, "temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.0}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0}),
        ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
        ({"max_length": 20, "pad_token_id": 0, "eos_token_id": [1, 2], "unknown": {"a": 1}}, {}),
        ({"temperature": None, "min_p": None}, {}),
    ],
)
def test_advice_that_can_be_followed(record, fields):
    advice = sampling_advice(record)
    assert (advice.fields, advice.ignored) == (fields, ())
    SamplingConfig(**advice.fields)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"top_k": -2}, "top_k = -2: must be at least 1"),
        ({"top_k": 2.5}, "top_k = 2.5: must be a whole number"),
        ({"top_p": 1.5}, "top_p = 1.5: must lie in (0, 1]"),
        ({"temperature": "hot"}, "temperature = 'hot': must be a number"),
        ({"temperature": True}, "temperature = True: must be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0: must be positive"),
        ({"temperature": math.nan}, "temperature = nan: must not be negative"),
    ],
)
def test_advice_that_cannot_be_followed(record, reason):
    advice = sampling_advice({"min_p": 0.1, **record})
    assert (advice.fields, advice.ignored) == ({"min_p": 0.1}, (reason,))
