"""Expected experts and devices: closed forms, enumeration, and Monte Carlo."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.model import RouterConfig
from moeworks.errors import ConfigError
from moeworks.families import published
from moeworks.plan.routing import (
    expected_devices,
    expected_experts_touched,
    expert_traffic,
    most_places,
    shares,
)

V2, V3 = published("deepseek-v2").router, published("deepseek-v3").router


def device_of(router: RouterConfig, devices: int) -> list[int]:
    """The device of each expert, written another way than in the code under test."""
    return [place for place, held in enumerate(shares(router.num_experts, devices)) for _ in range(held)]


def draw(router: RouterConfig, generator: random.Random) -> list[int]:
    """One token's routes under uniform routing inside uniform groups."""
    size = router.num_routes // router.num_groups
    groups = generator.sample(range(router.num_groups), router.top_k_groups)
    return generator.sample([g * size + i for g in groups for i in range(size)], router.top_k)


# Experts of a batch.


def test_published_example_of_experts_touched():
    assert expected_experts_touched(256, 8, 4) == pytest.approx(30.5, abs=0.05)


def test_experts_touched_by_enumeration():
    """Every pair of choices of 2 of 4 experts is equally likely."""
    choices = list(itertools.combinations(range(4), 2))
    union = [len({*a, *b}) for a in choices for b in choices]
    assert expected_experts_touched(4, 2, 2) == pytest.approx(sum(union) / len(union))


def test_zero_experts_take_choices_but_are_not_touched():
    assert expected_experts_touched(8, 2, 1, num_routes=16) == pytest.approx(1.0)


@given(st.integers(1, 300), st.data())
def test_experts_touched_grow_with_the_batch_towards_all(experts, data):
    top_k = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(0, 2000))
    touched = expected_experts_touched(experts, top_k, tokens)
    more = expected_experts_touched(experts, top_k, tokens + 1)
    assert touched <= more <= experts
    assert touched <= min(experts, tokens * top_k) + 1e-9
    assert expected_experts_touched(experts, top_k, 1) == pytest.approx(top_k)


def test_more_choices_than_routes_is_an_error():
    with pytest.raises(ConfigError, match=r"top_k = 9: must lie between 0 and the number of routes, 8"):
        expected_experts_touched(8, 9, 1)


# Devices of a token.


def test_published_examples_of_devices():
    assert expected_devices(V3, 8, limited=False) == pytest.approx(5.30, abs=0.006)
    assert expected_devices(V2, 8, limited=False) == pytest.approx(4.46, abs=0.005)
    assert most_places(V2, 8) == 3
    assert most_places(V3, 8) == 4


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 64, 256])
def test_equal_shares_have_a_closed_form(devices):
    free, held = math.comb(256, 8), 256 // devices
    expected = devices * (1 - math.comb(256 - held, 8) / free)
    assert expected_devices(V3, devices, limited=False) == pytest.approx(expected)


@pytest.mark.parametrize(("router", "keep"), [(V2, 3), (V3, 4)])
def test_devices_that_are_the_groups_have_a_closed_form(router, keep):
    size = router.num_experts // 8
    expected = keep * (1 - math.comb((keep - 1) * size, router.top_k) / math.comb(keep * size, router.top_k))
    assert expected_devices(router, 8) == pytest.approx(expected)


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize(
    ("router", "devices"),
    [
        (V3, 8),
        (V3, 4),  # two groups on a device
        (V3, 64),  # eight devices for a group
        (V3, 5),  # devices cut through groups
        (V2, 8),
        (V2, 7),
        (RouterConfig(num_experts=12, num_zero_experts=4, top_k=3), 3),
        (RouterConfig(num_experts=10, num_zero_experts=6, top_k=3, num_groups=4, top_k_groups=2), 4),
    ],
)
def test_expected_devices_by_monte_carlo(router, devices, limited):
    generator, places, draws = random.Random(0), device_of(router, devices), 20_000
    free = router if limited else RouterConfig(
        num_experts=router.num_experts, num_zero_experts=router.num_zero_experts, top_k=router.top_k
    )  # fmt: skip
    counts = [
        len({places[expert] for expert in draw(free, generator) if expert < router.num_experts})
        for _ in range(draws)
    ]
    mean = sum(counts) / draws
    deviation = math.sqrt(sum((count - mean) ** 2 for count in counts) / draws / draws)
    assert abs(expected_devices(router, devices, limited=limited) - mean) < 4.5 * deviation + 1e-9
    assert not limited or max(counts) <= most_places(router, devices)


@given(st.sampled_from([(8, 2, 1, 1), (16, 4, 4, 2), (24, 3, 6, 2), (160, 6, 8, 3)]), st.integers(1, 40))
def test_devices_are_bounded_and_the_limit_only_helps(shape, devices):
    experts, top_k, groups, keep = shape
    router = RouterConfig(num_experts=experts, top_k=top_k, num_groups=groups, top_k_groups=keep)
    limited, free = expected_devices(router, devices), expected_devices(router, devices, limited=False)
    assert 1 - 1e-12 <= limited <= free + 1e-12
    assert limited <= most_places(router, devices) + 1e-12
    assert free <= min(top_k, devices) + 1e-12
    assert expected_devices(router, devices + 1, limited=False) >= free - 1e-12


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_sum_to_the_whole_and_are_even(total, parts):
    held = shares(total, parts)
    assert (sum(held), len(held)) == (total, parts)
    assert max(held) - min(held) <= 1


# Bytes.


def test_traffic_by_hand():
    """V3 on 8 nodes, FP8 there and bf16 back: expected nodes without the own one, 7168 values each."""
    traffic = expert_traffic(published("deepseek-v3"), 8, dispatch_bytes=1, combine_bytes=2)
    nodes = expected_devices(V3, 8)
    assert traffic.bytes_per_token_layer == pytest.approx(nodes * 7 / 8 * 7168 * 3)
    assert traffic.bytes_per_token == pytest.approx(58 * traffic.bytes_per_token_layer)
    assert traffic.bytes_per_token_layer_per_expert == pytest.approx(8 * 7 / 8 * 7168 * 3)
    assert traffic.bytes_per_token_layer_unlimited > traffic.bytes_per_token_layer


def test_nothing_is_sent_on_one_device():
    traffic = expert_traffic(published("mixtral-8x7b"), 1)
    assert traffic.bytes_per_token == traffic.bytes_per_token_layer_per_expert == 0
    assert traffic.per_token == pytest.approx(1)


def test_hostile_sizes_take_no_time():
    """More devices than experts, and experts by the ten thousand."""
    assert expected_devices(V3, 1_000_000) == pytest.approx(expected_devices(V3, 256)) == pytest.approx(8)
    huge = RouterConfig(num_experts=50_000, top_k=20_000)
    assert expected_devices(huge, 999) == pytest.approx(999)
    assert most_places(huge, 10**6) == 20_000
    with pytest.raises(ConfigError, match=r"router.num_experts = 10000000: exceeds 131,072"):
        expected_devices(RouterConfig(num_experts=10**7, top_k=10**6), 8)
