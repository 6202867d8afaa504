"""From the Routing records of a forward pass to blocks of a trace: functions of the records."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.model import ModelConfig
from moeworks.errors import NotFiniteError, check
from moeworks.ops.routing import Routing
from moeworks.trace.block import LayerColumns, TokenColumns, TraceBlock, id_dtype
from moeworks.trace.header import LAYER_FIELDS, LayerField, TraceHeader


def model_header(
    config: ModelConfig, fields: Sequence[LayerField] = ("weights",), **identity: str | int | None
) -> TraceHeader:
    """The header of traces of a model of ours; `identity` are TraceHeader's other fields.

    Raises ConfigError for a model without MoE layers.
    """
    check(bool(config.moe_layers), "model", "dense", "has no MoE layer, so there is no routing to trace")
    return TraceHeader(
        num_experts=config.router.num_routes,
        top_k=config.router.slots,
        empty_slots=config.router.choice.variable,
        layers=config.moe_layers,
        fields=tuple(name for name in LAYER_FIELDS if name in fields),
        **identity,  # pyrefly: ignore[bad-argument-type]
    )


@torch.no_grad()
def record(
    routings: Sequence[Routing], tokens: TokenColumns, header: TraceHeader, *, keep_padding: bool = False
) -> TraceBlock:
    """The block of one forward pass over the T tokens of `tokens`, which are the rows of each Routing.

    Padding (`valid` False, in the tokens or in the records) is left out unless `keep_padding`. Raises
    NotFiniteError where a layer's scores or weights are NaN or infinite.
    """
    count = len(tokens)
    for routing in routings:
        rows = routing.expert_ids_TK.shape[0]
        check(rows == count, "routing rows", rows, f"must be the {count} tokens")
    valid = tokens.valid.copy()
    if routings and routings[0].valid_T is not None:
        valid &= routings[0].valid_T.cpu().numpy()
    for layer, routing in zip(header.layers, routings, strict=True):
        _require_finite(routing, layer, tokens, valid)
    layers = [record_layer(routing, header) for routing in routings]
    if keep_padding:
        return TraceBlock(TokenColumns(**vars(tokens) | {"valid": valid}), tuple(layers))
    if valid.all():
        return TraceBlock(tokens, tuple(layers))
    rows = np.flatnonzero(valid)
    return TraceBlock(tokens.take(rows), tuple(layer.take(rows) for layer in layers))


def record_layer(routing: Routing, header: TraceHeader) -> LayerColumns:
    """The columns of one layer; fields that the header does not name are not computed."""
    check(
        header.empty_slots or not routing.variable,
        "trace.empty_slots",
        header.empty_slots,
        "the routing may have empty slots, which the header must say",
    )
    fields = header.fields
    logits_TE = routing.router_logits_TE
    return LayerColumns(
        ids=_small_ids(routing.expert_ids_TK, header),
        weights=_half(routing.routing_weights_TK) if "weights" in fields else None,
        kept=_kept(routing) if "kept" in fields else None,
        # At most log E: it fits.
        entropy=router_entropy(routing.router_probs_TE).half().cpu().numpy() if "entropy" in fields else None,
        margin=_half(choice_margin(logits_TE, routing.expert_ids_TK, variable=routing.variable))
        if "margin" in fields
        else None,
        logits=_half(logits_TE) if "logits" in fields else None,
    )


def _require_finite(routing: Routing, layer: int, tokens: TokenColumns, valid: np.ndarray) -> None:
    # Logits of experts that a token must not have are -inf.
    sums_T = routing.router_logits_TE.clamp(min=0).sum(dim=1) + routing.routing_weights_TK.sum(dim=1)
    finite = torch.isfinite(sums_T).cpu().numpy() | ~valid
    if not finite.all():
        token = int(np.argmin(finite))
        document, position = int(tokens.document[token]), int(tokens.position[token])
        raise NotFiniteError(
            f"the router of layer {layer} is not finite at token {position} of document {document}: it or the"
            " layers before it make NaN or infinities; `moeworks eval` of that text names the module"
        )


def router_entropy(probs_TE: Tensor) -> Tensor:
    """[T] nats: H(p) of the router's scores, normalised over experts; 0 is certain, log E undecided."""
    # H(p / s) = log s - sum p log p / s, in place: a tenth of what recording costs is here.
    total_T = probs_TE.sum(dim=1)
    products_TE = probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log_().mul_(probs_TE)
    entropy_T = (total_T.log() - products_TE.sum(dim=1) / total_T).clamp(min=0)
    faint_T = total_T < _FAINT
    if bool(faint_T.any()):
        entropy_T[faint_T] = _faint_entropy(probs_TE[faint_T]).to(entropy_T.dtype)
    return entropy_T


_FAINT = 1e-20
"""Scores that sum to less have lost their digits to underflow, or are all 0."""


def _faint_entropy(probs_TE: Tensor) -> Tensor:
    """Entropy of scores that have underflowed; log E where all of them are 0, since they are equal."""
    exact_TE = probs_TE.double()
    total_T1 = exact_TE.sum(dim=1, keepdim=True)
    share_TE = torch.where(total_T1 > 0, exact_TE / total_T1, 1 / probs_TE.shape[1])
    return torch.special.entr(share_TE).sum(dim=1)


def _small_ids(ids_TK: Tensor, header: TraceHeader) -> np.ndarray:
    """Expert ids in the trace's dtype. Raises ConfigError for an id that is none of the header's."""
    if ids_TK.numel():
        least, most = (int(bound) for bound in ids_TK.aminmax())
        good = least >= 0 and most < header.num_ids
        check(good, "expert_ids_TK", f"{least} .. {most}", f"must lie between 0 and {header.num_ids - 1}")
    small = torch.uint8 if id_dtype(header.num_ids) == np.uint8 else torch.uint16
    return ids_TK.to(small).cpu().numpy()


def choice_margin(logits_TE: Tensor, expert_ids_TK: Tensor, *, variable: bool = True) -> Tensor:
    """[T]: the least logit of a chosen expert minus the greatest of the others; inf when all are chosen.

    Without bias and groups that is the k-th logit minus the (k+1)-th. Empty slots, whose id is E, do not
    count; a token without experts has inf too. Where there are none, `variable` False spares their column.
    """
    if variable:
        logits_TE = F.pad(logits_TE, (0, 1), value=torch.inf)
    least_T = logits_TE.gather(1, expert_ids_TK).amin(dim=1)
    others_TE = logits_TE.scatter(1, expert_ids_TK, -torch.inf)
    return least_T - (others_TE[:, :-1] if variable else others_TE).amax(dim=1)


def _half(values: Tensor) -> np.ndarray:
    """float16, with what is too large for it at its largest number."""
    half = values.to(torch.float16)
    if bool(half.isinf().any()):
        limit = torch.finfo(torch.float16).max
        half = torch.where(values.isinf(), half, half.clamp(-limit, limit))
    return half.cpu().numpy()


def _kept(routing: Routing) -> np.ndarray:
    if routing.kept_TK is None and not routing.variable:
        return np.ones(tuple(routing.expert_ids_TK.shape), dtype=np.bool_)
    kept_TK = routing.filled_TK if routing.kept_TK is None else routing.kept_TK
    assert kept_TK is not None
    return kept_TK.cpu().numpy()
