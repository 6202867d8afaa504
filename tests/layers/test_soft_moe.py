"""Soft MoE against plain loops, its invariants, its record, and where it is refused."""

import math

import pytest
import straight_soft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import assert_same, gradients, make_config, randomise_
from torch.utils.flop_counter import FlopCounterMode

from moeworks import ModelConfig, MoE, SoftMoE
from moeworks.config import RouterConfig, SoftChoice
from moeworks.config.count_soft import count_slots, count_soft_flops, count_soft_parameters
from moeworks.errors import ConfigError
from moeworks.ops.backends import Backend

CLOSE = dict(rtol=1e-10, atol=1e-10)


def soft_config(slots: int = 2, **options):
    return make_config(**dict(choice=SoftChoice(slots_per_expert=slots), num_experts=3) | options)


def soft_moe(
    slots: int = 2, *, seed: int = 0, dtype=torch.float64, backend: Backend = "auto", **options
) -> SoftMoE:
    torch.manual_seed(seed)
    layer = SoftMoE(soft_config(slots, **options), backend=backend).to(dtype)
    return randomise_(layer)  # pyrefly: ignore


def stretched(layer: SoftMoE, scale: float = 4.0) -> SoftMoE:
    """Weights that differ much from token to token."""
    with torch.no_grad():
        layer.scale.fill_(scale)
    return layer


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_it_is_the_plain_loop_forward_and_backward(packed, padded):
    layer = stretched(soft_moe())
    torch.manual_seed(1)
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    sequences = [0] * 6 + [1] * 6 if not packed else [7, 7, 7, 2, 2, 2, 2, 2, 5, 5, 5, 7]
    valid = [True] * 12 if not padded else [True] * 4 + [False] * 2 + [True] * 5 + [False]
    ids = torch.tensor(sequences).view(2, 6) if packed else None
    mask = torch.tensor(valid).view(2, 6) if padded else None
    y, routing = layer(x, valid=mask, sequence_ids=ids)
    want, dispatch, combine = straight_soft.soft_moe(layer, x.view(12, 8), sequences, valid)
    torch.testing.assert_close(y, want.view(2, 6, 8), **CLOSE)
    for got, pieces in ((routing.dispatch_TEC, dispatch), (routing.combine_TEC, combine)):
        expected = torch.zeros_like(got)
        for place, value in pieces.items():
            expected[place] = value.detach()
        torch.testing.assert_close(got, expected, **CLOSE)
    direction = torch.randn_like(want)
    assert_same(
        gradients((y.view(12, 8) * direction).sum(), layer, x),
        gradients((want * direction).sum(), layer, x),
        1e-9,
    )


def test_gradients_by_finite_differences():
    layer = stretched(soft_moe(1))
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, slots: _with_slots(layer, slots)(x)[0], (x, layer.slots))


def _with_slots(layer, slots):
    return lambda x: torch.func.functional_call(layer, {"slots": slots}, (x,))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 9))
def test_permuted_tokens_give_permuted_results(seed, length):
    layer = stretched(soft_moe())
    torch.manual_seed(seed)
    x, order = torch.randn(2, length, 8, dtype=torch.float64), torch.randperm(length)
    y, routing = layer(x)
    again, permuted = layer(x[:, order])
    torch.testing.assert_close(again, y[:, order], **CLOSE)
    torch.testing.assert_close(permuted.tokens_per_slot(), routing.tokens_per_slot(), **CLOSE)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), filler=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_padding_has_no_effect_wherever_it_stands(seed, filler):
    layer = stretched(soft_moe())
    torch.manual_seed(seed)
    x, valid = torch.randn(3, 7, 8, dtype=torch.float64), torch.rand(3, 7) > 0.4
    valid[0] = False
    valid[1] &= seed % 4 != 0  # sometimes a second sequence without tokens
    y, routing = layer(x.masked_fill(~valid[..., None], filler), valid=valid)
    assert not y[~valid].any() and not routing.dispatch_TEC[~valid.view(-1)].any()
    assert not routing.tokens_per_slot()[0].any()
    for row in (1, 2):
        alone, _ = layer(x[row, valid[row]])
        torch.testing.assert_close(y[row, valid[row]], alone, **CLOSE)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_packed_sequences_are_each_alone(lengths, seed):
    """Their tokens may even be mixed up."""
    layer = stretched(soft_moe())
    torch.manual_seed(seed)
    ids = torch.cat([torch.full((n,), 90 - 7 * i) for i, n in enumerate(lengths)])
    ids = ids[torch.randperm(len(ids))]
    x = torch.randn(len(ids), 8, dtype=torch.float64)
    y, routing = layer(x, sequence_ids=ids)
    assert routing.num_sequences == len(lengths)
    for number in ids.unique():
        torch.testing.assert_close(y[ids == number], layer(x[ids == number])[0], **CLOSE)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1.0, 30.0]), padded=st.booleans())
def test_weights_are_mixtures_and_numbers_are_effective(seed, scale, padded):
    layer = stretched(soft_moe(), scale)
    torch.manual_seed(seed)
    valid = torch.arange(6) < torch.randint(1, 7, (4, 1)) if padded else None
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    _, routing = layer(x, valid=valid)
    there = torch.ones(4, 6, dtype=torch.bool) if valid is None else valid
    slot_sums = routing.dispatch_TEC.view(4, 6, 3, 2).sum(dim=1)
    torch.testing.assert_close(slot_sums, torch.ones_like(slot_sums), **CLOSE)
    torch.testing.assert_close(routing.combine_TEC.sum(dim=(1, 2)), there.flatten().double(), **CLOSE)
    shares, tokens = routing.expert_shares(), routing.tokens_per_slot()
    torch.testing.assert_close(shares.sum(), torch.ones((), dtype=torch.float64), **CLOSE)
    lengths = there.sum(dim=1)[:, None, None]
    assert (tokens >= 1 - 1e-9).all() and (tokens <= lengths + 1e-9).all()
    slots = routing.slots_per_token()[there.flatten()]
    assert (slots >= 1 - 1e-9).all() and (slots <= 6 + 1e-9).all()
    if scale == 0:
        torch.testing.assert_close(tokens, lengths.expand(4, 3, 2).double(), **CLOSE)
        torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=torch.float64), **CLOSE)


def test_scores_do_not_depend_on_lengths_of_vectors():
    """What the normalisation is for: a wide layer's scores grow with d and saturate the softmax."""
    layer = stretched(soft_moe())
    x = torch.randn(5, 8, dtype=torch.float64)
    weights = layer(x)[1].dispatch_TEC
    torch.testing.assert_close(layer(1000 * x)[1].dispatch_TEC, weights, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        layer.slots.mul_(1000)
    torch.testing.assert_close(layer(x)[1].dispatch_TEC, weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["sorted", "native", "grouped_mm"])
def test_backends_agree(backend):
    x = torch.randn(2, 7, 8)
    layers = [soft_moe(dtype=torch.float32, backend=name) for name in ("reference", backend)]
    try:
        got, want = layers[1](x)[0], layers[0](x)[0]
    except ConfigError as error:
        assert f"backend = '{backend}'" in str(error)
        return
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert backend in layers[1].explain_backend(x)


def test_half_precision_keeps_the_softmax_exact():
    layer = stretched(soft_moe(dtype=torch.bfloat16))
    x = torch.randn(2, 7, 8, dtype=torch.bfloat16)
    y, routing = layer(x)
    assert y.dtype == torch.bfloat16 and routing.dispatch_TEC.dtype == torch.float32
    mixed = stretched(soft_moe(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = mixed(x.float())
    assert y.dtype == torch.bfloat16 and routing.dispatch_TEC.dtype == torch.float32


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(0, 5, 8), (0, 8), (3, 0, 8), (0, 0, 8), (2, 0, 3, 8), (2, 3, 0, 8)])
def test_without_tokens(shape, padded):
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y, routing = soft_moe()(x, valid=torch.ones(shape[:-1], dtype=torch.bool) if padded else None)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    sequences = math.prod(shape[:-2])
    assert routing.tokens_per_slot().shape == (sequences, 3, 2) and routing.slots_per_token().shape == (0,)
    assert not routing.tokens_per_slot().any() and not routing.expert_shares().any()


def test_without_tokens_in_packed_sequences():
    ids = torch.zeros(0, dtype=torch.int64)
    assert soft_moe()(torch.zeros(0, 8, dtype=torch.float64), sequence_ids=ids)[0].shape == (0, 8)


def test_it_learns_to_sort_tokens_into_experts():
    """Two kinds of tokens with a function each: slots hold mostly one kind, at the start half of it."""
    torch.manual_seed(0)
    layer = SoftMoE(soft_config(4, num_experts=2, d_expert=16))
    kinds = torch.arange(16) % 2
    maps = torch.randn(2, 8, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        x = torch.randn(16, 16, 8) * 0.3 + torch.where(kinds == 0, 1.0, -1.0)[:, None]
        want = torch.einsum("btd,tdf->btf", x, maps[kinds])
        loss = (layer(x)[0] - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    _, routing = layer(x)
    dispatch = routing.dispatch_TEC.detach().view(16, 16, 2, 4)
    parts = torch.stack([dispatch[:, kinds == kind].sum(dim=1).mean(dim=0) for kind in (0, 1)])
    assert parts.amax(dim=0).mean() > 0.8


# Counts.


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_those_of_the_module(activation, bias):
    config = soft_config(3, activation=activation, expert_linear_bias=bias, mixed_output_bias=bias)
    layer = SoftMoE(config)
    assert count_soft_parameters(config) == sum(p.numel() for p in layer.parameters())
    assert count_slots(config) == layer.slots[..., 0].numel() == 9


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_flops_are_those_that_torch_counts(training, activation):
    config = soft_config(3, activation=activation)
    layer = SoftMoE(config, backend="reference")
    x = torch.randn(4, 10, 8, requires_grad=training)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(training):
        y, _ = layer(x)
        if training:
            y.sum().backward()
    assert counter.get_total_flops() == 4 * count_soft_flops(config, 10, training=training)


# Where it is refused.


def test_a_decoder_refuses_it():
    rule = (
        r"model.router.choice = 'soft': is not for a decoder: every slot mixes all tokens of a sequence, so"
        r" that a token's output depends on those after it; the layer for encoders is moeworks.SoftMoE"
    )
    with pytest.raises(ConfigError, match=rule):
        ModelConfig(router=RouterConfig(choice=SoftChoice()))
    assert "depends on those after it" in SoftMoE(soft_config()).looks_ahead()


def test_the_sparse_layer_refuses_it_and_it_the_others():
    with pytest.raises(ConfigError, match=r"router.choice = 'soft': has no router: build the layer as moe"):
        MoE(soft_config())
    with pytest.raises(ConfigError, match=r"router.choice = 'top_k': must be 'soft' in a SoftMoE"):
        SoftMoE(make_config())


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (dict(score="sigmoid"), "router.score = 'sigmoid': has no effect with choice = 'soft'"),
        (dict(num_identity_experts=1), "router.num_identity_experts = 1: has no effect"),
        (dict(routing_scale=2.0), "router.routing_scale = 2.0: has no effect"),
        (dict(top_k=3), "router.top_k = 3: has no effect .* leave it at 2"),
        (dict(slots=0), "router.choice.slots_per_expert = 0: must be at least 1"),
        (dict(capacity_factor=1.0), "capacity_factor = 1.0: must be None in a SoftMoE"),
        (dict(num_shared_experts=1), "num_shared_experts = 1: must be 0 in a SoftMoE"),
    ],
)
def test_options_that_it_cannot_honour(options, rule):
    with pytest.raises(ConfigError, match=rule):
        SoftMoE(soft_config(**options))


def test_one_expert_has_its_slots():
    assert SoftMoE(soft_config(5, num_experts=1, top_k=1))(torch.randn(4, 8))[0].shape == (4, 8)


@pytest.mark.parametrize(
    ("shape", "options", "rule"),
    [
        ((8,), {}, r"x = \(8,\): must have the shape"),
        (
            (2, 5, 8),
            dict(valid=torch.ones(2, 4, dtype=torch.bool)),
            r"valid = \(2, 4\): must have the leading",
        ),
        ((5, 8), dict(sequence_ids=torch.zeros(4, dtype=torch.int64)), r"sequence_ids = \(4,\): must have"),
    ],
)
def test_shapes_are_checked(shape, options, rule):
    with pytest.raises(ConfigError, match=rule):
        SoftMoE(soft_config())(torch.randn(shape), **options)
