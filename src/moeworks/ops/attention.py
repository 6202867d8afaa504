"""Scaled dot-product attention over packed documents."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DocumentMask:
    """Which earlier positions a query may look at in rows that hold several documents (R of the B rows)."""

    rows_R: Tensor | None
    """int64, the rows that hold a boundary; None means that `mask` covers all rows."""
    mask_R1LL: Tensor
    """bool, True where a query may look: at an earlier or equal position of its own document."""


def document_mask(document_ids_BL: Tensor) -> DocumentMask | None:
    """The mask of a packed batch; None when no row holds a boundary.

    On the CPU only rows with a boundary get a mask, as plain causal attention is half the work. Elsewhere
    the choice of rows would wait for the device and change shapes, so all rows get one.
    """
    if document_ids_BL.is_cuda or torch.compiler.is_compiling():
        return DocumentMask(None, _same_document(document_ids_BL))
    rows_R = (document_ids_BL != document_ids_BL[:, :1]).any(dim=1).nonzero().squeeze(1)
    if not rows_R.numel():
        return None
    return DocumentMask(rows_R, _same_document(document_ids_BL[rows_R]))


def causal_attention(
    q_BHLP: Tensor, k_BGSP: Tensor, v_BGSP: Tensor, documents: DocumentMask | None = None
) -> Tensor:
    """Causal grouped-query attention, [B, H, L, P].

    The S keys end where the L queries end (S > L: the first S - L come from a cache). With `documents`
    (S == L) a token sees only its own document.
    """
    rows_R = None if documents is None else documents.rows_R
    if documents is not None and rows_R is None:
        return _attention(q_BHLP, k_BGSP, v_BGSP, documents.mask_R1LL)
    length, keys = q_BHLP.shape[2], k_BGSP.shape[2]
    if length not in (1, keys):
        lower = torch.ones(length, keys, dtype=torch.bool, device=q_BHLP.device).tril(keys - length)
        return _attention(q_BHLP, k_BGSP, v_BGSP, lower)
    out_BHLP = _attention(q_BHLP, k_BGSP, v_BGSP, None, causal=length > 1)
    if documents is None or rows_R is None:
        return out_BHLP
    masked = _attention(q_BHLP[rows_R], k_BGSP[rows_R], v_BGSP[rows_R], documents.mask_R1LL)
    return out_BHLP.index_copy(0, rows_R, masked)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.is_cuda:
        # No fused CUDA kernel takes a mask and grouped heads: torch would build all L x L scores.
        repeats = q.shape[1] // k.shape[1]
        k, v, grouped = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _same_document(ids_RL: Tensor) -> Tensor:
    same = ids_RL[:, :, None] == ids_RL[:, None, :]
    return (same & same.new_ones(ids_RL.shape[1], ids_RL.shape[1]).tril()).unsqueeze(1)
