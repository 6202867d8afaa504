"""Losses that routers bring along: part of the step, however it is cut, and not of the cross-entropy."""

import json
from dataclasses import replace

import pytest
import straight_policy
import torch
import torch.nn.functional as F
from random_layers import randomise_
from tiny_run import gradients_of, random_batch, split_rows, tiny_config, tiny_trainer

import moeworks.layers.policy_gradient as policy_gradient
from moeworks.config.choices import PolicyGradientChoice
from moeworks.models.decoder import Decoder
from moeworks.ops.cross_entropy import linear_cross_entropies, linear_cross_entropy
from moeworks.parallel.world import World
from moeworks.train.loop import Interval
from moeworks.train.step import accumulate_gradients, router_losses, routers_of
from moeworks.train.trainer import build_model

CLOSE = dict(rtol=1e-9, atol=1e-9)
CHOICE = PolicyGradientChoice(policy_coef=0.3, baseline_coef=0.2, entropy_coef=0.1)


def policy_config(texts, **groups):
    balance = dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none")
    router = dict(choice=groups.pop("choice", CHOICE), selection_bias=False)
    return tiny_config(texts, router=router, balance=balance | groups.pop("balance", {}), **groups)


def build(config) -> Decoder:
    torch.manual_seed(0)
    return randomise_(build_model(config, torch.device("cpu")), std=0.3).train()


@pytest.fixture
def noise_by_content(monkeypatch):
    """Noise that is a function of a token's logits: the same draws however the batch is cut."""

    def noise(logits_TE):
        return -(-((logits_TE.detach() * 1e4).sin().abs().clamp(0.001, 0.999)).log()).log()

    monkeypatch.setattr(policy_gradient, "gumbel_like", noise)


def step_of(config, batches):
    model = build(config)
    return accumulate_gradients(model, batches, config, World(), routers_of(model)), gradients_of(model)


def test_a_step_is_the_formula(texts, noise_by_content):
    """Cross-entropy plus the mean over tokens and layers of the policy's losses, from a plain loop."""
    config, batch = policy_config(texts), random_batch()
    losses, grads = step_of(config, [batch])
    model = build(config)
    output = model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL)
    valid, tokens = batch.valid_BL.flatten(), batch.valid_BL.sum()
    each = F.cross_entropy(output.logits_BLV.flatten(0, 1), batch.targets_BL.flatten(), reduction="none")
    cross_entropy = each[valid].sum() / tokens
    own = dict.fromkeys(("policy", "baseline", "entropy"), 0.0)
    for routing in output.routings:
        terms = straight_policy.policy_losses(
            routing.router_logits_TE, routing.expert_ids_TK, each.detach(), routing.baseline_T, valid
        )
        for name, term in terms.items():
            own[name] = own[name] + term / tokens / len(output.routings)
    total = cross_entropy + 0.3 * own["policy"] + 0.2 * own["baseline"] + 0.1 * own["entropy"]
    model.zero_grad()
    total.backward()
    torch.testing.assert_close(losses.loss, cross_entropy.detach(), **CLOSE)
    torch.testing.assert_close(losses.router, {name: term.detach() for name, term in own.items()}, **CLOSE)
    torch.testing.assert_close(grads, gradients_of(model), **CLOSE)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_give_the_same_step(texts, noise_by_content, parts, checkpointing):
    """Rows of unequal numbers of valid tokens; also the statistics that move the baseline's mean."""
    config = policy_config(texts, train=dict(activation_checkpointing=checkpointing, accumulation=parts))
    batch = random_batch()
    got, got_grads = step_of(config, split_rows(batch, parts))
    want, want_grads = step_of(policy_config(texts), [batch])
    torch.testing.assert_close(got.loss, want.loss, **CLOSE)
    torch.testing.assert_close(got.router, want.router, **CLOSE)
    torch.testing.assert_close(got_grads, want_grads, **CLOSE)
    torch.testing.assert_close(got.statistics, want.statistics, **CLOSE)


def test_recomputation_draws_the_same_experts(texts):
    """With the real noise, activation checkpointing changes nothing."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        config = policy_config(texts, train=dict(activation_checkpointing=checkpointing))
        model = build(config)
        torch.manual_seed(4)
        accumulate_gradients(model, [random_batch()], config, World(), routers_of(model))
        results.append(gradients_of(model))
    torch.testing.assert_close(*results, **CLOSE)


def test_without_coefficients_it_is_the_plain_step(texts, noise_by_content):
    zero = PolicyGradientChoice(policy_coef=0.0, baseline_coef=0.0, entropy_coef=0.0)
    config, batch = policy_config(texts, choice=zero), random_batch()
    losses, grads = step_of(config, [batch])
    model = build(config)
    plain = accumulate_gradients(model, [batch], config, World())
    torch.testing.assert_close(losses.loss, plain.loss, **CLOSE)
    torch.testing.assert_close(grads, gradients_of(model), **CLOSE)
    assert plain.router == {}


def test_padding_has_no_say(texts, noise_by_content):
    config, batch = policy_config(texts), random_batch()
    other = replace(batch, targets_BL=torch.where(batch.valid_BL, batch.targets_BL, 7))
    got, got_grads = step_of(config, [other])
    want, want_grads = step_of(config, [batch])
    torch.testing.assert_close(got.router, want.router, **CLOSE)
    torch.testing.assert_close(got_grads, want_grads, **CLOSE)


def test_the_metrics_name_them_and_keep_them_out_of_the_loss(texts, corpus, noise_by_content):
    trainer = tiny_trainer(policy_config(texts), corpus)
    step = trainer.step()
    assert set(step.losses.router) == {"policy", "baseline", "entropy"}
    # The model starts out knowing nothing: log of 264 tokens, and no policy loss in it.
    assert abs(float(step.losses.loss) - 5.58) < 0.2
    assert float(trainer.model.layers[0].mlp.router.mean_reward) == pytest.approx(-float(step.losses.loss))


def test_the_line_of_metrics(texts, corpus):
    trainer = tiny_trainer(policy_config(texts), corpus)
    interval = Interval()
    interval.add(trainer.step(), 1.0, trainer.config)
    record = json.loads(json.dumps(interval.records(trainer, 1e-3)[0]))
    assert set(record["router"]) == {"policy", "baseline", "entropy"}
    assert record["balance"] == {}


def test_models_without_such_routers_report_none(texts, corpus):
    assert tiny_trainer(tiny_config(texts), corpus).step().losses.router == {}
    assert router_losses((), ()) == ({}, 0.0)


@pytest.mark.parametrize("gradient", [True, False])
def test_cross_entropies_of_each_token(gradient):
    torch.manual_seed(0)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=gradient)
    head = torch.randn(11, 4, dtype=torch.float64, requires_grad=gradient)
    targets, scale = torch.randint(11, (9,)), torch.rand(9, dtype=torch.float64)
    summed, each = linear_cross_entropies(hidden, head, targets, scale)
    want = F.cross_entropy(hidden @ head.t(), targets, reduction="none") * scale
    torch.testing.assert_close(each, want.detach())
    torch.testing.assert_close(summed, linear_cross_entropy(hidden, head, targets, scale))
    assert not each.requires_grad
    if gradient:
        got, expected = (
            torch.autograd.grad(summed, (hidden, head)),
            torch.autograd.grad(want.sum(), (hidden, head)),
        )
        torch.testing.assert_close(got, expected)
