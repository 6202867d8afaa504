import numpy as np
import pytest

from moeworks.analyse.router import gradient_signal_to_noise, variance_in_top_directions
from moeworks.errors import ConfigError


def test_signal_to_noise_by_hand():
    assert gradient_signal_to_noise(np.array([[[3.0, 0]], [[1, 0]]])) == 4 / 2
    assert gradient_signal_to_noise(np.array([[1.0], [-1]])) == 0
    assert gradient_signal_to_noise(np.ones((3, 4))) == float("inf")
    with pytest.raises(ConfigError, match="at least 2 micro-batches"):
        gradient_signal_to_noise(np.ones((1, 4)))


def test_signal_to_noise_of_a_known_signal():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 10)) * 2
    signal = np.full(10, 0.5)
    assert gradient_signal_to_noise(signal + noise) == pytest.approx(2.5 / 40, rel=0.1)


def test_variance_in_top_directions():
    rng = np.random.default_rng(0)
    isotropic = rng.normal(size=(20_000, 10))
    assert variance_in_top_directions(isotropic, 3) == pytest.approx(0.3, abs=0.02)
    assert variance_in_top_directions(isotropic, 10) == pytest.approx(1)
    line = np.outer(rng.normal(size=50), rng.normal(size=10)) + 7
    assert variance_in_top_directions(line, 1) == pytest.approx(1)
    assert variance_in_top_directions(np.ones((5, 3)), 1) == 0
    assert variance_in_top_directions(np.diag([2.0, 1]) @ [[1, 0], [0, 0]], 1) == pytest.approx(1)
    with pytest.raises(ConfigError, match="directions = 4"):
        variance_in_top_directions(np.ones((5, 3)), 4)
