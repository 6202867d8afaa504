"""The policy-gradient router: what it samples, what it learns, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from random_layers import make_config
from tiny_run import tiny_config

from moeworks import BalanceConfig, MoE, balance_losses
from moeworks.config.choices import PolicyGradientChoice
from moeworks.config.count import count_parameters
from moeworks.errors import ConfigError
from moeworks.layers.policy_gradient import PolicyGradientRouter
from moeworks.models.decoder import Decoder

BALANCE = BalanceConfig()


def make_router(**options) -> PolicyGradientRouter:
    choice = options.pop("choice", PolicyGradientChoice())
    torch.manual_seed(0)
    config = make_config(**dict(choice=choice, num_experts=4, top_k=1) | options)
    return PolicyGradientRouter(config, 4)


def test_it_samples_in_training_and_is_greedy_in_evaluation():
    router = make_router(top_k=2)
    x = torch.randn(1, 4).expand(20_000, 4)
    routing = router(x)
    first = torch.bincount(routing.expert_ids_TK[:, 0], minlength=4) / 20_000
    torch.testing.assert_close(first, routing.router_probs_TE[0].detach(), rtol=0, atol=0.02)
    assert (routing.expert_ids_TK[:, 0] != routing.expert_ids_TK[:, 1]).all()
    assert not routing.ranked
    greedy = router.eval()(x[:2])
    assert greedy.expert_ids_TK.tolist() == [routing.router_probs_TE[0].topk(2).indices.tolist()] * 2
    assert greedy.baseline_T is None


def test_with_one_expert_only_the_reward_trains_the_router():
    """Renormalised weights are 1: the output's gradient does not reach it, the policy's does."""
    moe = MoE(make_config(choice=PolicyGradientChoice(), top_k=1))
    y, routing = moe(torch.randn(9, 8))
    assert (
        torch.autograd.grad(y.sum(), moe.router.weight, allow_unused=True, retain_graph=True)[0].abs().max()
        < 1e-6
    )
    rewarded = replace(routing, token_losses_T=torch.rand(9))
    loss = moe.router.losses(rewarded)["policy"]
    assert torch.autograd.grad(loss, moe.router.weight)[0].abs().sum() > 0


def test_a_bandit_problem_is_learned():
    """Tokens of four kinds, and for each one expert whose loss is 0 where the others' is 1."""
    router = make_router(choice=PolicyGradientChoice(policy_coef=1.0, baseline_coef=1.0, entropy_coef=0.001))
    kinds = torch.arange(64) % 4
    x, right = torch.eye(4)[kinds] * 2, (kinds + 1) % 4
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(150):
        routing = router(x)
        routing = replace(routing, token_losses_T=(routing.expert_ids_TK[:, 0] != right).float())
        loss = sum(router.coefficients[name] * term / 64 for name, term in router.losses(routing).items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            router.update(router.statistics(routing, BALANCE), BALANCE)
    assert torch.equal(router.eval()(x).expert_ids_TK[:, 0], right)
    assert float(router.mean_reward) > -0.2
    # The baseline expects what each kind earns now.
    assert (router.train()(x).baseline_T - router.mean_reward).abs().max() < 0.3


def test_the_running_mean_of_the_reward():
    router = make_router(choice=PolicyGradientChoice(reward_decay=0.5))
    routing = router(torch.randn(3, 4))
    valid = torch.tensor([True, True, False])
    for losses, want in (([2.0, 4.0, 0.0], -3.0), ([1.0, 1.0, 0.0], -2.0)):
        record = replace(routing, valid_T=valid, token_losses_T=torch.tensor(losses))
        router.update(router.statistics(record, BALANCE), BALANCE)
        assert float(router.mean_reward) == want


def test_without_rewards_it_says_what_is_missing():
    router = make_router()
    with pytest.raises(ConfigError, match=r"routing.token_losses_T = None: a policy-gradient router learns"):
        router.losses(router(torch.randn(3, 4)))


def test_balance_losses_reach_it():
    router = make_router()
    routing = router(torch.randn(30, 4))
    balance_losses([routing], BalanceConfig(switch_coef=1.0))["switch"].backward()
    assert router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "options", [dict(score="sigmoid"), dict(selection_bias=True), dict(num_groups=2, top_k_groups=2),
                dict(gumbel_noise=1.0)], ids=str,
)  # fmt: skip
def test_options_that_would_change_the_policy_are_refused(options):
    with pytest.raises(ConfigError, match="choice = 'policy_gradient': experts are drawn from the softmax"):
        make_config(choice=PolicyGradientChoice(), **options)


@pytest.mark.parametrize("name", ["policy_coef", "baseline_coef", "entropy_coef"])
def test_coefficients_are_checked(name):
    with pytest.raises(ConfigError, match=f"router.choice.{name} = -1"):
        PolicyGradientChoice(**{name: -1.0})
    with pytest.raises(ConfigError, match=r"router.choice.reward_decay = 1.0"):
        PolicyGradientChoice(reward_decay=1.0)


def test_the_baseline_is_counted(tmp_path):
    model = tiny_config(tmp_path, router=dict(choice=PolicyGradientChoice(), selection_bias=False),
                        balance=dict(bias_rule="none")).model  # fmt: skip
    assert count_parameters(model).total == sum(p.numel() for p in Decoder(model).parameters())
    assert count_parameters(model).router == 2 * (4 * 16 + 16)


def test_multi_token_prediction_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"num_mtp_layers = 1: must be 0 with router.choice = 'policy_grad"):
        tiny_config(tmp_path, router=dict(choice=PolicyGradientChoice(), selection_bias=False),
                    balance=dict(bias_rule="none"), model=dict(num_mtp_layers=1))  # fmt: skip


def test_the_baseline_stays_exact_in_bfloat16():
    router = make_router()
    router.mean_reward.fill_(-7.654321)
    assert router.bfloat16().mean_reward.dtype == torch.float32
    assert router(torch.randn(3, 4, dtype=torch.bfloat16)).baseline_T.dtype == torch.float32
