"""Scaled dot-product attention over packed documents."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DocumentMask:
    """Mask of the keys that a query may see, for packed documents, windows, chunks and padding.

    It covers R of the B rows; queries of the other rows see all earlier keys."""

    rows_R: Tensor | None
    """int64, ascending, the rows that the mask belongs to; others see all earlier keys. None: all rows."""
    mask_R1LL: Tensor
    """bool [R or 1, 1, L, S], True where a query may look, never later than at its own position."""


def document_mask(document_ids_BS: Tensor, length: int | None = None) -> DocumentMask | None:
    """The mask of the last `length` positions (None: all) of packed rows; None when none holds a boundary.

    On the CPU only rows with a boundary get a mask, as plain causal attention is half the work. Elsewhere
    the choice of rows would wait for the device and change shapes, so all rows get one.
    """
    if document_ids_BS.is_cuda or torch.compiler.is_compiling():
        return DocumentMask(None, _same_document(document_ids_BS, length))
    with_boundary_B = (document_ids_BS != document_ids_BS[:, :1]).any(dim=1)
    if with_boundary_B.all():
        return DocumentMask(None, _same_document(document_ids_BS, length)) if len(with_boundary_B) else None
    rows_R = with_boundary_B.nonzero().squeeze(1)
    if not rows_R.numel():
        return None
    return DocumentMask(rows_R, _same_document(document_ids_BS[rows_R], length))


def visible(queries: Tensor, keys: Tensor, *, window: int | None = None, chunk: int | None = None) -> Tensor:
    """bool [..., L, S]: whether the query at position [..., L] may see the key at position [..., S].

    Keys at negative positions are padding, which only padding queries see: their output is never used, but
    without a visible key it would be NaN.
    """
    q, k = queries.unsqueeze(-1), keys.unsqueeze(-2)
    seen = (k <= q) & ((k >= 0) | (q < 0))
    if window is not None:
        seen = seen & (k > q - window)
    if chunk is not None:
        seen = seen & (k.div(chunk, rounding_mode="floor") == q.div(chunk, rounding_mode="floor"))
    return seen


def causal_attention(
    q_BHLP: Tensor,
    k_BGSP: Tensor,
    v_BGSP: Tensor,
    documents: DocumentMask | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Causal grouped-query attention, [B, H, L, P of the values].

    The S keys end where the L queries end (S > L: the first S - L come from a cache). `documents` restricts
    what a query sees beyond causality; `scale` multiplies the scores, P^-0.5 when None.
    """
    if documents is None:
        return _all_earlier(q_BHLP, k_BGSP, v_BGSP, scale)
    rows_R, mask = documents.rows_R, documents.mask_R1LL
    if rows_R is None:
        return _attention(q_BHLP, k_BGSP, v_BGSP, mask, scale=scale)
    plain_B = torch.ones(q_BHLP.shape[0], dtype=torch.bool, device=q_BHLP.device).index_fill(0, rows_R, False)
    others = plain_B.nonzero().squeeze(1)
    parts = (
        _all_earlier(q_BHLP[others], k_BGSP[others], v_BGSP[others], scale),
        _attention(q_BHLP[rows_R], k_BGSP[rows_R], v_BGSP[rows_R], mask, scale=scale),
    )
    # [B, L, H, P] is the order in memory of a fused kernel's result, and the one that callers read.
    out_BLHP = torch.cat([part.transpose(1, 2) for part in parts])
    return out_BLHP.index_select(0, torch.cat([others, rows_R]).argsort()).transpose(1, 2)


def explicit_attention(
    q_BHLP: Tensor,
    k_BGSP: Tensor,
    v_BGSP: Tensor,
    documents: DocumentMask | None = None,
    *,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention written out, for sinks and capped scores, which no fused kernel has.

    `sinks_H` are logits that take part in the softmax and stand for no key (gpt-oss); `softcap` turns a
    score into cap * tanh(score / cap) (Grok-1). The softmax is in float32 at least.
    """
    heads, groups = q_BHLP.shape[1], k_BGSP.shape[1]
    q = q_BHLP.unflatten(1, (groups, heads // groups))
    scores = (q @ k_BGSP.unsqueeze(2).transpose(-1, -2)).mul(scale).flatten(1, 2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_full_mask(q_BHLP, k_BGSP.shape[2], documents), -torch.inf)
    if sinks_H is not None:
        sinks = sinks_H.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : k_BGSP.shape[2]].to(v_BGSP.dtype)
    return (weights.unflatten(1, (groups, heads // groups)) @ v_BGSP.unsqueeze(2)).flatten(1, 2)


def _full_mask(q_BHLP: Tensor, keys: int, documents: DocumentMask | None) -> Tensor:
    """bool, broadcastable to [B, 1, L, S]."""
    if documents is None:
        return _lower(q_BHLP, keys)
    if documents.rows_R is None:
        return documents.mask_R1LL
    mask = _lower(q_BHLP, keys).expand(q_BHLP.shape[0], 1, -1, -1).clone()
    mask[documents.rows_R] = documents.mask_R1LL
    return mask


def _all_earlier(q_BHLP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, scale: float | None) -> Tensor:
    """Attention where a query sees its own and all earlier positions."""
    length, keys = q_BHLP.shape[2], k_BGSP.shape[2]
    if length not in (1, keys):
        return _attention(q_BHLP, k_BGSP, v_BGSP, _lower(q_BHLP, keys), scale=scale)
    return _attention(q_BHLP, k_BGSP, v_BGSP, None, causal=length > 1, scale=scale)


def _lower(q_BHLP: Tensor, keys: int) -> Tensor:
    """bool [L, S]: causality where the queries end where the keys end."""
    length = q_BHLP.shape[2]
    return torch.ones(length, keys, dtype=torch.bool, device=q_BHLP.device).tril(keys - length)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.is_cuda:
        # No fused CUDA kernel takes both a mask and grouped heads: torch would build all L x L scores.
        repeats = q.shape[1] // k.shape[1]
        k, v, grouped = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1), False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _same_document(ids_RS: Tensor, length: int | None) -> Tensor:
    """bool [R, 1, L, S]: earlier keys of the query's document, for the last L positions."""
    keys = ids_RS.shape[1]
    past = 0 if length is None else keys - length
    same = ids_RS[:, past:, None] == ids_RS[:, None, :]
    return (same & same.new_ones(keys - past, keys).tril(past)).unsqueeze(1)
