"""Sound models pass: no false alarm, whatever the options."""

import pytest
from healthy import BIASED, GROUPED, decoder_subject, layer_subject
from tiny_families import TINY, tiny_config

from moeworks import BalanceConfig
from moeworks.config.choice import Choice
from moeworks.config.choices import (
    AssignmentChoice,
    BanditChoice,
    ExpertChoice,
    HashChoice,
    PolicyGradientChoice,
    RandomChoice,
    RoundRobinChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)
from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.ours import DecoderSubject
from moeworks.doctor.shrink import build_tiny
from moeworks.doctor.subject import Subject
from moeworks.doctor.verdict import examine, select

LAYERS = {
    "plain": {},
    "top 1": dict(top_k=1, renormalize=False),
    "top 1 sigmoid": dict(top_k=1, renormalize=False, score="sigmoid"),
    "not renormalised": dict(renormalize=False),
    "all experts": dict(num_experts=3, top_k=3),
    "bias": BIASED,
    "bias on softmax": dict(selection_bias=True),
    "bias on logits": dict(score="sigmoid", selection_bias=True, score_order="after_top_k"),
    "sqrtsoftplus": dict(score="sqrtsoftplus", selection_bias=True),
    "sparsemixer": dict(score="sparsemixer", renormalize=False),
    "softmax after": dict(score_order="after_top_k"),
    "groups": dict(**BIASED, **GROUPED, routing_scale=2.5),
    "groups by the best": dict(**GROUPED, group_score="max", renormalize=False),
    "capacity": dict(capacity_factor=0.8),
    "capacity by probability": dict(capacity_factor=0.8, drop_policy="probability"),
    "capacity in evaluation": dict(capacity_factor=0.9, eval_capacity_factor=1.0),
    "generous capacity": dict(capacity_factor=50.0, min_capacity=1000),
    "shared": dict(num_shared_experts=2, shared_token_gate=True),
    "weights on inputs": dict(weights_on="input", score="sigmoid", renormalize=False),
    "biases": dict(expert_linear_bias=True, router_bias=True, mixed_output_bias=True),
    "zero computation": dict(num_identity_experts=2, num_zero_experts=2),
    "noise": dict(noisy_top_k=True),
    "jitter": dict(input_jitter=0.1),
    "not gated": dict(activation="relu2"),
    "recomputed experts": dict(recompute_experts=True),
}
DECODERS = {
    "plain": {},
    "bias": BIASED,
    "proportional": dict(**BIASED, balance=BalanceConfig(bias_rule="proportional", bias_recentre=True)),
    "per micro-batch": dict(balance=BalanceConfig(switch_coef=0.1, global_batch_coef=0, z_coef=0.01)),
    "per sequence": dict(**BIASED, balance=BalanceConfig(sequence_coef=0.01, bias_rule="sign")),
    "top 1": dict(top_k=1, renormalize=False),
}

CHOICES: tuple[Choice, ...] = (
    ExpertChoice(), SinkhornChoice(), AssignmentChoice(), TopPChoice(), ThresholdChoice(), HashChoice(),
    RandomChoice(), RoundRobinChoice(), PolicyGradientChoice(), BanditChoice(),
)  # fmt: skip

OF_ARCHITECTURES = (
    "router-gradient", "selection", "weights", "underflow", "bias-shift", "bias-moves", "objective",
    "balance-definition", "experts-learn", "experts-idle", "experts-permute", "replay", "eval-batch",
    "padding", "causality", "recompute", "round-trip", "adapters",
)  # fmt: skip
"""Checks in which an architecture could differ from the decoders above."""


def complaints(subject: Subject, *checks: str) -> list[str]:
    return [f"{f.check}: {f.message}" for f in examine(subject, select(INVARIANTS, checks)).failed]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    assert complaints(layer_subject(**LAYERS[name])) == []


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    assert complaints(decoder_subject(**DECODERS[name])) == []


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.kind)
def test_other_ways_to_choose(choice: Choice) -> None:
    """What holds of top-k alone is not held against them."""
    subject = decoder_subject(choice=choice)
    found = examine(subject, INVARIANTS)
    assert [f"{f.check}: {f.message}" for f in found.failed] == []
    verdicts = {f.check: f.verdict for f in found.findings}
    assert verdicts["selection"] == "not applicable" and verdicts["experts-permute"] != "fail"
    looks_ahead = choice.looks_ahead(training=True) is not None
    assert verdicts["causality"] == ("not applicable" if looks_ahead else "pass")


POOLS = ("0-6", "5-11")


@pytest.mark.parametrize("options", [{}, BIASED, dict(choice=TopPChoice()), dict(choice=ExpertChoice())])
def test_pools_of_experts(options: dict) -> None:
    """Types of tokens in turn; what moves a token to any expert is left out."""
    layer = layer_subject(pools=POOLS, **options)
    decoder = decoder_subject(pools=POOLS, **options)
    for subject in (layer, decoder):
        found = examine(subject, INVARIANTS)
        assert [f"{f.check}: {f.message}" for f in found.failed] == []
        verdicts = {f.check: f.verdict for f in found.findings}
        assert verdicts["replay"] == verdicts["experts-work"] == "pass"
        assert verdicts["experts-permute"] == verdicts["ties"] == "not applicable"


@pytest.mark.parametrize("name", [n for n in TINY if tiny_config(n).moe_layers])
def test_every_family(name: str) -> None:
    assert complaints(DecoderSubject(build_tiny(tiny_config(name)), name), *OF_ARCHITECTURES) == []
