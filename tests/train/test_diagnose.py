"""Finding the module whose output is not finite."""

import pytest
import torch
from random_layers import make_config, random_moe
from torch import nn

from moeworks.train.diagnose import first_nonfinite_module


class Spoil(nn.Module):
    """Adds a value to what it is given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.value


def chain(*values: float) -> nn.Sequential:
    return nn.Sequential(*(Spoil(value) for value in values))


def first(model: nn.Module, x: torch.Tensor | None = None) -> str | None:
    return first_nonfinite_module(model, lambda: model(torch.zeros(2, 8) if x is None else x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_of_several_is_named(value):
    assert first(chain(1.0, value, 2.0, torch.nan)) == "1"


def test_all_finite_is_none():
    assert first(chain(1.0, 2.0)) is None


def test_inner_modules_come_before_those_that_hold_them():
    assert first(nn.Sequential(nn.Identity(), chain(0.0, torch.nan))) == "1.1"


@pytest.mark.parametrize(
    ("parameter", "module"), [("router.weight", "router"), ("experts.down_proj", "experts")]
)
def test_router_is_seen_through_its_routing(parameter, module):
    moe = random_moe(make_config())
    moe.get_parameter(parameter).data.fill_(torch.nan)
    assert first(moe, torch.randn(3, 8, dtype=torch.float64)) == module


def test_nothing_is_left_behind():
    model = chain(torch.nan)
    first(model)
    assert not any(module._forward_hooks for module in model.modules())

    def fail() -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        first_nonfinite_module(model, fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_graph_is_built():
    grads = []
    model = nn.Sequential(nn.Linear(8, 8))
    first_nonfinite_module(model, lambda: grads.append(model(torch.ones(1, 8)).requires_grad))
    assert grads == [False]
