"""Bits per byte on validation documents, overall and per domain, and where each domain's tokens went."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moeworks.config.pools import domain_types
from moeworks.data.batches import Batch
from moeworks.data.validation import ValidationSet
from moeworks.errors import NotFiniteError
from moeworks.models.decoder import Decoder, DecoderOutput
from moeworks.models.diagnose import not_finite
from moeworks.ops.cross_entropy import token_cross_entropies
from moeworks.ops.routing import Routing, count_assignments
from moeworks.parallel.world import World


@dataclass(frozen=True)
class Evaluation:
    """Sums over a validation set; M domains."""

    domains: tuple[str, ...]
    nats_M: list[float]
    """Summed cross-entropy per domain."""
    tokens_M: list[int]
    """Predicted tokens per domain."""
    bytes_M: list[int]
    """UTF-8 bytes of text per domain."""
    tokens_per_expert_MlE: list[list[list[int]]]
    """Assignments per domain, MoE layer and expert; layers are missing in a dense model."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.nats_M) / max(sum(self.tokens_M), 1)

    @property
    def bits_per_byte(self) -> float:
        """Total nats / ln 2 / total bytes: comparable between tokenizers."""
        return _bits_per_byte(sum(self.nats_M), sum(self.bytes_M))

    def record(self) -> dict[str, Any]:
        """The figures of an eval line of metrics.jsonl; domains without text are left out."""
        domains = {
            name: {"bits_per_byte": _bits_per_byte(nats, size), "bytes": size, "tokens": tokens}
            for name, nats, size, tokens in zip(
                self.domains, self.nats_M, self.bytes_M, self.tokens_M, strict=True
            )
            if tokens
        }
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "domains": domains}

    def domain_experts(self) -> dict[str, list[list[int]]]:
        """Assignments [layers][E] of each domain that has text."""
        table = zip(self.domains, self.tokens_per_expert_MlE, self.tokens_M, strict=True)
        return {name: counts for name, counts, tokens in table if tokens}


@torch.no_grad()
def evaluate(
    model: Decoder, validation: ValidationSet, domains: tuple[str, ...], world: World | None = None
) -> Evaluation:
    """Evaluate `model` on every token of `validation`; the batches are shared out over the ranks of `world`.

    Routing is counted in evaluation mode; no training state is touched. Raises NotFiniteError where the loss
    is NaN or infinite, on all ranks.
    """
    world = world or World(device=next(model.parameters()).device)
    config = model.config
    experts, types = config.router.num_routes, domain_types(config.router, domains)
    nats = torch.zeros(len(domains), dtype=torch.float64, device=world.device)
    tokens = torch.zeros(len(domains), dtype=torch.int64, device=world.device)
    counts = tokens.new_zeros(len(domains), len(config.moe_layers), experts)
    error: NotFiniteError | None = None

    def forward(batch: Batch) -> DecoderOutput:
        return model(
            batch.tokens_BL,
            document_ids_BL=batch.document_ids_BL,
            valid_BL=batch.valid_BL,
            token_types_BL=batch.token_types_BL,
        )

    was_training = model.training
    model.eval()
    try:
        for number, batch in enumerate(validation.batches()):
            if number % world.size == world.rank:
                batch = batch.to(world.device).typed(types)
                output = forward(batch)
                _add_losses(nats, tokens, output, batch)
                _add_counts(counts, output.routings, batch)
                if error is None and not bool(torch.isfinite(nats).all()):
                    error = _not_finite(model, batch, domains, partial(forward, batch))
    finally:
        model.train(was_training)
    for total in (nats, tokens, counts):
        world.sum_(total)
    if not bool(torch.isfinite(nats).all()):  # on all ranks, so that none waits for another
        raise error or NotFiniteError("the validation loss on another process is not finite")
    sizes = [int(size) for size in validation.bytes_per_domain]
    return Evaluation(domains, nats.tolist(), tokens.tolist(), sizes, counts.tolist())


def _not_finite(
    model: Decoder, batch: Batch, domains: tuple[str, ...], run: Callable[[], DecoderOutput]
) -> NotFiniteError:
    def name(row: int, place: int) -> str:
        domain = domains[int(batch.domain_ids_BL[row, place])]
        return f"token {place} of a piece of text of the domain {domain!r}"

    return not_finite(model, "the validation loss is not finite", run, name)


def _add_losses(nats_M: Tensor, tokens_M: Tensor, output: DecoderOutput, batch: Batch) -> None:
    hidden_TD, head_VD = output.head.factors(output.hidden_BLD.flatten(0, 1))
    losses = token_cross_entropies(hidden_TD, head_VD, batch.targets_BL.flatten()).double()
    valid = batch.valid_BL.flatten()
    domains = batch.domain_ids_BL.flatten()[valid]
    nats_M.index_add_(0, domains, losses[valid])
    tokens_M.index_add_(0, domains, torch.ones_like(domains))


def _add_counts(counts_MlE: Tensor, routings: Sequence[Routing], batch: Batch) -> None:
    """Count per domain by giving each domain a range of ids of its own."""
    domains_T1 = batch.domain_ids_BL.reshape(-1, 1)
    num_domains, _, experts = counts_MlE.shape
    for layer, routing in enumerate(routings):
        ids_TK = routing.expert_ids_TK + domains_T1 * experts
        if routing.filled_TK is not None:
            ids_TK = ids_TK.masked_fill(~routing.filled_TK, num_domains * experts)
        flat = count_assignments(ids_TK, num_domains * experts, batch.valid_BL.flatten())
        counts_MlE[:, layer] += flat.view(num_domains, experts)


def _bits_per_byte(nats: float, size: int) -> float:
    return nats / math.log(2) / max(size, 1)
