"""Many bandits at once against a plain loop over one, and what holds of them whatever the rewards."""

import random
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from straight_bandit import Bandit, sample, ucb1

from moeworks.ops.bandit import (
    BanditState,
    best_arms,
    buckets_of,
    count_plays,
    draw_arms,
    greedy_arms,
    learn,
    plan_rounds,
)
from moeworks.ops.fixed import draws

U, E = 5, 6


def fresh(buckets: int = U, arms: int = E) -> BanditState:
    shapes = {f.name: (buckets, arms) if f.name.endswith("UE") else (buckets,) for f in fields(BanditState)}
    return BanditState(**{name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})


def stepped(state: BanditState, plays, *, top_k: int, discount: float, decay: float) -> BanditState:
    """One step of learning from (bucket, arms, reward) triples."""
    buckets = torch.tensor([u for u, _, _ in plays], dtype=torch.int64)
    arms = torch.tensor([ids for _, ids, _ in plays], dtype=torch.int64).view(-1, top_k)
    rewards = torch.tensor([r for _, _, r in plays], dtype=torch.float64)
    taken, gained = count_plays(buckets, arms, rewards, state.counts_UE.shape, None)
    return learn(state, taken, gained, top_k=top_k, discount=discount, decay=decay)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(1, 3),
    rounds=st.integers(1, 5),
    exploration=st.sampled_from([0.0, 0.3, 2.0]),
    discount=st.sampled_from([0.5, 0.99, 1.0]),
    decay=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_it_is_the_plain_loop(seed, top_k, rounds, exploration, discount, decay):
    """Several steps, in which every play takes the arms of a random round of its bandit's plan."""
    rng = random.Random(seed)
    bandits, state = [Bandit(E, top_k, u) for u in range(U)], fresh()
    for _ in range(6):
        plans = [b.plan(rounds, exploration) for b in bandits]
        got = plan_rounds(state, rounds=rounds, top_k=top_k, exploration=exploration)
        assert got.tolist() == plans
        assert greedy_arms(state, torch.arange(U), top_k).tolist() == [b.greedy() for b in bandits]
        # Bandit 0 never plays, and some others not in every step. Eighths add up exactly, in any order.
        buckets = [rng.randrange(1, U) for _ in range(rng.randrange(12))]
        plays = [(u, rng.choice(plans[u]), rng.randrange(-40, 0) / 8) for u in buckets]
        for u, bandit in enumerate(bandits):
            bandit.learn([(arms, r) for v, arms, r in plays if v == u], discount, decay)
        state = stepped(state, plays, top_k=top_k, discount=discount, decay=decay)
        close = dict(rtol=1e-9, atol=1e-9)
        want = [torch.tensor(v, dtype=torch.float64) for v in (
            [b.count for b in bandits], [b.total for b in bandits], [b.steps for b in bandits],
            [b.baseline for b in bandits], [b.weight for b in bandits],
        )]  # fmt: skip
        for field, value in zip(fields(BanditState), want, strict=True):
            torch.testing.assert_close(getattr(state, field.name), value, **close)


def test_one_play_a_step_is_ucb1():
    """Auer et al. 2002: with the baseline kept at 0, arms are taken as often as in the textbook."""
    means, state = [0.1, 0.9, 0.5], fresh(1, 3)
    for _ in range(120):
        arm = int(plan_rounds(state, rounds=1, top_k=1, exploration=2**0.5))
        reward = torch.tensor([means[arm]], dtype=torch.float64)
        taken, gained = count_plays(torch.tensor([0]), torch.tensor([[arm]]), reward, (1, 3), None)
        counts, rewards = state.counts_UE + taken, state.rewards_UE + gained
        state = replace(state, counts_UE=counts, rewards_UE=rewards, steps_U=state.steps_U + 1)
    assert state.counts_UE[0].tolist() == ucb1(means, 120)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-50, 50))
def test_what_all_rewards_share_has_no_say(seed, shift):
    rng, states = random.Random(seed), [fresh(), fresh()]
    for _ in range(4):
        plays = [(rng.randrange(U), rng.sample(range(E), 2), rng.gauss(0, 1)) for _ in range(9)]
        states = [
            stepped(s, [(u, a, r + add) for u, a, r in plays], top_k=2, discount=0.9, decay=0.8)
            for s, add in zip(states, (0.0, shift), strict=True)
        ]
    torch.testing.assert_close(states[0].rewards_UE, states[1].rewards_UE, rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(0, 9))
def test_plays_add_up_over_parts_of_a_step(seed, cut):
    torch.manual_seed(seed)
    buckets, arms = torch.randint(U, (9,)), torch.rand(9, E).argsort(dim=1)[:, :2]
    rewards, valid = torch.randn(9, dtype=torch.float64), torch.rand(9) > 0.3
    whole = count_plays(buckets, arms, rewards, (U, E), valid)
    parts = [
        count_plays(buckets[s], arms[s], rewards[s], (U, E), valid[s])
        for s in (slice(0, cut), slice(cut, None))
    ]
    for total, left, right in zip(whole, *parts, strict=True):
        torch.testing.assert_close(left + right, total)
    assert float(whole[0].sum()) == 2 * int(valid.sum())


@pytest.mark.parametrize(("top_k", "rounds"), [(1, 6), (2, 3), (4, 2)])
def test_at_first_every_arm_is_tried(top_k, rounds):
    """In as few rounds as can be, and evenly over bandits."""
    plan = plan_rounds(fresh(E), rounds=rounds, top_k=top_k, exploration=1.0)
    for bandit in plan:
        assert set(bandit.flatten().tolist()) == set(range(E))
    for number in range(rounds):
        assert torch.bincount(plan[:, number].flatten(), minlength=E).tolist() == [top_k] * E


def test_many_plays_a_step_spread_by_the_bounds():
    """A bandit with a clear best arm gives it nearly all rounds; with a close one, both."""
    state = fresh(2, 3)
    state.counts_UE.fill_(400.0)
    state.steps_U.fill_(1.0)
    state.rewards_UE.copy_(torch.tensor([[400.0, 0.0, 0.0], [4.0, 3.0, -400.0]]))
    plan = plan_rounds(state, rounds=10, top_k=1, exploration=1.0)[:, :, 0].tolist()
    assert plan[0] == [0] * 10
    assert sorted(plan[1]) == [0] * 5 + [1] * 5


def test_ties_go_in_turn():
    ids = best_arms(torch.zeros(3, 4), torch.tensor([0, 1, 7]), 2)
    assert ids.tolist() == [[0, 1], [1, 2], [3, 0]]


def test_arms_that_were_never_taken_come_last_in_evaluation():
    state = fresh(1, 3)
    state.counts_UE.copy_(torch.tensor([[2.0, 0.0, 2.0]]))
    state.rewards_UE.copy_(torch.tensor([[-3.0, 0.0, -1.0]]))
    assert greedy_arms(state, torch.tensor([0]), 3).tolist() == [[2, 0, 1]]


def test_buckets_are_ids_where_they_fit_and_hashes_else():
    ids = torch.arange(1000)
    assert torch.equal(buckets_of(ids, 1000, 1000, 0), ids)
    hashed = buckets_of(ids, 10, 1000, 0)
    assert torch.equal(hashed, buckets_of(ids, 10, None, 0))
    assert torch.bincount(hashed, minlength=10).min() > 60
    assert not torch.equal(hashed, buckets_of(ids, 10, 1000, 1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 4), rounds=st.integers(1, 6))
def test_draws_are_the_plain_line_of_cells(seed, top_k, rounds):
    torch.manual_seed(seed)
    plan = torch.rand(U, rounds, E).argsort(dim=2)[:, :, :top_k]
    buckets, ids = torch.randint(U, (20,)), torch.randint(99, (20,))
    parts = [torch.tensor(seed), ids]
    got = draw_arms(plan, E, buckets, parts)
    numbers = draws(E + 1, parts).tolist()
    for t, u in enumerate(buckets.tolist()):
        want = sample(plan[u].tolist(), E, numbers[t][0] % rounds, numbers[t][1:])
        assert set(got[t].tolist()) == want and len(want) == top_k
        often = (plan[u][..., None] == got[t]).sum(dim=(0, 1)).tolist()
        assert often == sorted(often, reverse=True)


def test_draws_have_the_rounds_shares_in_changing_company():
    """Rounds of two pairs: each arm in its share of the tokens, and not always with the same one."""
    plan = torch.tensor([[[0, 1], [2, 3], [0, 1], [0, 1]]])
    tokens = 8000
    parts = [torch.tensor(7), torch.arange(tokens)]
    ids = draw_arms(plan, 4, torch.zeros(tokens, dtype=torch.int64), parts)
    shares = torch.bincount(ids.flatten(), minlength=4) / tokens
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.75, 0.25, 0.25]), rtol=0, atol=0.02)
    met = {tuple(sorted(row)) for row in ids.tolist()}
    assert met >= {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)}
    for other in ([torch.tensor(8), parts[1]], [parts[0], parts[1] + 1]):
        assert not torch.equal(draw_arms(plan, 4, torch.zeros(tokens, dtype=torch.int64), other), ids)
