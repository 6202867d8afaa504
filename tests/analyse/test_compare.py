"""Two traces side by side, by hand."""

import numpy as np
import pytest
from traces import random_trace, trace_of

from moeworks.analyse.compare import compare_traces, matching_rows
from moeworks.trace import count_experts


def compare(left, right):
    return compare_traces(left, right, count_experts(left, "domain"), count_experts(right, "domain"))


def test_with_itself():
    trace = random_trace()
    found = compare(trace, trace)
    assert found.matched == trace.num_tokens
    np.testing.assert_allclose(found.overlap.estimate, 1)
    np.testing.assert_allclose(found.same_first, 1)
    np.testing.assert_allclose(found.divergence, 0, atol=1e-12)
    assert not found.moved.any()
    assert not found.difference.any()
    np.testing.assert_array_equal(found.left_domains, found.right_domains)
    assert found.domains == ("code", "prose")


def test_by_hand():
    words = np.array([1, 2, 3, 4])
    left = trace_of([[[0, 1]], [[0, 1]], [[0, 1]], [[0, 1]]], 4, token_id=words)
    right = trace_of([[[0, 1]], [[0, 2]], [[2, 0]], [[3, 2]]], 4, token_id=words)
    found = compare(left, right)
    assert found.overlap.estimate[0] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert found.same_first[0] == pytest.approx(0.5)
    # loads 1/2 1/2 0 0 and 3/8 1/8 3/8 1/8
    assert found.moved[0] == pytest.approx(0.5)
    assert found.chance[0] == pytest.approx(2 * (3 / 16 + 1 / 16))
    np.testing.assert_allclose(found.difference[0], [-0.5, -1.5, 1.5, 0.5])
    p, q = np.array([4, 4, 0, 0]) / 8, np.array([3, 1, 3, 1]) / 8
    bits = [
        sum(a * np.log2(2 * a / (a + b)) for a, b in zip(x, y, strict=True) if a) for x, y in ((p, q), (q, p))
    ]
    assert found.divergence[0] == pytest.approx(sum(bits) / 2)


def test_disjoint_experts_are_one_bit_apart():
    words = np.array([1, 2])
    found = compare(trace_of([[[0]], [[0]]], 2, token_id=words), trace_of([[[1]], [[1]]], 2, token_id=words))
    assert found.divergence[0] == pytest.approx(1)
    assert found.moved[0] == 1
    assert found.overlap.estimate[0] == 0


def test_what_does_not_fit_is_none():
    left = random_trace(experts=8)
    found = compare(left, random_trace(experts=6))
    assert found.divergence is found.moved is found.difference is found.overlap is None
    assert found.left_domains is found.right_domains is None
    fewer = compare(left, random_trace(top_k=1))
    assert fewer.overlap is None
    assert fewer.divergence is not None
    assert compare(left, random_trace(layers=2)).layers == (0, 1)


def test_sequences_are_matched_by_their_tokens():
    def trace(words, sequence):
        return trace_of(
            np.zeros((len(words), 1, 1), int), 2, token_id=np.array(words), sequence=np.array(sequence)
        )

    left = trace([1, 2, 5, 1, 2], [0, 0, 1, 2, 2])
    right = trace([7, 1, 2, 5, 6, 1, 2], [0, 1, 1, 2, 2, 3, 3])
    rows = matching_rows(left, right)  # [1, 2] twice and in order; [5] is not [5, 6]
    assert [part.tolist() for part in rows] == [[0, 1, 3, 4], [1, 2, 5, 6]]
    assert len(matching_rows(left, trace([8], [0]))[0]) == 0


def test_without_token_ids_places_must_agree():
    ids = np.zeros((3, 1, 1), int)
    assert len(matching_rows(trace_of(ids, 2), trace_of(ids, 2))[0]) == 3
    assert len(matching_rows(trace_of(ids, 2), trace_of(ids[:2], 2))[0]) == 0
