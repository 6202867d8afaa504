"""Upper confidence bounds in plain Python: one bandit, one play after the other."""

import math


class Bandit:
    """Arms with discounted counts and sums, and a baseline that rewards are measured from."""

    def __init__(self, arms: int, top_k: int, first: int = 0) -> None:
        self.arms, self.top_k, self.first = arms, top_k, first
        self.count, self.total = [0.0] * arms, [0.0] * arms
        self.steps = self.baseline = self.weight = 0.0

    def mean(self, arm: int) -> float:
        return self.total[arm] / self.count[arm] if self.count[arm] else 0.0

    def best(self, index: list[float]) -> list[int]:
        """The top_k of them; among equals in turn from the first."""
        turn = [(arm + self.first) % self.arms for arm in range(self.arms)]
        return sorted(turn, key=lambda arm: -index[arm])[: self.top_k]

    def plan(self, rounds: int, exploration: float) -> list[list[int]]:
        """Round by round, each with its share of a mean step's plays, which count at once."""
        count, plays = list(self.count), sum(self.count) / self.top_k
        share = max(plays / self.steps if self.steps else 0.0, 1.0) / rounds
        chosen = []
        for _ in range(rounds):
            index = [
                self.mean(arm) + exploration * math.sqrt(math.log(1 + plays) / count[arm])
                if count[arm]
                else math.inf
                for arm in range(self.arms)
            ]
            chosen.append(self.best(index))
            for arm in chosen[-1]:
                count[arm] += share
            plays += share
        return chosen

    def greedy(self) -> list[int]:
        return self.best([self.mean(arm) if self.count[arm] else -math.inf for arm in range(self.arms)])

    def learn(self, plays: list[tuple[list[int], float]], discount: float, decay: float) -> None:
        """The plays of one step, each with the arms it took and its reward; without any nothing changes."""
        if not plays:
            return
        total = decay * self.weight * self.baseline + sum(reward for _, reward in plays)
        self.weight = decay * self.weight + len(plays)
        self.baseline = total / self.weight
        self.steps = discount * self.steps + 1
        for arm in range(self.arms):
            gains = [reward for arms, reward in plays if arm in arms]
            self.count[arm] = discount * self.count[arm] + len(gains)
            # Summed before the baseline is taken off: where it is all that there is, the rest is exactly 0.
            self.total[arm] = discount * self.total[arm] + (sum(gains) - len(gains) * self.baseline)


def sample(plan: list[list[int]], arms: int, start: int, numbers: list[int]) -> set[int]:
    """Cells on a line, one for each time that a round took an arm, arms in the order of their numbers."""
    order = sorted(range(arms), key=lambda arm: numbers[arm])
    line = [arm for arm in order for ids in plan for taken in ids if taken == arm]
    return {line[cell] for cell in range(start, len(line), len(plan))}


def ucb1(means: list[float], plays: int) -> list[int]:
    """Auer et al. 2002, figure 1, with ln(1 + n): how often each arm is taken when rewards are certain."""
    count = [0] * len(means)
    for n in range(plays):
        index = [
            m + math.sqrt(2 * math.log(1 + n) / c) if c else math.inf
            for m, c in zip(means, count, strict=True)
        ]
        count[index.index(max(index))] += 1
    return count
