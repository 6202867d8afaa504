import pytest
import torch
from random_layers import make_config, make_routing

from moeworks.errors import ConfigError
from moeworks.layers.experts import Experts


def routing(tokens: int = 5):
    torch.manual_seed(0)
    return make_routing(torch.randn(tokens, 6), num_experts=6)


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        ("swiglu", {"gate_up_proj": (6, 8, 8), "down_proj": (6, 8, 4)}),
        ("geglu", {"gate_up_proj": (6, 8, 8), "down_proj": (6, 8, 4)}),
        ("relu", {"up_proj": (6, 4, 8), "down_proj": (6, 8, 4)}),
    ],
)
def test_parameter_names_and_shapes(activation, names):
    experts = Experts(make_config(activation=activation))
    assert {name: tuple(p.shape) for name, p in experts.named_parameters()} == names


def test_bias_names_and_shapes():
    gated = Experts(make_config(expert_linear_bias=True))
    assert tuple(gated.gate_up_bias.shape) == (6, 8)
    assert tuple(gated.down_bias.shape) == (6, 8)
    assert tuple(Experts(make_config(expert_linear_bias=True, activation="gelu")).up_bias.shape) == (6, 4)


def test_reset_parameters_zeroes_biases():
    experts = Experts(make_config(expert_linear_bias=True))
    torch.nn.init.ones_(experts.down_bias)
    experts.reset_parameters()
    assert not experts.down_bias.any() and not experts.gate_up_bias.any()


def test_an_unknown_backend_is_named():
    # ConfigError; with the test-only type checker that checker's error, as the name is not in the Literal.
    with pytest.raises(Exception, match="fastest"):
        Experts(make_config(), backend="fastest")(torch.randn(5, 8), routing())


def test_a_backend_that_cannot_serve_says_why():
    experts = Experts(make_config(), backend="grouped_mm").double()
    with pytest.raises(ConfigError, match=r"backend = 'grouped_mm': .*no float64"):
        experts(torch.randn(5, 8).double(), routing())


def test_the_output_has_the_parameters_dtype():
    experts = Experts(make_config()).bfloat16()
    assert experts(torch.randn(5, 8), routing()).dtype == torch.bfloat16
