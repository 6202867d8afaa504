import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, trace_of

from moeworks.analyse import information
from moeworks.analyse.information import conditional_entropy, mutual_information
from moeworks.errors import ConfigError


def entropy_by_definition(pairs: list[tuple[int, int]]) -> float:
    """H(second | first) in bits, with dictionaries."""
    total = len(pairs)
    joint, first = {}, {}
    for pair in pairs:
        joint[pair] = joint.get(pair, 0) + 1
        first[pair[0]] = first.get(pair[0], 0) + 1
    return -sum(n / total * np.log2(n / first[pair[0]]) for pair, n in joint.items())


@given(st.integers(0, 99), st.booleans())
def test_conditional_entropy_by_definition(seed, sparse):
    rng = np.random.default_rng(seed)
    ids = random_ids(rng, 25, 1, 6, 3)[:, 0]
    condition = rng.integers(4, size=25)
    pairs = [(int(c), int(e)) for c, row in zip(condition, ids, strict=True) for e in row]
    with pytest.MonkeyPatch.context() as patch:
        if sparse:
            patch.setattr(information, "_DENSE", 0)
        assert conditional_entropy(ids, condition, 6) == pytest.approx(entropy_by_definition(pairs), abs=1e-9)


def texts(by: str, tokens: int = 8000, seed: int = 0):
    """Two domains that use 10 words in different shares; the expert depends on what `by` says."""
    rng = np.random.default_rng(seed)
    document = np.arange(tokens) // 40
    domain = document % 2
    word = np.where(
        rng.random(tokens) < 0.7, domain * 5 + rng.integers(5, size=tokens), rng.integers(10, size=tokens)
    )
    expert = {"nothing": rng.integers(4, size=tokens), "word": word // 3, "domain": domain * 2 + word % 2}[by]
    return trace_of(
        expert[:, None, None], 4, token_id=word, document=document, domain=domain, domains=("a", "b")
    )


def test_expert_that_knows_the_domain():
    found = mutual_information(texts("domain"))
    even = 0.7 * 3 / 5 + 0.3 / 2  # share of words of the first domain with an even number
    inside = -(even * np.log2(even) + (1 - even) * np.log2(1 - even))
    assert found.expert_entropy == pytest.approx([1 + inside], abs=0.005)
    assert found.domain == pytest.approx([1], abs=0.01)  # two experts for each of two domains
    assert found.domain_null < 0.01
    assert found.excess_given_token() > 0.5  # the word tells part of the domain already


def test_expert_that_knows_words_looks_like_one_of_domains_until_the_word_is_given():
    found = mutual_information(texts("word"))
    assert found.excess() > 0.05
    assert found.token == pytest.approx(found.expert_entropy)
    assert found.domain_given_token == pytest.approx([0], abs=1e-9)
    assert found.excess_given_token().tolist() == [0]


def test_expert_that_knows_nothing():
    found = mutual_information(texts("nothing"))
    assert found.excess() < 0.002
    assert found.excess_given_token() < 0.005
    assert found.token < 0.01


@given(st.integers(0, 50))
def test_bounds(seed):
    found = mutual_information(random_trace(seed), permutations=2)
    for value in (found.domain, found.token, found.domain_given_token, found.domain_null):
        assert (value >= -1e-9).all()
        assert (value <= found.expert_entropy + 1e-9).all()
    assert (found.domain <= 1 + 1e-9).all()  # two domains


def test_without_token_ids():
    trace = trace_of([[[0]], [[1]]], 2, document=[0, 1], domain=[0, 1], domains=("a", "b"))
    found = mutual_information(trace)
    assert found.domain.tolist() == [1]
    assert found.token is None
    with pytest.raises(ConfigError, match="must be known"):
        found.excess_given_token()
