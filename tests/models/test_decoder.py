import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_layers import assert_same, gradients, randomise_

from moeworks import BalanceConfig, Decoder, ModelConfig, MoE, balance_losses, total_balance_loss
from moeworks.config.choices import ExpertChoice
from moeworks.config.model import CapacityConfig, ExpertsConfig, GQAConfig, LayerPatternConfig, RouterConfig
from moeworks.errors import ConfigError
from moeworks.models.decoder import moe_modules

SMALL = ModelConfig(
    vocab_size=50,
    d_model=16,
    num_layers=3,
    max_seq_len=24,
    attention=GQAConfig(num_heads=4, num_kv_heads=2),
    pattern=LayerPatternConfig(first_dense=1),
    router=RouterConfig(num_experts=6, top_k=2),
    experts=ExpertsConfig(d_expert=8),
)
BALANCE = BalanceConfig(switch_coef=0.1, sequence_coef=0.1, z_coef=0.01)


def make_model(config: ModelConfig = SMALL, dtype: torch.dtype = torch.float64) -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(config).to(dtype), std=0.3)


def random_tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def training_loss(model: Decoder, tokens: torch.Tensor, **options) -> tuple[torch.Tensor, tuple]:
    output = model(tokens, **options)
    cross_entropy = F.cross_entropy(output.logits_BLV[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    balance = total_balance_loss(balance_losses(output.routings, BALANCE), BALANCE)
    return cross_entropy + balance, output.routings


def test_one_routing_per_moe_layer_over_all_tokens():
    output = make_model()(random_tokens())
    assert output.logits_BLV.shape == (2, 12, 50)
    assert len(output.routings) == 2
    assert all(r.expert_ids_TK.shape == (24, 2) for r in output.routings)


def test_moe_modules_lists_the_moe_layers_in_order():
    model = make_model()
    assert moe_modules(model) == [model.layers[1].mlp, model.layers[2].mlp]
    assert all(isinstance(m, MoE) for m in moe_modules(model))


def test_no_position_sees_a_later_one():
    model, tokens = make_model(), random_tokens()
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(tokens).logits_BLV, model(changed).logits_BLV
    assert_close(after[:, :7], before[:, :7])
    assert (after[:, 7:] - before[:, 7:]).abs().amax() > 1e-3


def test_a_packed_row_equals_its_documents_apart():
    model, row = make_model(), random_tokens(1, 12)
    documents = torch.tensor([[0] * 3 + [1] * 4 + [2] * 5])
    packed = model(row, document_ids_BL=documents).logits_BLV
    start = 0
    for length in (3, 4, 5):
        # Alone a document starts at position 0: rotary scores know distances, up to their float32 table.
        alone = model(row[:, start : start + length]).logits_BLV
        assert_close(packed[:, start : start + length], alone, 1e-5)
        others = (row + 7) % 50
        others[:, start : start + length] = row[:, start : start + length]
        same = model(others, document_ids_BL=documents).logits_BLV
        assert_close(packed[:, start : start + length], same[:, start : start + length])
        start += length


def test_the_switch_lets_attention_cross_documents():
    model, tokens = make_model(), random_tokens()
    documents = (torch.arange(12) // 5).expand(2, 12)
    plain = model(tokens).logits_BLV
    assert (model(tokens, document_ids_BL=documents).logits_BLV - plain).abs().max() > 1e-3
    config = replace(SMALL, attention=replace(SMALL.attention, mask_documents=False))
    crossing = make_model(config)
    assert torch.equal(crossing(tokens, document_ids_BL=documents).logits_BLV, crossing(tokens).logits_BLV)


def test_every_document_of_every_row_is_a_sequence():
    tokens = random_tokens(2, 6)
    documents = torch.tensor([[5, 5, 6, 6, 6, 7], [5, 5, 5, 7, 7, 7]])
    ids = make_model()(tokens, document_ids_BL=documents).routings[0].sequence_ids_T
    pairs = [(b, d) for b, row in enumerate(documents.tolist()) for d in row]
    assert len(set(zip(ids.tolist(), pairs, strict=True))) == len(set(pairs)) == len(set(ids.tolist()))
    rows = make_model()(tokens).routings[0].sequence_ids_T
    assert rows.tolist() == [0] * 6 + [1] * 6


def test_padding_changes_neither_logits_nor_losses():
    model, tokens = make_model(replace(SMALL, capacity=CapacityConfig(capacity_factor=1.0))), random_tokens()
    padded = F.pad(tokens, (0, 4), value=3)
    valid = F.pad(torch.ones_like(tokens, dtype=torch.bool), (0, 4))
    plain, output = model(tokens), model(padded, valid_BL=valid)
    assert_close(output.logits_BLV[:, :12], plain.logits_BLV)
    for name, loss in balance_losses(plain.routings, BALANCE).items():
        assert_close(balance_losses(output.routings, BALANCE)[name], loss)


@pytest.mark.parametrize("noise", [False, True])
def test_activation_checkpointing_changes_nothing(noise):
    router = replace(SMALL.router, noisy_top_k=noise, input_jitter=0.1 * noise)
    model = make_model(replace(SMALL, router=router, capacity=CapacityConfig(capacity_factor=1.0)))
    tokens, documents = random_tokens(), (torch.arange(12) // 5).expand(2, 12)
    results = []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(3)
        loss, routings = training_loss(model, tokens, document_ids_BL=documents)
        counts = torch.stack([r.tokens_per_expert() for r in routings])
        results.append(gradients(loss, model) | {"loss": loss, "counts": counts})
    assert_same(results[1], results[0], 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_dtypes_train(dtype):
    model = make_model(dtype=dtype)
    loss, routings = training_loss(model, random_tokens())
    assert routings[0].router_logits_TE.dtype == torch.float32
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients(loss, model).values())


def test_autocast_is_close_to_float32():
    model, tokens = make_model(dtype=torch.float32), random_tokens()
    loss, _ = training_loss(model, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast_loss, routings = training_loss(model, tokens)
    assert routings[0].router_logits_TE.dtype == torch.float32
    assert autocast_loss.item() == pytest.approx(loss.item(), rel=0.03)
    assert all(g.isfinite().all() for g in gradients(autocast_loss, model).values())


def test_positions_beyond_the_limit_are_an_error():
    with pytest.raises(ConfigError, match=r"positions = 25: exceed model\.max_seq_len = 24"):
        make_model()(random_tokens(1, 25))


def test_tied_and_untied_heads():
    tied, untied = Decoder(SMALL), Decoder(replace(SMALL, tie_embeddings=False))
    assert "lm_head.weight" not in tied.state_dict()
    assert untied.state_dict()["lm_head.weight"].shape == (50, 16)
    assert "rope" not in tied.state_dict()


def test_a_dense_model_has_no_routings():
    model = make_model(replace(SMALL, pattern=LayerPatternConfig(explicit=())))
    assert model(random_tokens()).routings == ()


def test_logits_at_the_start_are_near_uniform():
    torch.manual_seed(0)
    model, tokens = Decoder(replace(SMALL, d_model=64, vocab_size=500)), torch.randint(500, (4, 24))
    logits = model(tokens).logits_BLV
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(500, (96,)))
    assert loss.item() == pytest.approx(math.log(500), rel=0.02)


def test_a_few_steps_learn_a_repeating_text():
    torch.manual_seed(0)
    model, tokens = Decoder(SMALL), (torch.arange(24) % 7).expand(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = training_loss(model, tokens)
        loss.backward()
        optimizer.step()
    logits = model(tokens).logits_BLV
    assert F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item() < 0.3


LOOKING_AHEAD = RouterConfig(num_experts=6, top_k=2, choice=ExpertChoice(causal="no"))


@pytest.mark.parametrize(
    "options",
    [
        dict(pattern=LayerPatternConfig(explicit=(0, 1), shortcut=True)),
        dict(pattern=LayerPatternConfig(explicit=(2,)), num_mtp_layers=1),
        dict(),
    ],
    ids=["shortcut", "mtp", "plain"],
)
def test_evaluation_refuses_experts_that_look_ahead_wherever_they_are(options):
    model = make_model(replace(SMALL, router=LOOKING_AHEAD, **options))
    model.train()(random_tokens())
    with pytest.raises(ConfigError, match=r"experts choose among all tokens"):
        model.eval()(random_tokens())


@torch.no_grad()
def test_packed_documents_and_documents_alone_agree_to_float64():
    model, tokens = make_model().eval(), random_tokens()
    documents = torch.arange(12).div(5, rounding_mode="floor").expand(2, 12)
    packed = model(tokens, document_ids_BL=documents).logits_BLV
    alone = [model(tokens[:, start : start + 5]).logits_BLV for start in (0, 5, 10)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-12, atol=1e-12)
