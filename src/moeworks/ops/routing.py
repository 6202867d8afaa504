"""Routing is a value: which experts work on which token, and with what weight.

Routers (layers/routers) turn tokens into a Routing. Everything else (dispatch, losses, bias updates, traces)
is a function of that record.

**Empty slots.** Where tokens have different numbers of experts, `variable` is True: a token's experts fill
its first slots, and the others hold the id E, one past the last expert, and the weight 0. An empty slot is
no assignment: nothing counts it, and it is not dropped.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoutingContext:
    """Facts about the T tokens besides their vectors; None means unknown, or alike for all tokens."""

    valid_T: Tensor | None = None
    """bool, False for padding."""
    sequence_ids_T: Tensor | None = None
    """int64, the sequence (packed document) of each token."""
    token_ids_T: Tensor | None = None
    """int64, the id of each token in the vocabulary."""
    token_types_T: Tensor | None = None
    """int64, the type of each token: a modality, language or kind of record."""
    positions_T: Tensor | None = None
    """int64, counted from the start of the token's sequence."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The decision of one MoE layer over T tokens. float tensors are float32 (float64 in a float64 model)."""

    expert_ids_TK: Tensor
    """int64, best first. Ids of routed experts, then identity, then zero experts; E: an empty slot."""
    routing_weights_TK: Tensor
    """float, the weight of each chosen expert in the mix."""
    router_logits_TE: Tensor
    """float, the logits that the scores are made of, with noise and without the loss-free balancing bias."""
    router_probs_TE: Tensor
    """float, the scores. Sigmoid and sqrt-softplus scores do not sum to 1."""
    kept_TK: Tensor | None = None
    """bool, False where capacity or padding dropped the assignment, and in empty slots. None: True."""
    valid_T: Tensor | None = None
    """bool, False for padding. None: every token is valid."""
    sequence_ids_T: Tensor | None = None
    """int64, the sequence (packed document) of each token. None: all tokens are one sequence."""
    unbiased_ids_TK: Tensor | None = None
    """int64, what would have been chosen without expert_bias, which losses count. None: no bias took part."""
    clean_logits_TE: Tensor | None = None
    """float, the logits before the noise of noisy top-k."""
    noise_std_TE: Tensor | None = None
    """float, the standard deviation of that noise."""
    baseline_T: Tensor | None = None
    """float, the reward that a policy-gradient router expected for each token."""
    token_losses_T: Tensor | None = None
    """float, without gradient: the cross-entropy of each token's prediction, 0 for padding. The training step
    fills it in after the forward pass, for routers that learn from it."""
    token_types_T: Tensor | None = None
    """int64, the type of each token; None unless there are pools."""
    pools: tuple[tuple[int, ...], ...] = ()
    """For each type, the ids of the experts that its tokens may have, ascending; other experts have logits of
    -inf and probabilities of 0. Empty: every token may have every expert."""
    buckets_T: Tensor | None = None
    """int64, the bucket (bandit) that routed each token."""
    variable: bool = False
    """Whether some slots may be empty."""
    ranked: bool = False
    """Whether the choice is top-k: each token's best experts by router_probs, but for bias and groups."""

    @property
    def num_experts(self) -> int:
        """E, zero-computation experts included."""
        return self.router_logits_TE.shape[1]

    @property
    def top_k(self) -> int:
        """K, the slots of a token; with empty slots the most experts that a token can have."""
        return self.expert_ids_TK.shape[1]

    @property
    def filled_TK(self) -> Tensor | None:  # noqa: N802  (a shape suffix)
        """bool, False for empty slots; None: there are none."""
        return self.expert_ids_TK < self.num_experts if self.variable else None

    @property
    def counted_ids_TK(self) -> Tensor:  # noqa: N802
        """int64, the choice as losses count it: without the influence of expert_bias."""
        return self.expert_ids_TK if self.unbiased_ids_TK is None else self.unbiased_ids_TK

    @property
    def num_tokens(self) -> Tensor:
        """Number of valid tokens, an int64 scalar tensor."""
        if self.valid_T is None:
            return torch.tensor(self.expert_ids_TK.shape[0], device=self.expert_ids_TK.device)
        return self.valid_T.sum()

    def tokens_per_expert(self) -> Tensor:
        """int64 [E]: assignments of valid tokens to each expert, before any were dropped; no empty slots."""
        return count_assignments(self.expert_ids_TK, self.num_experts, self.valid_T)

    def num_assignments(self) -> Tensor:
        """Filled slots of valid tokens, before any were dropped, an int64 scalar tensor."""
        filled_TK = self.filled_TK
        if filled_TK is None:
            return self.num_tokens * self.top_k
        return (filled_TK if self.valid_T is None else filled_TK & self.valid_T[:, None]).sum()

    def dropped_fraction(self) -> Tensor:
        """Share of the valid tokens' assignments that capacity dropped, a float scalar tensor."""
        if self.kept_TK is None:
            return self.routing_weights_TK.new_zeros(())
        kept_T = self.kept_TK.sum(1)
        kept = kept_T.sum() if self.valid_T is None else (kept_T * self.valid_T).sum()
        assigned = self.num_assignments()
        return (assigned - kept).to(self.routing_weights_TK.dtype) / assigned.clamp(min=1)

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that are present, in field order.

        Reentrant activation checkpointing passes gradients only through tensors that a function returns
        directly: return these beside the output and rebuild the record with `with_tensors`.
        """
        return tuple(value for name in _NAMES if (value := getattr(self, name)) is not None)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Routing":
        """This record with its present tensors replaced, in the order of `tensors()`."""
        present = [name for name in _NAMES if getattr(self, name) is not None]
        return replace(self, **dict(zip(present, tensors, strict=True)))


_NAMES = tuple(f.name for f in fields(Routing) if f.name not in ("variable", "ranked", "pools"))


def count_assignments(expert_ids_TK: Tensor, num_experts: int, valid_T: Tensor | None = None) -> Tensor:
    """int64 [E]: how many assignments each expert has, over the tokens where `valid_T` is True.

    Empty slots, whose id is `num_experts`, count for none.
    """
    ids_N = expert_ids_TK.reshape(-1)
    ones_N = torch.ones_like(ids_N) if valid_T is None else valid_T.repeat_interleave(expert_ids_TK.shape[1])
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids_N.device)
    return counts.scatter_add_(0, ids_N, ones_N.to(torch.int64))[:num_experts]
