import pytest
import straight_loop
import torch
from random_layers import randomise_

from moeworks.layers.mlp import MLP


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "geglu", "relu", "gelu", "relu2"])
def test_equals_the_straight_loop(activation, bias):
    torch.manual_seed(0)
    mlp = randomise_(MLP(6, 5, activation, bias=bias).double())
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    parts = straight_loop.linear_names(straight_loop.named_weights(mlp))
    want = torch.stack([straight_loop.feed_forward(token, parts, activation) for token in x.view(6, 6)])
    torch.testing.assert_close(mlp(x), want.view(2, 3, 6), rtol=1e-12, atol=1e-12)


def test_parameter_names():
    assert set(MLP(6, 5, "swiglu").state_dict()) == {"gate_up_proj.weight", "down_proj.weight"}
    assert set(MLP(6, 5, "relu2", bias=True).state_dict()) == {
        "up_proj.weight",
        "up_proj.bias",
        "down_proj.weight",
        "down_proj.bias",
    }
