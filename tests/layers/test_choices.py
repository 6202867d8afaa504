"""Each choice of the linear router as a loop over tokens and experts: outputs, weights and gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_layers import assert_same, gradients, make_config, random_moe
from scipy.optimize import linear_sum_assignment

from moeworks import balance_losses, total_balance_loss
from moeworks.config import (
    AssignmentChoice,
    BalanceConfig,
    ExpertChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)

E, T = 5, 11
BALANCE = BalanceConfig()


def expert_choice(logits, probs, top_k):
    count = math.ceil(T * top_k / E - 1e-9)
    taken = [sorted(range(T), key=lambda t, e=e: -probs[t][e])[:count] for e in range(E)]
    return [[e for e in range(E) if t in taken[e]] for t in range(T)]


def expert_choice_by_sequence(logits, probs, top_k):
    chosen = [[] for _ in range(T)]
    for members in (range(4), range(4, T)):  # the sequences of the test below
        count = max(math.ceil(len(members) * top_k / E - 1e-9), 1)
        for e in range(E):
            for t in sorted(members, key=lambda t, e=e: -probs[t][e])[:count]:
                chosen[t].append(e)
    return chosen


def sinkhorn(logits, probs, top_k):
    plan = np.exp(np.array(logits) / 0.5)
    for _ in range(7):
        plan *= T / E / plan.sum(0)
        plan /= plan.sum(1, keepdims=True)
    return [sorted(range(E), key=lambda e, row=row: -row[e])[:top_k] for row in plan]


def assignment(logits, probs, top_k):
    wide = np.repeat(np.array(logits), math.ceil(T / E), axis=1)
    rows, columns = linear_sum_assignment(wide, maximize=True)
    found = dict(zip(rows, columns, strict=True))
    return [[int(found[t] // math.ceil(T / E))] for t in range(T)]


def top_p(logits, probs, top_k):
    chosen = []
    for row in probs:
        ordered, total, own = sorted(range(E), key=lambda e, row=row: -row[e]), 0.0, []
        while len(own) < top_k and total < 0.6:
            own.append(ordered[len(own)])
            total += row[own[-1]]
        chosen.append(own)
    return chosen


def threshold(logits, probs, top_k):
    return [
        [e for e in sorted(range(E), key=lambda e, r=row: -r[e]) if row[e] >= 0.2][:top_k] for row in probs
    ]


CASES = {
    "expert_choice": (expert_choice, dict(choice=ExpertChoice(), top_k=2)),
    "expert_choice_plain_weights": (expert_choice, dict(choice=ExpertChoice(), top_k=2, renormalize=False)),
    "expert_choice_sigmoid": (expert_choice, dict(choice=ExpertChoice(), top_k=2, score="sigmoid")),
    "expert_choice_sequence": (
        expert_choice_by_sequence,
        dict(choice=ExpertChoice(scope="sequence", causal="no"), top_k=2),
    ),
    "sinkhorn": (sinkhorn, dict(choice=SinkhornChoice(iterations=7, temperature=0.5), top_k=2)),
    "assignment": (assignment, dict(choice=AssignmentChoice(), top_k=1, score="sigmoid", renormalize=False)),
    "top_p": (top_p, dict(choice=TopPChoice(p=0.6), top_k=4)),
    "threshold": (threshold, dict(choice=ThresholdChoice(threshold=0.2, min_experts=0), top_k=4)),
}


def by_loops(moe, x, chosen):
    """y and the mean weights: the chosen experts' scores, renormalised, times SwiGLU blocks."""
    config, rows = moe.config, []
    for t in range(T):
        logits = moe.router.weight @ x[t]
        scores = logits.sigmoid() if config.score == "sigmoid" else logits.softmax(0)
        total = sum(scores[e] for e in chosen[t]) if config.renormalize else 1.0
        y = torch.zeros_like(x[t])
        for e in chosen[t]:
            gate, up = (moe.experts.gate_up_proj[e] @ x[t]).chunk(2)
            y = y + scores[e] / total * (moe.experts.down_proj[e] @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("choose", "options"), CASES.values(), ids=CASES)
def test_as_the_loop_forward_and_backward(choose, options, seed):
    moe = random_moe(make_config(num_experts=E, **options), seed=seed).train()
    x = torch.randn(T, 8, dtype=torch.float64, requires_grad=True)
    sequences = (torch.arange(T) >= 4).long()
    y, routing = moe(x, sequence_ids=sequences)
    logits = (x @ moe.router.weight.t()).detach()
    probs = logits.sigmoid() if moe.config.score == "sigmoid" else logits.softmax(1)
    chosen = choose(logits.tolist(), probs.tolist(), moe.config.top_k)
    got = [[i for i in row if i < E] for row in routing.expert_ids_TK.tolist()]
    assert [sorted(row) for row in got] == [sorted(row) for row in chosen]
    assert routing.tokens_per_expert().tolist() == [sum(e in row for row in chosen) for e in range(E)]
    want = by_loops(moe, x, chosen)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(T, 8, dtype=torch.float64)
    assert_same(gradients((y * upstream).sum(), moe, x), gradients((want * upstream).sum(), moe, x), 1e-9)


@pytest.mark.parametrize("options", [options for _, options in CASES.values()], ids=CASES)
def test_weights_sum_to_1_where_they_are_renormalised(options):
    moe = random_moe(make_config(num_experts=E, **options)).train()
    _, routing = moe(torch.randn(T, 8, dtype=torch.float64))
    filled_TK = torch.ones_like(routing.expert_ids_TK, dtype=torch.bool)
    filled_TK = filled_TK if routing.filled_TK is None else routing.filled_TK
    if moe.config.renormalize:
        want = filled_TK.any(1).double()
        torch.testing.assert_close(routing.routing_weights_TK.sum(1), want)
    assert (routing.routing_weights_TK[~filled_TK] == 0).all()
    assert (filled_TK[:, 1:] <= filled_TK[:, :-1]).all()  # empty slots come last


@pytest.mark.parametrize("choice", [SinkhornChoice(), AssignmentChoice()])
def test_global_choices_are_greedy_in_evaluation(choice):
    moe = random_moe(make_config(choice=choice)).eval()
    plain = random_moe(make_config()).eval()
    x = torch.randn(7, 8, dtype=torch.float64)
    assert torch.equal(moe(x)[1].expert_ids_TK, plain(x)[1].expert_ids_TK)
    torch.testing.assert_close(moe(x)[0], plain(x)[0])


def test_a_token_that_every_expert_wants_and_fewer_slots():
    moe = random_moe(
        make_config(num_experts=4, choice=ExpertChoice(max_experts=3), top_k=1, renormalize=False)
    )
    x = torch.randn(8, 8, dtype=torch.float64)
    _, routing = moe(x)
    assert routing.expert_ids_TK.shape == (8, 3)
    assert routing.tokens_per_expert().max() <= 2


# State.


def one_update(moe, x) -> None:
    router = moe.router
    router.update(router.statistics(moe(x)[1], BALANCE), BALANCE)


def test_cutoffs_are_a_running_mean_of_the_last_score_taken():
    moe = random_moe(make_config(num_experts=4, choice=ExpertChoice(momentum=0.5)))
    router = moe.router
    router.choice.cutoffs.zero_()
    router.choice.updates.zero_()
    want = torch.zeros(4, dtype=torch.float64)
    for number in range(4):
        x = torch.randn(8, 8, dtype=torch.float64)
        probs = (x @ router.weight.t()).softmax(1)
        last = probs.sort(0, descending=True).values[3]  # ceil(8 * 2 / 4) tokens an expert
        want += max(0.5, 1 / (number + 1)) * (last - want)
        one_update(moe, x)
        torch.testing.assert_close(router.choice.cutoffs.double(), want.detach(), rtol=1e-6, atol=1e-6)


def test_cutoffs_balance_unseen_tokens():
    torch.manual_seed(0)
    moe = random_moe(make_config(num_experts=8, choice=ExpertChoice(momentum=0.9)))
    moe.router.choice.cutoffs.zero_()
    moe.router.choice.updates.zero_()
    for _ in range(40):
        one_update(moe, torch.randn(256, 8, dtype=torch.float64))
    moe.eval()
    loads = moe(torch.randn(4096, 8, dtype=torch.float64))[1].tokens_per_expert()
    assert loads.sum() / 4096 == pytest.approx(2.0, rel=0.05)
    assert loads.max() / loads.double().mean() < 1.15


def test_before_the_first_update_tokens_take_their_best_experts():
    moe = random_moe(make_config(choice=ExpertChoice(causal="always")))
    moe.router.choice.updates.zero_()
    x = torch.randn(7, 8, dtype=torch.float64)
    want = random_moe(make_config())(x)[1]
    assert torch.equal(moe(x)[1].expert_ids_TK[:, :2], want.expert_ids_TK)
    assert (moe(x)[1].expert_ids_TK[:, 2:] == 6).all()


def test_a_threshold_finds_the_wanted_number():
    choice = ThresholdChoice(threshold=0.5, mean_experts=2.5, rate=0.2)
    torch.manual_seed(0)
    moe = random_moe(make_config(num_experts=8, top_k=6, choice=choice))
    moe.router.choice.threshold.fill_(0.5)
    for _ in range(60):
        one_update(moe, torch.randn(512, 8, dtype=torch.float64))
    routing = moe(torch.randn(2048, 8, dtype=torch.float64))[1]
    assert routing.num_assignments() / 2048 == pytest.approx(2.5, rel=0.1)


def test_the_state_of_choices_stays_float32_and_is_saved():
    moe = random_moe(make_config(choice=ExpertChoice()), dtype=torch.float32).bfloat16()
    assert moe.router.choice.cutoffs.dtype == torch.float32
    assert {"router.choice.cutoffs", "router.choice.updates"} <= set(moe.state_dict())
    assert (
        "router.choice.cutoffs" not in random_moe(make_config(choice=ExpertChoice(causal="no"))).state_dict()
    )


def test_the_dual_bias_balances_unseen_tokens():
    torch.manual_seed(0)
    moe = random_moe(make_config(num_experts=8, selection_bias=True))
    with torch.no_grad():
        moe.router.weight[0] += 1.0
    moe.router.expert_bias.zero_()
    balance = BalanceConfig(bias_rule="quantile", bias_rate=0.3, bias_recentre=True)
    valid = torch.arange(256) % 5 != 0

    def max_vio() -> float:
        loads = moe.eval()(torch.randn(4096, 8, dtype=torch.float64))[1].tokens_per_expert()
        return float(loads.max() / loads.double().mean() - 1)

    before = max_vio()
    for _ in range(30):
        x = torch.randn(256, 8, dtype=torch.float64)
        x[~valid] = 9.0
        routing = moe.train()(x, valid=valid)[1]
        moe.router.update(moe.router.statistics(routing, balance), balance)
    assert before > 0.4
    assert max_vio() < 0.15
    assert moe.router.expert_bias.mean().abs() < 1e-6


def test_device_limited_routing_and_the_losses_of_devices():
    """Groups are devices (DeepSeek-V2, section 2.2.2): a token reaches top_k_groups of them at most."""
    config = make_config(num_experts=8, top_k=4, num_groups=4, top_k_groups=2, group_score="max")
    moe = random_moe(config)
    _, routing = moe(torch.randn(64, 8, dtype=torch.float64))
    devices_TK = (routing.expert_ids_TK // 2).tolist()
    assert max(len(set(row)) for row in devices_TK) == 2
    balance = BalanceConfig(global_batch_coef=0.0, num_devices=4, device_coef=0.1, communication_coef=0.1)
    losses = balance_losses([routing], balance)
    assert losses.keys() == {"device", "communication"}
    total_balance_loss(losses, balance).backward()
    assert moe.router.weight.grad.any()
