"""Each thing that goes wrong in recorders is planted, and found; good traces are found good."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, real_trace, trace_of

from moeworks.trace import RoutingTrace, validate_trace
from moeworks.trace.validate import layer_shift


def kinds(trace: RoutingTrace) -> set[tuple[str, int | None]]:
    return {(finding.kind, finding.layer) for finding in validate_trace(trace)}


def planted(rng: np.random.Generator, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text, and ids [T, 3, 2] whose first layer depends on the token."""
    token_id = rng.integers(40, size=tokens)
    ids = random_ids(rng, tokens, 3, 8, 2)
    ids[:, 0, 0] = token_id % 8
    ids[:, 0, 1] = (token_id + 1 + token_id % 5) % 8
    return token_id, ids


@given(st.integers(0, 200), st.integers(1, 60))
def test_random_routing_is_good(seed, tokens):
    assert validate_trace(random_trace(seed, tokens=tokens + 20)) == []


def test_the_real_trace_is_good():
    assert validate_trace(real_trace()) == []


def test_an_empty_trace():
    assert validate_trace(trace_of(np.zeros((0, 2, 2), int), 4)) == []


def test_out_of_range():
    ids = np.array([[[0, 1], [2, 3]], [[1, 0], [0, 255]]])
    assert kinds(trace_of(ids, 4)) == {("out-of-range", 1)}


def test_duplicates():
    ids = random_ids(np.random.default_rng(0), 50, 2, 8, 3)
    ids[7, 1] = [2, 5, 2]
    assert kinds(trace_of(ids, 8)) == {("duplicate", 1)}


@pytest.mark.parametrize("value", [0, 3])
def test_zero_filler_in_some_tokens_and_in_a_whole_layer(value):
    ids = random_ids(np.random.default_rng(0), 50, 3, 8, 2)
    ids[:, 1] = value
    ids[40:, 2] = value
    assert kinds(trace_of(ids, 8)) == {("filler", 1), ("filler", 2)}


def test_top_1_filler_is_a_layer_of_zeros():
    ids = random_ids(np.random.default_rng(0), 50, 2, 8, 1)
    assert kinds(trace_of(ids, 8)) == set()
    ids[:, 0] = 0
    assert kinds(trace_of(ids, 8)) == {("filler", 0)}


def test_a_layer_without_choice():
    ids = random_ids(np.random.default_rng(0), 50, 2, 8, 2)
    ids[:, 1] = [4, 6]
    assert kinds(trace_of(ids, 8)) == {("filler", 1)}


def test_a_layer_written_twice():
    ids = random_ids(np.random.default_rng(0), 50, 3, 8, 2)
    ids[:, 2] = ids[:, 1]
    assert kinds(trace_of(ids, 8)) == {("copied-layer", 2)}


def test_weights():
    ids = random_ids(np.random.default_rng(0), 50, 3, 8, 2)
    weights = np.full(ids.shape, 0.5)
    weights[3, 0] = [np.nan, 0.5]
    weights[3, 2] = 0
    assert kinds(trace_of(ids, 8, weights=weights)) == {("weights", 0), ("weights", 2)}


def test_order_of_tokens():
    ids = random_ids(np.random.default_rng(0), 4, 1, 8, 2)
    assert kinds(trace_of(ids, 8, sequence=[0, 0, 0, 0], position=[0, 2, 1, 3])) == {("order", None)}
    assert kinds(trace_of(ids, 8, sequence=[0, 1, 0, 1], position=[0, 0, 1, 1])) == {("order", None)}


@pytest.mark.parametrize(("offset", "word"), [(1, "before"), (-1, "after")])
def test_tokens_shifted_against_their_routing(offset, word):
    token_id, ids = planted(np.random.default_rng(1))
    assert kinds(trace_of(ids, 8, token_id=token_id)) == set()
    found = validate_trace(trace_of(np.roll(ids, offset, axis=0), 8, token_id=token_id))
    assert [(f.kind, f.layer) for f in found] == [("shifted", 0)]
    assert f"fit the token {word}" in found[0].message


def test_draft_model_in_the_place_of_a_layer():
    """Tokens verified twice agree in all layers but the one that the draft model wrote over."""
    rng = np.random.default_rng(2)
    token_id, ids = planted(rng)
    again = ids.copy()
    position = np.arange(400)
    tokens = dict(
        token_id=np.r_[token_id, token_id],
        position=np.r_[position, position],
        sequence=np.zeros(800),
    )
    recomputed = kinds(trace_of(np.concatenate([ids, again]), 8, **tokens))
    assert recomputed == {("repeated-token", None), ("order", None)}
    again[:, 0] = random_ids(rng, 400, 1, 8, 2)[:, 0]
    collided = kinds(trace_of(np.concatenate([ids, again]), 8, **tokens))
    assert collided == {*recomputed, ("draft-collision", 0)}


def test_shifted_layers_show_against_a_reference():
    ids = random_ids(np.random.default_rng(3), 300, 5, 8, 2)
    reference = trace_of(ids, 8, layers=[1, 2, 3, 4, 5])
    assert layer_shift(reference, reference) == {n: n for n in (1, 2, 3, 4, 5)}
    shifted = trace_of(ids, 8, layers=[0, 1, 2, 3, 4])
    assert layer_shift(shifted, reference) == {n: n + 1 for n in (0, 1, 2, 3, 4)}


def test_all_experts_for_every_token_are_no_fault():
    """k = E in a fixed order, and a single expert: equal tokens and equal layers are what is right."""
    assert kinds(trace_of(np.tile([0, 1, 2], (50, 2, 1)), 3)) == set()
    assert kinds(trace_of(np.zeros((50, 2, 1), int), 1)) == set()
