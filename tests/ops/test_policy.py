"""The policy-gradient losses against a plain loop, and against the gradient that they estimate."""

import itertools
from dataclasses import replace

import pytest
import straight_policy
import torch
from random_layers import make_routing

from moeworks.ops.policy import log_probability, policy_losses


def random_case(tokens: int, experts: int, top_k: int):
    torch.manual_seed(0)
    logits = torch.randn(tokens, experts, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(tokens) % 3 != 1
    routing = make_routing(logits, top_k=top_k, valid_T=valid)
    losses = torch.rand(tokens, dtype=torch.float64) * 5
    baseline = torch.randn(tokens, dtype=torch.float64, requires_grad=True)
    return logits, routing, losses, baseline, valid


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_formulas(top_k):
    logits, routing, losses, baseline, valid = random_case(7, 4, top_k)
    got = policy_losses(routing, losses, baseline)
    want = straight_policy.policy_losses(logits, routing.expert_ids_TK, losses, baseline, valid)
    for name in ("policy", "baseline", "entropy"):
        torch.testing.assert_close(got[name], want[name])
        for leaf in (logits, baseline):
            one, other = (
                torch.autograd.grad(
                    term[name], leaf, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                for term in (got, want)
            )
            torch.testing.assert_close(one[0], other[0])


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("baseline", [0.0, -2.5])
def test_its_expected_gradient_is_that_of_the_expected_loss(top_k, baseline):
    """Over every ordered draw of one token; the baseline changes the variance and not the mean."""
    torch.manual_seed(1)
    logits = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    actions = list(itertools.permutations(range(4), top_k))
    loss_of = {action: torch.rand(1, dtype=torch.float64) * 5 for action in actions}
    routing = make_routing(logits, top_k=top_k)
    estimate = torch.zeros_like(logits)
    expected = torch.zeros((), dtype=torch.float64)
    total = 0.0
    for action in actions:
        ids = torch.tensor([action])
        chance = straight_policy.log_pi(logits[0], list(action)).exp()
        total += chance.item()
        expected = expected + chance * loss_of[action].item()
        taken = replace(routing, expert_ids_TK=ids)
        terms = policy_losses(taken, loss_of[action], torch.full((1,), baseline, dtype=torch.float64))
        estimate += chance.detach() * torch.autograd.grad(terms["policy"], logits, retain_graph=True)[0]
    assert total == pytest.approx(1.0)
    torch.testing.assert_close(estimate, torch.autograd.grad(expected, logits)[0])


def test_the_policy_term_does_not_train_the_baseline():
    """And the baseline's term does not train the policy."""
    logits, routing, losses, baseline, _ = random_case(5, 3, 1)
    terms = policy_losses(routing, losses, baseline)
    assert torch.autograd.grad(terms["policy"], baseline, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(terms["baseline"], logits, retain_graph=True, allow_unused=True) == (None,)


def test_halves_add_up_to_the_whole():
    _, routing, losses, baseline, _ = random_case(8, 4, 2)
    whole = policy_losses(routing, losses, baseline)
    sums = dict.fromkeys(whole, 0.0)
    for rows in (slice(0, 3), slice(3, 8)):
        part = replace(
            routing,
            expert_ids_TK=routing.expert_ids_TK[rows],
            router_logits_TE=routing.router_logits_TE[rows],
            valid_T=routing.valid_T[rows],
        )
        for name, value in policy_losses(part, losses[rows], baseline[rows]).items():
            sums[name] = sums[name] + value
    for name, value in whole.items():
        torch.testing.assert_close(sums[name], value)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0]], requires_grad=True)
    value = log_probability(logits, torch.tensor([[0, 1, 2, 3]])).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
