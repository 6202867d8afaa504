import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import random_ids, random_trace, trace_of

from moeworks.analyse.specialisation import (
    domain_specialisation,
    specialisation_interval,
    vocabulary_specialisation,
)
from moeworks.errors import ConfigError


def test_by_hand():
    trace = trace_of(
        [[[0, 1]], [[0, 1]], [[0, 2]], [[2, 3]]], 4, document=[0, 0, 1, 2], domain=[2, 2, 0, 0],
        domains=("a", "unused", "b"), token_id=[7, 8, 7, 9],
    )  # fmt: skip
    found = domain_specialisation(trace)
    assert found.domains == ("a", "b")
    assert found.tokens.tolist() == [2, 2]
    assert found.specialisation[0].tolist() == [[0.5, 1], [0, 1], [1, 0], [0.5, 0]]
    # Token 7 goes to 0 always, to 1 and 2 half of the time; 8 to 0 and 1; 9 to 2 and 3.
    assert found.token_only[0].tolist() == [[0.5, 1], [0.25, 0.75], [0.75, 0.25], [0.5, 0]]


@settings(max_examples=30)
@given(st.integers(0, 99))
def test_experts_sum_to_k(seed):
    found = domain_specialisation(random_trace(seed, top_k=3), permutations=5)
    np.testing.assert_allclose(found.specialisation.sum(axis=1), 3)
    np.testing.assert_allclose(found.token_only.sum(axis=1), 3)
    assert (found.null_low <= found.null_high).all()


def domains_of(strength: float, seed: int = 0):
    """200 documents of two domains; with `strength` a token of domain 1 goes to experts 6 and 7."""
    rng = np.random.default_rng(seed)
    ids = random_ids(rng, 4000, 1, 8, 2)
    document = np.arange(4000) // 20
    domain = document % 2
    bent = (domain == 1) & (rng.random(4000) < strength)
    ids[bent] = [6, 7]
    return trace_of(ids, 8, document=document, domain=domain, domains=("a", "b"))


def test_null_band_holds_what_is_no_specialisation_and_only_that():
    null = domain_specialisation(domains_of(0.0))
    assert null.outside()[0] <= 4  # 5 % of 16 cells in the mean
    real = domain_specialisation(domains_of(0.3))
    assert real.outside()[0] >= 12
    assert real.specialisation[0, 7, 1] > real.null_high[0, 7, 1]
    assert real.token_only is None  # token ids are not known


def test_documents_keep_together():
    """One document a domain: the labels can only swap, so that nothing is outside the band."""
    ids = random_ids(np.random.default_rng(0), 400, 1, 8, 2)
    ids[200:] = [0, 1]
    trace = trace_of(ids, 8, document=np.arange(400) // 200, domain=np.arange(400) // 200, domains=("a", "b"))
    assert domain_specialisation(trace).outside().tolist() == [0]


def test_interval_of_a_share():
    trace = domains_of(0.3)
    found = specialisation_interval(trace, 0)
    whole = domain_specialisation(trace, permutations=1)
    np.testing.assert_allclose(found.estimate, whole.specialisation[0])
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()
    assert found.low[7, 1] > whole.specialisation[0, 7, 0]
    # 100 documents of 20 independent tokens each: the spread of a share of 2,000 tokens.
    share = found.estimate[2, 0]
    width = 2 * 1.96 * (share * (1 - share) / 2000) ** 0.5
    assert found.high[2, 0] - found.low[2, 0] == pytest.approx(width, rel=0.25)


def test_a_document_in_two_domains():
    trace = trace_of([[[0, 1]], [[0, 1]]], 4, document=[0, 0], domain=[0, 1], domains=("a", "b"))
    with pytest.raises(ConfigError, match="differ in domain from others of their document"):
        domain_specialisation(trace)


def test_vocabulary_by_hand():
    ids = [[[0, 1]], [[0, 2]], [[0, 3]], [[2, 3]], [[1, 2]]]
    found = vocabulary_specialisation(trace_of(ids, 4, token_id=[5, 5, 5, 6, 6]), 0, min_count=3)
    assert (found.token_ids.tolist(), found.counts.tolist()) == ([5], [3])
    assert found.specialisation.tolist() == pytest.approx(np.array([[3, 1, 1, 1]]) / 3)
    assert found.null_mean.tolist() == pytest.approx([0.6, 0.4, 0.6, 0.4])
    assert found.null_std[0, 0] == pytest.approx((0.24 / 3 * 2 / 4) ** 0.5)
    assert found.top_tokens(0, 1).tolist() == [5]


def test_null_moments_are_those_of_permutations():
    rng = np.random.default_rng(0)
    ids = random_ids(rng, 60, 1, 5, 2)
    token_id = rng.integers(4, size=60)
    found = vocabulary_specialisation(trace_of(ids, 5, token_id=token_id), 0, min_count=1)
    drawn = np.stack(
        [
            vocabulary_specialisation(
                trace_of(ids, 5, token_id=rng.permutation(token_id)), 0, min_count=1
            ).specialisation
            for _ in range(1500)
        ]
    )
    np.testing.assert_allclose(drawn.mean(axis=0), np.tile(found.null_mean, (4, 1)), atol=0.015)
    np.testing.assert_allclose(drawn.std(axis=0), found.null_std, rtol=0.1)
    assert np.abs(found.z()).max() < 4.5


def test_words_that_experts_know_stand_out():
    rng = np.random.default_rng(0)
    ids = random_ids(rng, 2000, 1, 8, 2)
    token_id = rng.integers(20, size=2000)
    ids[token_id == 3] = [5, 6]
    found = vocabulary_specialisation(trace_of(ids, 8, token_id=token_id), 0)
    assert found.top_tokens(5, 1).tolist() == [3]
    assert found.z()[3, 5] > 10


def test_token_ids_are_needed():
    with pytest.raises(ConfigError, match="must be known for all tokens"):
        vocabulary_specialisation(trace_of([[[0, 1]]], 4), 0)
