"""The balance losses as straight loops over a straight_loop.Record, written from the definitions."""

import math
from collections.abc import Iterable

import torch
from straight_loop import Record
from torch import Tensor

from moeworks import BalanceConfig


def cross_entropy(logits: Iterable[Tensor], targets: Iterable[int]) -> Tensor:
    # Not the log of a softmax: where that nearly underflows, its gradient is wrong.
    losses = [
        torch.log(sum(torch.exp(logit) for logit in row)) - row[target]
        for row, target in zip(logits, targets, strict=True)
    ]
    return sum(losses) / len(losses)


def balance(records: list[Record], config: BalanceConfig, counts: list[list[int]] | None = None) -> Tensor:
    """The sum over losses of coefficient times mean over layers."""
    total = torch.zeros((), dtype=records[0].probs[0].dtype)
    for layer, record in enumerate(records):
        values = {
            "switch": lambda r: switch(r, counts_of(r)),
            "global_batch": lambda r, i=layer: switch(r, counts[i] if counts else counts_of(r)),
            "sequence": sequence,
            "device": lambda r: device(r, config.num_devices),
            "communication": lambda r: communication(r, config.num_devices),
            "entropy": entropy,
            "importance": importance,
            "load": load,
            "z": z,
        }
        for name, function in values.items():
            coef = getattr(config, f"{name}_coef")
            if coef:
                total = total + coef * function(record) / len(records)
    return total


def valid_tokens(record: Record) -> list[int]:
    return [t for t, valid in enumerate(record.valid) if valid]


def normalised(record: Record, t: int) -> list[Tensor]:
    probs = list(record.probs[t])
    return [p / sum(probs) for p in probs]


def counts_of(record: Record) -> list[int]:
    counts = [0] * record.num_experts
    for t in valid_tokens(record):
        for e in record.unbiased_ids[t]:
            counts[e] += 1
    return counts


def mean_probs(record: Record) -> list[Tensor]:
    rows = [normalised(record, t) for t in valid_tokens(record)]
    return [sum(row[e] for row in rows) / len(rows) for e in range(record.num_experts)]


def switch(record: Record, counts: list[int]) -> Tensor:
    P, E = mean_probs(record), record.num_experts
    return E * sum(counts[e] / sum(counts) * P[e] for e in range(E))


def sequence(record: Record) -> Tensor:
    total, tokens = 0.0, valid_tokens(record)
    for name in sorted(set(record.sequences)):
        members = [t for t in tokens if record.sequences[t] == name]
        for e in range(record.num_experts):
            f = sum(e in raw_top_k(record, t) for t in members)
            P = sum(normalised(record, t)[e] for t in members)
            if members:
                # Times the sequence's share of the tokens, which cancels one of the two means.
                total = total + f * record.num_experts / record.top_k / len(members) * P / len(tokens)
    return total


def raw_top_k(record: Record, t: int) -> list[int]:
    values = record.probs[t].tolist()
    return sorted(range(len(values)), key=lambda e: (-values[e], e))[: record.top_k]


def devices(record: Record, num_devices: int) -> list[range]:
    size = record.num_experts // num_devices
    return [range(d * size, (d + 1) * size) for d in range(num_devices)]


def device(record: Record, num_devices: int) -> Tensor:
    P, counts = mean_probs(record), counts_of(record)
    total = 0.0
    for experts in devices(record, num_devices):
        f = sum(record.num_experts * counts[e] / sum(counts) for e in experts) / len(experts)
        total = total + f * sum(P[e] for e in experts)
    return total


def communication(record: Record, num_devices: int) -> Tensor:
    P, groups = mean_probs(record), devices(record, num_devices)
    tokens = valid_tokens(record)
    sent = [sum(any(e in experts for e in record.unbiased_ids[t]) for t in tokens) for experts in groups]
    M = sum(sent) / len(tokens)
    return sum(
        num_devices / (M * len(tokens)) * s * sum(P[e] for e in experts)
        for s, experts in zip(sent, groups, strict=True)
    )


def entropy(record: Record) -> Tensor:
    q = mean_probs(record)
    return 2 + sum(p * torch.log(p) for p in q) / math.log(len(q))


def importance(record: Record) -> Tensor:
    return cv2_plus_1(mean_probs(record))


def cv2_plus_1(values: list[Tensor]) -> Tensor:
    mean = sum(values) / len(values)
    return 1 + sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def load(record: Record) -> Tensor:
    loads = [0.0 * sum(p.sum() for p in record.probs)] * record.num_experts
    if record.top_k == record.num_experts:
        return cv2_plus_1([v + 1 for v in loads])
    for t in valid_tokens(record):
        for e in range(record.num_experts):
            others = sorted((record.logits[t][j].item(), j) for j in range(record.num_experts) if j != e)
            kth = record.logits[t][others[-record.top_k][1]]
            margin = (record.clean[t][e] - kth) / record.noise_std[t][e]
            loads[e] = loads[e] + 0.5 * (1 + torch.erf(margin / math.sqrt(2)))
    return cv2_plus_1(loads)


def z(record: Record) -> Tensor:
    tokens = valid_tokens(record)
    return sum(torch.log(torch.exp(record.logits[t]).sum()) ** 2 for t in tokens) / len(tokens)
