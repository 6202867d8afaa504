"""Experts from integers: against plain Python, and the same in every process."""

import os
import subprocess
import sys

import numpy as np
import pytest
import straight_policy
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.ops.fixed import (
    balanced_table,
    count_off,
    digits,
    draws,
    even_routing,
    mixed,
    universal_hashes,
)
from moeworks.ops.routing import RoutingContext

sizes = st.integers(1, 40).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, min(e, 8))))
tokens = st.lists(st.integers(0, 300_000), min_size=1, max_size=20)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_mixing_is_exact(numbers):
    assert mixed(torch.tensor(numbers)).tolist() == [straight_policy.mix(n) for n in numbers]


@given(tokens, sizes, st.integers(0, 2**31 - 1))
def test_universal_hashes(ids, size, seed):
    experts, top_k = size
    got = count_off(universal_hashes(torch.tensor(ids), seed, top_k), experts)
    assert got.tolist() == [straight_policy.universal(i, seed, experts, top_k) for i in ids]


@given(tokens, sizes)
def test_modulo(ids, size):
    experts, top_k = size
    got = count_off(digits(torch.tensor(ids), experts, top_k), experts).tolist()
    for token, chosen in zip(ids, got, strict=True):
        numbers, rest = [], token
        for slot in range(top_k):
            numbers.append(rest)
            rest //= experts - slot
        assert chosen == straight_policy.choose(numbers, experts)
        assert chosen[0] == token % experts


@given(tokens, sizes, st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_draws(ids, size, seed, step):
    experts, top_k = size
    places = torch.arange(len(ids))
    ids_T = torch.tensor(ids)
    parts = [torch.full_like(ids_T, seed), ids_T, places, torch.tensor(step)]
    got = count_off(draws(top_k, parts), experts).tolist()
    assert got == [straight_policy.drawn([seed, i, p, step], experts, top_k) for p, i in enumerate(ids)]


@given(tokens, sizes)
def test_experts_of_a_token_differ(ids, size):
    experts, top_k = size
    ids_T = torch.tensor(ids)
    for numbers in (digits(ids_T, experts, top_k), universal_hashes(ids_T, 3, top_k), draws(top_k, [ids_T])):
        chosen = count_off(numbers, experts)
        assert all(len(set(row)) == top_k for row in chosen.tolist())
        assert ((chosen >= 0) & (chosen < experts)).all()


def test_every_set_of_experts_is_equally_likely():
    """All 12 ordered pairs of 4 experts, over 60,000 draws; 5 standard deviations are allowed."""
    places = torch.arange(60_000)
    for numbers in (draws(2, [places]), universal_hashes(places, 7, 2)):
        pairs = count_off(numbers, 4)
        counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
        counts = counts[counts > 0]
        assert len(counts) == 12
        assert (counts - 5000).abs().max() < 5 * (60_000 / 12 * 11 / 12) ** 0.5


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), sizes)
def test_balanced_table(counts, size):
    experts, top_k = size
    got = balanced_table(np.array(counts), experts, top_k)
    assert got.tolist() == straight_policy.balanced(counts, experts, top_k)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.integers(1, 8))
def test_balanced_loads_differ_by_one_token_at_most(counts, experts):
    """Of the greedy rule: when the heaviest token came to the fullest expert, that was the emptiest."""
    table = balanced_table(np.array(counts), experts, 1)[:, 0]
    loads = np.bincount(table, weights=counts, minlength=experts)
    assert loads.max() - loads.min() <= max(counts) + 1


def test_unseen_tokens_are_spread_too():
    table = balanced_table(np.array([1000, 1000] + [0] * 100), 2, 1)[:, 0]
    assert np.bincount(table).tolist() == [51, 51]


def test_pinned_values():
    """Fixed routers must not change between versions: trained experts belong to these tokens."""
    ids = torch.tensor([0, 1, 2, 1000, 151_935])
    assert count_off(universal_hashes(ids, 0, 2), 8).tolist() == [[7, 4], [0, 4], [1, 4], [5, 6], [1, 6]]
    assert count_off(draws(2, [torch.zeros_like(ids), ids]), 8).tolist() == [
        [7, 6],
        [3, 2],
        [1, 5],
        [7, 6],
        [5, 4],
    ]
    assert count_off(digits(ids, 8, 2), 8).tolist() == [[0, 1], [1, 0], [2, 0], [0, 7], [7, 0]]
    assert balanced_table(np.array([5, 9, 1, 4, 0, 4]), 3, 1)[:, 0].tolist() == [1, 0, 1, 2, 1, 2]


def test_stable_across_processes():
    """Python's own hash of a string differs between processes; none of it may get in."""
    code = (
        "import torch; from moeworks.ops.fixed import *; i = torch.arange(50)\n"
        "print(count_off(universal_hashes(i, 5, 3), 16).tolist(), count_off(draws(3, [i]), 16).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    i = torch.arange(50)
    assert outputs == {
        f"{count_off(universal_hashes(i, 5, 3), 16).tolist()} {count_off(draws(3, [i]), 16).tolist()}\n"
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_routing(dtype):
    ids = torch.tensor([[2, 0], [1, 3]])
    routing = even_routing(ids, 4, 3.0, RoutingContext(), torch.zeros(2, 5, dtype=dtype))
    assert routing.routing_weights_TK.tolist() == [[1.5, 1.5]] * 2
    assert routing.router_probs_TE.tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    assert torch.equal(routing.router_logits_TE.softmax(1), routing.router_probs_TE)
    assert routing.routing_weights_TK.dtype == dtype
    assert not any(t.requires_grad for t in routing.tensors())
