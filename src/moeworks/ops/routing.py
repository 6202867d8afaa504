"""Routing is a value: which experts work on which token, and with what weight.

`route` turns router logits into a Routing. Everything else (dispatch, losses, bias updates, traces) is a
function of that record.
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.model import RouterConfig
from moeworks.ops.native import top_k as native


@dataclass(frozen=True, eq=False)
class Routing:
    """The decision of one MoE layer over T tokens. float tensors are float32 (float64 in a float64 model)."""

    expert_ids_TK: Tensor
    """int64, best first. Ids of routed experts, then identity experts, then zero experts."""
    routing_weights_TK: Tensor
    """float, the weight of each chosen expert in the mix."""
    router_logits_TE: Tensor
    """float, what the scores were made of (noise included, bias of loss-free balancing not)."""
    router_probs_TE: Tensor
    """float, the scores. Sigmoid and sqrt-softplus scores do not sum to 1."""
    kept_TK: Tensor | None = None
    """bool, False where capacity or padding dropped the assignment. None: nothing was dropped."""
    valid_T: Tensor | None = None
    """bool, False for padding. None: every token is valid."""
    sequence_ids_T: Tensor | None = None
    """int64, the sequence (packed document) of each token. None: all tokens are one sequence."""
    unbiased_ids_TK: Tensor | None = None
    """int64, what would have been chosen without expert_bias. None: no bias took part."""
    clean_logits_TE: Tensor | None = None
    """float, the logits before the noise of noisy top-k."""
    noise_std_TE: Tensor | None = None
    """float, the standard deviation of that noise."""

    @property
    def num_experts(self) -> int:
        """E, zero-computation experts included."""
        return self.router_logits_TE.shape[1]

    @property
    def top_k(self) -> int:
        """K."""
        return self.expert_ids_TK.shape[1]

    @property
    def num_tokens(self) -> Tensor:
        """Number of valid tokens, an int64 scalar tensor."""
        if self.valid_T is None:
            return torch.tensor(self.expert_ids_TK.shape[0], device=self.expert_ids_TK.device)
        return self.valid_T.sum()

    def tokens_per_expert(self) -> Tensor:
        """int64 [E]: assignments of valid tokens to each expert, before any were dropped."""
        return count_assignments(self.expert_ids_TK, self.num_experts, self.valid_T)

    def dropped_fraction(self) -> Tensor:
        """Share of the valid tokens' assignments that capacity dropped, a float scalar tensor."""
        if self.kept_TK is None:
            return self.routing_weights_TK.new_zeros(())
        kept_T = self.kept_TK.sum(1)
        kept = kept_T.sum() if self.valid_T is None else (kept_T * self.valid_T).sum()
        assigned = self.num_tokens * self.top_k
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


_NAMES = tuple(f.name for f in fields(Routing))


def count_assignments(expert_ids_TK: Tensor, num_experts: int, valid_T: Tensor | None = None) -> Tensor:
    """int64 [E]: how many assignments each expert has, over the tokens where `valid_T` is True."""
    ids_N = expert_ids_TK.reshape(-1)
    ones_N = torch.ones_like(ids_N) if valid_T is None else valid_T.repeat_interleave(expert_ids_TK.shape[1])
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=ids_N.device)
    return counts_E.scatter_add_(0, ids_N, ones_N.to(torch.int64))


def route(
    logits_TE: Tensor,
    config: RouterConfig,
    *,
    expert_bias_E: Tensor | None = None,
    noise_std_TE: Tensor | None = None,
    valid_T: Tensor | None = None,
    sequence_ids_T: Tensor | None = None,
) -> Routing:
    """Choose experts and their weights.

    Args:
        logits_TE: float32 or float64 router logits.
        config: score, order, groups, renormalisation and scale.
        expert_bias_E: added to the scores for the choice, never for the weights (DeepSeek-V3, section 2.1.2).
        noise_std_TE: standard deviation of Gaussian noise to add to the logits (noisy top-k, training only).
        valid_T: False marks padding.
        sequence_ids_T: the sequence of each token.

    Ties go to the lower expert id, so that a recomputation chooses the same experts.
    """
    clean_TE = logits_TE
    if noise_std_TE is not None:
        logits_TE = clean_TE + torch.randn_like(clean_TE) * noise_std_TE
    probs_TE = score(logits_TE, config)
    choice_TE = (probs_TE if config.score_order == "before_top_k" else logits_TE).detach()
    unbiased_ids_TK = None
    if expert_bias_E is not None:
        unbiased_ids_TK = select_experts(choice_TE, config)
        choice_TE = choice_TE + expert_bias_E
    expert_ids_TK = select_experts(choice_TE, config)
    return Routing(
        expert_ids_TK=expert_ids_TK,
        routing_weights_TK=routing_weights(logits_TE, probs_TE, expert_ids_TK, config),
        router_logits_TE=logits_TE,
        router_probs_TE=probs_TE,
        valid_T=valid_T,
        sequence_ids_T=sequence_ids_T,
        unbiased_ids_TK=unbiased_ids_TK,
        clean_logits_TE=None if noise_std_TE is None else clean_TE,
        noise_std_TE=noise_std_TE,
    )


def score(logits_TE: Tensor, config: RouterConfig) -> Tensor:
    """router_probs [T, E]: softmax over experts, sigmoid (DeepSeek-V3), or sqrt(softplus) (DeepSeek-V4).

    sparsemixer's weights come from logits (see `sparsemixer_weights`); its probabilities are a softmax.
    """
    if config.score == "softmax":
        return logits_TE.softmax(dim=-1)
    if config.score == "sigmoid":
        return logits_TE.sigmoid()
    if config.score == "sparsemixer":
        return logits_TE.softmax(dim=-1)
    # sqrt has an infinite slope at 0, where softplus ends up when it underflows.
    return F.softplus(logits_TE).clamp(min=torch.finfo(logits_TE.dtype).tiny).sqrt()


def select_experts(choice_TE: Tensor, config: RouterConfig) -> Tensor:
    """int64 [T, K]: the best experts by `choice_TE`, best first; with groups, inside the best groups."""
    if config.num_groups > 1:
        choice_TE = mask_groups(choice_TE, config)
    return stable_top_k(choice_TE, config.top_k)


def stable_top_k(values_TE: Tensor, k: int) -> Tensor:
    """int64 [T, K]: indices of the k largest values of each row, largest first; ties to the lower index.

    NaN counts as the largest value, -inf as the lowest finite one. Always k different indices.
    """
    if native.serves(values_TE):
        return native.top_k(values_TE.detach(), k)
    return reference_top_k(values_TE, k)


def reference_top_k(values_TE: Tensor, k: int) -> Tensor:
    """The same in torch's functions: torch.topk leaves the order of equal values open, argmax does not."""
    remaining_TE = values_TE.detach().clamp(min=torch.finfo(values_TE.dtype).min)
    chosen = []
    for _ in range(k):
        best_T1 = remaining_TE.argmax(dim=-1, keepdim=True)
        remaining_TE.scatter_(-1, best_T1, -torch.inf)
        chosen.append(best_T1)
    return torch.cat(chosen, dim=-1)


def mask_groups(choice_TE: Tensor, config: RouterConfig) -> Tensor:
    """Put -inf on experts outside the best groups (DeepSeek-V2 section 2.2.2, V3 section 2.1.2).

    -inf and not 0: with a bias a masked expert's 0 could beat a kept expert's negative score.
    """
    tokens, experts = choice_TE.shape
    grouped = choice_TE.view(tokens, config.num_groups, experts // config.num_groups)
    if config.group_score == "max":
        group_score = grouped.amax(dim=-1)
    else:
        group_score = grouped.topk(2, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(group_score, dtype=torch.bool)
    kept.scatter_(1, stable_top_k(group_score, config.top_k_groups), True)
    return grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).view(tokens, experts)


def routing_weights(
    logits_TE: Tensor, probs_TE: Tensor, expert_ids_TK: Tensor, config: RouterConfig
) -> Tensor:
    """float [T, K]: the chosen experts' weights; gathered from scores without bias."""
    if config.score == "sparsemixer":
        weights_TK = sparsemixer_weights(logits_TE, expert_ids_TK, config.sparsemixer_eps)
    elif config.score_order == "after_top_k" and config.score == "softmax":
        weights_TK = logits_TE.gather(1, expert_ids_TK).softmax(dim=-1)
    else:
        weights_TK = probs_TE.gather(1, expert_ids_TK)
        if config.renormalize:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + config.renormalize_eps)
    return weights_TK if config.routing_scale == 1.0 else weights_TK * config.routing_scale


def sparsemixer_weights(logits_TE: Tensor, expert_ids_TK: Tensor, eps: float) -> Tensor:
    """float [T, K]: for each choice a softmax over what is left and close to the best (Phi-3.5-MoE).

    Experts whose logit z lies (best - z) / max(|z|, best) > 2 * eps below the best of those left get no
    share; the chosen expert then leaves, and the next one's weight is found the same way. The weights do not
    sum to 1. SparseMixer-v2 (Liu et al. 2023) as its authors' model runs at inference; no noise in training.
    """
    remaining_TE, weights = logits_TE, []
    for ids_T1 in expert_ids_TK.split(1, dim=-1):
        best_T1 = remaining_TE.detach().amax(dim=-1, keepdim=True)
        plain_TE = logits_TE.detach()
        scale_TE = torch.maximum(plain_TE.abs(), best_T1)
        far_TE = (best_T1 - plain_TE) / scale_TE > 2 * eps
        weights.append(remaining_TE.masked_fill(far_TE, -torch.inf).softmax(dim=-1).gather(1, ids_T1))
        remaining_TE = remaining_TE.scatter(1, ids_T1, -torch.inf)
    return torch.cat(weights, dim=-1)
