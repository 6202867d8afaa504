"""The native library's kernels: dispatch, experts, shared experts and combine in one call.

On the CPU, in float32, or in bfloat16 with float32 arithmetic and weights in either. The parts of a token's
output are added in the order of expert ids: results repeat bit for bit, and do not depend on the number of
threads. Registered as custom operators: autograd and torch.compile see one node.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from moeworks.ops.experts import ExpertWeights, SharedWeights
from moeworks.ops.native.library import Library, described, library, unavailable
from moeworks.ops.native.structs import EXPERT_GRADS, EXPERT_INPUTS, ExpertsGradStruct, ExpertsStruct
from moeworks.ops.native.use import are_plain
from moeworks.ops.routing import Routing

_ACTIVATIONS = ("swiglu", "geglu", "relu", "gelu", "relu2")


def refusal(x_TD: Tensor, experts: ExpertWeights) -> str | None:
    """Why the native library cannot serve this input, or None."""
    if x_TD.device.type != "cpu":
        return f"it computes on the CPU, the input is on {x_TD.device.type}"
    if x_TD.dtype not in (torch.float32, torch.bfloat16):
        return f"it computes float32 and bfloat16, the input is {x_TD.dtype}"
    if experts.up_proj.dtype not in (torch.float32, x_TD.dtype):
        return f"it takes weights in {x_TD.dtype}, as the input, or float32; they are {experts.up_proj.dtype}"
    tensors = (x_TD, *experts.tensors())
    if not are_plain(*tensors):
        kinds = {type(tensor).__name__ for tensor in tensors if not are_plain(tensor)}
        return f"it reads the memory of plain tensors, and there is a {', '.join(sorted(kinds))}"
    if experts.activation not in _ACTIVATIONS:
        return f"it has no activation {experts.activation!r}"
    return unavailable()


def run(
    x_TD: Tensor, routing: Routing, experts: ExpertWeights, shared: SharedWeights | None = None
) -> Tensor:
    """y [T, D] = sum over slots of weight * expert(x), plus the shared expert's output."""
    inputs = (
        x_TD.contiguous(),
        routing.routing_weights_TK.float().contiguous(),
        routing.expert_ids_TK.contiguous(),
        None if routing.kept_TK is None else routing.kept_TK.contiguous(),
        experts.up_proj.contiguous(),
        experts.down_proj.contiguous(),
        None if experts.up_bias is None else experts.up_bias.contiguous(),
        None if experts.down_bias is None else experts.down_bias.contiguous(),
        None if shared is None else shared.up_proj.to(experts.up_proj.dtype).contiguous(),
        None if shared is None else shared.down_proj.to(experts.up_proj.dtype).contiguous(),
        None if shared is None or shared.weights_T is None else shared.weights_T.float().contiguous(),
    )
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y_TD, *_ = _forward(
        *inputs,
        routing.num_experts + routing.variable,  # empty slots have the id E, which no expert owns
        experts.activation,
        experts.weights_on == "input",
        differentiated and not experts.recompute,
    )
    return y_TD


@torch.library.custom_op("moeworks::native_experts", mutates_args=())
def _forward(
    x_TD: Tensor,
    weights_TK: Tensor,
    expert_ids_TK: Tensor,
    kept_TK: Tensor | None,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    shared_up: Tensor | None,
    shared_down: Tensor | None,
    shared_weights_T: Tensor | None,
    num_routes: int,
    activation: str,
    weigh_input: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns y, and for the backward: order, offsets, and the hidden rows of routed and shared experts."""
    inputs = (
        x_TD, weights_TK, expert_ids_TK, kept_TK, up_proj, down_proj, up_bias, down_bias,
        shared_up, shared_down, shared_weights_T,
    )  # fmt: skip
    lib = _library()
    shapes = _result_shapes(x_TD, expert_ids_TK, up_proj, shared_up, keep_hidden)
    y, order, offsets, hidden, shared_hidden = (lib.empty(shape, dtype) for shape, dtype in shapes)
    results = (y, order, offsets, hidden, shared_hidden)
    args = _arguments(inputs, results, num_routes, activation, weigh_input)
    lib.call("mw_experts_forward", ctypes.byref(args), torch.get_num_threads())
    if keep_hidden:
        # Rows that no expert computes: an operator's result must not hold stray memory.
        hidden[int(offsets[-1]) :] = 0
    return results


def _result_shapes(
    x_TD: Tensor, expert_ids_TK: Tensor, up_proj: Tensor, shared_up: Tensor | None, keep_hidden: bool
) -> list[tuple[tuple[Any, ...], torch.dtype]]:
    # Any: an int, or a symbolic one while torch.compile traces.
    rows = expert_ids_TK.numel()
    shared = shared_up is not None and keep_hidden
    return [
        (tuple(x_TD.shape), x_TD.dtype),
        ((rows,), torch.int32),
        ((up_proj.shape[0] + 1,), torch.int64),
        ((rows, up_proj.shape[1]) if keep_hidden else (0,), x_TD.dtype),
        ((x_TD.shape[0], shared_up.shape[0]) if shared and shared_up is not None else (0,), x_TD.dtype),
    ]


@_forward.register_fake
def _(
    x_TD, weights_TK, expert_ids_TK, kept_TK, up_proj, down_proj, up_bias, down_bias, shared_up, shared_down,
    shared_weights_T, num_routes, activation, weigh_input, keep_hidden,
):  # fmt: skip
    shapes = _result_shapes(x_TD, expert_ids_TK, up_proj, shared_up, keep_hidden)
    return tuple(x_TD.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


@torch.library.custom_op("moeworks::native_experts_backward", mutates_args=())
def _backward(
    grad_TD: Tensor,
    inputs: list[Tensor],
    results: list[Tensor],
    num_routes: int,
    activation: str,
    weigh_input: bool,
    present: list[bool],
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients that are `wanted`, in the order of EXPERT_GRADS; empty tensors for the others.

    `inputs` are those of the forward operator that are `present`, `results` its results but y.
    """
    lib = _library()
    remaining = iter(inputs)
    every = tuple(next(remaining) if there else None for there in present)
    args = _arguments(every, (None, *results), num_routes, activation, weigh_input)
    grads = [
        lib.empty(tuple(t.shape), t.dtype) if want and t is not None else grad_TD.new_empty(0)
        for t, want in zip(_differentiable(every), wanted, strict=True)
    ]
    grad_args = ExpertsGradStruct(
        described(grad_TD), *(described(g if want else None) for g, want in zip(grads, wanted, strict=True))
    )
    lib.call("mw_experts_backward", ctypes.byref(args), ctypes.byref(grad_args), torch.get_num_threads())
    return grads


@_backward.register_fake
def _(grad_TD, inputs, results, num_routes, activation, weigh_input, present, wanted):
    remaining = iter(inputs)
    every = tuple(next(remaining) if there else None for there in present)
    return [
        torch.empty_like(t) if want and t is not None else grad_TD.new_empty(0)
        for t, want in zip(_differentiable(every), wanted, strict=True)
    ]


def _differentiable(inputs: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The inputs in the order of EXPERT_GRADS: without the ids and what was kept."""
    return [t for name, t in zip(EXPERT_INPUTS, inputs, strict=True) if name in EXPERT_GRADS]


def _save(ctx, inputs, output):
    *tensors, num_routes, activation, weigh_input, _ = inputs
    ctx.set_materialize_grads(False)  # or autograd makes zeros for hidden, which has no gradient
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(*(t for t in tensors if t is not None), *output[1:])
    ctx.options = (num_routes, activation, weigh_input)


def _differentiate(ctx, grad_TD, *_):
    if grad_TD is None:
        return (None,) * (len(EXPERT_INPUTS) + 4)
    saved = list(
        ctx.saved_tensors
    )  # once only: each access unpacks anew, which activation checkpointing forbids
    count = sum(ctx.present)
    needed = dict(zip(EXPERT_INPUTS, ctx.needs_input_grad, strict=False))
    wanted = [needed[name] for name in EXPERT_GRADS]
    grads = _backward(grad_TD.contiguous(), saved[:count], saved[count:], *ctx.options, ctx.present, wanted)
    by_name = {name: g if want else None for name, g, want in zip(EXPERT_GRADS, grads, wanted, strict=True)}
    return (*(by_name.get(name) for name in EXPERT_INPUTS), None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _library() -> Library:
    found = library()
    assert not isinstance(found, str), found
    return found


def _arguments(
    inputs: tuple[Tensor | None, ...],
    results: tuple[Tensor | None, ...],
    num_routes: int,
    activation: str,
    weigh_input: bool,
) -> ExpertsStruct:
    y, order, offsets, *kept_hidden = results
    return ExpertsStruct(
        *(described(t) for t in inputs),
        num_routes,
        _ACTIVATIONS.index(activation),
        weigh_input,
        *(described(t) for t in (y, order, offsets)),
        # Hidden rows that were not kept are an empty tensor of one dimension.
        *(described(t if t is not None and t.dim() == 2 else None) for t in kept_hidden),
    )
