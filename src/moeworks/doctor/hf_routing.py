"""How each family of transformers tells which experts it chose: from what its modules pass to each other.

Nearly all call `experts(hidden, ids, weights)` after `router(hidden)`, and what goes into the experts is the
decision, whatever bias, groups or table it came from. READINGS holds the families that do it otherwise.
Nothing here imports transformers: modules are known by the names of their classes and children.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeworks.errors import ConfigError, check
from moeworks.ops.routing import Routing

Seen = list[tuple[Any, ...]]
"""What went into or came out of each watched module, in the order of Reading.watched."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a block decided over its T tokens."""

    ids_TK: Tensor
    weights_TK: Tensor
    logits_TE: Tensor
    kept_TK: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """Which children of a block to watch, and how to read its choice from what was seen."""

    watched: tuple[tuple[str, str], ...]
    """(child, "in" or "out") in the order in which they run; the last one completes the choice."""
    read: Callable[[nn.Module, Seen], Choice]


@dataclass(frozen=True, eq=False)
class Block:
    """One MoE block of a model."""

    path: str
    module: nn.Module
    reading: Reading
    stack: str
    """Path of the module that owns the list of layers, "" for the model itself."""
    layer: int
    """Index in that list, where an entry with several attentions (LongCat-Flash) counts as so many layers."""
    depth: int
    """Layers in that list, counted like that."""
    attention: bool = False
    """Its experts are attention heads (JetMoE), not feed-forward networks."""


def find_blocks(model: nn.Module) -> list[Block]:
    """The MoE blocks of a transformers model in the order of its modules.

    Raises ConfigError for a model without any, and for one whose choice cannot be seen, saying why.
    """
    blocks = []
    for path, module in model.named_modules():
        name = type(module).__name__
        if name in UNREADABLE:
            raise ConfigError(f"{path or 'model'} is a {name}: {UNREADABLE[name]}")
        reading = _reading(path, module)
        if reading is not None:
            stack, layer, depth = _place(model, path)
            blocks.append(Block(path, module, reading, stack, layer, depth, name.endswith("MoA")))
    check(bool(blocks), "model", type(model).__name__, "has no MoE layer whose router could be watched")
    return blocks


def _reading(path: str, module: nn.Module) -> Reading | None:
    """How to read `module`; None where it is no MoE block."""
    known = READINGS.get(type(module).__name__)
    if known is None:
        return _usual(path, module)
    children = {name for name, _ in module.named_modules()}
    return known if all(child in children for child, _ in known.watched) else None


def _place(model: nn.Module, path: str) -> tuple[str, int, int]:
    """The owner of the list of layers, the index in it and its length; ("", 0, 1) for a lone block."""
    parts = path.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    if not numbers or numbers[0] == 0:
        return "", int(parts[0]) if numbers else 0, 1
    at = numbers[0]
    layers = list(model.get_submodule(".".join(parts[:at])).children())
    attention = getattr(layers[int(parts[at])], "self_attn", None)
    in_one = len(attention) if isinstance(attention, nn.ModuleList) else 1
    return ".".join(parts[: at - 1]), int(parts[at]) * in_one, len(layers) * in_one


# The usual way.


def _usual(path: str, module: nn.Module) -> Reading | None:
    """For a module with a child `experts` and a router beside it; None for any other."""
    children = dict(module.named_children())
    experts = children.get("experts")
    if experts is None or type(experts).__name__ in READINGS:
        return None
    routers = [name for name, child in children.items() if _is_router(name, child)]
    if len(routers) != 1:
        raise ConfigError(
            f"{path or 'model'} is a {type(module).__name__}: it has experts and {len(routers)} routers that"
            " are known here; there must be one"
        )
    return Reading(((routers[0], "out"), ("experts", "in")), _given)


def _is_router(name: str, module: nn.Module) -> bool:
    known = re.search(r"Router$|Gating$|MoEV?\d*Gate$", type(module).__name__)
    return name in ("gate", "router") or known is not None


def _given(block: nn.Module, seen: Seen) -> Choice:
    """The ids and weights that the experts were called with."""
    router, experts = seen
    logits = _first(router, floating=True)
    ids, weights = _first(experts[1:], floating=False), _first(experts[1:], floating=True)
    if logits is None or ids is None or weights is None:
        raise ConfigError(
            f"{type(block).__name__}: its router and experts do not pass logits, ids and weights"
        )
    ids_TK, weights_TK, logits_TE = _rows(ids).long(), _rows(weights), _rows(logits)
    if weights_TK.shape != ids_TK.shape:  # one weight for every expert
        weights_TK = weights_TK.gather(1, ids_TK)
    return Choice(ids_TK, weights_TK * _factor_outside(block), logits_TE)


def _first(values: tuple[Any, ...], *, floating: bool) -> Tensor | None:
    found = (v for v in values if isinstance(v, Tensor) and v.is_floating_point() is floating)
    return next(found, None)


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


def _factor_outside(block: nn.Module) -> float:
    """What a block multiplies the sum over its experts by (Beam, Laguna, MiniMax-M3, Step-3.7)."""
    name = _FACTORS.get(type(block).__name__, "routed_scaling_factor")
    return float(getattr(block, name, 1.0))


_FACTORS = {"OpenAIPrivacyFilterMLP": "num_experts"}


# The others.


def _llama4(block: Any, seen: Seen) -> Choice:
    """All experts run on all tokens, those that were not chosen with a score of sigmoid(-inf) = 0."""
    scores_TE, logits_TE = (_rows(t) for t in seen[0])
    ids_TK = logits_TE.masked_fill(scores_TE == 0, -torch.inf).topk(block.top_k, dim=1).indices
    return Choice(ids_TK, scores_TE.gather(1, ids_TK), logits_TE)


def _jetmoe(block: Any, seen: Seen) -> Choice:
    """Assignments in the order of their experts, and how many each expert has."""
    order_N, _, weights_N, sizes, logits_TE = seen[0]
    experts_N = torch.arange(len(sizes), device=order_N.device)
    experts_N = experts_N.repeat_interleave(torch.tensor(sizes, device=order_N.device))
    ids_N, mixed_N = torch.empty_like(order_N), torch.empty_like(weights_N)
    ids_N[order_N] = experts_N
    mixed_N[order_N] = weights_N
    shape = (logits_TE.shape[0], -1)
    return Choice(ids_N.view(shape), mixed_N.view(shape), logits_TE)


def _switch(block: Any, seen: Seen) -> Choice:
    """One expert a token, with a capacity: a mask over experts, all zeros where the token was dropped."""
    mask, weights, logits = seen[0]
    ids_TK = _rows(logits).argmax(dim=1, keepdim=True)
    kept_TK = _rows(mask).gather(1, ids_TK).bool()
    return Choice(ids_TK, _rows(weights), _rows(logits), kept_TK)


def _zaya(block: Any, seen: Seen) -> Choice:
    """The last class of its router means no expert; the experts then see expert 0 with a weight of 0."""
    choice = _given(block, seen)
    skipped_TK = choice.weights_TK == 0
    ids_TK = choice.ids_TK.masked_fill(skipped_TK, choice.logits_TE.shape[1] - 1)
    return Choice(ids_TK, choice.weights_TK, choice.logits_TE)


def _doge(block: Any, seen: Seen) -> Choice:
    """Product keys: expert (x, y) has the sum of two logits; its weight is a softmax over the chosen."""
    logits, ids = seen[0][0], seen[1][0]
    ids_TK = _rows(ids).long()
    x, y = logits.view(2, ids_TK.shape[0], -1)
    logits_TE = (x.unsqueeze(2) + y.unsqueeze(1)).flatten(1)
    return Choice(ids_TK, logits_TE.gather(1, ids_TK).softmax(dim=1), logits_TE)


_EXPERTS = ("experts", "in")
# The router returns probabilities, its projection the logits.
_GEMMA = Reading((("router.proj", "out"), _EXPERTS), _given)
READINGS: Mapping[str, Reading] = {
    "Llama4TextMoe": Reading((("router", "out"),), _llama4),
    "Gemma4TextDecoderLayer": _GEMMA,
    "DiffusionGemmaEncoderTextLayer": _GEMMA,
    "DiffusionGemmaDecoderTextLayer": _GEMMA,
    "JetMoeMoE": Reading((("router", "out"),), _jetmoe),
    "JetMoeMoA": Reading((("router", "out"),), _jetmoe),
    "SwitchTransformersSparseMLP": Reading((("router", "out"),), _switch),
    "ZayaSparseMoeBlock": Reading((("gate", "out"), _EXPERTS), _zaya),
    "DogeCDMoE": Reading((("router_gate", "out"), ("down_embed", "in")), _doge),
}
"""Blocks, by class, that pass something else than logits, ids and weights."""

UNREADABLE: Mapping[str, str] = {
    "NllbMoeSparseMLP": "the experts that it runs are not those that its router chooses, so that neither"
    " would be the truth",
    "VitPoseBackboneMoeMLP": "its expert is a label that the caller gives; there is no router",
}
"""Blocks, by class, that are refused, and why."""


# From a choice to a Routing.

_SCORES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits_TE: logits_TE.softmax(dim=1),
    torch.sigmoid,
    lambda logits_TE: F.softplus(logits_TE).sqrt(),
)


def to_routing(choice: Choice, valid_T: Tensor | None, sequence_ids_T: Tensor | None) -> Routing:
    """The record of a choice, the experts of a token in the order of their weights.

    router_probs are those scores, of softmax, sigmoid and sqrt-softplus, that the weights are proportional
    to; softmax where none is (SparseMixer, scales per expert). What the experts would be without a selection
    bias cannot be seen: unbiased_ids is None.
    """
    logits_TE = _real(choice.logits_TE)
    weights_TK, order_TK = _real(choice.weights_TK).sort(dim=1, descending=True, stable=True)
    ids_TK = choice.ids_TK.gather(1, order_TK)
    kept_TK = None if choice.kept_TK is None else choice.kept_TK.gather(1, order_TK)
    return Routing(
        expert_ids_TK=ids_TK,
        routing_weights_TK=weights_TK,
        router_logits_TE=logits_TE,
        router_probs_TE=score_of(logits_TE, ids_TK, weights_TK)(logits_TE),
        kept_TK=kept_TK,
        valid_T=valid_T,
        sequence_ids_T=sequence_ids_T,
    )


def _real(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


@torch.no_grad()
def score_of(logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Callable[[Tensor], Tensor]:
    """The score that `weights_TK` are proportional to within each token (across tokens for K = 1).

    The tolerance is a weight in bfloat16. Softmax when none fits, or several.
    """
    spreads = []
    for score in _SCORES:
        ratio_TK = weights_TK / score(logits_TE).gather(1, ids_TK).clamp(min=1e-30)
        ratio_TK = ratio_TK if ratio_TK.shape[1] > 1 else ratio_TK.T
        middle = ratio_TK.median(dim=1, keepdim=True).values.clamp(min=1e-30)
        spreads.append((ratio_TK / middle - 1).abs().amax(dim=1).median().item())
    best = min(range(len(_SCORES)), key=spreads.__getitem__)
    return _SCORES[best if spreads[best] < 0.02 else 0]
