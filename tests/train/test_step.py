"""One step's loss and gradients: the same however the global batch is divided."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_layers import randomise_
from tiny_run import biases_of, gradients_of, random_batch, split_rows, tiny_config

from moeworks.config import (
    BalanceConfig,
    CapacityConfig,
    LayerPatternConfig,
    MixtureOfAttentionConfig,
    RunConfig,
)
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.losses import (
    StepTotals,
    balance_losses,
    load_counts,
    step_totals,
    switch_loss,
    total_balance_loss,
)
from moeworks.ops.mtp import mtp_loss
from moeworks.ops.routing import Routing
from moeworks.parallel.world import World
from moeworks.train import step
from moeworks.train.step import StepLosses, accumulate_gradients, routers_of, update_routers
from moeworks.train.trainer import build_model

CLOSE = dict(rtol=1e-10, atol=1e-10)
INVARIANT = dict(
    global_batch_coef=0.5, sequence_coef=0.3, z_coef=0.2, device_coef=0.4, communication_coef=0.3,
    entropy_coef=0.2, importance_coef=0.1, num_devices=2,
)  # fmt: skip
"""Every loss that does not depend on how the step is cut, and needs no noise."""


def balance_only(**fields: float) -> dict:
    return dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0) | fields


def build(config: RunConfig) -> Decoder:
    torch.manual_seed(0)
    return randomise_(build_model(config, torch.device("cpu")), std=0.3).train()


def one_step(config: RunConfig, parts: int, batch=None) -> tuple[StepLosses, dict[str, torch.Tensor]]:
    model = build(config)
    batches = split_rows(random_batch() if batch is None else batch, parts)
    losses = accumulate_gradients(model, batches, config, World())
    return losses, gradients_of(model)


def assert_same_step(got, want) -> None:
    losses, grads = got
    expected, expected_grads = want
    torch.testing.assert_close(losses.loss, expected.loss, **CLOSE)
    assert torch.equal(losses.counts_lE, expected.counts_lE)
    torch.testing.assert_close(losses.dropped_l, expected.dropped_l, **CLOSE)
    torch.testing.assert_close(losses.balance, expected.balance, **CLOSE)
    torch.testing.assert_close(grads, expected_grads, **CLOSE)


# Division into micro-batches.


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulation_gives_the_same_step(texts, parts, checkpointing):
    """Also with rows of unequal numbers of valid tokens, where a mean of means is wrong."""
    config = tiny_config(
        texts, balance=INVARIANT, train=dict(activation_checkpointing=checkpointing, accumulation=parts)
    )
    assert_same_step(one_step(config, parts), one_step(tiny_config(texts, balance=INVARIANT), 1))


@pytest.mark.parametrize("score", ["sigmoid", "sqrtsoftplus"])
def test_accumulation_with_other_scores(texts, score):
    config = tiny_config(texts, balance=INVARIANT, router=dict(score=score))
    assert_same_step(one_step(config, 4), one_step(config, 1))


def test_micro_batch_of_padding_alone_changes_nothing(texts):
    batch = random_batch()
    batch = replace(batch, valid_BL=batch.valid_BL & (torch.arange(4) < 3)[:, None])
    config = tiny_config(texts, balance=INVARIANT)
    assert_same_step(one_step(config, 4, batch), one_step(config, 1, batch))


def test_padding_tokens_have_no_say(texts):
    """Other tokens in the padding give the same loss, counts and gradients."""
    batch = random_batch()
    other = replace(batch, tokens_BL=torch.where(batch.valid_BL, batch.tokens_BL, 7))
    config = tiny_config(texts, balance=INVARIANT)
    assert_same_step(one_step(config, 2, other), one_step(config, 2, batch))


# What the loss is.


def test_loss_is_the_mean_cross_entropy_of_valid_tokens_and_nothing_else(texts):
    batch = random_batch()
    for coefs in (INVARIANT, balance_only()):
        config = tiny_config(texts, balance=coefs)
        losses, _ = one_step(config, 2)
        logits = build(config)(batch.tokens_BL, document_ids_BL=batch.document_ids_BL).logits_BLV
        expected = F.cross_entropy(logits[batch.valid_BL], batch.targets_BL[batch.valid_BL])
        torch.testing.assert_close(losses.loss, expected, **CLOSE)


def test_gradient_is_that_of_cross_entropy_plus_balance(texts):
    config = tiny_config(texts, balance=INVARIANT)
    _, grads = one_step(config, 2)
    model, batch = build(config), random_batch()
    output = model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL)
    loss = F.cross_entropy(output.logits_BLV[batch.valid_BL], batch.targets_BL[batch.valid_BL])
    balance = balance_losses(output.routings, config.balance)
    (loss + total_balance_loss(balance, config.balance)).backward()
    torch.testing.assert_close(grads, gradients_of(model), **CLOSE)


def test_balance_losses_have_their_names_and_no_coefficient(texts):
    losses, _ = one_step(tiny_config(texts, balance=INVARIANT), 2)
    doubled = {name: 2 * value for name, value in INVARIANT.items() if name.endswith("_coef")}
    doubled["num_devices"] = 2
    again, _ = one_step(tiny_config(texts, balance=doubled), 2)
    names = {name.removesuffix("_coef") for name in INVARIANT if name.endswith("_coef")}
    assert set(losses.balance) == names
    torch.testing.assert_close(losses.balance, again.balance, **CLOSE)


def test_switch_loss_is_the_token_weighted_mean_over_micro_batches(texts):
    config = tiny_config(texts, balance=balance_only(switch_coef=0.4))
    losses, grads = one_step(config, 2)
    model, whole, weighted, total = build(config), 0.0, 0.0, random_batch().valid_BL.sum()
    for batch in split_rows(random_batch(), 2):
        output = model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL)
        share = batch.valid_BL.sum() / total
        switch = torch.stack([switch_loss(routing) for routing in output.routings]).mean()
        weighted = weighted + share * switch
        nats = F.cross_entropy(output.logits_BLV[batch.valid_BL], batch.targets_BL[batch.valid_BL])
        whole = whole + share * (nats + 0.4 * switch)
    whole.backward()
    torch.testing.assert_close(losses.balance["switch"].float(), weighted.detach().float())
    torch.testing.assert_close(grads, gradients_of(model), rtol=1e-6, atol=1e-8)


def test_global_batch_loss_of_micro_batches_is_the_switch_loss_of_all(texts):
    losses, _ = one_step(tiny_config(texts, balance=balance_only(global_batch_coef=1.0)), 4)
    whole, _ = one_step(tiny_config(texts, balance=balance_only(switch_coef=1.0)), 1)
    torch.testing.assert_close(losses.balance["global_batch"], whole.balance["switch"], **CLOSE)


def test_dropped_is_the_share_of_the_whole_step(texts):
    config = tiny_config(texts, balance=INVARIANT, model=dict(capacity=CapacityConfig(capacity_factor=0.5)))
    losses, _ = one_step(config, 1)
    assert losses.dropped_l.shape == (2,)
    assert (losses.dropped_l >= 0.5 - 0.1).all()
    assert (losses.dropped_l < 1).all()


# What it costs.


def passes(config: RunConfig, parts: int) -> int:
    model, calls = build(config), []

    def counted(*args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return model(*args, **kwargs)

    accumulate_gradients(counted, split_rows(random_batch(), parts), config, World())
    assert calls.count(True) == parts
    return len(calls)


def test_coefficients_of_0_cost_nothing(texts):
    config = tiny_config(texts, balance=balance_only())
    assert passes(config, 4) == 4
    losses, _ = one_step(config, 4)
    assert losses.balance == {}


@pytest.mark.parametrize("loss", ["global_batch", "device", "communication", "entropy", "importance"])
def test_losses_of_the_whole_step_look_ahead_with_accumulation_only(texts, loss):
    config = tiny_config(texts, balance=balance_only(num_devices=2, **{f"{loss}_coef": 1.0}))
    assert passes(config, 1) == 1
    assert passes(config, 4) == 8


@pytest.mark.parametrize("loss", ["switch", "sequence", "z"])
def test_other_losses_never_look_ahead(texts, loss):
    assert passes(tiny_config(texts, balance=balance_only(**{f"{loss}_coef": 1.0})), 4) == 4


def test_looking_ahead_draws_the_same_noise_as_the_pass_that_learns(texts):
    config = tiny_config(texts, balance=INVARIANT, router=dict(noisy_top_k=True, input_jitter=0.3))
    model, seen = build(config), []

    def recorded(*args, **kwargs):
        output = model(*args, **kwargs)
        seen.append(torch.stack([r.router_logits_TE.detach() for r in output.routings]))
        return output

    accumulate_gradients(recorded, split_rows(random_batch(padding=False), 2), config, World())
    ahead, learnt = seen[:2], seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(ahead, learnt, strict=True))
    assert not torch.equal(learnt[0], learnt[1])


# Other models.


def test_dense_model_has_no_counts_and_no_balance(texts):
    dense = dict(pattern=LayerPatternConfig(explicit=()))
    config = tiny_config(texts, balance=INVARIANT, model=dense)
    losses, _ = one_step(config, 2)
    assert losses.counts_lE.numel() == losses.dropped_l.numel() == 0
    assert losses.balance == {}
    assert_same_step(one_step(config, 4), one_step(config, 1))


def test_bfloat16_is_autocast_around_a_float32_router(texts):
    configs = [
        tiny_config(texts, balance=INVARIANT, train=dict(precision=p)) for p in ("bfloat16", "float32")
    ]
    (low, low_grads), (full, _) = (one_step(config, 2) for config in configs)
    assert {grad.dtype for grad in low_grads.values()} == {torch.float32}
    assert float(low.loss) != float(full.loss)
    torch.testing.assert_close(low.loss, full.loss, rtol=0.03, atol=0.03)
    torch.testing.assert_close(low.balance, full.balance, rtol=0.1, atol=0.05)


# The loss-free bias.


def statistics(counts_lE: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"tokens_per_expert": counts_E} for counts_E in counts_lE]


def test_bias_moves_towards_the_starved(texts):
    model = build(tiny_config(texts))
    before = biases_of(model)
    counts = torch.tensor([[9, 1, 5, 5], [0, 0, 0, 8]])
    update_routers(routers_of(model), statistics(counts), BalanceConfig(bias_rule="sign", bias_rate=0.25))
    steps = torch.tensor([[-0.25, 0.25, 0, 0], [0.25, 0.25, 0.25, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(biases_of(model) - before, steps)


def test_without_a_rule_or_a_bias_nothing_moves(texts):
    counts = torch.tensor([[9, 1, 5, 5], [0, 0, 0, 8]])
    model = build(tiny_config(texts))
    before = biases_of(model)
    update_routers(routers_of(model), statistics(counts), BalanceConfig(bias_rule="none"))
    assert torch.equal(biases_of(model), before)
    plain = build(tiny_config(texts, router=dict(selection_bias=False), balance=dict(bias_rule="none")))
    update_routers(routers_of(plain), statistics(counts), BalanceConfig(bias_rule="sign"))
    assert all(moe.router.expert_bias is None for moe in moe_modules(plain))


def test_layers_must_match_the_counts(texts):
    model = build(tiny_config(texts))
    with pytest.raises(ValueError, match="shorter"):
        update_routers(routers_of(model), statistics(torch.ones(1, 4)), BalanceConfig(bias_rule="sign"))


# Multi-token prediction.


def mtp_config(texts, **groups) -> RunConfig:
    return tiny_config(texts, model=dict(num_mtp_layers=2), **groups)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_mtp_layers_add_their_loss_however_the_step_is_cut(texts, parts):
    config, batch = mtp_config(texts, balance=INVARIANT), random_batch()
    losses, grads = one_step(config, parts, batch)
    model = build(config)
    output = model(
        batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL, ahead=True
    )
    valid = batch.valid_BL.sum()
    documents, ahead_BLD = batch.document_ids_BL, output.ahead_BLD
    ahead = mtp_loss(ahead_BLD, output.head, batch.targets_BL, batch.valid_BL, documents) / valid
    torch.testing.assert_close(losses.mtp, ahead, **CLOSE)
    balance = total_balance_loss(balance_losses(output.routings[:2], config.balance), config.balance)
    cross_entropy = F.cross_entropy(
        output.logits_BLV.flatten(0, 1), batch.targets_BL.flatten(), reduction="none"
    )
    loss = (cross_entropy * batch.valid_BL.flatten()).sum() / valid
    (loss + balance + 0.3 * ahead).backward()
    torch.testing.assert_close(losses.loss, loss, **CLOSE)
    torch.testing.assert_close(grads, gradients_of(model), **CLOSE)


def test_the_biases_of_mtp_layers_move_too(texts):
    config = mtp_config(texts)
    model = build(config)
    before = biases_of(model)
    losses = accumulate_gradients(model, [random_batch()], config, World(), routers_of(model))
    assert losses.counts_lE.shape[0] == len(moe_modules(model)) == 4
    update_routers(routers_of(model), losses.statistics, config.balance)
    assert all(not torch.equal(a, b) for a, b in zip(before, biases_of(model), strict=True))


def test_without_weight_they_learn_nothing_and_without_layers_there_is_no_loss(texts):
    _, grads = one_step(mtp_config(texts, train=dict(mtp_coef=0.0)), 1)
    assert all(not gradient.any() for name, gradient in grads.items() if name.startswith("mtp."))
    losses, _ = one_step(tiny_config(texts), 1)
    assert losses.mtp == 0


# The pass ahead and the pass that learns.


@pytest.mark.parametrize("noise", [dict(gumbel_noise=1.0), dict(input_jitter=0.3), dict(noisy_top_k=True)])
@pytest.mark.parametrize("mtp", [0, 1])
def test_both_passes_draw_the_same_random_numbers(texts, monkeypatch, noise, mtp):
    """The loads of the pass ahead are those of the pass that learns, which alone runs the MTP layers."""
    ahead: list[torch.Tensor] = []
    learning: list[torch.Tensor] = []

    def recorded(routing: Routing, config: BalanceConfig) -> StepTotals:
        ahead.append(load_counts(routing))
        return step_totals(routing, config)

    config = tiny_config(
        texts, model=dict(num_mtp_layers=mtp), router=noise, balance=dict(global_batch_coef=0.1)
    )
    model, batches = build(config), split_rows(random_batch(), 4)
    monkeypatch.setattr(step, "step_totals", recorded)

    def counted(routings: Sequence[Routing], *rest: Any) -> dict[str, torch.Tensor]:
        learning.extend(load_counts(r) for r in routings)
        return balance_losses(routings, *rest)

    monkeypatch.setattr(step, "balance_losses", counted)
    accumulate_gradients(model, batches, config, World(), routers_of(model))
    assert len(ahead) == len(learning) == 8
    for expected, found in zip(learning, ahead, strict=True):
        assert torch.equal(expected, found)


# Mixtures of attention.


def attention_config(texts, **balance) -> RunConfig:
    mixer = MixtureOfAttentionConfig(num_kv_heads=2, head_dim=4, num_experts=4)
    model = dict(attention=mixer, pattern=LayerPatternConfig(explicit=()))
    router = dict(selection_bias=False)
    return tiny_config(texts, model=model, router=router, balance=dict(bias_rule="none") | balance)


def test_a_mixture_of_attention_is_balanced_and_counted(texts):
    """Its router learns from the balance loss of its own decisions, which padding does not enter."""
    off = attention_config(texts, **balance_only())
    losses, plain = one_step(off, 1)
    assert losses.balance == {}
    on = attention_config(texts, **balance_only(global_batch_coef=0.5))
    losses, grads = one_step(on, 1)
    batch, model = random_batch(), build(on)
    output = model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL)
    wanted = torch.stack([switch_loss(r) for r in output.attention_routings]).mean()
    torch.testing.assert_close(losses.balance["global_batch"], wanted.detach(), **CLOSE)
    changed = [name for name in grads if not torch.allclose(grads[name], plain[name], atol=1e-12)]
    assert "layers.1.attention.router.proj.weight" in changed or any("router" in name for name in changed)
    valid = int(batch.valid_BL.sum())
    assert [int(counts.sum()) for counts in losses.attention_counts] == [2 * valid] * on.model.num_layers


@pytest.mark.parametrize("parts", [2, 4])
def test_a_mixture_of_attention_has_the_same_step_in_parts(texts, parts):
    config = attention_config(texts, global_batch_coef=0.5, z_coef=0.1, sequence_coef=0.2)
    got, want = one_step(config, parts), one_step(config, 1)
    assert_same_step(got, want)
    for cut, whole in zip(got[0].attention_counts, want[0].attention_counts, strict=True):
        assert torch.equal(cut, whole)
