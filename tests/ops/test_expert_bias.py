"""Loss-free balancing: the closed form of one update, and what a hundred of them do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks import BalanceConfig, updated_expert_bias


def update(bias: list[float], counts: list[int], dtype=torch.float32, **options) -> torch.Tensor:
    config = BalanceConfig(**{**dict(bias_rule="sign", bias_rate=0.1), **options})
    return updated_expert_bias(torch.tensor(bias, dtype=dtype), torch.tensor(counts), config)


def test_sign_rule():
    torch.testing.assert_close(update([0.5, 0.0, -0.5], [6, 3, 0]), torch.tensor([0.4, 0.0, -0.4]))


def test_proportional_rule():
    got = update([0.5, 0.0, -0.5], [6, 3, 0], bias_rule="proportional")
    torch.testing.assert_close(got, torch.tensor([0.5 - 0.1, 0.0, -0.5 + 0.1]))
    # mean 2: gaps of 1.5, 0 and -1.5 means
    got = update([0.0] * 4, [0, 2, 1, 5], bias_rule="proportional")
    torch.testing.assert_close(got, 0.1 * torch.tensor([1.0, 0.0, 0.5, -1.5]))


def test_proportional_rule_with_fewer_assignments_than_experts():
    got = update([0.0] * 4, [2, 0, 0, 0], bias_rule="proportional")
    torch.testing.assert_close(got, 0.1 * torch.tensor([-3.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_recentring_makes_the_mean_0_and_keeps_differences(rule):
    plain = update([1.0, 2.0, 3.0, 0.5], [9, 1, 1, 1], bias_rule=rule)
    recentred = update([1.0, 2.0, 3.0, 0.5], [9, 1, 1, 1], bias_rule=rule, bias_recentre=True)
    assert recentred.mean().abs() < 1e-7
    torch.testing.assert_close(recentred, plain - plain.mean())


@given(counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=64))
def test_the_sign_is_exact_for_any_counts(counts):
    step = update([0.0] * len(counts), counts, bias_rate=1.0)
    mean = sum(counts) / len(counts)
    exact = [(sum(counts) > c * len(counts)) - (sum(counts) < c * len(counts)) for c in counts]
    assert step.tolist() == exact, mean


def test_no_tokens_move_nothing():
    for rule in ("sign", "proportional"):
        assert update([0.3, -0.3], [0, 0], bias_rule=rule).tolist() == pytest.approx([0.3, -0.3])


def test_the_dtype_is_kept_and_the_input_is_left():
    bias = torch.tensor([0.25, 0.5])
    config = BalanceConfig(bias_rule="sign")
    assert updated_expert_bias(bias, torch.tensor([3, 1]), config).dtype == torch.float32
    assert bias.tolist() == [0.25, 0.5]
    assert update([0.0, 0.0], [3, 1], torch.float64).dtype == torch.float64


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_repeated_updates_balance_a_fixed_router(rule):
    torch.manual_seed(0)
    probs = (torch.randn(2000, 8) + torch.arange(8) * 0.3).sigmoid()
    config = BalanceConfig(bias_rule=rule, bias_rate=0.01)
    bias = torch.zeros(8)
    violation = []
    for _ in range(150):
        counts = torch.bincount((probs + bias).topk(2).indices.reshape(-1), minlength=8)
        violation.append((counts.max() / counts.double().mean() - 1).item())
        bias = updated_expert_bias(bias, counts, config)
    assert violation[0] > 0.5
    assert violation[-1] < 0.1
