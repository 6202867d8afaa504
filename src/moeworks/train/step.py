"""One optimizer step: micro-batches, losses, gradients, and the state of routers.

The loss of a step is a mean over the tokens of the global batch, whatever its division into micro-batches
and ranks: each micro-batch adds its sum over the step's total, and gradients are summed over ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeworks.config import BalanceConfig, RunConfig
from moeworks.data.batches import Batch
from moeworks.layers.router import RouterModule, Statistics
from moeworks.models.decoder import DecoderOutput, moe_modules
from moeworks.ops.cross_entropy import linear_cross_entropies
from moeworks.ops.losses import (
    STEP_WIDE,
    StepTotals,
    balance_losses,
    step_totals,
    total_balance_loss,
)
from moeworks.ops.mtp import mtp_loss
from moeworks.ops.routing import Routing, count_assignments
from moeworks.parallel.sums import summed
from moeworks.parallel.world import World


@dataclass(frozen=True, eq=False)
class Watched:
    """Figures for the alarms besides the counts, over the global batch of a step, without MTP layers."""

    logit_size_l: Tensor
    """[MoE layers]: mean over valid tokens of the largest absolute router logit."""
    attention_logit_size_l: Tensor
    """[layers with a mixture of attention]: mean over valid tokens of the largest absolute router logit."""
    domain_counts: Tensor
    """int64 [domains, MoE layers, E]: assignments by domain; no rows where domains are not watched."""


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Sums over the global batch of one step; tensors, so that nothing waits for the device."""

    loss: Tensor
    """Mean cross-entropy over valid tokens, nats; no balance or MTP loss in it."""
    mtp: Tensor
    """Cross-entropy of the MTP layers, summed over their positions, per valid token; 0 without them."""
    balance: dict[str, Tensor]
    """Balance losses by name, token-weighted means."""
    router: dict[str, Tensor]
    """Routers' own losses by name: means over tokens and layers."""
    counts_lE: Tensor
    """int64 [MoE layers, E]: tokens_per_expert of the step, those of MTP layers last."""
    dropped_l: Tensor
    """[MoE layers]: share of assignments that capacity dropped."""
    attention_counts: tuple[Tensor, ...] = ()
    """int64 [E] per layer with a mixture of attention: tokens of each of its experts."""
    statistics: tuple[Statistics, ...] = ()
    """Statistics that update each router's state, per MoE layer, those of MTP layers last."""
    watched: Watched | None = None
    """Figures for the alarms; None if alarms are off or the model is dense."""


def autocast(config: RunConfig, device: torch.device) -> AbstractContextManager:
    """Context of bfloat16 autocast if train.precision asks for it, else of no effect."""
    if config.train.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def accumulate_gradients(
    model: Callable[..., DecoderOutput],
    batches: Sequence[Batch],
    config: RunConfig,
    world: World,
    routers: Sequence[RouterModule] = (),
    watched_domains: int = 0,
) -> StepLosses:
    """Forward and backward of this rank's micro-batches; gradients are local, the losses global.

    `routers` are those whose statistics `update_routers` will read and whose own losses count, in the order
    of the routings. `watched_domains` is the number of domains whose assignments are counted on their own.
    """
    total, seed = _total_tokens(batches, world), drawn_seed()
    totals = _totals_ahead(model, batches, config, world, seed)
    parts: list[StepLosses] = []
    for batch in micro_batches(batches, seed):
        with autocast(config, world.device):
            output = _run(model, batch, ahead=config.model.num_mtp_layers > 0)
        share = batch.valid_BL.sum() / total
        entropy_sum, token_losses_T = _cross_entropies(output, batch)
        cross_entropy = entropy_sum / total
        routings = _with_token_losses(routers, output.routings, token_losses_T)
        # Routings of MTP layers come last; they update expert_bias but enter no balance loss.
        balanced = balanced_routings(output, config)
        if totals is None and world.size > 1 and _needs_totals(config.balance):
            totals = summed([[step_totals(r, config.balance) for r in balanced]], world)
        balance = balance_losses(balanced, config.balance, totals)
        # Step-wide losses cover the whole step already; others count by this micro-batch's share.
        shared = {name: loss if name in STEP_WIDE else share * loss for name, loss in balance.items()}
        own, weighted = router_losses(routers, routings)
        loss = cross_entropy + total_balance_loss(shared, config.balance) + weighted / total
        ahead = _mtp_loss(output, batch) / total
        (loss + config.train.mtp_coef * ahead if output.ahead_BLD else loss).backward()
        statistics = router_statistics(routers, routings, config.balance)
        own = {name: value / total for name, value in own.items()}
        part = _detached(routings, cross_entropy, balance, own, share, ahead, statistics)
        counts = tuple(r.tokens_per_expert() for r in output.attention_routings)
        part = replace(part, attention_counts=counts)
        if config.alarms.enabled and balanced:
            part = replace(part, watched=_watched(output, batch, share, watched_domains, config))
        parts.append(part)
    # Every part is already weighted by its share of the step.
    return summed(parts, world)


def routers_of(model: nn.Module) -> list[RouterModule]:
    """The routers of the MoE layers, in the order of the routings."""
    return [moe.router for moe in moe_modules(model)]


@torch.no_grad()
def update_routers(
    routers: Sequence[RouterModule], statistics: Sequence[Statistics], config: BalanceConfig
) -> None:
    """Move the state of every router (expert_bias, thresholds, ...) by the step's statistics.

    Call it once per optimizer step.
    """
    for router, sums in zip(routers, statistics, strict=True):
        router.update(sums, config)


@torch.no_grad()
def router_statistics(
    routers: Sequence[RouterModule], routings: Sequence[Routing], config: BalanceConfig
) -> tuple[Statistics, ...]:
    """Statistics of each router from its Routing; empty without routers."""
    if not routers:
        return ()
    return tuple(router.statistics(r, config) for router, r in zip(routers, routings, strict=True))


def summed_statistics(parts: Sequence[tuple[Statistics, ...]]) -> tuple[Statistics, ...]:
    """Sums of the statistics over micro-batches, per router."""
    return tuple(
        {name: torch.stack([layer[name] for layer in layers]).sum(dim=0) for name in layers[0]}
        for layers in zip(*parts, strict=True)
    )


def _with_token_losses(
    routers: Sequence[RouterModule], routings: Sequence[Routing], token_losses_T: Tensor
) -> tuple[Routing, ...]:
    """The records, with each token's loss for the routers that learn from it."""
    if not any(router.wants_token_losses for router in routers):
        return tuple(routings)
    return tuple(
        replace(routing, token_losses_T=token_losses_T) if router.wants_token_losses else routing
        for router, routing in zip(routers, routings, strict=True)
    )


def router_losses(
    routers: Sequence[RouterModule], routings: Sequence[Routing]
) -> tuple[dict[str, Tensor], Tensor | float]:
    """Routers' own losses by name and their weighted sum: sums over tokens, means over the layers."""
    sums: dict[str, list[Tensor]] = {}
    weighted: Tensor | float = 0.0
    for router, routing in zip(routers, routings, strict=True) if routers else ():
        for name, loss in router.losses(routing).items():
            sums.setdefault(name, []).append(loss)
            weighted = weighted + router.coefficients[name] * loss / len(routings)
    return {name: torch.stack(losses).sum() / len(routings) for name, losses in sums.items()}, weighted


def _run(model: Callable[..., DecoderOutput], batch: Batch, *, ahead: bool = False) -> DecoderOutput:
    options: dict[str, Any] = {"ahead": True} if ahead else {}
    if batch.token_types_BL is not None:
        options["token_types_BL"] = batch.token_types_BL
    if batch.padded:
        options["valid_BL"] = batch.valid_BL
    return model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, **options)


def _mtp_loss(output: DecoderOutput, batch: Batch) -> Tensor:
    return mtp_loss(output.ahead_BLD, output.head, batch.targets_BL, batch.valid_BL, batch.document_ids_BL)


def _cross_entropies(output: DecoderOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sum over valid tokens, and [T] each token's without gradient, 0 for padding."""
    hidden_TD, head_VD = output.head.factors(output.hidden_BLD.flatten(0, 1))
    return linear_cross_entropies(hidden_TD, head_VD, batch.targets_BL.flatten(), batch.valid_BL.flatten())


def _total_tokens(batches: Sequence[Batch], world: World) -> Tensor:
    return world.sum_(torch.stack([batch.valid_BL.sum() for batch in batches]).sum().double())


def micro_batches(batches: Sequence[Batch], seed: int) -> Iterator[Batch]:
    """The batches, each with its own random numbers, so that a second pass over a batch draws the same."""
    for number, batch in enumerate(batches):
        torch.manual_seed(mixed_seed(seed, number))
        yield batch


def drawn_seed() -> int:
    """A seed from torch's random numbers, for `micro_batches`."""
    return int(torch.randint(2**62, ()))


def mixed_seed(*parts: int) -> int:
    """A seed that depends on every one of `parts` and differs for neighbouring values."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0])


def _totals_ahead(
    model: Callable[..., DecoderOutput], batches: Sequence[Batch], config: RunConfig, world: World, seed: int
) -> list[StepTotals] | None:
    """The step's totals before its first backward pass, for the losses that need them.

    With accumulation a pass without gradients finds them, on the same random numbers as the pass that
    learns. A single micro-batch finds them in its own forward pass.
    """
    if len(batches) == 1 or not _needs_totals(config.balance):
        return None
    parts = []
    with torch.no_grad():
        for batch in micro_batches(batches, seed):
            with autocast(config, world.device):
                output = _run(model, batch)
            parts.append([step_totals(r, config.balance) for r in balanced_routings(output, config)])
    return summed(parts, world)


def balanced_routings(output: DecoderOutput, config: RunConfig) -> tuple[Routing, ...]:
    """The decisions that balance losses read: those of MoE layers, without MTP, and mixtures of attention."""
    return output.routings[: len(config.model.moe_layers)] + output.attention_routings


def _needs_totals(balance: BalanceConfig) -> bool:
    return any(getattr(balance, f"{name}_coef") for name in STEP_WIDE)


def _stack_counts(
    routings: Sequence[Routing], count: Callable[[Routing], Tensor], device: torch.device
) -> Tensor:
    """[layers, E]: stacked counts; a dense model has no rows."""
    if not routings:
        return torch.zeros(0, 0, dtype=torch.int64, device=device)
    return torch.stack([count(r) for r in routings])


def _detached(
    routings: Sequence[Routing],
    cross_entropy: Tensor,
    balance: dict[str, Tensor],
    own: dict[str, Tensor],
    share: Tensor,
    ahead: Tensor,
    statistics: tuple[Statistics, ...],
) -> StepLosses:
    device = cross_entropy.device
    dropped = [r.dropped_fraction().detach() * share for r in routings]
    return StepLosses(
        loss=cross_entropy.detach(),
        mtp=ahead.detach(),
        balance={name: loss.detach() * share for name, loss in balance.items()},
        router={name: loss.detach() for name, loss in own.items()},
        counts_lE=_stack_counts(routings, Routing.tokens_per_expert, device),
        dropped_l=torch.stack(dropped) if dropped else torch.zeros(0, device=device),
        statistics=statistics,
    )


@torch.no_grad()
def _watched(output: DecoderOutput, batch: Batch, share: Tensor, domains: int, config: RunConfig) -> Watched:
    routings = output.routings[: len(config.model.moe_layers)]
    valid_T = batch.valid_BL.flatten()

    def sizes(of: Sequence[Routing]) -> Tensor:
        return torch.stack([_logit_size(r, valid_T) * share for r in of]) if of else share.new_zeros(0)

    return Watched(
        sizes(routings), sizes(output.attention_routings), _domain_counts(routings, batch, valid_T, domains)
    )


def _domain_counts(routings: Sequence[Routing], batch: Batch, valid_T: Tensor, domains: int) -> Tensor:
    """int64 [domains, layers, E]: assignments of the tokens of each domain."""
    experts = routings[0].num_experts if routings else 0
    if not routings or not domains:
        return torch.zeros(0, len(routings), experts, dtype=torch.int64, device=valid_T.device)
    # Each (domain, expert) pair gets its own id; each domain's empty slot too, which is dropped at the end.
    ids, domain_T1 = experts + 1, batch.domain_ids_BL.reshape(-1, 1)
    counts = [count_assignments(r.expert_ids_TK + domain_T1 * ids, domains * ids, valid_T) for r in routings]
    return torch.stack(counts).view(len(routings), domains, ids).transpose(0, 1)[..., :experts]


def _logit_size(routing: Routing, valid_T: Tensor) -> Tensor:
    """Mean over valid tokens of the largest absolute logit."""
    logits_TE = routing.router_logits_TE
    if routing.pools:
        # Experts outside a token's pool have -inf.
        logits_TE = logits_TE.masked_fill(logits_TE == -torch.inf, 0.0)
    size_T = logits_TE.abs().amax(dim=1)
    return (size_T * valid_T).sum() / valid_T.sum().clamp(min=1)
