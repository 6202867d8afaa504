"""Closed forms: what routing without a pattern would give. Each is checked by Monte Carlo in the tests."""

from math import comb

import numpy as np

from moeworks.errors import check


def distinct_by_load(used: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float [n]: sum_e 1 - (1 - used_e)^B, the experts that B [n] independent tokens touch in expectation.

    used [E] is the share of tokens that choose each expert; it sums to K.
    """
    return (1 - (1 - np.minimum(used, 1)) ** np.asarray(tokens)[:, None]).sum(axis=1)


def distinct_uniform(num_experts: int, top_k: float, tokens: np.ndarray) -> np.ndarray:
    """float [n]: E (1 - (1 - K/E)^B), the experts that B [n] tokens touch when all choices are alike.

    >>> round(float(distinct_uniform(256, 8, np.array([4]))[0]), 1)
    30.5
    """
    return num_experts * (1 - (1 - top_k / num_experts) ** np.asarray(tokens, np.float64))


def expected_devices(num_experts: int, top_k: int, num_devices: int, max_devices: int | None = None) -> float:
    """D (1 - C(E - E/D, K) / C(E, K)): distinct devices of a token whose K experts are drawn alike.

    With `max_devices` M the token first has M devices drawn, and its experts from theirs: the same with M
    for D and M E/D for E. Raises ConfigError when devices do not divide experts, or M devices hold fewer
    than K.

    >>> round(expected_devices(256, 8, 8), 2), round(expected_devices(160, 6, 8), 2)
    (5.29, 4.46)
    """
    check_devices(num_experts, num_devices)
    limit = num_devices if max_devices is None else max_devices
    check(1 <= limit <= num_devices, "max_devices", max_devices, f"must lie between 1 and {num_devices}")
    each = num_experts // num_devices
    check(top_k <= limit * each, "max_devices", max_devices, f"hold fewer than top_k = {top_k} experts")
    return limit * (1 - comb(limit * each - each, top_k) / comb(limit * each, top_k))


def check_devices(num_experts: int, num_devices: int) -> None:
    """Raise ConfigError unless `num_devices` devices can hold equally many experts."""
    good = num_devices >= 1 and num_experts % num_devices == 0
    check(good, "num_devices", num_devices, f"must divide the number of experts, {num_experts}")


def accepted_tokens(draft_tokens: np.ndarray, acceptance: float) -> np.ndarray:
    """float [n]: (1 - a^(g + 1)) / (1 - a), tokens of one verification of g [n] drafts (Leviathan et al.
    2023, eq. 1).

    Each draft is accepted with probability a, independently; the token after the last accepted one is free.
    """
    check(0 <= acceptance <= 1, "acceptance", acceptance, "must lie in [0, 1]")
    powers = np.arange(int(np.max(draft_tokens)) + 1)
    return np.cumsum(float(acceptance) ** powers)[np.asarray(draft_tokens)]
