"""Replay: a forward pass with given experts instead of those that its routers choose.

Used in reinforcement learning, where training repeats the experts of an inference engine (rollout routing
replay, R3, Ma et al. 2025), and to compare models under the same routing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.errors import ConfigError, check
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class Replay:
    """Experts that a forward pass must use: `model(tokens, replay=Replay(routings))`.

    A replay is an argument and not state: each micro-batch has its own, activation checkpointing recomputes
    with the same one, and an exception leaves nothing behind.
    """

    routings: Sequence[Routing | Tensor]
    """One per MoE layer, in their order, over all tokens of the pass: records as DecoderOutput.routings, or
    int [T, K] ids alone, the id E in slots that stay empty. A record's dropped assignments stay dropped, and
    no others are; to ids alone the layer applies its own capacity."""
    weights: Literal["recomputed", "recorded"] = "recomputed"
    """recomputed: those that the router gives these experts now, with gradient to it; recorded: those of the
    records, without gradient."""
    names: Sequence[str] = ()
    """Names of the layers in error messages; by default every layer is called "replay"."""

    def __post_init__(self) -> None:
        kinds = ("recomputed", "recorded")
        check(self.weights in kinds, "replay.weights", self.weights, f"must be one of {kinds}")
        for number, record in enumerate(self.routings):
            kind = type(record).__name__
            known = isinstance(record, Routing | Tensor)
            check(known, f"replay.routings[{number}]", kind, "must be a Routing or a tensor of expert ids")
            check(
                self.weights == "recomputed" or isinstance(record, Routing),
                "replay.weights",
                self.weights,
                f"needs records with weights, and routings[{number}] holds ids alone",
            )

    def for_layers(self, layers: Sequence[str]) -> list["Replay"]:
        """One replay per MoE layer. Raises ConfigError unless there are as many routings as `layers`."""
        count = len(self.routings)
        rule = f"must hold one routing for each of the {len(layers)} MoE layers"
        check(count == len(layers), "replay.routings", f"{count} layers", rule)
        return [Replay((r,), self.weights, (name,)) for r, name in zip(self.routings, layers, strict=True)]


def replayed_ids(replay: Replay, routing: Routing) -> tuple[Tensor, bool]:
    """int64 [T, K] of a single layer's replay, and whether some slots may be empty.

    `routing` is the router's present choice for the same tokens. Raises ConfigError, naming the layer, if the
    ids do not fit it.
    """
    (record,) = replay.routings
    where = replay.names[0] if replay.names else "replay"
    recorded = isinstance(record, Routing)
    ids_TK = record.expert_ids_TK if recorded else record
    found, shape = tuple(ids_TK.shape), tuple(routing.expert_ids_TK.shape)
    check(found == shape, f"{where}: expert_ids", found, f"must have the shape (tokens, slots) = {shape}")
    whole = not ids_TK.is_floating_point() and not ids_TK.is_complex() and ids_TK.dtype != torch.bool
    check(whole, f"{where}: expert_ids", str(ids_TK.dtype), "must be whole numbers")
    experts = routing.num_experts
    if recorded:
        same = record.num_experts == experts
        check(same, f"{where}: num_experts", record.num_experts, f"must be the layer's, {experts}")
        _check_valid(record, routing, where)
    ids_TK = ids_TK.to(device=routing.expert_ids_TK.device, dtype=torch.int64)
    variable = _check_ids(ids_TK, experts, routing.valid_T, where)
    if routing.pools:
        _check_pools(ids_TK, routing, where)
    return ids_TK, variable


def _check_valid(record: Routing, routing: Routing, where: str) -> None:
    """Raise ConfigError for a token that was padding in the record."""
    if record.valid_T is None:
        return
    missing_T = ~record.valid_T.to(routing.expert_ids_TK.device)
    if routing.valid_T is not None:
        missing_T = missing_T & routing.valid_T
    if bool(missing_T.any()):
        token = int(missing_T.int().argmax())
        raise ConfigError(
            f"{where}: token {token} is padding in the record and not here; replay a record of these tokens"
        )


def _check_ids(ids_TK: Tensor, experts: int, valid_T: Tensor | None, where: str) -> bool:
    """Whether any slot is empty. Raises ConfigError for ids out of range, repeated ids, and gaps."""
    outside_TK = (ids_TK < 0) | (ids_TK > experts)
    sorted_TK = ids_TK.sort(dim=1).values
    repeated_TK = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] < experts)
    empty_TK = ids_TK == experts
    gap_TK = empty_TK[:, :-1] & ~empty_TK[:, 1:]
    rules = {
        f"must lie in 0 .. {experts - 1}, or be {experts} for an empty slot": outside_TK,
        "must be different experts": repeated_TK,
        "must have empty slots last": gap_TK,
    }
    wrong_3T = torch.stack([wrong_TK.any(dim=1) for wrong_TK in rules.values()])
    if valid_T is not None:
        # Padding may repeat experts or have gaps: its ids only have to be in range.
        wrong_3T[1:] &= valid_T
    flags = [*wrong_3T.any(dim=1).tolist(), bool(empty_TK.any())]
    for rule, wrong, wrong_T in zip(rules, flags, wrong_3T, strict=False):
        if wrong:
            token = int(wrong_T.int().argmax())
            raise ConfigError(f"{where}: expert_ids of token {token} = {ids_TK[token].tolist()}: {rule}")
    return flags[-1]


def _check_pools(ids_TK: Tensor, routing: Routing, where: str) -> None:
    """Raise ConfigError for an expert outside the pool of its token's type."""
    assert routing.token_types_T is not None
    logits_TE = F.pad(routing.router_logits_TE, (0, 1))  # empty slots are in every pool
    outside_TK = logits_TE.gather(1, ids_TK) == -torch.inf
    if routing.valid_T is not None:
        outside_TK = outside_TK & routing.valid_T[:, None]
    if bool(outside_TK.any()):
        token = int(outside_TK.any(dim=1).int().argmax())
        pool = list(routing.pools[int(routing.token_types_T[token])])
        raise ConfigError(
            f"{where}: expert_ids of token {token} = {ids_TK[token].tolist()}: must lie in the pool of the"
            f" token's type, {pool}"
        )
