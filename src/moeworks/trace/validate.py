"""What is wrong with a trace: the marks that engines' recorders leave when they go wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeworks.trace.block import LayerColumns, TokenColumns, filled_slots
from moeworks.trace.header import TraceHeader
from moeworks.trace.read import RoutingTrace

SHIFT_GAP = 0.1
"""Equal tokens agree more often by this, and by four standard errors, at the offset of a shift."""
COLLISION_GAP = 0.5
"""A layer that differs in this much more of the repeated tokens than the median layer was overwritten."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    """out-of-range, gap, duplicate, filler, copied-layer, shifted, order, repeated-token, draft-collision
    or weights."""
    layer: int | None
    """The layer by its index in the model; None for the tokens."""
    count: int
    """How many tokens show it."""
    message: str
    """A sentence that says what it is, and what it may come from."""


def validate_trace(trace: RoutingTrace) -> list[Finding]:
    """Everything that is found, tokens first, then by layer; an empty list is a good trace.

    Tokens that are not valid are left out (open the trace with valid_only=True, as is the default).
    """
    findings = list(_token_findings(trace.tokens))
    previous: np.ndarray | None = None
    # Where every token has all experts, equal rows and equal layers are what a good recording holds.
    whole = trace.header.top_k == trace.header.num_experts and not trace.header.empty_slots
    for number in trace.header.layers:
        layer = trace.unchecked_layer(number)
        findings += _layer_findings(number, layer, trace.header)
        if previous is not None and len(previous) and not whole and np.array_equal(previous, layer.ids):
            text = f"layer {number} is equal to the layer before it in every token: one was written twice"
            findings.append(Finding("copied-layer", number, len(previous), text))
        previous = layer.ids
    findings += _shifted_tokens(trace)
    findings += _collisions(trace)
    return findings


def _token_findings(tokens: TokenColumns) -> Iterator[Finding]:
    same = tokens.sequence[1:] == tokens.sequence[:-1]
    falling = same & (tokens.position[1:] < tokens.position[:-1])
    if falling.any():
        text = "positions fall inside a sequence: tokens are not in the order of the text"
        yield Finding("order", None, int(falling.sum()), text)
    starts = tokens.sequence[np.r_[True, ~same]] if len(tokens) else tokens.sequence
    split = len(starts) - len(np.unique(starts))
    if split:
        text = "sequences are interleaved: the tokens of a sequence do not follow each other"
        yield Finding("order", None, split, text)
    repeated = int(_repeats(tokens).sum())
    if repeated:
        text = "a position of a sequence is recorded more than once (recomputation, speculation, or padding)"
        yield Finding("repeated-token", None, repeated, text)


def _repeats(tokens: TokenColumns) -> np.ndarray:
    """bool [T]: the sequence and position of the token occurred before."""
    key = tokens.sequence.astype(np.int64) << 32 | tokens.position.astype(np.int64)
    _, first = np.unique(key, return_index=True)
    repeats = np.ones(len(key), np.bool_)
    repeats[first] = False
    return repeats


def _layer_findings(number: int, layer: LayerColumns, header: TraceHeader) -> Iterator[Finding]:
    ids, num_experts = layer.ids, header.num_experts
    outside = (ids >= header.num_ids).any(axis=1)
    if outside.any():
        text = f"ids up to {int(ids.max())} where there are {num_experts} experts (physical ids, or -1 cast?)"
        yield Finding("out-of-range", number, int(outside.sum()), text)
    filled = filled_slots(ids, num_experts) if header.empty_slots else np.ones(ids.shape, np.bool_)
    gaps = (filled[:, 1:] & ~filled[:, :-1]).any(axis=1)
    if gaps.any():
        text = "an empty slot before a filled one: empty slots come last"
        yield Finding("gap", number, int(gaps.sum()), text)
    whole = header.top_k == num_experts and not header.empty_slots
    constant = (ids == ids[:, :1]).all(axis=1) & filled.any(axis=1) & (num_experts > 1)
    # With one expert a token, only a whole layer of zeros tells filler from a choice.
    filler = constant if ids.shape[1] > 1 else constant & (len(ids) > 1) & (ids == 0).all()
    if filler.any():
        text = "the same id in every slot: filler of a dense layer, of padding, or of a token never computed"
        yield Finding("filler", number, int(filler.sum()), text)
    elif len(ids) > 1 and not whole and (ids == ids[:1]).all():
        text = "every token has the same experts: filler, or a dead router"
        yield Finding("filler", number, len(ids), text)
    ordered = np.sort(ids, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < num_experts)
    twice = same.any(axis=1) & ~filler
    if twice.any():
        yield Finding("duplicate", number, int(twice.sum()), "a token has an expert twice")
    if layer.weights is not None:
        bad = ~np.isfinite(layer.weights).all(axis=1)
        bad |= (layer.weights == 0).all(axis=1) & filled.any(axis=1)
        if bad.any():
            yield Finding("weights", number, int(bad.sum()), "weights that are not finite, or all zero")
        stray = ((layer.weights != 0) & ~filled).any(axis=1)
        if stray.any():
            yield Finding("weights", number, int(stray.sum()), "an empty slot has a weight")


def _shifted_tokens(trace: RoutingTrace) -> Iterator[Finding]:
    """Routing depends on the token, most in the first layer: does it fit the neighbour's id better?"""
    tokens = trace.tokens
    if len(tokens) < 64 or (tokens.token_id < 0).any():
        return
    number = trace.header.layers[0]
    top = trace.unchecked_layer(number).ids[:, 0].astype(np.int64)
    fits = {offset: _agreement(np.roll(tokens.token_id, offset), top) for offset in (-1, 0, 1)}
    best = max(fits, key=lambda offset: fits[offset])
    if best and fits[best] - fits[0] > SHIFT_GAP + 4 / np.sqrt(len(tokens)):
        text = f"the first layer's choices fit the token {'before' if best == 1 else 'after'} (agreement "
        text += f"{fits[best]:.2f} against {fits[0]:.2f}): tokens and routing are shifted against each other"
        yield Finding("shifted", number, len(tokens), text)


def _agreement(token_id: np.ndarray, top: np.ndarray) -> float:
    """How often consecutive occurrences of a token id have the same first expert, above chance."""
    order = np.argsort(token_id, kind="stable")
    pairs = token_id[order][1:] == token_id[order][:-1]
    if not pairs.any():
        return 0.0
    equal = top[order][1:] == top[order][:-1]
    share = np.bincount(top) / len(top)
    return float(equal[pairs].mean() - (share**2).sum())


def _collisions(trace: RoutingTrace) -> Iterator[Finding]:
    """A draft model that numbers its layers from 0 overwrites the target's: only that layer then changes."""
    tokens = trace.tokens
    key = np.stack([tokens.sequence, tokens.position, tokens.token_id], axis=1)
    order = np.lexsort(key.T[::-1])
    pairs = (key[order][1:] == key[order][:-1]).all(axis=1)
    if not pairs.any():
        return
    left, right = order[:-1][pairs], order[1:][pairs]
    differing = []
    for number in trace.header.layers:
        ids = np.sort(trace.unchecked_layer(number).ids, axis=1)
        differing.append((ids[left] != ids[right]).any(axis=1).mean())
    usual = float(np.median(differing))
    for number, share in zip(trace.header.layers, differing, strict=True):
        if share > usual + COLLISION_GAP:
            text = f"repeated tokens differ here in {share:.0%} of cases and in {usual:.0%} in other layers: "
            text += "the layer of a draft model was written in this one's place"
            yield Finding("draft-collision", number, int(share * len(left)), text)


def layer_shift(trace: RoutingTrace, reference: RoutingTrace) -> dict[int, int]:
    """For each layer of `trace`, the layer of `reference` that it agrees with most.

    `reference` is a trace of the same tokens. Agreement is the mean overlap of the choices. A dump whose
    layers are shifted (dense layers skipped or counted, a draft model's in front) shows as numbers that
    differ. Layers are by index in the model.
    """
    found = {}
    for number in trace.header.layers:
        ids = trace.ids(number)
        filled = filled_slots(ids, trace.header.num_experts)
        agreement = {
            other: float((ids[:, :, None] == reference.ids(other)[:, None, :]).any(axis=2)[filled].mean())
            for other in reference.header.layers
        }
        found[number] = max(agreement, key=lambda other: agreement[other])
    return found
