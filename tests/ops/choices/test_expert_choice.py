"""Expert choice against a loop over experts, and what holds whatever the scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.ops.choices.expert_choice import choose_tokens, cutoffs, dense_groups
from moeworks.ops.choices.packing import pack_slots


def by_loops(ranking, share, valid, groups) -> torch.Tensor:
    """Zhou et al. 2022, section 3.1: for each expert TopK over the tokens, group by group."""
    tokens, experts = ranking.shape
    chosen = torch.zeros(tokens, experts, dtype=torch.bool)
    for group in set(groups):
        members = [t for t in range(tokens) if groups[t] == group and valid[t]]
        count = min(max(math.ceil(share * len(members) - 1e-9), 1), len(members))
        for expert in range(experts):
            best = sorted(members, key=lambda t, e=expert: (-ranking[t, e].item(), t))
            chosen[best[:count], expert] = True
    return chosen


@st.composite
def cases(draw):
    tokens, experts = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    values = st.integers(-3, 3).map(float)  # ties are common
    rows = st.lists(st.lists(values, min_size=experts, max_size=experts), min_size=tokens, max_size=tokens)
    flags = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    groups = st.lists(st.integers(0, 3), min_size=tokens, max_size=tokens)
    return torch.tensor(draw(rows)), draw(st.floats(0.05, 1.0)), draw(flags), draw(groups)


@given(cases())
def test_as_the_loop(case):
    ranking, share, valid, groups = case
    got = choose_tokens(
        ranking, share, valid_T=torch.tensor(valid), groups_T=dense_groups(torch.tensor(groups))
    )
    assert torch.equal(got, by_loops(ranking, share, valid, groups))
    got = choose_tokens(ranking, share, valid_T=torch.tensor(valid))
    assert torch.equal(got, by_loops(ranking, share, valid, [0] * len(valid)))


@given(cases())
def test_loads_are_equal_and_no_padding_is_taken(case):
    ranking, share, valid, _ = case
    chosen = choose_tokens(ranking, share, valid_T=torch.tensor(valid))
    assert len(set(chosen.sum(0).tolist())) == 1
    assert not chosen[~torch.tensor(valid)].any()


@given(cases())
def test_cutoffs_let_through_what_was_taken(case):
    """Without ties, at the cutoff and above lie the tokens that the expert took."""
    ranking, share, valid, _ = case
    mask = torch.tensor(valid)
    ranking = ranking + torch.arange(ranking.numel()).view(ranking.shape) / 1000
    chosen = choose_tokens(ranking, share, valid_T=mask)
    above = (ranking >= cutoffs(ranking, share, mask)) & mask[:, None]
    assert torch.equal(above, chosen)


def test_no_token_at_all():
    assert choose_tokens(torch.zeros(0, 3), 0.5).shape == (0, 3)
    assert cutoffs(torch.zeros(0, 3), 0.5).tolist() == [0, 0, 0]
    padding = torch.zeros(2, dtype=torch.bool)
    assert not choose_tokens(torch.zeros(2, 3), 0.5, valid_T=padding).any()
    assert cutoffs(torch.ones(2, 3), 0.5, padding).tolist() == [0, 0, 0]


def test_slots_hold_the_best_first_and_then_nothing():
    chosen = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    ranking = torch.tensor([[0.1, 9.0, 0.3, 0.2]] * 3)
    assert pack_slots(chosen, ranking, 4).tolist() == [[2, 3, 0, 4], [4, 4, 4, 4], [1, 4, 4, 4]]
    assert pack_slots(chosen, ranking, 2).tolist() == [[2, 3], [4, 4], [1, 4]]


@pytest.mark.parametrize("score", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_score_of_minus_infinity_is_still_a_score(score):
    ranking = torch.full((4, 2), score)
    assert choose_tokens(ranking, 0.5).sum(0).tolist() == [2, 2]
