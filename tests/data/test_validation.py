from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeworks.data import TokenStore, ValidationSet

MakeStore = Callable[..., TokenStore]
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def predictions(held_out: ValidationSet) -> list[tuple[int, int, int, int]]:
    """(document, domain, input, target) of every valid position, sorted."""
    found = []
    for batch in held_out.batches():
        valid = batch.valid_BL
        columns = (batch.document_ids_BL, batch.domain_ids_BL, batch.tokens_BL, batch.targets_BL)
        found += list(zip(*(column[valid].tolist() for column in columns), strict=True))
    return sorted(found)


def expected(store: TokenStore, documents: list[int]) -> list[tuple[int, int, int, int]]:
    found = []
    for document in documents:
        tokens = store.tokens[store.document_starts[document] : store.document_starts[document + 1]].tolist()
        domain = int(store.document_domains[document])
        found += [(document, domain, *pair) for pair in pairwise(tokens)]
    return sorted(found)


@shared_fixture
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    seq_len=st.integers(2, 150),
    batch_size=st.integers(1, 5),
)
def test_every_token_of_every_document_is_predicted_exactly_once(
    make_store: MakeStore, lengths: list[int], seq_len: int, batch_size: int
) -> None:
    store = make_store(lengths)
    held_out = ValidationSet(store, seq_len, batch_size)
    assert predictions(held_out) == expected(store, list(range(len(lengths))))
    assert held_out.num_tokens == sum(lengths)
    assert held_out.bytes_per_domain.sum() == store.document_bytes.sum()


def test_a_row_holds_one_document_and_padding_at_its_end(make_store: MakeStore) -> None:
    for batch in ValidationSet(make_store([70, 3, 200, 64, 65]), seq_len=64, batch_size=3).batches():
        assert (batch.valid_BL.int().diff(dim=1) <= 0).all() and batch.valid_BL[:, 0].all()
        assert (batch.document_ids_BL == batch.document_ids_BL[:, :1]).all()
        assert not batch.tokens_BL[~batch.valid_BL].any() and not batch.targets_BL[~batch.valid_BL].any()


def test_long_rows_come_first_and_short_batches_are_narrow(make_store: MakeStore) -> None:
    held_out = ValidationSet(make_store([5, 256, 130, 6, 300]), seq_len=256, batch_size=2)
    batches = list(held_out.batches())
    assert [tuple(batch.valid_BL.shape) for batch in batches] == [(2, 256), (2, 192), (2, 64)]
    assert [batch.valid_BL.sum(1).tolist() for batch in batches] == [[256, 256], [130, 44], [6, 5]]
    assert held_out.num_batches == 3


def test_bytes_are_counted_per_domain_also_for_absent_ones(make_store: MakeStore) -> None:
    store = make_store([10, 20, 30], domains=[2, 0, 2], num_domains=4)
    held_out = ValidationSet(store, seq_len=8, batch_size=4)
    assert held_out.bytes_per_domain.tolist() == [60, 0, 120, 0]
    assert held_out.bytes_per_domain.dtype == np.int64


def test_a_selection_keeps_to_its_size_and_its_bytes_are_those_of_its_tokens(make_store: MakeStore) -> None:
    store = make_store([20] * 100)
    held_out = ValidationSet(store, seq_len=16, batch_size=4, max_tokens=510)
    assert held_out.num_tokens == 500
    assert held_out.bytes_per_domain.sum() == 3 * held_out.num_tokens  # the fixture's three bytes per token
    chosen = sorted({document for document, *_ in predictions(held_out)})
    assert predictions(held_out) == expected(store, chosen)
    assert np.diff([-1, *chosen, 100]).max() <= 6  # 25 of 100 documents, at distances about 4


def test_a_selection_is_the_same_every_time_and_for_every_batch_size(make_store: MakeStore) -> None:
    store = make_store([9, 14, 3, 25, 8, 7, 30, 2] * 10)
    first, second = (ValidationSet(store, 16, batch_size, max_tokens=200) for batch_size in (3, 8))
    assert predictions(first) == predictions(second)


def test_no_document_fills_a_selection_unless_there_are_only_long_ones(make_store: MakeStore) -> None:
    mixed = ValidationSet(make_store([1000, 20, 20, 1000, 20, 20]), 16, 4, max_tokens=100)
    assert mixed.num_tokens == 80
    assert ValidationSet(make_store([1000, 900, 950]), 16, 4, max_tokens=100).num_tokens == 900


@pytest.mark.parametrize("max_tokens", [None, 60, 61])
def test_a_limit_that_is_not_reached_takes_everything(make_store: MakeStore, max_tokens: int | None) -> None:
    assert ValidationSet(make_store([10, 50]), 16, 4, max_tokens).num_tokens == 60
