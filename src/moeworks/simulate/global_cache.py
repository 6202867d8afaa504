"""One cache for the experts of all layers, a step at a time; the policies are told in cache.py."""

import heapq
from collections import OrderedDict
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class _Cache(Protocol):
    """Experts are numbers l * E + e."""

    def step(self, token: int, layer: int, experts: list[int], upcoming: list[int]) -> int:
        """Use the experts of one step, keep what the policy keeps, and return how many were missing."""
        ...


def simulate_global(ids: np.ndarray, policy: str, capacity: int, num_experts: int) -> np.ndarray:
    """int64 [T, l]: missing experts of each step; ids [T, l, K]."""
    count, layers, _ = ids.shape
    keys = ids.astype(np.int64) + np.arange(layers)[:, None] * num_experts
    upcoming = _next_steps(keys) if policy == "belady" else np.zeros_like(keys)
    cache: _Cache = (
        _LeastStale(capacity, layers, num_experts)
        if policy == "least-stale"
        else _Recent(capacity)
        if policy == "lru"
        else _Valued(capacity, by_next_use=policy == "belady")
    )
    missing = np.zeros((count, layers), np.int64)
    for token in range(count):
        experts, following = keys[token].tolist(), upcoming[token].tolist()
        for layer in range(layers):
            missing[token, layer] = cache.step(token, layer, experts[layer], following[layer])
    return missing


def _next_steps(keys: np.ndarray) -> np.ndarray:
    """int64 [T, l, K]: the step (token * l + layer) of the next use, beyond the end when there is none."""
    count, layers, k = keys.shape
    flat = keys.reshape(-1)
    order = np.argsort(flat, kind="stable")
    same = flat[order][1:] == flat[order][:-1]
    following = np.full(len(flat), count * layers, np.int64)
    following[order[:-1][same]] = order[1:][same] // k
    return following.reshape(keys.shape)


class _Recent:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._cached: OrderedDict[int, None] = OrderedDict()

    def step(self, token: int, layer: int, experts: list[int], upcoming: list[int]) -> int:
        cached = self._cached
        missing = sum(expert not in cached for expert in experts)
        for expert in reversed(experts):  # the best ranked is the most recent
            cached[expert] = None
            cached.move_to_end(expert)
        while len(cached) > self._capacity:
            cached.popitem(last=False)
        return missing


class _Valued:
    """Keeps the experts of the highest value: uses so far, or nearness of the next use."""

    def __init__(self, capacity: int, *, by_next_use: bool) -> None:
        self._capacity, self._by_next_use = capacity, by_next_use
        self._value: dict[int, tuple[int, int]] = {}  # of cached experts
        self._heap: list[tuple[tuple[int, int], int]] = []  # with entries that are out of date
        self._uses: dict[int, int] = {}
        self._clock = 0

    def step(self, token: int, layer: int, experts: list[int], upcoming: list[int]) -> int:
        missing = sum(expert not in self._value for expert in experts)
        for expert, following in zip(reversed(experts), reversed(upcoming), strict=True):
            self._clock += 1
            self._uses[expert] = self._uses.get(expert, 0) + 1
            value = (-following, 0) if self._by_next_use else (self._uses[expert], self._clock)
            self._value[expert] = value
            heapq.heappush(self._heap, (value, expert))
        while len(self._value) > self._capacity:
            value, expert = heapq.heappop(self._heap)
            if self._value.get(expert) == value:
                del self._value[expert]
        return missing


class _LeastStale:
    """After the idea of Hoang et al. 2026 (SpecMD): stale experts, last used by an earlier token, go first.

    A token passes the layers in order, so what it leaves behind is needed only by the next one. In this
    order go: stale experts of layers that the token has passed, the oldest first; stale experts of layers
    ahead, the oldest first; experts that this token has used, the latest layer first, since its turn comes
    last. (The paper's abstract gives the idea; the order within the groups is ours.)
    """

    def __init__(self, capacity: int, layers: int, num_experts: int) -> None:
        self._capacity = capacity
        self._cached: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(layers)]  # -> last token
        self._size = 0

    def step(self, token: int, layer: int, experts: list[int], upcoming: list[int]) -> int:
        here = self._cached[layer]
        missing = sum(expert not in here for expert in experts)
        for expert in reversed(experts):
            here[expert] = token
            here.move_to_end(expert)
        self._size += missing
        while self._size > self._capacity:
            self._cached[self._victim_layer(token, layer)].popitem(last=False)
            self._size -= 1
        return missing

    def _victim_layer(self, token: int, layer: int) -> int:
        for group in (range(layer + 1), range(layer + 1, len(self._cached))):
            oldest, found = token, -1
            for place in group:
                if self._cached[place]:
                    last = next(iter(self._cached[place].values()))
                    if last < oldest:
                        oldest, found = last, place
            if found >= 0:
                return found
        return max(place for place in range(layer + 1) if self._cached[place])
