"""Soft MoE in plain loops over sequences, slots and tokens, written from the paper's formulas."""

import torch
from torch import Tensor


def length_one(vector: Tensor) -> Tensor:
    return vector / (sum(v * v for v in vector) + 1e-6).sqrt()


def expert_output(experts, expert: int, x: Tensor) -> Tensor:
    """A SwiGLU block on one vector."""
    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
    return experts.down_proj[expert] @ (gate / (1 + (-gate).exp()) * up)


def soft_moe(layer, x_TD: Tensor, sequences: list[int], valid: list[bool]) -> tuple[Tensor, dict, dict]:
    """y [T, D], and the dispatch and combine weights by (token, expert, slot)."""
    E, C, _ = layer.slots.shape
    slots = [(e, c) for e in range(E) for c in range(C)]
    dispatch, combine = {}, {}
    results = [torch.zeros_like(row) for row in x_TD]
    for sequence in sorted(set(sequences)):
        tokens = [t for t in range(len(x_TD)) if sequences[t] == sequence and valid[t]]
        score = {
            (t, *s): layer.scale * (length_one(x_TD[t]) @ length_one(layer.slots[s]))
            for t in tokens
            for s in slots
        }
        outputs = {}
        for s in slots:
            total = sum(score[t, *s].exp() for t in tokens)
            mixture = torch.zeros_like(x_TD[0])
            for t in tokens:
                dispatch[t, *s] = score[t, *s].exp() / total
                mixture = mixture + dispatch[t, *s] * x_TD[t]
            outputs[s] = expert_output(layer.experts, s[0], mixture)
        for t in tokens:
            total = sum(score[t, *s].exp() for s in slots)
            for s in slots:
                combine[t, *s] = score[t, *s].exp() / total
                results[t] = results[t] + combine[t, *s] * outputs[s]
    return torch.stack(results), dispatch, combine
