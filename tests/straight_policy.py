"""Fixed and learned policies in plain Python, written from the papers' formulas."""

import torch

WORD = 2**32


def mix(number: int) -> int:
    """A 32-bit finaliser: xor of the upper half, product with an odd number, twice."""
    number %= WORD
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) % WORD
    return number ^ (number >> 16)


def choose(numbers: list[int], num_experts: int) -> list[int]:
    """A number an expert: it picks one from the list of those that are left, which shrinks."""
    left = list(range(num_experts))
    return [left.pop(number % len(left)) for number in numbers]


def universal(token: int, seed: int, num_experts: int, top_k: int) -> list[int]:
    """((a x + b) mod p) with p = 2^31 - 1, then the choice."""
    p = 2**31 - 1
    draws = [mix(mix(seed) + (place + 1) * 0x9E3779B) for place in range(2 * top_k)]
    a, b = [d % (p - 1) + 1 for d in draws[:top_k]], [d % p for d in draws[top_k:]]
    return choose([(a[j] * (token % p) + b[j]) % p for j in range(top_k)], num_experts)


def drawn(parts: list[int], num_experts: int, top_k: int) -> list[int]:
    """Random numbers from whole numbers, the one mixed into the other."""
    state = 0
    for part in parts:
        state = mix(state + part)
    return choose([mix(state + (slot + 1) * 0x9E3779B) for slot in range(top_k)], num_experts)


def balanced(counts: list[int], num_experts: int, top_k: int) -> list[list[int]]:
    """Tokens by falling count (the lower id first among equals), each to the top_k least loaded experts."""
    size, loads = len(counts), [0] * num_experts
    table: list[list[int]] = [[] for _ in counts]
    for token in sorted(range(size), key=lambda t: (-counts[t], t)):
        least = sorted(range(num_experts), key=lambda e: (loads[e], e))[:top_k]
        table[token] = least
        for expert in least:
            loads[expert] += counts[token] * (size + 1) + 1
    return table


def log_pi(logits: torch.Tensor, experts: list[int]) -> torch.Tensor:
    """Of one token: drawn one after the other, each from the softmax of those that are left."""
    left, total = list(range(len(logits))), torch.zeros((), dtype=logits.dtype)
    for expert in experts:
        total = total + logits[expert] - torch.stack([logits[e] for e in left]).logsumexp(0)
        left.remove(expert)
    return total


def policy_losses(logits, ids, losses, baseline, valid) -> dict[str, torch.Tensor]:
    """Sums over the valid tokens, one after the other."""
    sums = dict.fromkeys(("policy", "baseline", "entropy"), torch.zeros((), dtype=logits.dtype))
    for t in range(len(logits)):
        if not valid[t]:
            continue
        advantage = -float(losses[t]) - float(baseline[t].detach())
        p = logits[t].exp() / logits[t].exp().sum()
        sums["policy"] = sums["policy"] - advantage * log_pi(logits[t], ids[t].tolist())
        sums["baseline"] = sums["baseline"] + (-float(losses[t]) - baseline[t]) ** 2
        sums["entropy"] = sums["entropy"] + sum(q * q.log() for q in p)
    return sums
