"""Replay: forced experts against a straight loop, wherever a pass may run, and records that do not fit."""

from dataclasses import replace

import pytest
import straight_loop
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import assert_same, gradients, make_config, random_moe, randomise_

from moeworks import (
    BalanceConfig,
    Decoder,
    ModelConfig,
    MoE,
    Replay,
    balance_losses,
    total_balance_loss,
)
from moeworks.config import (
    AssignmentChoice,
    BanditChoice,
    ExpertChoice,
    HashChoice,
    PolicyGradientChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)
from moeworks.config.model import ExpertsConfig, GQAConfig, LayerPatternConfig, RouterConfig
from moeworks.errors import ConfigError
from moeworks.models.cache import KVCache
from moeworks.ops.losses import load_counts

BALANCE = BalanceConfig(
    global_batch_coef=0.0, switch_coef=0.3, sequence_coef=0.2, entropy_coef=0.1, z_coef=0.1
)
WEIGHING = [
    dict(),
    dict(score="sigmoid", routing_scale=2.5, selection_bias=True),
    dict(renormalize=False),
    dict(score_order="after_top_k"),
    dict(score="sqrtsoftplus", num_groups=2, top_k_groups=1),
]
SMALL = ModelConfig(
    vocab_size=50,
    d_model=16,
    num_layers=3,
    max_seq_len=24,
    attention=GQAConfig(num_heads=4, num_kv_heads=2),
    pattern=LayerPatternConfig(first_dense=1),
    router=RouterConfig(num_experts=6, top_k=2),
    experts=ExpertsConfig(d_expert=8),
)


def make_model(config: ModelConfig = SMALL, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return randomise_(Decoder(config).double(), std=0.3).eval()


def some_tokens(rows: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(1))


def random_ids(tokens: int, experts: int = 6, top_k: int = 2, seed: int = 3) -> torch.Tensor:
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    return scores.argsort(dim=1)[:, :top_k]


@pytest.mark.parametrize("options", WEIGHING)
def test_weights_are_the_routers_own_for_the_forced_experts(options):
    config = make_config(**options)
    moe = random_moe(config)
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    ids = random_ids(7)
    y, routing = moe(x, replay=Replay([ids]))
    losses = balance_losses([routing], BALANCE)
    got = gradients(y.square().sum() + total_balance_loss(losses, BALANCE), moe, x)

    weights = straight_loop.named_weights(moe)
    record = straight_loop.Record(valid=[True] * 7, sequences=[0] * 7)
    rows = []
    for t in range(7):
        straight_loop.route_token(x[t], straight_loop.under(weights, "router"), config, None, record)
        chosen = ids[t].tolist()
        mix = straight_loop.mixing_weights(
            [record.logits[t][e] for e in chosen], [record.probs[t][e] for e in chosen], config
        )
        rows.append(
            sum(straight_loop.mixed(x[t], e, w, weights, config) for e, w in zip(chosen, mix, strict=True))
        )
    want_y = torch.stack(rows)
    torch.testing.assert_close(y, want_y, rtol=1e-12, atol=1e-12)
    want = gradients(want_y.square().sum() + forced_losses(record, ids), moe, x)
    assert_same(got, want, 1e-10)
    assert got["router.weight"].abs().sum() > 0
    assert routing.expert_ids_TK.tolist() == ids.tolist()


def forced_losses(record: straight_loop.Record, ids: torch.Tensor) -> torch.Tensor:
    """The losses of BALANCE by their definitions, with the loads of the forced experts."""
    experts, tokens = record.num_experts, len(ids)
    counts = [int((ids == e).sum()) for e in range(experts)]
    probs = [row / row.sum() for row in record.probs]
    mean = [sum(row[e] for row in probs) / tokens for e in range(experts)]
    switch = experts * sum(c / ids.numel() * p for c, p in zip(counts, mean, strict=True))
    entropy = 2 + sum(p * torch.log(p) for p in mean) / torch.log(torch.tensor(float(experts)).double())
    z = sum(torch.log(torch.exp(row).sum()) ** 2 for row in record.logits) / tokens
    return 0.5 * switch + 0.1 * entropy + 0.1 * z  # one sequence: the sequence loss is the Switch loss


def test_recorded_weights_mix_without_a_gradient_to_the_router():
    moe, x = random_moe(make_config()), torch.randn(5, 8, dtype=torch.float64)
    y, routing = moe(x)
    randomise_(moe.router)
    again, forced = moe(x, replay=Replay([routing], weights="recorded"))
    assert torch.equal(again, y)
    assert torch.equal(forced.routing_weights_TK, routing.routing_weights_TK)
    assert gradients(again.sum(), moe)["router.weight"].abs().sum() == 0
    assert gradients(balance_losses([forced], BALANCE)["switch"], moe)["router.weight"].abs().sum() > 0


CHOICES = (
    {},
    dict(selection_bias=True, num_groups=2, top_k_groups=1),
    dict(noisy_top_k=True),
    dict(gumbel_noise=1.0, input_jitter=0.1),
    dict(capacity_factor=0.5, drop_policy="probability"),
    dict(choice=ExpertChoice(max_experts=4)),
    dict(choice=SinkhornChoice()),
    dict(choice=AssignmentChoice()),
    dict(choice=TopPChoice(p=0.6), top_k=4),
    dict(choice=ThresholdChoice(min_experts=0, threshold=0.25)),
    dict(choice=HashChoice()),
    dict(choice=PolicyGradientChoice()),
    dict(choice=BanditChoice(buckets=64)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CHOICES), st.booleans(), st.sampled_from(["recomputed", "recorded"]), st.integers(0, 99)
)
def test_a_models_own_routing_gives_its_own_output(options, training, weights, seed):
    moe = random_moe(make_config(**options), dtype=torch.float32).train(training)
    torch.manual_seed(seed)
    x, valid = torch.randn(2, 6, 8), torch.rand(2, 6) < 0.8
    about = dict(valid=valid, token_ids=torch.randint(50, (2, 6)), positions=torch.arange(6).expand(2, 6))
    torch.manual_seed(seed + 1)
    y, routing = moe(x, **about)
    torch.manual_seed(seed + 1)
    again, forced = moe(x, **about, replay=Replay([routing], weights=weights))
    assert torch.equal(again, y)
    for name in ("expert_ids_TK", "routing_weights_TK", "router_logits_TE", "kept_TK", "buckets_T"):
        got, want = getattr(forced, name), getattr(routing, name)
        assert (got is None and want is None) or torch.equal(got, want)
    assert torch.equal(forced.tokens_per_expert(), routing.tokens_per_expert())
    assert torch.equal(load_counts(forced), load_counts(routing))


def test_a_record_keeps_its_drops_and_ids_meet_the_layers_capacity():
    moe = random_moe(make_config(capacity_factor=0.5)).train()
    x = torch.randn(12, 8, dtype=torch.float64)
    _, routing = moe(x)
    assert not routing.kept_TK.all()
    _, in_evaluation = moe.eval()(x, replay=Replay([routing]))
    assert torch.equal(in_evaluation.kept_TK, routing.kept_TK)
    _, dropless = moe(x)
    assert moe.train()(x, replay=Replay([dropless]))[1].kept_TK is None
    ids_alone = moe(x, replay=Replay([dropless.expert_ids_TK]))[1]
    assert torch.equal(ids_alone.kept_TK, routing.kept_TK)


def test_a_decoder_routes_as_another_did():
    teacher, student, tokens = make_model(seed=5), make_model(), some_tokens()
    recorded = teacher(tokens).routings
    own = student(tokens)
    forced = student(tokens, replay=Replay(recorded))
    for now, then, free in zip(forced.routings, recorded, own.routings, strict=True):
        assert torch.equal(now.expert_ids_TK, then.expert_ids_TK)
        assert not torch.equal(now.expert_ids_TK, free.expert_ids_TK)
        assert not torch.equal(now.routing_weights_TK, then.routing_weights_TK)
    assert torch.equal(student(tokens, replay=Replay(own.routings)).logits_BLV, own.logits_BLV)
    assert torch.equal(student(tokens).logits_BLV, own.logits_BLV)  # nothing is left behind


def test_checkpointing_recomputes_the_forced_pass():
    tokens = some_tokens()
    ids = [random_ids(20, seed=seed) for seed in (1, 2)]
    found = []
    for recompute in (False, True):
        model = make_model().train()
        model.activation_checkpointing = recompute
        output = model(tokens, replay=Replay(ids))
        model(tokens)  # a pass in between does not matter
        output.logits_BLV.square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
        assert found[-1]["layers.2.mlp.router.weight"].abs().sum() > 0
    assert_same(found[1], found[0], 0.0)


def test_micro_batches_add_up_to_the_whole():
    model, tokens = make_model().train(), some_tokens(4)
    ids = [random_ids(40, seed=seed) for seed in (1, 2)]
    model(tokens, replay=Replay(ids)).logits_BLV.square().sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for part, rows in zip(tokens.split(2), (slice(0, 20), slice(20, 40)), strict=True):
        model(part, replay=Replay([i[rows] for i in ids])).logits_BLV.square().sum().backward()
    assert_same({name: p.grad for name, p in model.named_parameters()}, whole, 1e-12)


def test_with_a_cache_piece_by_piece():
    model, tokens = make_model(), some_tokens(1)
    ids = [random_ids(10, seed=seed) for seed in (1, 2)]
    whole = model(tokens, replay=Replay(ids)).logits_BLV
    cache = KVCache(model.config, 1, 10, dtype=torch.float64)
    pieces = [
        model(tokens[:, start:stop], cache=cache, replay=Replay([i[start:stop] for i in ids])).logits_BLV
        for start, stop in ((0, 6), (6, 7), (7, 10))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)


def test_mtp_layers_follow_where_the_record_has_them():
    model, tokens = make_model(replace(SMALL, num_mtp_layers=2)), some_tokens()
    output = model(tokens, ahead=True)
    assert [len(r.expert_ids_TK) for r in output.routings] == [20, 20, 18, 16]
    again = model(tokens, ahead=True, replay=Replay(output.routings))
    for got, want in zip(again.ahead_BLD, output.ahead_BLD, strict=True):
        assert torch.equal(got, want)
    ids = [random_ids(n) for n in (20, 20, 18, 16)]
    forced = model(tokens, ahead=True, replay=Replay(ids)).routings
    assert all(torch.equal(r.expert_ids_TK, i) for r, i in zip(forced, ids, strict=True))
    free = model(tokens, ahead=True, replay=Replay(ids[:2])).routings
    assert torch.equal(free[0].expert_ids_TK, ids[0])
    assert len(free) == 4
    with pytest.raises(
        ConfigError, match=r"replay.routings = '4 layers': must hold one routing for each of the 2"
    ):
        model(tokens, replay=Replay(output.routings))


def test_statistics_and_losses_count_the_forced_experts():
    moe = random_moe(make_config(selection_bias=True))
    ids = torch.tensor([[0, 1]] * 9)
    _, routing = moe(torch.randn(9, 8, dtype=torch.float64), replay=Replay([ids]))
    sums = moe.router.statistics(routing, BalanceConfig(bias_rule="sign"))
    assert sums["tokens_per_expert"].tolist() == [9, 9, 0, 0, 0, 0]
    assert load_counts(routing).tolist() == [9, 9, 0, 0, 0, 0]
    probs = routing.router_probs_TE / routing.router_probs_TE.sum(1, keepdim=True)
    want = 6 * 0.5 * probs[:, :2].sum(1).mean()
    torch.testing.assert_close(balance_losses([routing], BALANCE)["sequence"], want)


def test_ids_of_any_whole_type_and_empty_slots():
    moe, x = random_moe(make_config()), torch.randn(3, 8, dtype=torch.float64)
    ids = torch.tensor([[0, 1], [5, 6], [6, 6]])
    y, routing = moe(x, replay=Replay([ids.to(torch.uint8)]))
    assert routing.variable
    assert routing.expert_ids_TK.dtype == torch.int64
    assert routing.routing_weights_TK[1].tolist() == [1.0, 0.0]
    assert y[2].abs().sum() == 0


BAD = {
    r"replay: expert_ids = \(3, 3\): must have the shape \(tokens, slots\) = \(4, 2\)": random_ids(
        3, top_k=3
    ),
    r"replay: expert_ids = 'torch.float64': must be whole": torch.zeros(4, 2, dtype=torch.float64),
    r"expert_ids of token 2 = \[0, 7\]: must lie in 0 .. 5, or be 6": [[0, 1], [0, 1], [0, 7], [0, 1]],
    r"expert_ids of token 0 = \[-1, 0\]: must lie": [[-1, 0], [0, 1], [0, 1], [0, 1]],
    r"expert_ids of token 1 = \[3, 3\]: must be different experts": [[0, 1], [3, 3], [0, 1], [0, 1]],
    r"expert_ids of token 3 = \[6, 1\]: must have empty slots last": [[0, 1], [0, 1], [0, 1], [6, 1]],
}


@pytest.mark.parametrize("message", BAD)
def test_ids_that_do_not_fit(message):
    ids, moe = BAD[message], random_moe(make_config())
    with pytest.raises(ConfigError, match=message):
        moe(torch.randn(4, 8, dtype=torch.float64), replay=Replay([torch.as_tensor(ids)]))


def test_records_that_do_not_fit():
    moe, x = random_moe(make_config()), torch.randn(4, 8, dtype=torch.float64)
    _, routing = moe(x)
    _, wider = random_moe(make_config(num_experts=9))(x)
    with pytest.raises(ConfigError, match=r"replay: num_experts = 9: must be the layer's, 6"):
        moe(x, replay=Replay([wider]))
    _, padded = moe(x, valid=torch.tensor([True, True, False, True]))
    with pytest.raises(ConfigError, match=r"replay: token 2 is padding in the record and not here"):
        moe(x, replay=Replay([padded]))
    moe(x, valid=torch.tensor([True, False, False, True]), replay=Replay([padded]))
    with pytest.raises(
        ConfigError, match=r"replay.routings = '2 layers': must hold one routing for each of the 1 MoE"
    ):
        moe(x, replay=Replay([routing, routing]))
    with pytest.raises(
        ConfigError, match=r"replay.weights = 'recorded': needs records .* routings\[0\] holds"
    ):
        Replay([routing.expert_ids_TK], weights="recorded")
    with pytest.raises(
        ConfigError, match=r"replay.routings = '1 layers': must hold one routing for each of the 2 MoE"
    ):
        make_model()(some_tokens(), replay=Replay([random_ids(20)]))
    with pytest.raises(ConfigError, match=r"replay of layer 2: expert_ids = \(19, 2\)"):
        make_model()(some_tokens(), replay=Replay([random_ids(20), random_ids(19)]))


def test_routers_that_cannot_weigh_what_they_have_not_chosen():
    plain = random_moe(make_config())
    own = MoE(plain.config, router=lambda x_TD, context: plain.router(x_TD, context)).double()
    x, ids = torch.randn(4, 8, dtype=torch.float64), random_ids(4)
    with pytest.raises(
        ConfigError, match=r"OwnRouter cannot weigh experts .* or set replay.weights to 'recorded'"
    ):
        own(x, replay=Replay([ids]))
    y, routing = own(x)
    assert torch.equal(own(x, replay=Replay([routing], weights="recorded"))[0], y)
    hashed = MoE(make_config(choice=HashChoice())).double()
    _, forced = hashed(x, token_ids=torch.arange(4), replay=Replay([ids]))
    assert forced.routing_weights_TK.tolist() == [[0.5, 0.5]] * 4
    with pytest.raises(ConfigError, match=r"replay.routings = 'empty slots': must not be there"):
        hashed(x, token_ids=torch.arange(4), replay=Replay([torch.tensor([[0, 6]] * 4)]))
