"""torch's grouped matrix product: one kernel for all experts, the choice on CUDA."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.ops.activations import activate
from moeworks.ops.dispatch import dispatch
from moeworks.ops.experts import ExpertWeights, masked_weights
from moeworks.ops.routing import Routing

_ALIGNMENT = 16  # bytes that the kernel wants a row's stride to be a multiple of


def refusal(x_TD: Tensor, experts: ExpertWeights) -> str | None:
    """Why grouped_mm cannot serve this input, or None."""
    if x_TD.dtype == torch.float64:
        return "torch.nn.functional.grouped_mm has no float64"
    if x_TD.is_cuda and x_TD.dtype != torch.bfloat16:
        return f"on CUDA grouped_mm is fast only in bfloat16, the input is {x_TD.dtype}"
    if torch.compiler.is_compiling() and x_TD.dtype != torch.bfloat16:
        return f"torch compiles grouped_mm only in bfloat16, the input is {x_TD.dtype}"
    for width in (experts.down_proj.shape[1], experts.down_proj.shape[2]):
        if width * x_TD.element_size() % _ALIGNMENT:
            return f"a width of {width} in {x_TD.dtype} is not a multiple of {_ALIGNMENT} bytes"
    return None


def run(x_TD: Tensor, routing: Routing, experts: ExpertWeights) -> Tensor:
    """y [T, D]; shapes depend on T and K alone, so it compiles without a graph break."""
    plan = dispatch(routing, experts.num_experts)
    top_k = routing.top_k
    offsets = plan.rows_per_expert_E.cumsum(0).to(torch.int32)
    rows_N = torch.arange(plan.order_N.numel(), device=x_TD.device)
    # grouped_mm leaves the rows behind the last offset uninitialised: 0 * NaN would spread.
    idle_N1 = None
    if routing.kept_TK is not None or routing.variable or experts.num_without_weights:
        idle_N1 = (rows_N >= offsets[-1]).unsqueeze(1)
    weight_N1 = masked_weights(routing).to(x_TD.dtype).reshape(-1)[plan.order_N].unsqueeze(1)
    expert_N = None
    if experts.up_bias is not None or experts.down_bias is not None:
        expert_N = torch.searchsorted(offsets, rows_N, right=True).clamp(max=experts.num_experts - 1)
    x = x_TD[plan.order_N // top_k]
    if experts.weights_on == "input":
        x = x * weight_N1
    hidden = _with_bias(_grouped(x, experts.up_proj, offsets, idle_N1), experts.up_bias, expert_N)
    out = _grouped(activate(hidden, experts.activation), experts.down_proj, offsets, idle_N1)
    out = _zeroed(_with_bias(out, experts.down_bias, expert_N), idle_N1)
    if experts.weights_on == "output":
        out = out * weight_N1
    return out[plan.inverse_N].view(-1, top_k, x_TD.shape[1]).sum(dim=1)


def _grouped(x: Tensor, weight: Tensor, offsets: Tensor, idle_N1: Tensor | None) -> Tensor:
    """x @ weight[e].T for each expert's rows, 0 in the rows that no expert computes."""
    # The gradient of x has uninitialised rows too: masking x stops them from reaching earlier layers.
    x = _zeroed(x, idle_N1)
    return _zeroed(F.grouped_mm(x, weight.to(x.dtype).transpose(-2, -1), offs=offsets), idle_N1)


def _with_bias(x: Tensor, bias: Tensor | None, expert_N: Tensor | None) -> Tensor:
    """x [N, ...] plus the bias of each row's expert, if there are any."""
    return x if bias is None or expert_N is None else x + bias.to(x.dtype)[expert_N]


def _zeroed(x: Tensor, idle_N1: Tensor | None) -> Tensor:
    """x with 0 in the rows that no expert computes; None: every row is computed."""
    return x if idle_N1 is None else x.masked_fill(idle_N1, 0.0)
