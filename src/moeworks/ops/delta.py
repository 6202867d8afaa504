"""The gated delta rule (Yang et al. 2024, "Gated Delta Networks", section 3): a recurrence over a matrix.

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - k_t^T exp(g_t) S_{t-1}))^T        o_t = S_t^T q_t / sqrt(dk)

Token by token that is `delta_step`; `delta_chunks` computes the same with matrix products inside chunks: the
corrections of a chunk's tokens solve one triangular system. g_t is a number, or one per row of S (Kimi delta
attention, Kimi team 2025, section 3). Then each pair of a chunk's tokens has a decay per row, so chunks are
short; decays are never inverted, which would overflow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
CHUNK_OF_CHANNELS = 16
_NORM_EPS = 1e-6


class DeltaInputs(NamedTuple):
    """Queries, keys [B, H, L, dk] and values [B, H, L, dv], step sizes [B, H, L], log decays the same or per
    row of the state, [B, H, L, dk]."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor


def gated_delta(
    inputs: DeltaInputs, state: Tensor | None = None, segments_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, dv] and the state [B, H, dk, dv] after the last token.

    Queries and keys are normalised to length 1 first. Computed in float32, or float64 when that comes in.

    Args:
        inputs: in any float dtype.
        state: the state before the first token; None is zero.
        segments_BL: int64, not decreasing along L; where it rises the state starts anew. `state` belongs to
            the first token's segment.
    """
    kind = torch.float64 if inputs.v.dtype == torch.float64 else torch.float32
    q, k, v, log_decay, beta = (x.to(kind) for x in inputs)
    q, k = unit_length(q) * q.shape[-1] ** -0.5, unit_length(k)
    wide = DeltaInputs(q, k, v, log_decay, beta)
    if state is None:
        state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    # Autocast would compute the products of a recurrence in a low precision.
    with torch.autocast(v.device.type, enabled=False):
        if v.shape[2] == 1:
            out, state = delta_step(wide, state.to(kind))
        else:
            out, state = delta_chunks(wide, state.to(kind), segments_BL)
    return out.to(inputs.v.dtype), state


def unit_length(x: Tensor) -> Tensor:
    """x over its length, with a small number under the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def delta_step(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """Output and state after one token (L = 1), by the formula; q must be scaled, q and k normalised."""
    q, k, v, log_decay, beta = (x.squeeze(2) for x in inputs)
    state = state * (log_decay[..., None] if log_decay.dim() == 2 else log_decay).exp()[..., None]
    correction = (v - torch.einsum("bhkv,bhk->bhv", state, k)) * beta[..., None]
    state = state + k[..., :, None] * correction[..., None, :]
    return torch.einsum("bhkv,bhk->bhv", state, q).unsqueeze(2), state


def delta_chunks(
    inputs: DeltaInputs, state: Tensor, segments_BL: Tensor | None = None, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and state of `delta_step` over L tokens, as matrix products over chunks of `size` tokens."""
    if size is None:
        size = CHUNK if inputs.log_decay.dim() == 3 else CHUNK_OF_CHANNELS
    outs, previous_B1 = [], None if segments_BL is None else segments_BL[:, :1]
    for start in range(0, inputs.v.shape[2], size):
        piece = DeltaInputs(*(x[:, :, start : start + size] for x in inputs))
        segments = None if segments_BL is None else segments_BL[:, start : start + size]
        out, state = _chunk(piece, state, segments, previous_B1)
        outs.append(out)
        previous_B1 = None if segments is None else segments[:, -1:]
    return torch.cat(outs, dim=2), state


def _chunk(
    inputs: DeltaInputs, state: Tensor, segments_BC: Tensor | None, previous_B1: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay, beta = inputs
    # [B, H, C, dk], or 1 in the place of dk.
    total = (log_decay[..., None] if log_decay.dim() == 3 else log_decay).cumsum(-2)
    pairs = _decays_of_pairs(total)
    from_start, to_end = total.exp(), (total[..., -1:, :] - total).exp()
    if segments_BC is not None and previous_B1 is not None:
        pairs = pairs * (segments_BC[:, None, :, None] == segments_BC[:, None, None, :])[..., None]
        from_start = from_start * (segments_BC == previous_B1)[:, None, :, None]
        to_end = to_end * (segments_BC == segments_BC[:, -1:])[:, None, :, None]
    k_beta = k * beta[..., None]
    system = _decayed_products(k_beta, k, pairs).tril(-1)
    right = torch.cat([v * beta[..., None], k_beta * from_start], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    corrections = values - keys @ state
    out = (q * from_start) @ state + _decayed_products(q, k, pairs) @ corrections
    state = state * from_start[..., -1, :, None] + (k * to_end).transpose(-1, -2) @ corrections
    return out, state


def _decays_of_pairs(total: Tensor) -> Tensor:
    """[B, H, C, C, dk or 1]: decay from token j to token i, 0 above the diagonal."""
    lower = torch.ones(total.shape[-2], total.shape[-2], dtype=torch.bool, device=total.device).tril()
    between = total[..., :, None, :] - total[..., None, :, :]
    return between.masked_fill(~lower[..., None], -torch.inf).exp()


def _decayed_products(x: Tensor, k: Tensor, pairs: Tensor) -> Tensor:
    """[B, H, C, C]: x_i . k_j, times the decay from token j to token i."""
    if pairs.shape[-1] == 1:
        return x @ k.transpose(-1, -2) * pairs[..., 0]
    return torch.einsum("bhid,bhijd,bhjd->bhij", x, pairs, k)


def causal_conv(x_BLC: Tensor, weight_CK: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """[B, L, C]: each channel convolved over the last K positions, of the same segment.

    `x` may begin with earlier positions: the caller drops their outputs.
    """
    kernel = weight_CK.shape[1]
    weight_CK = weight_CK.to(x_BLC.dtype)
    out = x_BLC * weight_CK[:, -1]
    for back in range(1, min(kernel, x_BLC.shape[1])):
        earlier = x_BLC[:, :-back]
        if segments_BL is not None:
            earlier = earlier * (segments_BL[:, back:] == segments_BL[:, :-back]).unsqueeze(-1)
        tap = earlier * weight_CK[:, -1 - back]
        out = torch.cat([out[:, :back], out[:, back:] + tap], dim=1)
    return out
