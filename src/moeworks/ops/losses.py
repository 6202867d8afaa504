"""Balance losses and the loss-free bias, as functions of Routing.

Every balance loss is 1.0 at perfect balance and larger otherwise, for one layer; `balance_losses` averages
over layers (pooling layers first hides collapse). Loads count valid tokens before any are dropped, from the
choice without expert_bias, and carry no gradient; probabilities are normalised over experts and carry it.

Losses of sums over tokens take the sums of the whole optimizer step (StepTotals): cut into micro-batches and
ranks, a step has the same loss, and the gradients of its parts add up to that of the whole. The Switch loss
alone is by definition one of each micro-batch; sequence and z losses are means over tokens.

With pools of experts (moeworks.ops.pools) a loss is that of each type of token inside its pool, weighted by
the type's share of the tokens, and totals have a row per type.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.errors import check
from moeworks.ops.pools import Pools, counts_by_type, fair_loads, within_pools
from moeworks.ops.routing import Routing, count_assignments
from moeworks.ops.scoring import stable_top_k

_TINY = 1e-20

STEP_WIDE = frozenset({"global_batch", "device", "communication", "entropy", "importance", "load"})
"""Losses that StepTotals make independent of micro-batches and ranks."""


@dataclass(frozen=True, eq=False)
class StepTotals:
    """Sums over the valid tokens of all micro-batches and ranks of one optimizer step, for one layer.

    float tensors without gradient, in the dtype of the probabilities.
    """

    tokens: Tensor
    """Scalar: valid tokens; with pools [P], those of each type."""
    counts_E: Tensor
    """Assignments, as load_counts; with pools [P, E]."""
    probs_E: Tensor
    """Summed probabilities; with pools [P, E]."""
    sent_d: Tensor
    """Tokens sent to each device; empty when no loss reads them."""
    smooth_E: Tensor
    """Smooth loads; empty when no loss reads them."""


@torch.no_grad()
def step_totals(routing: Routing, config: BalanceConfig) -> StepTotals:
    """Contribution of one micro-batch to the totals of its step."""
    probs_E = _summed_probs(routing)
    empty = probs_E.new_zeros(0)
    if routing.pools:
        probs_PE = probs_E.new_zeros(len(routing.pools), routing.num_experts)
        tokens = []
        for row_E, experts, (count, own) in zip(probs_PE, routing.pools, within_pools(routing), strict=True):
            row_E[list(experts)] = _summed_probs(own)
            tokens.append(count.to(probs_E.dtype))
        counts_PE = counts_by_type(routing, routing.counted_ids_TK).to(probs_E.dtype)
        return StepTotals(torch.stack(tokens), counts_PE, probs_PE, empty, empty)
    return StepTotals(
        tokens=_valid(routing).sum(),
        counts_E=load_counts(routing).to(probs_E.dtype),
        probs_E=probs_E,
        sent_d=tokens_per_device(routing, config.num_devices) if config.communication_coef else empty,
        smooth_E=smooth_load(routing) if config.load_coef else empty,
    )


def load_counts(routing: Routing) -> Tensor:
    """int64 [E]: assignments per expert as the losses count them, without the influence of expert_bias."""
    return count_assignments(routing.counted_ids_TK, routing.num_experts, routing.valid_T)


def _in_pools(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss`, a function of a Routing (and StepTotals); with pools, applied to each type in its own pool."""

    @wraps(loss)
    def of_types(routing: Routing, step: StepTotals | None = None) -> Tensor:
        if not routing.pools:
            return loss(routing) if step is None else loss(routing, step)
        total, tokens = routing.router_probs_TE.new_zeros(()), _valid(routing).sum()
        for number, (count, own) in enumerate(within_pools(routing)):
            if step is None:
                total = total + loss(own) * count / tokens.clamp(min=1)
                continue
            columns = list(routing.pools[number])
            part = StepTotals(
                step.tokens[number], step.counts_E[number, columns], step.probs_E[number, columns],
                step.sent_d, step.smooth_E,
            )  # fmt: skip
            total = total + loss(own, part) * part.tokens / step.tokens.sum().clamp(min=1)
        return total

    return of_types


@_in_pools
def switch_loss(routing: Routing, step: StepTotals | None = None) -> Tensor:
    """E * sum_e f_e P_e, f the share of assignments and P the mean probability (Switch, eqs. 4 to 6).

    With the totals of the step it is the global-batch loss of Qiu et al. 2025 (section 3). f sums to 1, also
    for top_k > 1.
    """
    return routing.num_experts * (_load_share(routing, step) * mean_probs(routing, step)).sum()


@_in_pools
def sequence_loss(routing: Routing) -> Tensor:
    """The sequence-wise loss of DeepSeek-V3 (section 2.1.2, eqs. 17 to 20), without its alpha.

    f_e counts TopK of the raw scores; a choice that is not top-k is counted as it is, with its mean k.
    Sequences are weighted by their valid tokens, which for sequences of equal length is the paper's mean;
    that keeps it independent of packing and of micro-batching.
    """
    probs_TE = _normalised_probs(routing)
    ids_TK = routing.counted_ids_TK
    if routing.ranked:
        ids_TK = stable_top_k(routing.router_probs_TE.detach(), routing.top_k)
    chosen_TE = _chosen(ids_TK, routing.num_experts)
    valid_T = _valid(routing)
    if routing.sequence_ids_T is None:
        ids_T = torch.zeros_like(valid_T, dtype=torch.int64)
    else:
        ids_T = torch.unique(routing.sequence_ids_T, return_inverse=True)[1]
    sequences = int(ids_T.max()) + 1 if ids_T.numel() else 0
    sums = partial(_sum_by, ids_T, sequences)
    tokens_S1 = sums(valid_T[:, None]).clamp(min=1)
    f_SE = sums(chosen_TE * valid_T[:, None])
    f_SE = f_SE * routing.num_experts / f_SE.sum(dim=1, keepdim=True).clamp(min=1)
    p_SE = sums(probs_TE * valid_T[:, None]) / tokens_S1
    per_sequence_S = (f_SE * p_SE).sum(dim=1)
    return (per_sequence_S * tokens_S1.squeeze(1)).sum() / valid_T.sum().clamp(min=1)


def device_loss(routing: Routing, num_devices: int, step: StepTotals | None = None) -> Tensor:
    """The device-level loss of DeepSeek-V2 (section 2.2.3, eqs. 24 to 26), without its alpha.

    Device d holds the d-th of `num_devices` equal runs of experts; f'_d is the mean of f over them, P'_d the
    sum of P.
    """
    check_no_pools(routing, "device loss")
    check_devices(routing, num_devices)
    f_E = routing.num_experts * _load_share(routing, step)
    f_d = f_E.view(num_devices, -1).mean(dim=1)
    return (f_d * mean_probs(routing, step).view(num_devices, -1).sum(dim=1)).sum()


def communication_loss(routing: Routing, num_devices: int, step: StepTotals | None = None) -> Tensor:
    """The communication-level loss of DeepSeek-V2 (section 2.2.3, eqs. 27 to 29), without its alpha.

    f''_d is D / (M T) times the tokens sent to device d. M here is the mean number of devices that a token
    reaches: where every token uses the paper's limit they are the same, and 1.0 means balanced in any case.
    """
    check_no_pools(routing, "communication loss")
    check_devices(routing, num_devices)
    sent_d = tokens_per_device(routing, num_devices) if step is None else step.sent_d
    f_d = num_devices * sent_d / sent_d.sum().clamp(min=_TINY)
    return (f_d * mean_probs(routing, step).view(num_devices, -1).sum(dim=1)).sum()


def tokens_per_device(routing: Routing, num_devices: int) -> Tensor:
    """float [d]: valid tokens with at least one expert on the device, as the losses count them."""
    valid_T = _valid(routing)
    devices_TK = routing.counted_ids_TK // (routing.num_experts // num_devices)
    return (_chosen(devices_TK, num_devices) * valid_T[:, None]).sum(dim=0)


@_in_pools
def entropy_loss(routing: Routing, step: StepTotals | None = None) -> Tensor:
    """2 - H(q) / log E with q the mean probability: 1 when q is uniform, 2 when one expert has it all."""
    q_E = mean_probs(routing, step)
    if routing.num_experts == 1:
        return q_E.sum()
    # Probabilities underflow to 0, where the slope of q log q is infinite.
    entropy = torch.special.entr(q_E.clamp(min=_TINY)).sum()
    return 2 - entropy / math.log(routing.num_experts)


@_in_pools
def importance_loss(routing: Routing, step: StepTotals | None = None) -> Tensor:
    """1 + CV^2 of the summed probabilities (Shazeer et al. 2017, section 4, eq. 7), = E * sum_e q_e^2."""
    return routing.num_experts * mean_probs(routing, step).square().sum()


def load_loss(routing: Routing, step: StepTotals | None = None) -> Tensor:
    """1 + CV^2 of the smooth load (Shazeer et al. 2017, section 4 and appendix A), = E * sum_e share_e^2."""
    check_no_pools(routing, "load loss")
    load_E = smooth_load(routing)
    if step is not None:
        load_E = _part_of(step.smooth_E, load_E)
    return routing.num_experts * (load_E / load_E.sum().clamp(min=_TINY)).square().sum()


def smooth_load(routing: Routing) -> Tensor:
    """float [E]: expected assignments over the noise of noisy top-k (Shazeer et al. 2017, appendix A).

    sum_t Phi((clean_e - kth) / std_e), kth the k-th largest noisy logit except that of e. Without noise, as
    in evaluation, the result is the actual load, without a gradient.
    """
    if routing.clean_logits_TE is None or routing.noise_std_TE is None:
        return load_counts(routing).to(routing.router_probs_TE.dtype)
    if routing.top_k == routing.num_experts:
        # With K = E every expert gets every token, whatever the noise; the product keeps the graph.
        return _valid(routing).sum() + 0 * _summed_probs(routing)
    best = routing.router_logits_TE.topk(routing.top_k + 1, dim=1).values
    inside_TE = routing.router_logits_TE > best[:, -1:]
    threshold_TE = torch.where(inside_TE, best[:, -1:], best[:, -2:-1])
    margin_TE = (routing.clean_logits_TE - threshold_TE) / routing.noise_std_TE
    smooth_TE = torch.special.ndtr(margin_TE) * _valid(routing)[:, None]
    return smooth_TE.sum(dim=0)


def router_z_loss(routing: Routing) -> Tensor:
    """mean_t (logsumexp_e logits)^2 (ST-MoE, section 3.3, eq. 5). Best value 0."""
    valid_T = _valid(routing)
    return (routing.router_logits_TE.logsumexp(dim=1).square() * valid_T).sum() / valid_T.sum().clamp(min=1)


def balance_losses(
    routings: Sequence[Routing], config: BalanceConfig, totals: Sequence[StepTotals] | None = None
) -> dict[str, Tensor]:
    """The losses whose coefficient is not 0, by name, each the mean over layers, not yet multiplied.

    Args:
        routings: one per MoE layer.
        config: the coefficients.
        totals: of the step, one per MoE layer. The STEP_WIDE losses are then the whole step's, and their
            gradients this batch's part of it. None means that this batch is the whole step.
    """
    if not routings:
        return {}
    layers = list(zip(routings, totals or [None] * len(routings), strict=True))
    functions: dict[str, Callable[[Routing, StepTotals | None], Tensor]] = {
        "switch": lambda r, step: switch_loss(r),
        "global_batch": switch_loss,
        "sequence": lambda r, step: sequence_loss(r),
        "device": lambda r, step: device_loss(r, config.num_devices, step),
        "communication": lambda r, step: communication_loss(r, config.num_devices, step),
        "entropy": entropy_loss,
        "importance": importance_loss,
        "load": load_loss,
        "z": lambda r, step: router_z_loss(r),
    }
    active = {name: f for name, f in functions.items() if getattr(config, f"{name}_coef") > 0}
    return {name: torch.stack([f(r, step) for r, step in layers]).mean() for name, f in active.items()}


def total_balance_loss(losses: dict[str, Tensor], config: BalanceConfig) -> Tensor | float:
    """The sum of coefficient times loss; 0.0 when there is none.

    Raises ConfigError when gradients are on but a loss carries none: the router would never learn balance.
    """
    for name, loss in losses.items():
        check(
            loss.requires_grad or not torch.is_grad_enabled(),
            f"balance.{name}_coef",
            getattr(config, f"{name}_coef"),
            "the loss carries no gradient: the router is frozen, or reentrant checkpointing cut it off"
            " (return routing.tensors() from the checkpointed function)",
        )
    return sum((getattr(config, f"{name}_coef") * loss for name, loss in losses.items()), 0.0)


def updated_expert_bias(
    expert_bias_E: Tensor, counts_E: Tensor, config: BalanceConfig, pools: Pools = ()
) -> Tensor:
    """The bias after one optimizer step of loss-free balancing (Wang et al. 2024, algorithm 1).

    Args:
        expert_bias_E: float32 (float64 in a float64 model).
        counts_E: int64, the step's assignments over all ranks and micro-batches, padding excluded.
        config: rule sign: u * sign(mean - c); proportional: u * (mean - c) / mean; optional recentring,
            which subtracts the mean of the result (torchtitan; not in the paper).
        pools: of the types of tokens; then the counts are [P, E] by type, and in the place of the mean
            stands each expert's fair load (moeworks.ops.pools).
    """
    # E times the gap, in integers: in float32 an expert exactly at the mean could seem to be off it.
    if pools:
        total, times = fair_loads(counts_E, pools)
        counts_E = counts_E.sum(dim=0)
    else:
        total, times = counts_E.sum(), counts_E.numel()
    gap_E = total - times * counts_E
    step_E = gap_E.sign() if config.bias_rule == "sign" else gap_E / total.clamp(min=1)
    bias_E = expert_bias_E + config.bias_rate * step_E.to(expert_bias_E.dtype)
    return bias_E - bias_E.mean() if config.bias_recentre else bias_E


def mean_probs(routing: Routing, step: StepTotals | None = None) -> Tensor:
    """P [E]: mean over the valid tokens (of the step) of the probabilities, normalised over experts."""
    own_E = _summed_probs(routing)
    if step is None:
        return own_E / _valid(routing).sum().clamp(min=1)
    return _part_of(step.probs_E, own_E) / step.tokens.clamp(min=1)


def check_devices(routing: Routing, num_devices: int) -> None:
    """Raise ConfigError unless the experts divide over the devices."""
    check(
        num_devices >= 1 and routing.num_experts % num_devices == 0,
        "num_devices",
        num_devices,
        f"must divide the number of experts, {routing.num_experts}",
    )


def check_no_pools(routing: Routing, loss: str) -> None:
    """Raise ConfigError for pools of experts, with which `loss` has no meaning."""
    rule = f"must be empty for the {loss}: pools decide how many tokens reach which experts"
    check(not routing.pools, "router.pools", routing.pools, rule)


def _normalised_probs(routing: Routing) -> Tensor:
    return F.normalize(routing.router_probs_TE, p=1.0, dim=1, eps=_TINY)


def _valid(routing: Routing) -> Tensor:
    """[T] 1.0 for valid tokens, 0.0 for padding, in the dtype of the probabilities."""
    if routing.valid_T is None:
        return routing.router_probs_TE.new_ones(routing.router_probs_TE.shape[0])
    return routing.valid_T.to(routing.router_probs_TE.dtype)


def _summed_probs(routing: Routing) -> Tensor:
    """float [E]: normalised probabilities summed over valid tokens."""
    return (_normalised_probs(routing) * _valid(routing)[:, None]).sum(dim=0)


def _load_share(routing: Routing, step: StepTotals | None) -> Tensor:
    """f [E]: each expert's share of the assignments."""
    counts_E = load_counts(routing).to(routing.router_probs_TE.dtype) if step is None else step.counts_E
    return counts_E / counts_E.sum().clamp(min=1)


def _part_of(total: Tensor, own: Tensor) -> Tensor:
    """The value of `total` with the gradient of `own`, one of its terms."""
    return total + (own - own.detach())


def _chosen(ids_TK: Tensor, count: int) -> Tensor:
    """bool [T, count]: whether each token has each id; empty slots have the id `count`."""
    chosen = torch.zeros(ids_TK.shape[0], count + 1, dtype=torch.bool, device=ids_TK.device)
    return chosen.scatter_(1, ids_TK, True)[:, :count]


def _sum_by(ids_T: Tensor, groups: int, values: Tensor) -> Tensor:
    """Sums of the rows of `values` [T, ...] by group, [groups, ...]."""
    return values.new_zeros(groups, values.shape[1]).index_add(0, ids_T, values)
