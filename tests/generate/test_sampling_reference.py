"""Every sampler against the same rule in plain Python, and all of them together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.generate import SamplingConfig
from moeworks.generate.sampling import candidates, penalised, sample


def reference(logits: list[float], seen: set[int], **options) -> dict[int, float]:
    """Token id to probability, one rule after the other, in double precision."""
    penalty = options.get("repetition_penalty", 1.0)
    logits = [x if i not in seen else (x / penalty if x > 0 else x * penalty) for i, x in enumerate(logits)]
    scaled = [x / options.get("temperature", 1.0) for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))[: options.get("top_k")]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    probs = {i: w / sum(weights.values()) for i, w in weights.items()}
    kept, mass = [], 0.0
    for i in order:
        if mass >= options.get("top_p", 1.0):
            break
        kept.append(i)
        mass += probs[i]
    kept = [i for i in kept if probs[i] >= options.get("min_p", 0.0) * probs[order[0]]]
    whole = sum(probs[i] for i in kept)
    return {i: probs[i] / whole for i in kept}


def ours(logits: list[float], seen: set[int], **options) -> dict[int, float]:
    config = SamplingConfig(**{"temperature": 1.0} | options)
    values = torch.tensor(logits, dtype=torch.float64)
    values = penalised(values, config.repetition_penalty, torch.tensor(sorted(seen), dtype=torch.int64))
    probs, ids = candidates(values, config)
    total = float(probs.sum())
    return {int(i): float(p) / total for p, i in zip(probs, ids, strict=True) if p > 0}


OPTIONS = {
    "plain": {},
    "temperature": dict(temperature=0.3),
    "hot": dict(temperature=2.5),
    "top_k": dict(top_k=3),
    "top_p": dict(top_p=0.7),
    "min_p": dict(min_p=0.2),
    "penalty": dict(repetition_penalty=1.7),
    "penalty below 1": dict(repetition_penalty=0.6),
    "together": dict(temperature=0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_each_sampler_is_the_plain_rule(options, seed):
    torch.manual_seed(seed)
    logits, seen = (2 * torch.randn(12, dtype=torch.float64)).tolist(), {1, 5, 7}
    want, got = reference(logits, seen, **options), ours(logits, seen, **options)
    assert want.keys() == got.keys()
    assert all(abs(want[i] - got[i]) < 1e-12 for i in want)


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=10, unique=True),
    st.fixed_dictionaries(
        {},
        optional=dict(
            temperature=st.floats(0.1, 3),
            top_k=st.integers(1, 12),
            top_p=st.floats(0.01, 1),
            min_p=st.floats(0, 1),
            repetition_penalty=st.floats(0.5, 3),
        ),
    ),
    st.integers(0, 2**31),
)
def test_what_is_drawn_is_one_of_the_reference(logits, options, seed):
    """Where a cut falls between two tokens by rounding, either is right: those within it are left out."""
    seen = {0, len(logits) - 1}
    allowed = reference(logits, seen, **options)
    config = SamplingConfig(**{"temperature": 1.0} | options)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample(torch.tensor(logits), config, generator, torch.tensor(sorted(seen)))
    widened = options | {
        "top_p": min(options.get("top_p", 1.0) * (1 + 1e-5) + 1e-6, 1.0),
        "min_p": max(options.get("min_p", 0.0) * (1 - 1e-5) - 1e-6, 0.0),
    }
    assert (
        drawn in allowed or drawn in reference(logits, seen, **widened) or _tied(logits, seen, drawn, options)
    )


def _tied(logits: list[float], seen: set[int], drawn: int, options: dict) -> bool:
    """float32 does not tell `drawn` from a token that may be drawn."""
    penalty = options.get("repetition_penalty", 1.0)
    own = [x if i not in seen else (x / penalty if x > 0 else x * penalty) for i, x in enumerate(logits)]
    allowed = reference(logits, seen, **options)
    return any(abs(own[drawn] - own[i]) <= 1e-5 * (1 + abs(own[i])) for i in allowed)


def test_a_penalty_counts_a_token_once():
    logits = torch.tensor([2.0, -2.0, 1.0])
    got = penalised(logits, 2.0, torch.tensor([0, 0, 1, 1, 1]))
    assert got.tolist() == [1.0, -4.0, 1.0]
    assert penalised(logits, 2.0, torch.tensor([], dtype=torch.int64)) is logits


def test_a_penalty_moves_the_greedy_choice():
    logits = torch.tensor([2.0, 1.5, -1.0])
    config = SamplingConfig(temperature=0, repetition_penalty=1.5)
    assert sample(logits, config, torch.Generator()) == 0
    assert sample(logits, config, torch.Generator(), torch.tensor([0])) == 1


def test_a_tiny_temperature_is_greedy_and_no_nan():
    logits = torch.tensor([1.0, 3.0, 2.9])
    for temperature in (1e-30, 1e-42):
        config = SamplingConfig(temperature=temperature)
        assert sample(logits, config, torch.Generator().manual_seed(0)) == 1
