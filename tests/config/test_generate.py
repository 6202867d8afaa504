"""Rules of sampling."""

import pytest

from moeworks.config.generate import SamplingConfig
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
    ],
)
def test_values_that_mean_nothing(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**options)
