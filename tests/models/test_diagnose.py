"""Finding the module whose output is not finite."""

import re

import pytest
import torch
from random_layers import make_config, random_moe
from tiny_run import BYTES
from torch import nn

from moeworks.config import ExpertsConfig, GQAConfig, ModelConfig, RouterConfig
from moeworks.models.decoder import Decoder
from moeworks.models.diagnose import first_nonfinite_module, not_finite_after


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


def test_experts_that_a_token_must_not_have_are_no_fault():
    """Their logits are -inf by design."""
    moe = random_moe(make_config(num_experts=4, pools=("0-1", "2-3")))
    x = torch.randn(3, 8, dtype=torch.float64)
    types = torch.tensor([0, 1, 1])
    assert first_nonfinite_module(moe, lambda: moe(x, token_types=types)) is None
    x[1] = torch.inf
    assert first_nonfinite_module(moe, lambda: moe(x, token_types=types)) == "router"


def broken(name: str, value: float, token: int | None = None) -> Decoder:
    """A model with a parameter of that value; of its row `token` alone where one is given."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=BYTES, d_model=8, num_layers=3, max_seq_len=16, tie_embeddings=False,
        attention=GQAConfig(num_heads=2, num_kv_heads=2), router=RouterConfig(num_experts=4, top_k=2),
        experts=ExpertsConfig(d_expert=8),
    )  # fmt: skip
    model = Decoder(config).eval()
    parameter = model.get_parameter(name)
    (parameter if token is None else parameter[token]).data.fill_(value)
    return model


@pytest.mark.parametrize(
    ("name", "value", "token", "place", "where"),
    [
        ("embed.weight", torch.nan, 7, 2, "output of embed"),
        ("layers.1.mlp.router.weight", torch.nan, None, 0, "layer 1, mlp.router"),
        ("layers.2.mlp.experts.down_proj", torch.inf, None, 0, "layer 2, mlp.experts"),
        ("layers.0.attention.o_proj.weight", torch.nan, None, 0, "layer 0, attention.o_proj"),
        ("lm_head.weight", -torch.inf, 3, 0, "logits of the output head lm_head"),
    ],
)
def test_where_a_model_breaks(name, value, token, place, where):
    error = str(not_finite_after(broken(name, value, token), [5, 6, 7, 8], "the logits are not finite"))
    assert error.startswith(f"the logits are not finite: first at token {place} of 4 ")
    assert f"{where}; " in error and re.search(rf"\d values of {name} are not finite", error)


def test_numbers_that_overflow():
    """The weights are finite; what they make is not."""
    model = broken("layers.1.mlp.experts.gate_up_proj", 3e38)
    error = str(not_finite_after(model, [5, 6, 7, 8], "the logits are not finite"))
    assert "layer 1, mlp.experts; its weights are finite, so numbers overflow there in float32" in error


def test_what_a_second_pass_does_not_repeat():
    error = not_finite_after(broken("final_norm.weight", 1.0), [5, 6], "the logits are not finite")
    assert str(error).endswith("in a second pass, over all tokens at once, everything was finite")
