"""Shared experts whose call does more than multiply by their weights are called."""

import pytest
import torch
from random_layers import make_config, random_moe
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor

from moeworks.layers.mlp import MLP
from moeworks.layers.plain import is_plain

HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "forward_pre": nn.Module.register_forward_pre_hook,
    "full_backward": nn.Module.register_full_backward_hook,
    "full_backward_pre": nn.Module.register_full_backward_pre_hook,
}
GLOBAL_HOOKS = {
    "forward": torch_module.register_module_forward_hook,
    "forward_pre": torch_module.register_module_forward_pre_hook,
    "full_backward": torch_module.register_module_full_backward_hook,
    "full_backward_pre": torch_module.register_module_full_backward_pre_hook,
}


def layer():
    return random_moe(make_config(num_shared_experts=1), dtype=torch.float32)


def pass_through(moe) -> None:
    moe(torch.randn(3, 8, requires_grad=True))[0].sum().backward()


def test_shared_experts_are_plain_unless_something_waits_for_their_call():
    assert layer().shared.plain_weights() is not None


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("part", ["shared", "shared.gate_up_proj", "shared.down_proj"])
def test_every_hook_of_a_shared_expert_is_called(part, kind):
    moe, called = layer(), []
    HOOKS[kind](moe.get_submodule(part), lambda *_: called.append(1) or None)
    pass_through(moe)
    assert called == [1]


@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
def test_hooks_of_all_modules_are_called_for_shared_experts(kind):
    moe, called = layer(), []
    handle = GLOBAL_HOOKS[kind](lambda module, *_: called.append(module) or None)
    try:
        pass_through(moe)
    finally:
        handle.remove()
    assert {moe.shared, moe.shared.gate_up_proj, moe.shared.down_proj} <= set(called)
    assert moe.shared.plain_weights() is not None


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class OtherMLP(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled_output(moe) -> None:
    plain = moe.shared.forward
    moe.shared.forward = lambda x: 2 * plain(x)


def doubled_weight(moe) -> None:
    parametrize.register_parametrization(moe.shared.down_proj, "weight", Doubled())


def doubled_subclass(moe) -> None:
    moe.shared.__class__ = OtherMLP


@pytest.mark.parametrize("change", [doubled_output, doubled_weight, doubled_subclass])
def test_replaced_forwards_and_parametrised_weights_of_shared_experts_count(change):
    moe, x = layer(), torch.randn(3, 8)
    before, _ = moe(x)
    once = moe.shared(x)
    change(moe)
    torch.testing.assert_close(moe(x)[0], before + once)


def test_weights_whose_memory_is_elsewhere_are_not_handed_on():
    moe = layer()
    weight = moe.shared.down_proj.weight.detach()
    moe.shared.down_proj.weight = nn.Parameter(TwoTensor(weight, weight))
    assert moe.shared.plain_weights() is None


def test_a_linear_layer_of_another_kind_is_not_plain():
    assert is_plain(nn.Linear(2, 3), nn.Linear)
    assert not is_plain(nn.LazyLinear(3), nn.Linear)
