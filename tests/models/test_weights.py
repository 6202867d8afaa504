import pytest
import torch
from random_layers import make_config, random_moe

from moeworks.errors import CheckpointError
from moeworks.models.weights import load_weights


def make_moe(seed: int = 0):
    config = make_config(selection_bias=True, num_shared_experts=1)
    return random_moe(config, dtype=torch.float32, seed=seed)


def test_every_parameter_and_buffer_is_filled():
    source, model = make_moe(0), make_moe(1)
    load_weights(model, source.state_dict(), "file")
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_model_keeps_tensors_of_its_own():
    source, model = make_moe(0), make_moe(1)
    load_weights(model, source.state_dict(), "file")
    before = source.router.weight.clone()
    torch.nn.init.zeros_(model.router.weight)
    assert torch.equal(source.router.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("router.expert_bias"), r"router\.expert_bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), r"extra is unknown to the model"),
        (
            lambda t: t.update({"router.weight": torch.zeros(5, 8)}),
            r"router\.weight has shape \(5, 8\), the model wants \(6, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_filled(change, message):
    tensors, model = dict(make_moe(0).state_dict()), make_moe(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=rf"^somewhere: a checkpoint of another config: {message}$"):
        load_weights(model, tensors, "somewhere")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(CheckpointError, match=r"; and 1 more$"):
        load_weights(make_moe(), {}, "somewhere")
