"""The table of expert backends. Each module has `refusal(x, experts)` and `run(x, routing, experts)`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moeworks.errors import ConfigError, check
from moeworks.ops.backends import grouped_mm, native, reference, sorted
from moeworks.ops.experts import ExpertWeights, SharedWeights, shared_output
from moeworks.ops.routing import Routing

Backend = Literal["auto", "reference", "sorted", "grouped_mm", "native"]


@dataclass(frozen=True)
class _Entry:
    refusal: Callable[[Tensor, ExpertWeights], str | None]
    run: Callable[[Tensor, Routing, ExpertWeights], Tensor]
    fused: Callable[[Tensor, Routing, ExpertWeights, SharedWeights | None], Tensor] | None = None
    """Like `run`, with shared experts and recomputation done by the backend itself; None: it cannot."""


BACKENDS: dict[str, _Entry] = {
    "reference": _Entry(reference.refusal, reference.run),
    "sorted": _Entry(sorted.refusal, sorted.run),
    "grouped_mm": _Entry(grouped_mm.refusal, grouped_mm.run),
    "native": _Entry(native.refusal, native.run, fused=native.run),
}


def run_experts(
    x_TD: Tensor,
    routing: Routing,
    experts: ExpertWeights,
    backend: Backend = "auto",
    shared: SharedWeights | None = None,
) -> Tensor:
    """y [T, D], the weighted sum of the routed experts' outputs and the shared ones', in the dtype of x.

    Raises ConfigError when `backend` names one that cannot serve the input, with its reason, and when there
    are weights of more or fewer experts than the router chooses among.
    """
    found, want = experts.num_experts, routing.num_experts - experts.num_without_weights
    check(found == want, "experts with weights", found, f"must match the router, which chooses among {want}")
    if x_TD.shape[0] == 0:
        # Kernels get no empty inputs; this product keeps every parameter in the graph, with gradient 0.
        scale = sum(w.sum() for w in _tensors(experts, shared)) + routing.routing_weights_TK.sum()
        return x_TD * scale.to(x_TD.dtype)
    if routing.variable and not torch.compiler.is_compiling():
        routing = _without_spare_slots(routing)
    name, _ = choose_backend(x_TD, experts, backend)
    entry = BACKENDS[name]
    if entry.fused is not None:
        return entry.fused(x_TD, routing, experts, shared)
    if experts.recompute and torch.is_grad_enabled():
        y_TD = checkpoint(entry.run, x_TD, routing, experts, use_reentrant=False)
    else:
        y_TD = entry.run(x_TD, routing, experts)
    return y_TD if shared is None else y_TD + shared_output(x_TD, shared, experts.activation)


def choose_backend(x_TD: Tensor, experts: ExpertWeights, backend: Backend = "auto") -> tuple[str, str]:
    """The name of the backend that will serve, and why."""
    if backend != "auto":
        check(backend in BACKENDS, "backend", backend, f"known: auto, {', '.join(BACKENDS)}")
        reason = BACKENDS[backend].refusal(x_TD, experts)
        if reason is not None:
            raise ConfigError(f"backend = {backend!r}: {reason}")
        return backend, "it was asked for"
    if not x_TD.is_cuda:
        reason = native.refusal(x_TD, experts)
        if reason is None:
            return "native", "on the CPU the native library's kernels are fastest"
        return "sorted", f"native refuses: {reason}"
    reason = grouped_mm.refusal(x_TD, experts)
    if reason is None:
        return "grouped_mm", "on CUDA one grouped kernel serves all experts"
    return "sorted", f"grouped_mm refuses: {reason}"


def _without_spare_slots(routing: Routing) -> Routing:
    """The routing without slots that are empty for every token, since backends hold a row for each slot."""
    filled_T = (routing.expert_ids_TK < routing.num_experts).sum(dim=1)
    used = slice(0, max(int(filled_T.max()), 1))
    return replace(
        routing,
        expert_ids_TK=routing.expert_ids_TK[:, used],
        routing_weights_TK=routing.routing_weights_TK[:, used],
        kept_TK=None if routing.kept_TK is None else routing.kept_TK[:, used],
    )


def _tensors(experts: ExpertWeights, shared: SharedWeights | None) -> list[Tensor]:
    more = () if shared is None else (shared.up_proj, shared.down_proj, shared.weights_T)
    return [*experts.tensors(), *(t for t in more if t is not None)]
