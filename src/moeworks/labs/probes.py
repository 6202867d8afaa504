"""Measurements beside losses and loads."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeworks.analyse.information import InformationTable, mutual_information
from moeworks.analyse.router import gradient_signal_to_noise, variance_in_top_directions
from moeworks.analyse.specialisation import domain_specialisation, vocabulary_specialisation
from moeworks.config import BalanceConfig, RunConfig
from moeworks.errors import DataError
from moeworks.labs.held_out import HeldOut
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.parallel.world import World
from moeworks.trace import RoutingTrace, token_columns
from moeworks.trace.record import choice_margin, model_header, record, router_entropy
from moeworks.train.step import accumulate_gradients
from moeworks.train.trainer import Trainer

SIGNAL_POINTS = 8
"""Points of training at which the router's gradient is looked at."""
MICRO_BATCHES = 8
"""Parts of a batch whose gradients are compared."""
TOP_DIRECTIONS = 4
"""Principal directions of the router's inputs."""


@dataclass(frozen=True)
class Bench:
    """A trained model and what to measure it with."""

    trainer: Trainer
    held_out: HeldOut
    signal: list[dict[str, Any]]
    """What `signal` found on the way."""


@dataclass(frozen=True)
class Found:
    """What a probe returns."""

    metrics: dict[str, float] = field(default_factory=dict)
    layers: dict[str, list[float]] = field(default_factory=dict)


def signal(trainer: Trainer) -> dict[str, list[float]]:
    """Per MoE layer, on the batch of the next step: the signal-to-noise of the router's gradient over
    micro-batches (of the cross-entropy alone), entropy of the router's probabilities over log E, the margin
    between the k-th and the next logit over the logits' spread, and the share of the variance of its inputs
    in their first directions.
    """
    train, modules = trainer.config.train, moe_modules(trainer.model)
    if not modules:
        return {}
    rows = max(train.batch_size // MICRO_BATCHES, 1)
    first = trainer.progress.step * train.batch_size
    config = _without_balance(trainer.config)
    gradients: list[list[np.ndarray]] = []
    with torch.random.fork_rng():
        for micro in range(train.batch_size // rows):
            trainer.optimizers.zero_grad()
            batch = trainer.loader.rows(first + micro * rows, rows)
            accumulate_gradients(trainer.model, [batch], config, World())
            gradients.append([_gradient(moe.router) for moe in modules])
    trainer.optimizers.zero_grad()
    noise = [gradient_signal_to_noise(np.stack(layer)) for layer in zip(*gradients, strict=True)]
    return {"signal_to_noise": [min(value, 1e6) for value in noise], **_separability(trainer, first)}


@torch.no_grad()
def _separability(trainer: Trainer, first: int) -> dict[str, list[float]]:
    batch = trainer.loader.rows(first, trainer.config.train.batch_size)
    inputs: list[np.ndarray] = []
    with ExitStack() as stack:
        for moe in moe_modules(trainer.model):
            handle = moe.router.register_forward_pre_hook(lambda _, args: inputs.append(_rows(args[0])))
            stack.callback(handle.remove)
        output = trainer.model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL)
    found: dict[str, list[float]] = {"router_entropy": [], "margin": [], "top_directions": []}
    for x_TD, routing in zip(inputs, output.routings, strict=True):
        logits_TE = routing.router_logits_TE
        entropy = router_entropy(routing.router_probs_TE).mean() / np.log(max(routing.num_experts, 2))
        margin_T = choice_margin(logits_TE, routing.expert_ids_TK)
        spread = logits_TE.std(dim=1).mean().clamp(min=1e-12)
        found["router_entropy"].append(float(entropy))
        found["margin"].append(float(margin_T.clamp(min=0).mean() / spread))
        found["top_directions"].append(variance_in_top_directions(x_TD, TOP_DIRECTIONS))
    return found


def _signal_summary(bench: Bench) -> Found:
    """Means over training of what `signal` found, per layer."""
    names = [name for name in bench.signal[0] if name != "step"] if bench.signal else []
    return Found(
        layers={name: np.mean([row[name] for row in bench.signal], axis=0).tolist() for name in names}
    )


def knowledge(bench: Bench) -> Found:
    """What experts know of tokens and of domains: see analyse.information and analyse.specialisation.

    Everything in information is a share of H(expert): 1 would say that the expert is known. The word-only
    router is what the token ids alone would give.
    """
    trace = held_out_trace(bench.trainer.model, bench.held_out)
    information = mutual_information(trace)
    domains = domain_specialisation(trace, permutations=50)
    words = [
        float(np.abs(vocabulary_specialisation(trace, layer).specialisation).max(axis=1).mean())
        for layer in trace.header.layers
    ]
    peak = domains.specialisation.max(axis=1).mean(axis=1)
    layers = _shares_of_entropy(information) | {
        "vocabulary_peak": words,
        "domain_peak": peak.tolist(),
        "domain_peak_null": domains.null_high.max(axis=1).mean(axis=1).tolist(),
        "outside_null": (domains.outside() / domains.specialisation[0].size).tolist(),
    }
    if domains.token_only is not None:
        layers["domain_peak_token_only"] = domains.token_only.max(axis=1).mean(axis=1).tolist()
    return Found(metrics={name: float(np.mean(values)) for name, values in layers.items()}, layers=layers)


def _shares_of_entropy(information: InformationTable) -> dict[str, list[float]]:
    entropy = np.maximum(information.expert_entropy, 1e-12)
    shares = {"knows_domain": information.excess() / entropy}
    if information.token is not None:
        shares["knows_token"] = information.token / entropy
        shares["knows_domain_given_token"] = information.excess_given_token() / entropy
    return {name: values.tolist() for name, values in shares.items()}


def held_out_trace(model: Decoder, held_out: HeldOut) -> RoutingTrace:
    """The routing of every held-out token."""
    header = model_header(model.config, fields=())
    blocks = []
    for batch, output in held_out.outputs(model):
        rows, width = batch.tokens_BL.shape
        columns = token_columns(
            rows * width,
            token_id=batch.tokens_BL.flatten().numpy(),
            sequence=np.repeat(np.arange(rows), width),
            document=batch.document_ids_BL.flatten().numpy(),
            domain=batch.domain_ids_BL.flatten().numpy(),
            valid=batch.valid_BL.flatten().numpy(),
            domains=held_out.domains,
        )
        blocks.append(record(output.routings, columns, header))
    return RoutingTrace.from_blocks(header, blocks)


@torch.no_grad()
def batch_dependence(bench: Bench) -> Found:
    """The same row of tokens beside others: does what comes out for it change?

    A held-out row is read beside three sets of other held-out rows, in evaluation mode and in batches of one
    shape; rows with padding are left out. `batch_logit_change` is the greatest change of a logit,
    `batch_argmax_change` the share of positions whose most probable token changes.
    """
    model, train = bench.trainer.model, bench.trainer.config.train
    was_training = model.training
    model.eval()
    rows_NL = _full_rows(bench.held_out, 3 * train.batch_size + 1)
    size = (len(rows_NL) - 1) // 3
    logits = [_last_row(model, others_BL, rows_NL[0]) for others_BL in rows_NL[1 : 3 * size + 1].split(size)]
    model.train(was_training)
    changes = [float((other - logits[0]).abs().max()) for other in logits[1:]]
    flips = [float((other.argmax(-1) != logits[0].argmax(-1)).float().mean()) for other in logits[1:]]
    return Found({"batch_logit_change": max(changes), "batch_argmax_change": float(np.mean(flips))})


def _full_rows(held_out: HeldOut, most: int) -> Tensor:
    """int64 [N, L]: up to `most` held-out rows without padding. Raises DataError for fewer than 7."""
    parts: list[Tensor] = []
    for batch in held_out.validation.batches():
        parts.append(batch.tokens_BL[batch.valid_BL.all(dim=1)])
        if sum(map(len, parts)) >= most:
            break
    rows_NL = torch.cat(parts)[:most]
    if len(rows_NL) < 7:  # the probe, and 3 times 2 others
        raise DataError(
            f"the held-out texts fill {len(rows_NL)} rows; batch_dependence needs 7: give the lab more text"
        )
    return rows_NL


def _last_row(model: Decoder, tokens_BL: Tensor, probe_L: Tensor) -> Tensor:
    """[L, V]: logits of the probe as the last row of a batch: those before it come first to the experts."""
    tokens_BL = tokens_BL.clone()
    tokens_BL[-1] = probe_L
    return model(tokens_BL).logits_BLV[-1].float()


def _gradient(router: torch.nn.Module) -> np.ndarray:
    """All gradients of a router's parameters as one vector; zeros where it has none."""
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in router.parameters()]
    return torch.cat(parts).float().numpy() if parts else np.zeros(1, np.float32)


def _rows(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1, x.shape[-1]).float().numpy()


def _without_balance(config: RunConfig) -> RunConfig:
    zero: dict[str, Any] = {f.name: 0.0 for f in fields(BalanceConfig) if f.name.endswith("_coef")}
    return replace(config, balance=replace(config.balance, **zero))


PROBES: dict[str, Callable[[Bench], Found]] = {
    "signal": _signal_summary,
    "knowledge": knowledge,
    "batch_dependence": batch_dependence,
}
