import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moeworks.ops.attention import (
    DocumentMask,
    causal_attention,
    document_mask,
    explicit_attention,
    visible,
)


def random_qkv(batch=2, heads=4, kv_heads=2, length=6, keys=None, width=5):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, length, width, dtype=torch.float64)
    k, v = torch.randn(2, batch, kv_heads, keys or length, width, dtype=torch.float64)
    return q, k, v


def by_hand(q, k, v, allowed) -> torch.Tensor:
    """softmax(q k / sqrt(P)) v over the key positions where allowed(b, i, j)."""
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        g = h // (q.shape[1] // k.shape[1])
        seen = [j for j in range(k.shape[2]) if allowed(b, i, j)]
        scores = torch.stack([q[b, h, i] @ k[b, g, j] for j in seen]) / math.sqrt(q.shape[3])
        out[b, h, i] = scores.softmax(0) @ v[b, g, seen]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_a_hand_written_softmax(kv_heads):
    q, k, v = random_qkv(kv_heads=kv_heads)
    want = by_hand(q, k, v, lambda b, i, j: j <= i)
    torch.testing.assert_close(causal_attention(q, k, v), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "keys"), [(1, 6), (2, 6), (5, 6), (1, 1)])
def test_queries_end_where_the_keys_end(length, keys):
    q, k, v = random_qkv(length=length, keys=keys)
    want = by_hand(q, k, v, lambda b, i, j: j <= i + keys - length)
    torch.testing.assert_close(causal_attention(q, k, v), want, rtol=1e-12, atol=1e-12)


DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 1], [7, 7, 7, 7, 7, 7], [0, 1, 2, 2, 0, 0]])


def test_a_document_sees_only_itself():
    q, k, v = random_qkv(batch=3)
    want = by_hand(q, k, v, lambda b, i, j: j <= i and DOCUMENTS[b, i] == DOCUMENTS[b, j])
    got = causal_attention(q, k, v, document_mask(DOCUMENTS))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_rows_with_and_without_a_boundary():
    tensors = [t.requires_grad_() for t in random_qkv(batch=3)]
    want = by_hand(*tensors, lambda b, i, j: j <= i and DOCUMENTS[b, i] == DOCUMENTS[b, j])
    want_gradients = torch.autograd.grad(want.square().sum(), tensors)
    got = causal_attention(*tensors, document_mask(DOCUMENTS))
    for gradient, expected in zip(
        torch.autograd.grad(got.square().sum(), tensors), want_gradients, strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


def test_only_rows_with_a_boundary_are_masked_on_the_cpu():
    assert document_mask(DOCUMENTS).rows_R.tolist() == [0, 2]
    assert document_mask(DOCUMENTS[[1]]) is None
    assert document_mask(torch.zeros(3, 1, dtype=torch.int64)) is None


def test_a_batch_with_a_boundary_in_every_row_has_one_mask_for_all():
    mask = document_mask(DOCUMENTS[[0, 2]])
    assert mask.rows_R is None and mask.mask_R1LL.shape == (2, 1, 6, 6)
    assert document_mask(DOCUMENTS[:0]) is None


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_last_positions_see_earlier_keys_of_their_document_only(length):
    q, k, v = random_qkv(batch=3, length=length, keys=6)
    past = 6 - length
    want = by_hand(q, k, v, lambda b, i, j: j <= i + past and DOCUMENTS[b, i + past] == DOCUMENTS[b, j])
    got = causal_attention(q, k, v, document_mask(DOCUMENTS, length))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class RowsOfAttention(TorchDispatchMode):
    """Counts the rows that attention kernels are given."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            self.rows += args[0].shape[0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2], [1, 1]])
def test_no_row_of_packed_documents_is_computed_twice(rows):
    q, k, v = random_qkv(batch=len(rows))
    with RowsOfAttention() as counted:
        causal_attention(q, k, v, document_mask(DOCUMENTS[rows]))
    assert counted.rows == len(rows)


def test_one_mask_for_all_rows_gives_the_same(monkeypatch):
    q, k, v = random_qkv(batch=3)
    chosen_rows = causal_attention(q, k, v, document_mask(DOCUMENTS))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    everywhere = document_mask(DOCUMENTS)
    assert everywhere.rows_R is None and everywhere.mask_R1LL.shape == (3, 1, 6, 6)
    monkeypatch.undo()
    torch.testing.assert_close(causal_attention(q, k, v, everywhere), chosen_rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_written_out_attention_is_the_same_without_sinks_and_caps(documents):
    q, k, v = random_qkv(batch=3)
    mask = None if documents is None else document_mask(documents)
    got = explicit_attention(q, k, v, mask, scale=5**-0.5)
    torch.testing.assert_close(got, causal_attention(q, k, v, mask), rtol=1e-12, atol=1e-12)


def test_a_sink_takes_its_share_of_the_softmax():
    q, k, v = random_qkv()
    sinks = torch.randn(4, dtype=torch.float64)
    got = explicit_attention(q, k, v, scale=0.7, sinks_H=sinks)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        scores = torch.stack([q[b, h, i] @ k[b, h // 2, j] * 0.7 for j in range(i + 1)])
        weights = torch.cat([scores, sinks[h : h + 1]]).softmax(0)[:-1]
        torch.testing.assert_close(got[b, h, i], weights @ v[b, h // 2, : i + 1], rtol=1e-11, atol=1e-11)


def test_capped_scores_stay_below_the_cap():
    q, k, v = random_qkv()
    capped = explicit_attention(q * 100, k, v, scale=1.0, softcap=1e-9)
    mean = v.cumsum(2) / torch.arange(1, 7).view(1, 1, -1, 1)
    torch.testing.assert_close(capped, mean.repeat_interleave(2, dim=1), rtol=1e-6, atol=1e-6)


def test_the_scale_multiplies_the_scores():
    q, k, v = random_qkv()
    torch.testing.assert_close(causal_attention(q, k, v, scale=0.3), causal_attention(q * 0.3 * 5**0.5, k, v))


def test_windows_chunks_and_padding_by_hand():
    queries, keys = torch.arange(3, 9), torch.arange(9)
    window, chunk = visible(queries, keys, window=3), visible(queries, keys, chunk=4)
    for row, i in enumerate(queries.tolist()):
        assert window[row].tolist() == [i - 3 < j <= i for j in range(9)]
        assert chunk[row].tolist() == [j <= i and j // 4 == i // 4 for j in range(9)]
    padded = visible(torch.tensor([-1, 0, 1]), torch.tensor([-1, 0, 1]))
    assert padded.tolist() == [[True, False, False], [False, True, False], [False, True, True]]


def test_a_mask_for_all_rows_may_bound_cached_keys():
    q, k, v = random_qkv(length=2, keys=6)
    mask = DocumentMask(None, visible(torch.tensor([4, 5]), torch.arange(6), window=2)[None, None])
    want = by_hand(q, k, v, lambda b, i, j: i + 4 - 2 < j <= i + 4)
    torch.testing.assert_close(causal_attention(q, k, v, mask), want, rtol=1e-12, atol=1e-12)
