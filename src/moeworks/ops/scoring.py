"""Scores from router logits, the best experts by score, and their routing weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.router import RouterConfig
from moeworks.ops.native import top_k as native
from moeworks.ops.routing import Routing, RoutingContext


@dataclass(frozen=True, eq=False)
class Scores:
    """Values that experts are chosen by. float tensors are float32, or float64 in a float64 model."""

    config: RouterConfig
    logits_TE: Tensor
    """The logits, with the noise of noisy top-k."""
    probs_TE: Tensor
    """Scores of the logits by config.score; routing weights are made of these."""
    ranking_TE: Tensor
    """Values that rank the experts, without gradient: scores or logits, with Gumbel noise, without bias."""
    expert_bias_E: Tensor | None = None
    """Bias added to the ranking and never to the weights (DeepSeek-V3, section 2.1.2)."""
    clean_logits_TE: Tensor | None = None
    """The logits before noisy top-k's noise."""
    noise_std_TE: Tensor | None = None
    """The standard deviation of that noise."""
    pools: tuple[tuple[int, ...], ...] = ()
    """For each type, the experts that may be chosen, the only ones with finite logits; empty: all experts."""

    @property
    def biased_TE(self) -> Tensor:  # noqa: N802  (a shape suffix)
        """The ranking with the bias, if there is one."""
        return self.ranking_TE if self.expert_bias_E is None else self.ranking_TE + self.expert_bias_E


def score_logits(
    logits_TE: Tensor,
    config: RouterConfig,
    *,
    expert_bias_E: Tensor | None = None,
    noise_std_TE: Tensor | None = None,
    gumbel_scale: float | Tensor = 0.0,
    pools: tuple[tuple[int, ...], ...] = (),
    reachable_TE: Tensor | None = None,
) -> Scores:
    """The scores of float32 or float64 logits.

    Args:
        expert_bias_E: kept beside them.
        noise_std_TE: standard deviation of Gaussian noise to add to the logits (noisy top-k, training only).
        gumbel_scale: factor of the standard Gumbel noise that is added to the ranking (training only).
        pools: kept beside them.
        reachable_TE: bool, False for experts outside the pool of a token's type: their logits become -inf,
            their scores 0, and nothing is chosen or learnt of them.
    """
    if reachable_TE is not None:
        logits_TE = logits_TE.masked_fill(~reachable_TE, -torch.inf)
    clean_TE = logits_TE
    if noise_std_TE is not None:
        logits_TE = clean_TE + torch.randn_like(clean_TE) * noise_std_TE
    probs_TE = score(logits_TE, config)
    if reachable_TE is not None:
        # Not every score of -inf is exactly 0.
        probs_TE = probs_TE.masked_fill(~reachable_TE, 0.0)
    before = config.score_order == "before_top_k"
    ranking_TE = (probs_TE if before else logits_TE).detach()
    if isinstance(gumbel_scale, Tensor) or gumbel_scale > 0:
        drawn_TE = logits_TE.detach() + gumbel_scale * gumbel_like(logits_TE)
        ranking_TE = score(drawn_TE, config) if before else drawn_TE
    if reachable_TE is not None:
        # -inf and not 0, which an expert of the pool may underflow to.
        ranking_TE = ranking_TE.masked_fill(~reachable_TE, -torch.inf)
    return Scores(
        config=config,
        logits_TE=logits_TE,
        probs_TE=probs_TE,
        ranking_TE=ranking_TE,
        expert_bias_E=expert_bias_E,
        clean_logits_TE=None if noise_std_TE is None else clean_TE,
        noise_std_TE=noise_std_TE,
        pools=pools,
    )


def gumbel_like(values: Tensor) -> Tensor:
    """Standard Gumbel noise: the argmax of logits plus this noise is a draw from their softmax."""
    return -torch.empty_like(values).exponential_().log()


def routing_of(
    scores: Scores,
    expert_ids_TK: Tensor,
    context: RoutingContext,
    *,
    unbiased_ids_TK: Tensor | None = None,
    weights_TK: Tensor | None = None,
    variable: bool = False,
    ranked: bool = False,
) -> Routing:
    """Routing of a choice; the weights of the chosen experts are made of the scores unless given.

    With `variable` the id E marks empty slots, which come last in a token.
    """
    if weights_TK is None:
        weights_TK = routing_weights(
            scores.logits_TE, scores.probs_TE, expert_ids_TK, scores.config, variable=variable
        )
    return Routing(
        expert_ids_TK=expert_ids_TK,
        routing_weights_TK=weights_TK,
        router_logits_TE=scores.logits_TE,
        router_probs_TE=scores.probs_TE,
        valid_T=context.valid_T,
        sequence_ids_T=context.sequence_ids_T,
        unbiased_ids_TK=unbiased_ids_TK,
        clean_logits_TE=scores.clean_logits_TE,
        noise_std_TE=scores.noise_std_TE,
        token_types_T=context.token_types_T if scores.pools else None,
        pools=scores.pools,
        variable=variable,
        ranked=ranked,
    )


def choose_top_k(scores: Scores, context: RoutingContext) -> Routing:
    """Every token takes its best experts.

    Ties go to the lower expert id, so that a recomputation chooses the same experts.
    """
    unbiased_ids_TK = None
    if scores.expert_bias_E is not None:
        unbiased_ids_TK = select_experts(scores.ranking_TE, scores.config)
    expert_ids_TK = select_experts(scores.biased_TE, scores.config)
    return routing_of(scores, expert_ids_TK, context, unbiased_ids_TK=unbiased_ids_TK, ranked=True)


def route(
    logits_TE: Tensor,
    config: RouterConfig,
    *,
    expert_bias_E: Tensor | None = None,
    noise_std_TE: Tensor | None = None,
    valid_T: Tensor | None = None,
    sequence_ids_T: Tensor | None = None,
) -> Routing:
    """Routing by top-k of logits; the arguments are those of `score_logits` and RoutingContext."""
    scores = score_logits(logits_TE, config, expert_bias_E=expert_bias_E, noise_std_TE=noise_std_TE)
    return choose_top_k(scores, RoutingContext(valid_T=valid_T, sequence_ids_T=sequence_ids_T))


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
    """Reference of stable_top_k in plain torch: argmax settles ties, unlike torch.topk."""
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
    logits_TE: Tensor,
    probs_TE: Tensor,
    expert_ids_TK: Tensor,
    config: RouterConfig,
    *,
    variable: bool = False,
) -> Tensor:
    """float [T, K]: the chosen experts' weights; gathered from scores without bias. Empty slots have 0."""
    empty_TK = None
    if variable:
        empty_TK = expert_ids_TK >= probs_TE.shape[1]
        expert_ids_TK = expert_ids_TK.masked_fill(empty_TK, 0)
    if config.score == "sparsemixer":
        weights_TK = sparsemixer_weights(logits_TE, expert_ids_TK, config.sparsemixer_eps)
    elif config.score_order == "after_top_k" and config.score == "softmax":
        chosen_TK = logits_TE.gather(1, expert_ids_TK)
        if empty_TK is not None:
            # The lowest finite number instead of -inf: a token without experts would get NaN.
            chosen_TK = chosen_TK.masked_fill(empty_TK, torch.finfo(chosen_TK.dtype).min)
        weights_TK = chosen_TK.softmax(dim=-1)
    else:
        weights_TK = probs_TE.gather(1, expert_ids_TK)
        if empty_TK is not None:
            weights_TK = weights_TK.masked_fill(empty_TK, 0.0)
        if config.renormalize:
            total_T1 = weights_TK.sum(dim=-1, keepdim=True) + config.renormalize_eps
            if empty_TK is not None:
                # A token without experts: 0 / 0 would be NaN in the gradient even behind a mask.
                total_T1 = total_T1.masked_fill(empty_TK.all(dim=-1, keepdim=True), 1.0)
            weights_TK = weights_TK / total_T1
    if empty_TK is not None:
        weights_TK = weights_TK.masked_fill(empty_TK, 0.0)
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
