"""Blocks hold what the Routing records hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import random_batch, tiny_config, write_texts

from moeworks.config import CapacityConfig, LayerPatternConfig, ModelConfig, RouterConfig
from moeworks.errors import ConfigError, NotFiniteError
from moeworks.models.decoder import Decoder
from moeworks.ops.scoring import route
from moeworks.trace import token_columns
from moeworks.trace.header import LAYER_FIELDS
from moeworks.trace.record import choice_margin, model_header, record, router_entropy


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Decoder:
    torch.manual_seed(0)
    config = tiny_config(write_texts(tmp_path_factory.mktemp("record") / "texts")).model
    return Decoder(config).double().eval().requires_grad_(False)


def test_of_a_forward_pass(model):
    batch = random_batch()
    header = model_header(model.config, LAYER_FIELDS, model="tiny", step=3)
    output = model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL)
    tokens = token_columns(batch.tokens_BL.numel(), token_id=batch.tokens_BL.flatten().numpy())
    block = record(output.routings, tokens, header)
    valid = batch.valid_BL.flatten()
    assert (header.num_experts, header.top_k, header.layers, header.step) == (4, 2, (0, 1), 3)
    assert len(block.tokens) == int(valid.sum()) < valid.numel()
    assert block.tokens.token_id.tolist() == batch.tokens_BL[batch.valid_BL].tolist()
    for routing, layer in zip(output.routings, block.layers, strict=True):
        assert layer.ids.dtype == np.uint8
        assert layer.ids.tolist() == routing.expert_ids_TK[valid].tolist()
        assert np.array_equal(layer.weights, routing.routing_weights_TK[valid].half().numpy())
        assert np.array_equal(layer.logits, routing.router_logits_TE[valid].half().numpy())
        assert layer.kept.all()
        entropy = torch.distributions.Categorical(routing.router_probs_TE[valid]).entropy()
        np.testing.assert_allclose(layer.entropy, entropy.numpy(), rtol=1e-3)


def test_padding_can_stay_and_is_marked(model):
    batch = random_batch()
    output = model(batch.tokens_BL, valid_BL=batch.valid_BL)
    tokens = token_columns(batch.tokens_BL.numel())
    block = record(output.routings, tokens, model_header(model.config), keep_padding=True)
    assert block.tokens.valid.tolist() == batch.valid_BL.flatten().tolist()
    assert tokens.valid.all()  # the argument is left alone


def test_dropped_assignments(model):
    config = ModelConfig(**vars(model.config) | {"capacity": CapacityConfig(eval_capacity_factor=0.5)})
    limited = Decoder(config).double().eval()
    output = limited(random_batch(padding=False).tokens_BL)
    block = record(output.routings, token_columns(48), model_header(config, ["kept"]))
    for routing, layer in zip(output.routings, block.layers, strict=True):
        assert layer.kept.tolist() == routing.kept_TK.tolist()
        assert not layer.kept.all()


def test_more_than_256_experts():
    config = RouterConfig(num_experts=300, top_k=4)
    routing = route(torch.randn(20, 300), config)
    header = model_header(ModelConfig(router=config))
    block = record([routing] * 4, token_columns(20), header)
    assert block.layers[0].ids.dtype == np.uint16
    assert block.layers[0].ids.tolist() == routing.expert_ids_TK.tolist()


@given(st.integers(1, 6), st.integers(0, 99))
def test_margin_is_that_of_the_sorted_logits(top_k, seed):
    """Without bias and groups."""
    logits = torch.randn(9, 6, generator=torch.Generator().manual_seed(seed))
    routing = route(logits, RouterConfig(num_experts=6, top_k=top_k, renormalize=top_k > 1))
    margin = choice_margin(logits, routing.expert_ids_TK)
    assert torch.equal(choice_margin(logits, routing.expert_ids_TK, variable=False), margin)
    ordered = logits.sort(dim=1, descending=True).values
    if top_k == 6:
        assert margin.isinf().all()
    else:
        torch.testing.assert_close(margin, ordered[:, top_k - 1] - ordered[:, top_k])


def test_margin_is_negative_where_a_bias_overruled():
    logits = torch.tensor([[3.0, 2.0, 0.0]])
    config = RouterConfig(num_experts=3, top_k=2, selection_bias=True)
    routing = route(logits, config, expert_bias_E=torch.tensor([0.0, 0.0, 9.0]))
    assert choice_margin(logits, routing.expert_ids_TK).tolist() == [-2.0]


def test_entropy_of_uniform_certain_and_sigmoid_scores():
    scores = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5] * 4])
    expected = [np.log(4), 0, np.log(4)]  # sigmoid scores are normalised first
    np.testing.assert_allclose(router_entropy(scores).numpy(), expected, atol=1e-6)


def test_large_logits_stay_finite():
    routing = route(torch.tensor([[1e6, 0.0, -1e6]]), RouterConfig(num_experts=3, top_k=2))
    header = model_header(
        ModelConfig(num_layers=1, router=RouterConfig(num_experts=3, top_k=2)), ["logits", "margin"]
    )
    layer = record([routing], token_columns(1), header).layers[0]
    assert layer.logits.tolist() == [[65504, 0, -65504]]
    assert layer.margin.tolist() == [65504]


def test_a_dense_model_and_rows_that_do_not_fit(model):
    dense = ModelConfig(**vars(model.config) | {"pattern": LayerPatternConfig(explicit=())})
    with pytest.raises(ConfigError, match="has no MoE layer"):
        model_header(dense)
    output = model(random_batch().tokens_BL)
    with pytest.raises(ConfigError, match="routing rows = 48: must be the 3 tokens"):
        record(output.routings, token_columns(3), model_header(model.config))


def test_routing_that_is_not_finite_is_an_error(model):
    """It says at which token of which document; padding does not matter."""
    batch = random_batch()
    output = model(batch.tokens_BL, valid_BL=batch.valid_BL)
    count, header = batch.tokens_BL.numel(), model_header(model.config)
    tokens = token_columns(count, position=np.arange(count) % 7, document=np.arange(count) // 7)
    padding = int((~batch.valid_BL.flatten()).nonzero()[0])
    output.routings[1].router_logits_TE[padding] = torch.nan
    record(output.routings, tokens, header)
    output.routings[1].router_logits_TE[9] = torch.nan
    with pytest.raises(NotFiniteError, match="router of layer 1 is not finite at token 2 of document 1:"):
        record(output.routings, tokens, header)


@pytest.mark.parametrize("scores", [torch.zeros(1, 8), torch.full((1, 8), 1e-40)])
def test_entropy_of_scores_that_have_underflowed(scores):
    assert router_entropy(scores).item() == pytest.approx(np.log(8), abs=1e-5)
