"""The MoE layers of a transformers model as Blocks: whose rows are the router's, whose the experts'."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

from moeworks.doctor import hf_routing
from moeworks.doctor.subject import Block, ExpertTensor, Unavailable
from moeworks.errors import ConfigError

_BIAS = re.compile(r"(correction_bias|expert_bias|expert_biases|balancing_biases)$")
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_EXTRA = 8
"""Routes that a router may have beyond its experts: zero-computation and skipped ones."""


def transformers_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The MoE layers, in the order of modules; those of the decoder where there are an encoder's too.

    Raises Unavailable for a layer whose experts are no tensors of their own.
    """
    try:
        found = [b for b in hf_routing.find_blocks(model) if not b.attention and "vision" not in b.path]
        stacks = {b.stack for b in found}
        last = found[-1].stack
        places = [
            (b.path, b.module, b.reading.watched[0][0]) for b in found if len(stacks) == 1 or b.stack == last
        ]
    except ConfigError:
        places = [
            (path, module, "router")
            for path, module in model.named_modules()
            if type(module).__name__ in hf_routing.UNREADABLE
        ]
        places = [p for p in places if not p[0].startswith("model.encoder")] or places
    if not places:
        raise Unavailable("it has no MoE layer that is known here")
    return tuple(_block(path, module, router) for path, module, router in places)


def _block(path: str, module: nn.Module, router_name: str) -> Block:
    children = dict(module.named_children())
    experts = children.get("experts", module)
    count = _count(experts, module)
    router = module.get_submodule(router_name)
    bias = _selection_bias(module, experts)
    rows = [
        p
        for name, p in router.named_parameters()
        if p is not bias and not _BIAS.search(name) and count <= p.shape[0] <= count + _EXTRA
    ]
    routes = {p.shape[0] for p in rows if p.dim() == 2}
    rows = [p for p in rows if p.shape[0] in routes]
    own = {id(p) for p in router.parameters()}
    tensors = _expert_tensors(experts, count, own)
    if not tensors:
        raise Unavailable(f"{path}: its experts are no tensors of their own")
    by_table = any(name.endswith("tid2eid") for name, _ in module.named_buffers())
    return Block(path, count, tuple(rows), bias, tensors, by_table)


def _weighted(experts: nn.Module) -> list[dict[str, nn.Parameter]]:
    """The parameters of the children that have any: a list of experts may hold a dropout too."""
    return [named for child in experts.children() if (named := dict(child.named_parameters()))]


def _count(experts: nn.Module, module: nn.Module) -> int:
    """E, the experts with weights."""
    listed = len(_weighted(experts))
    if isinstance(experts, (nn.ModuleList, nn.ModuleDict)) and listed > 1:
        return listed
    widest = [p.shape[0] for p in experts.parameters() if p.dim() == 3]
    for owner in (experts, module, getattr(module, "gate", None), getattr(module, "router", None)):
        for name in _COUNTS:
            value = getattr(owner, name, None)
            if isinstance(value, int) and (not widest or value <= max(widest)):
                return value
    if not widest:
        raise Unavailable(f"{type(module).__name__}: the number of its experts is not known")
    return min(widest)


def _selection_bias(module: nn.Module, experts: nn.Module) -> Tensor | None:
    inside = {id(t) for t in (*experts.parameters(), *experts.buffers())} if experts is not module else set()
    named: Iterable[tuple[str, Tensor]] = (*module.named_buffers(), *module.named_parameters())
    return next((t for name, t in named if _BIAS.search(name) and id(t) not in inside), None)


def _expert_tensors(experts: nn.Module, count: int, router: set[int]) -> tuple[ExpertTensor, ...]:
    if isinstance(experts, (nn.ModuleList, nn.ModuleDict)) and len(_weighted(experts)) == count:
        each = _weighted(experts)
        shared = [name for name in each[0] if all(name in e for e in each)]
        return tuple(ExpertTensor(name, tuple(e[name] for e in each), count) for name in shared)
    return tuple(
        ExpertTensor(name, (p,), count)
        for name, p in experts.named_parameters()
        if id(p) not in router and _stacked(p, count)
    )


def _stacked(parameter: nn.Parameter, count: int) -> bool:
    rows = parameter.shape[0]
    if parameter.dim() == 3:
        return count <= rows <= count + _EXTRA
    return rows == count or (parameter.dim() == 2 and rows % count == 0 and rows > count)
