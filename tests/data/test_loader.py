from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeworks.data import Batch, TokenStore, TrainLoader
from moeworks.errors import DataError

MakeStore = Callable[..., TokenStore]
# The fixture makes stores and holds no state.
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


NAMES = [item.name for item in fields(Batch) if item.name not in ("token_types_BL", "padded")]
"""What the loader fills in."""


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in NAMES)


def stack(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in NAMES))


def test_types_and_shapes(make_store: MakeStore) -> None:
    batch = TrainLoader(make_store([30, 50]), seq_len=8, batch_size=3, seed=0).batch(0)
    assert all(getattr(batch, name).shape == (3, 8) for name in NAMES)
    assert {getattr(batch, name).dtype for name in NAMES} == {torch.int64, torch.bool}
    assert batch.valid_BL.dtype == torch.bool and batch.valid_BL.all()


@shared_fixture
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seq_len=st.integers(1, 12),
    seed=st.integers(-5, 2**40),
)
def test_rows_are_windows_of_the_ring_with_their_documents(
    make_store: MakeStore, lengths: list[int], seq_len: int, seed: int
) -> None:
    store = make_store(lengths)
    if store.num_tokens < seq_len + 1:
        return
    batch = TrainLoader(store, seq_len, 4, seed).batch(3)
    ring = np.concatenate([store.tokens, store.tokens]).astype(np.int64)
    for row in range(4):
        window = torch.cat([batch.tokens_BL[row], batch.targets_BL[row, -1:]])
        starts = [i for i in range(store.num_tokens) if (ring[i : i + seq_len + 1] == window.numpy()).all()]
        assert starts and torch.equal(batch.targets_BL[row, :-1], batch.tokens_BL[row, 1:])
        new_document = batch.document_ids_BL[row].diff() != 0
        assert torch.equal(new_document, batch.tokens_BL[row, 1:] == 0)
        places = (starts[0] + np.arange(seq_len)) % store.num_tokens
        documents = np.searchsorted(store.document_starts, places, side="right") - 1
        assert batch.domain_ids_BL[row].tolist() == store.document_domains[documents].tolist()


@pytest.mark.parametrize("lengths", [[99], [31, 20, 46], [7] * 13])
def test_an_epoch_reads_every_token_once_but_for_a_rest(make_store: MakeStore, lengths: list[int]) -> None:
    store, seq_len = make_store(lengths), 7
    loader = TrainLoader(store, seq_len, batch_size=2, seed=5)
    assert loader.samples_per_epoch == store.num_tokens // seq_len
    rests = set()
    for epoch in range(4):
        rows = loader.rows(epoch * loader.samples_per_epoch, loader.samples_per_epoch)
        read = np.bincount(rows.tokens_BL.flatten().numpy(), minlength=store.num_tokens)
        expected = np.bincount(store.tokens, minlength=store.num_tokens)
        assert (read <= expected).all() and (expected - read).sum() == store.num_tokens % seq_len
        rests.add(tuple(np.flatnonzero(expected - read)))
    assert len(rests) > 1 or store.num_tokens % seq_len == 0


def test_every_epoch_has_its_own_order_and_offset(make_store: MakeStore) -> None:
    loader = TrainLoader(make_store([500]), seq_len=10, batch_size=2, seed=0)
    size = loader.samples_per_epoch
    first, second = (loader.rows(epoch * size, size).tokens_BL[:, 0] for epoch in range(2))
    assert sorted(first.tolist()) != sorted(second.tolist())
    assert first.tolist() != sorted(first.tolist())


@shared_fixture
@given(first=st.integers(0, 300), cuts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_slices_are_the_rows_they_cut(make_store: MakeStore, first: int, cuts: list[int]) -> None:
    store = make_store([30, 5, 60])
    parts, position = [], first
    for count in cuts:
        # A loader of its own for every part, as ranks and resumed runs have.
        parts.append(TrainLoader(store, 8, 4, seed=3).rows(position, count))
        position += count
    assert same(stack(parts), TrainLoader(store, 8, 4, seed=3).rows(first, sum(cuts)))


def test_a_step_is_its_samples_and_does_not_depend_on_earlier_calls(make_store: MakeStore) -> None:
    store = make_store([200, 90])
    loader = TrainLoader(store, 8, batch_size=6, seed=1)
    steps = [loader.batch(step) for step in (9, 2, 30, 9)]
    assert same(steps[0], steps[3]) and not same(steps[0], steps[1])
    assert same(TrainLoader(store, 8, batch_size=6, seed=1).batch(30), steps[2])
    assert same(stack([loader.rows(54, 2), loader.rows(56, 4)]), steps[0])


def test_seeds_give_different_orders(make_store: MakeStore) -> None:
    store = make_store([200, 90])
    assert not same(TrainLoader(store, 8, 4, seed=1).batch(0), TrainLoader(store, 8, 4, seed=2).batch(0))


def test_the_order_is_pinned(make_store: MakeStore) -> None:
    # A change of it would silently change every run that is resumed.
    rows = TrainLoader(make_store([99]), seq_len=10, batch_size=4, seed=0).rows(8, 4)
    assert rows.tokens_BL[:, 0].tolist() == [66, 96, 23, 63]


def test_a_store_that_is_too_short_is_refused_with_both_numbers(make_store: MakeStore) -> None:
    assert TrainLoader(make_store([8]), seq_len=8, batch_size=1, seed=0).samples_per_epoch == 1
    with pytest.raises(DataError, match=r"has 9 tokens, and train\.seq_len = 9 needs at least 10"):
        TrainLoader(make_store([8]), seq_len=9, batch_size=1, seed=0)
