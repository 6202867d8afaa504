"""Soft MoE (Puigcerver et al. 2023): tokens into slots and back, both by a softmax of the same scores.

S = E * C slots, C of each expert. Scores of tokens and slots are products of unit vectors, times a scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NORM_EPS = 1e-6
"""Added to the squared length before dividing by its root, as in the authors' code."""


@dataclass(frozen=True, eq=False)
class SoftRouting:
    """How one Soft MoE layer mixed T tokens; float32 (float64 in a float64 model), with gradients."""

    dispatch_TEC: Tensor
    """Part of each token in each slot: sums to 1 over the valid tokens of a sequence."""
    combine_TEC: Tensor
    """Part of each slot's output in each token: sums to 1 over all slots; 0 for padding."""
    sequences_T: Tensor
    """int64, the number of each token's sequence, from 0."""
    num_sequences: int
    valid_T: Tensor | None = None
    """bool, False for padding. None: every token is valid."""

    def expert_shares(self) -> Tensor:
        """[E], sums to 1, or 0 without tokens: the mean of what each expert contributes to valid tokens."""
        shares_TE = self.combine_TEC.sum(dim=2)
        tokens = shares_TE.new_tensor(len(shares_TE)) if self.valid_T is None else self.valid_T.sum()
        return shares_TE.sum(dim=0) / tokens.clamp(min=1)

    def tokens_per_slot(self) -> Tensor:
        """[sequences, E, C]: the effective number of tokens in a slot, 1 / sum of squares (inverse Simpson).

        1 where a slot takes one token, L where it takes all alike; 0 in a sequence without valid tokens.
        """
        shape = (self.num_sequences, *self.dispatch_TEC.shape[1:])
        squares = self.dispatch_TEC.new_zeros(shape).index_add(
            0, self.sequences_T, self.dispatch_TEC.square()
        )
        return torch.where(squares > 0, 1 / torch.where(squares > 0, squares, 1.0), 0.0)

    def slots_per_token(self) -> Tensor:
        """[T]: the effective number of slots that a token is made of; 0 for padding."""
        squares_T = self.combine_TEC.square().sum(dim=(1, 2))
        return torch.where(squares_T > 0, 1 / torch.where(squares_T > 0, squares_T, 1.0), 0.0)


def unit(vectors: Tensor) -> Tensor:
    """`x` scaled to length 1 along the last dimension; vectors far shorter than 1e-3 stay shorter."""
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + NORM_EPS).rsqrt()


def soft_weights(
    x_BLD: Tensor, slots_SD: Tensor, scale: Tensor, valid_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Dispatch and combine weights, both [B, L, S], of rows that are a sequence each (sections 2.1, 2.3).

    The scale multiplies the smaller of the factors. Padding has no part in a slot, and gets none.
    """
    logits_BLS = torch.matmul(unit(x_BLD), (scale * unit(slots_SD)).t())
    if valid_BL is None:
        return logits_BLS.softmax(dim=1), logits_BLS.softmax(dim=2)
    valid_BL1 = valid_BL.unsqueeze(-1)
    # The lowest finite number instead of -inf: a row of padding alone would get NaN.
    masked_BLS = logits_BLS.masked_fill(~valid_BL1, torch.finfo(logits_BLS.dtype).min)
    return masked_BLS.softmax(dim=1) * valid_BL1, logits_BLS.softmax(dim=2) * valid_BL1


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions of T tokens when each sequence is a row, padded to the longest."""

    sequences_T: Tensor
    """int64, the row of each token."""
    places_T: Tensor
    """int64, its place in the row."""
    shape: tuple[int, int]
    """Rows, and places of a row."""

    def fill(self, values: Tensor) -> Tensor:
        """[T, ...] into [B, L, ...]; places without a token hold 0 or False."""
        rows = values.new_zeros(*self.shape, *values.shape[1:])
        return rows.index_put((self.sequences_T, self.places_T), values)

    def read(self, rows: Tensor) -> Tensor:
        """[B, L, ...] back into [T, ...]."""
        return rows[self.sequences_T, self.places_T]


def rows_of(sequence_ids_T: Tensor) -> Rows:
    """The rows of tokens whose sequences have any ids, each in the order in which its tokens come."""
    _, sequences_T, lengths = sequence_ids_T.unique(return_inverse=True, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    order_T = sequences_T.argsort(stable=True)
    places_T = torch.empty_like(order_T)
    places_T[order_T] = torch.arange(len(order_T), device=order_T.device) - starts[sequences_T[order_T]]
    longest = int(lengths.max()) if len(lengths) else 0
    return Rows(sequences_T, places_T, (len(lengths), longest))
