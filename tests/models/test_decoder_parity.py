"""A training step of the whole decoder against straight_loop: loss and every gradient, in float64."""

import pytest
import straight_loop
import straight_losses
import torch
import torch.nn.functional as F
from random_layers import assert_same, gradients, randomise_

from moeworks import BalanceConfig, Decoder, ModelConfig, balance_losses, total_balance_loss
from moeworks.config.model import (
    CapacityConfig,
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    RouterConfig,
    SharedExpertsConfig,
)

# All different: equal tokens at the start of a document have equal router probabilities, and which of them a
# full expert drops would be decided by rounding.
TOKENS = [[1, 5, 2, 8, 3], [4, 9, 0, 7, 6]]
TARGETS = [[5, 2, 8, 3, 9], [9, 0, 7, 6, 1]]
DOCUMENTS = [[0, 0, 1, 1, 1], [3, 3, 3, 3, 3]]
VALID = [[True] * 5, [True, True, True, True, False]]
BALANCE = BalanceConfig(
    switch_coef=0.1,
    global_batch_coef=0.2,
    sequence_coef=0.3,
    device_coef=0.1,
    communication_coef=0.1,
    entropy_coef=0.2,
    importance_coef=0.1,
    z_coef=0.05,
    num_devices=2,
)
DEEPSEEK_LIKE = ModelConfig(
    vocab_size=10,
    d_model=8,
    num_layers=3,
    max_seq_len=8,
    attention=GQAConfig(num_heads=2, num_kv_heads=1, qkv_bias=True),
    pattern=LayerPatternConfig(first_dense=1),
    mlp=MLPConfig(d_ff=6, mlp_bias=True),
    router=RouterConfig(
        num_experts=6,
        top_k=3,
        score="sigmoid",
        selection_bias=True,
        routing_scale=1.5,
        num_groups=2,
        top_k_groups=1,
    ),
    experts=ExpertsConfig(d_expert=4),
    shared=SharedExpertsConfig(num_shared_experts=1, shared_token_gate=True),
    capacity=CapacityConfig(capacity_factor=1.0, drop_policy="probability"),
)
MIXTRAL_LIKE = ModelConfig(
    vocab_size=10,
    d_model=8,
    num_layers=2,
    max_seq_len=5,
    tie_embeddings=False,
    attention=GQAConfig(num_heads=2, num_kv_heads=2, qk_norm=False, mask_documents=False, rope_theta=100.0),
    router=RouterConfig(num_experts=4, top_k=2, score_order="after_top_k"),
    experts=ExpertsConfig(d_expert=3, activation="relu2", expert_linear_bias=True),
)


def library_loss(model: Decoder) -> torch.Tensor:
    output = model(
        torch.tensor(TOKENS), document_ids_BL=torch.tensor(DOCUMENTS), valid_BL=torch.tensor(VALID)
    )
    targets = torch.tensor(TARGETS).masked_fill(~torch.tensor(VALID), -100)
    cross_entropy = F.cross_entropy(output.logits_BLV.flatten(0, 1), targets.flatten())
    return cross_entropy + total_balance_loss(balance_losses(output.routings, BALANCE), BALANCE)


def straight_loss(model: Decoder) -> torch.Tensor:
    weights = straight_loop.named_weights(model)
    logits, records = straight_loop.decoder(TOKENS, weights, model.config, documents=DOCUMENTS, valid=VALID)
    places = [(b, i) for b in range(2) for i in range(5) if VALID[b][i]]
    cross_entropy = straight_losses.cross_entropy(
        [logits[b][i] for b, i in places], [TARGETS[b][i] for b, i in places]
    )
    return cross_entropy + straight_losses.balance(records, BALANCE)


@pytest.mark.parametrize("config", [DEEPSEEK_LIKE, MIXTRAL_LIKE], ids=["deepseek_like", "mixtral_like"])
def test_training_step_equals_the_straight_loop(config):
    torch.manual_seed(0)
    model = randomise_(Decoder(config, backend="reference").double())
    want_loss = straight_loss(model)
    want = gradients(want_loss, model) | {"loss": want_loss}
    assert all(gradient.any() for gradient in want.values())
    for backend in ("reference", "sorted"):
        for layer in config.moe_layers:
            model.layers[layer].mlp.experts.backend = backend
        loss = library_loss(model)
        assert_same(gradients(loss, model) | {"loss": loss}, want, 1e-10)
