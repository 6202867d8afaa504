"""The custom operators of the sorted backend, by torch's own checks."""

import pytest
import torch
from random_layers import make_config, random_moe

from moeworks.ops.backends.sorted import _backward, _forward
from moeworks.ops.dispatch import dispatch
from moeworks.ops.experts import masked_weights


def operator_inputs(*, bias: bool = True, activation: str = "swiglu", on_input: bool = False, factor=None):
    config = make_config(expert_linear_bias=bias, activation=activation, capacity_factor=factor)
    moe = random_moe(config)
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        _, routing = moe(x)
        plan = dispatch(routing, config.num_experts)
    experts = moe.experts
    up, up_bias = (getattr(experts, name) for name in experts._up_names)
    weights = masked_weights(routing).clone().requires_grad_()
    order = (plan.order_N, plan.inverse_N, plan.rows_per_expert_E)
    return (x, weights, *order, up, experts.down_proj, up_bias, experts.down_bias, activation, on_input)


VARIANTS = [
    dict(),
    dict(bias=False),
    dict(activation="relu2", factor=0.5),
    dict(on_input=True),
    dict(on_input=True, bias=False, activation="gelu", factor=0.5),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck_of_the_forward(variant):
    torch.library.opcheck(_forward, operator_inputs(**variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck_of_the_backward(variant):
    inputs = operator_inputs(**variant)
    x, weights, order, inverse, rows, up, down, _, down_bias, activation, on_input = inputs
    with torch.no_grad():
        y, hidden = _forward(*inputs)
        arguments = [torch.randn_like(y), x, weights, order, inverse, rows, hidden, up, down, down_bias]
        arguments = [t.detach() if t is not None else t for t in arguments]
        torch.library.opcheck(_backward, (*arguments, activation, on_input))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    inputs = operator_inputs(**variant)
    differentiable = [i for i, t in enumerate(inputs) if isinstance(t, torch.Tensor) and t.requires_grad]

    def run(*tensors):
        arguments = list(inputs)
        for i, tensor in zip(differentiable, tensors, strict=True):
            arguments[i] = tensor
        return _forward(*arguments)[0]

    assert torch.autograd.gradcheck(run, [inputs[i] for i in differentiable], fast_mode=True)


def test_frozen_experts_get_no_gradient_and_the_input_does():
    moe = random_moe(make_config(), backend="sorted")
    moe.experts.requires_grad_(False)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    moe(x)[0].sum().backward()
    assert x.grad.any() and moe.router.weight.grad.any()
    assert all(p.grad is None for p in moe.experts.parameters())
