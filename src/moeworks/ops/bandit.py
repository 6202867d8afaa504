"""Upper confidence bounds for routers: many bandits at once, each with the experts as its arms.

A bandit has a value (mean reward) and a count for every arm; its index of an arm is value + exploration *
sqrt(ln(1 + plays) / count) (UCB1, Auer et al. 2002; 1 + plays, so that a count below 1, which discounting
makes, has a bonus too). Counts and sums of rewards may be discounted (D-UCB, Garivier and Moulines 2011).
A play takes top_k arms at once, those of the greatest indices (CUCB, Chen et al. 2013).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.ops.fixed import draws, universal_hashes
from moeworks.ops.scoring import stable_top_k


@dataclass(frozen=True, eq=False)
class BanditState:
    """State of U bandits, float32 or float64. A bandit's values are discounted in steps in which it plays."""

    counts_UE: Tensor
    """Discounted number of times that each arm was taken."""
    rewards_UE: Tensor
    """Discounted sum of each arm's rewards above the baseline."""
    steps_U: Tensor
    """Discounted number of steps with a play."""
    baseline_U: Tensor
    """Running mean of the reward of a play."""
    baseline_weight_U: Tensor
    """Discounted number of plays in that mean."""

    @property
    def values_UE(self) -> Tensor:  # noqa: N802  (a shape suffix)
        """Mean reward above the baseline; 0 for arms that were never taken."""
        return self.rewards_UE / torch.where(self.counts_UE > 0, self.counts_UE, 1.0)


def buckets_of(ids_T: Tensor, buckets: int, vocab_size: int | None, seed: int) -> Tensor:
    """int64 [T]: the bucket of each id: the id itself with a bucket per id, else a universal hash."""
    if vocab_size is not None and vocab_size <= buckets:
        return ids_T
    return universal_hashes(ids_T, seed, 1)[:, 0] % buckets


def plan_rounds(state: BanditState, *, rounds: int, top_k: int, exploration: float) -> Tensor:
    """int64 [U, r, K]: the arms that each bandit takes in each round of one step, the best first.

    Nothing is learnt within a step, yet not all plays of a bandit should take the same arms: a round has its
    share of the plays that a step has had on average, and those after it count its arms as taken, with
    values as they were (the hallucinated plays of GP-BUCB, Desautels et al. 2014).
    """
    values_UE, counts_UE = state.values_UE, state.counts_UE.clone()
    plays_U1 = counts_UE.sum(dim=1, keepdim=True) / top_k
    steps_U1 = state.steps_U[:, None]
    share_U1 = (plays_U1 / torch.where(steps_U1 > 0, steps_U1, 1.0)).clamp(min=1.0) / rounds
    planned = []
    for _ in range(rounds):
        bonus_UE = exploration * (torch.log1p(plays_U1) / counts_UE).sqrt()
        index_UE = torch.where(counts_UE > 0, values_UE + bonus_UE, torch.inf)
        ids_UK = best_arms(index_UE, torch.arange(len(index_UE), device=index_UE.device), top_k)
        counts_UE = counts_UE.scatter_add(1, ids_UK, share_U1.expand(-1, top_k))
        plays_U1 = plays_U1 + share_U1
        planned.append(ids_UK)
    return torch.stack(planned, dim=1)


def draw_arms(plan_UrK: Tensor, arms: int, buckets_T: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """int64 [T, K]: different arms of each token, each as likely as the share of the rounds that take it.

    Systematic sampling (Madow 1949) in an order of the arms that each token draws: all arms have the
    right chance, and those that a round took together are not always together, for then no reward could
    tell the one from the other. `parts` are what the draws are a function of (see `draws`), and not the
    place in the batch: no cut into micro-batches or ranks changes them. Arms of more rounds come first.
    """
    rounds, top_k = plan_UrK.shape[1:]
    rounds_UE = torch.zeros(len(plan_UrK), arms, dtype=torch.int64, device=plan_UrK.device)
    ids_UN = plan_UrK.flatten(1)
    rounds_TE = rounds_UE.scatter_add(1, ids_UN, torch.ones_like(ids_UN))[buckets_T]
    numbers = draws(arms + 1, parts)
    start_T1, order_TE = numbers[:, :1] % rounds, numbers[:, 1:].argsort(dim=1, stable=True)
    # Arms lie on a line of K * r cells, one for each of their rounds; every r-th cell counts, from the start.
    ends_TE = rounds_TE.gather(1, order_TE).cumsum(dim=1)
    passed_TE = (ends_TE - start_T1 + rounds - 1).clamp(min=0) // rounds
    drawn_TE = passed_TE.diff(dim=1, prepend=torch.zeros_like(start_T1)) > 0
    drawn_TE = torch.zeros_like(drawn_TE).scatter(1, order_TE, drawn_TE)
    return stable_top_k(torch.where(drawn_TE, rounds_TE, -1).float(), top_k)


def best_arms(index_UE: Tensor, buckets_U: Tensor, top_k: int) -> Tensor:
    """int64 [U, K]: the arms of the greatest indices; among equals in turn from arm bucket modulo E.

    With ties settled from arm 0 everywhere, all bandits would start with the same experts.
    """
    arms = index_UE.shape[1]
    first_U1 = buckets_U[:, None] % arms
    turned_UE = (torch.arange(arms, device=index_UE.device) + first_U1) % arms
    return (stable_top_k(index_UE.gather(1, turned_UE), top_k) + first_U1) % arms


def greedy_arms(state: BanditState, buckets_T: Tensor, top_k: int) -> Tensor:
    """int64 [T, K]: the arms of the greatest values; those that were never taken come last."""
    values_UE = torch.where(state.counts_UE > 0, state.values_UE, -torch.inf)
    return best_arms(values_UE[buckets_T], buckets_T, top_k)


def count_plays(
    buckets_T: Tensor,
    expert_ids_TK: Tensor,
    rewards_T: Tensor,
    shape: tuple[int, int],
    valid_T: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """float64 [U, E] twice: how often each arm was taken, and the sum of its plays' rewards."""
    buckets, arms = shape
    cells_N = (buckets_T[:, None] * arms + expert_ids_TK).reshape(-1)
    taken_T = torch.ones_like(rewards_T, dtype=torch.float64) if valid_T is None else valid_T.double()
    sums = []
    for amounts_T in (taken_T, taken_T * rewards_T.double()):
        amounts_N = amounts_T[:, None].expand_as(expert_ids_TK).reshape(-1)
        cells = torch.zeros(buckets * arms, dtype=torch.float64, device=cells_N.device)
        sums.append(cells.index_add(0, cells_N, amounts_N).view(shape))
    return sums[0], sums[1]


def learn(
    state: BanditState, taken_UE: Tensor, gained_UE: Tensor, *, top_k: int, discount: float, decay: float
) -> BanditState:
    """The state after a step in which arms were `taken` so often and `gained` so much in all.

    Rewards count above the baseline, which takes the step in first: what makes all rewards of a step rise
    alike, a model that learns, would otherwise favour the arms that were taken last.
    """
    plays_U = taken_UE.sum(dim=1) / top_k
    played_U = plays_U > 0
    weight_U = decay * state.baseline_weight_U + plays_U
    total_U = decay * state.baseline_weight_U * state.baseline_U + gained_UE.sum(dim=1) / top_k
    baseline_U = torch.where(played_U, total_U / torch.where(played_U, weight_U, 1.0), state.baseline_U)
    above_UE = gained_UE - taken_UE * baseline_U[:, None]
    keep_U = torch.full_like(weight_U, discount).masked_fill(~played_U, 1.0)
    return BanditState(
        counts_UE=keep_U[:, None] * state.counts_UE + taken_UE,
        rewards_UE=keep_U[:, None] * state.rewards_UE + above_UE,
        steps_U=keep_U * state.steps_U + played_U,
        baseline_U=baseline_U,
        baseline_weight_U=torch.where(played_U, weight_U, state.baseline_weight_U),
    )
