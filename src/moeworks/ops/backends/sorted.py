"""Assignments sorted by expert, one matrix product per expert into place, and a hand-written backward.

What it saves over autograd on the reference: each expert's weight gradient is written once (indexing a
stacked parameter in a loop builds a full-size gradient per expert), the routing weight is folded into the
hidden activation, and only the hidden rows are kept for the backward pass. Registered as custom operators,
so torch.compile and FakeTensor see one node.
"""

from typing import cast

import torch
from torch import Tensor

from moeworks.config.model import Activation
from moeworks.ops.activations import activate, activate_backward
from moeworks.ops.dispatch import dispatch
from moeworks.ops.experts import ExpertWeights, masked_weights
from moeworks.ops.routing import Routing


def refusal(x_TD: Tensor, experts: ExpertWeights) -> str | None:
    """None: this backend serves every input."""
    return None


def run(x_TD: Tensor, routing: Routing, experts: ExpertWeights) -> Tensor:
    """y [T, D] = sum over slots of weight * expert(x)."""
    plan = dispatch(routing, experts.num_experts)
    y_TD, _ = _forward(
        x_TD,
        masked_weights(routing).to(x_TD.dtype),
        plan.order_N,
        plan.inverse_N,
        plan.rows_per_expert_E,
        experts.up_proj,
        experts.down_proj,
        experts.up_bias,
        experts.down_bias,
        experts.activation,
        experts.weights_on == "input",
    )
    return y_TD


@torch.library.custom_op("moeworks::sorted_experts", mutates_args=())
def _forward(
    x_TD: Tensor,
    weights_TK: Tensor,
    order_N: Tensor,
    inverse_N: Tensor,
    rows_E: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    weigh_input: bool,
) -> tuple[Tensor, Tensor]:
    """Returns y [T, D] and the hidden rows before the activation, in sorted order, for the backward."""
    spans = _spans(rows_E)
    rows = spans[-1][1]
    weight = _sorted_weights(weights_TK, order_N, rows)
    x = _gather(x_TD, order_N, weights_TK.shape[1], rows)
    if weigh_input:
        x = x * weight
    hidden = x.new_empty(order_N.numel(), up_proj.shape[1])
    hidden[rows:] = 0  # rows that no expert computes: an operator's result must not hold stray memory
    for e, (start, stop) in enumerate(spans):
        _mm_(hidden[start:stop], x[start:stop], up_proj[e].t())
        if up_bias is not None:
            hidden[start:stop] += up_bias[e]
    act = activate(hidden[:rows], cast(Activation, activation))
    if not weigh_input:
        act = act * weight
    out = _rows_then_zeros(x, order_N.numel(), rows)
    for e, (start, stop) in enumerate(spans):
        _mm_(out[start:stop], act[start:stop], down_proj[e].t())
        if down_bias is not None:
            out[start:stop] += down_bias[e] if weigh_input else down_bias[e] * weight[start:stop]
    return _sum_slots(out, inverse_N, weights_TK.shape[1]), hidden


@_forward.register_fake
def _(
    x_TD, weights_TK, order_N, inverse_N, rows_E, up_proj, down_proj, up_bias, down_bias,
    activation, weigh_input,
):  # fmt: skip
    return torch.empty_like(x_TD), x_TD.new_empty(order_N.numel(), up_proj.shape[1])


@torch.library.custom_op("moeworks::sorted_experts_backward", mutates_args=())
def _backward(
    grad_TD: Tensor,
    x_TD: Tensor,
    weights_TK: Tensor,
    order_N: Tensor,
    inverse_N: Tensor,
    rows_E: Tensor,
    hidden: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    down_bias: Tensor | None,
    activation: str,
    weigh_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the weights, up_proj, down_proj, and of both biases (zeros where there are none)."""
    kind = cast(Activation, activation)
    spans = _spans(rows_E)
    rows, top_k = spans[-1][1], weights_TK.shape[1]
    weight = _sorted_weights(weights_TK, order_N, rows)
    grad = _gather(grad_TD, order_N, top_k, rows)
    hidden = hidden[:rows]
    act = activate(hidden, kind)
    grad_act = torch.empty_like(act)
    for e, (start, stop) in enumerate(spans):
        _mm_(grad_act[start:stop], grad[start:stop], down_proj[e])
    grad_down_bias = down_proj.new_empty(0)
    if down_bias is not None:
        grad_down_bias = _bias_gradients(grad if weigh_input else grad * weight, spans, down_bias)
    grad_weight = grad.new_zeros(order_N.numel())
    if not weigh_input:
        grad_weight[:rows] = (grad_act * act).sum(dim=1)
        if down_bias is not None:
            for e, (start, stop) in enumerate(spans):
                grad_weight[start:stop] += grad[start:stop] @ down_bias[e].to(grad.dtype)
        act, grad_act = act * weight, grad_act * weight
    grad_down = torch.empty_like(down_proj)
    for e, (start, stop) in enumerate(spans):
        _mm_(grad_down[e], grad[start:stop].t(), act[start:stop])
    grad_hidden = activate_backward(grad_act, hidden, kind)
    x = _gather(x_TD, order_N, top_k, rows)
    x_in = x * weight if weigh_input else x
    grad_up = torch.empty_like(up_proj)
    grad_x = _rows_then_zeros(x, order_N.numel(), rows)
    for e, (start, stop) in enumerate(spans):
        _mm_(grad_up[e], grad_hidden[start:stop].t(), x_in[start:stop])
        _mm_(grad_x[start:stop], grad_hidden[start:stop], up_proj[e])
    if weigh_input:
        grad_weight[:rows] = (grad_x[:rows] * x).sum(dim=1)
        grad_x[:rows] *= weight
    return (
        _sum_slots(grad_x, inverse_N, top_k),
        grad_weight[inverse_N].view_as(weights_TK),
        grad_up,
        grad_down,
        _bias_gradients(grad_hidden, spans, up_proj[..., 0]),
        grad_down_bias,
    )


@_backward.register_fake
def _(
    grad_TD, x_TD, weights_TK, order_N, inverse_N, rows_E, hidden, up_proj, down_proj, down_bias,
    activation, weigh_input,
):  # fmt: skip
    bias = down_proj.new_empty(down_proj.shape[:2] if down_bias is not None else (0,))
    shapes = (torch.empty_like(t) for t in (x_TD, weights_TK, up_proj, down_proj))
    return (*shapes, up_proj.new_empty(up_proj.shape[:2]), bias)


def _save(ctx, inputs, output):
    (
        x_TD, weights_TK, order_N, inverse_N, rows_E, up_proj, down_proj, up_bias, down_bias,
        activation, weigh_input,
    ) = inputs  # fmt: skip
    ctx.set_materialize_grads(False)  # or autograd makes zeros for hidden, which has no gradient
    ctx.save_for_backward(
        x_TD, weights_TK, order_N, inverse_N, rows_E, output[1], up_proj, down_proj, down_bias
    )
    ctx.activation, ctx.weigh_input, ctx.has_up_bias = activation, weigh_input, up_bias is not None


def _differentiate(ctx, grad_TD, _grad_hidden):
    if grad_TD is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # once only: each access unpacks anew, which activation checkpointing forbids
    has_down_bias = saved[-1] is not None
    x, weights, up, down, up_bias, down_bias = _backward(
        grad_TD.contiguous(), *saved, ctx.activation, ctx.weigh_input
    )
    return (
        x, weights, None, None, None, up, down,
        up_bias if ctx.has_up_bias else None, down_bias if has_down_bias else None, None, None,
    )  # fmt: skip


_forward.register_autograd(_differentiate, setup_context=_save)


def _spans(rows_E: Tensor) -> list[tuple[int, int]]:
    """Start and stop of each expert's rows in the sorted order."""
    stops = rows_E.cumsum(0).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _mm_(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write a @ b into `out`: weights b are rounded to the dtype of a; `out` may be wider than that."""
    if not out.shape[0]:
        return
    if out.dtype == a.dtype:
        torch.mm(a, b.to(a.dtype), out=out)
    else:
        out.copy_(torch.mm(a, b))


def _gather(x_TD: Tensor, order_N: Tensor, top_k: int, rows: int) -> Tensor:
    """The tokens of the first `rows` sorted assignments, [rows, D]."""
    return x_TD.index_select(0, order_N[:rows] // top_k)


def _rows_then_zeros(like: Tensor, total: int, rows: int) -> Tensor:
    """[total, D] for the results of the first `rows` assignments; the others, never computed, are 0."""
    out = like.new_empty(total, like.shape[1])
    out[rows:] = 0
    return out


def _sorted_weights(weights_TK: Tensor, order_N: Tensor, rows: int) -> Tensor:
    return weights_TK.reshape(-1)[order_N[:rows]].unsqueeze(1)


def _sum_slots(out_ND: Tensor, inverse_N: Tensor, top_k: int) -> Tensor:
    """Back to token order and summed over a token's slots in slot order, [T, D]: repeatable, no atomics."""
    if top_k == 1:
        return out_ND[inverse_N]
    return out_ND[inverse_N].view(-1, top_k, out_ND.shape[1]).sum(dim=1)


def _bias_gradients(grad: Tensor, spans: list[tuple[int, int]], like: Tensor) -> Tensor:
    """Row sums per expert, [E, ...], in the dtype of `like`."""
    sums = [grad[start:stop].sum(dim=0) for start, stop in spans]
    return torch.stack(sums).to(like.dtype)
