"""Pools of experts: each type of token is a layer of its own, of the experts in its pool."""

from dataclasses import replace

import pytest
import straight_loop
import straight_losses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import assert_same, gradients, make_config, random_moe
from torch import Tensor, nn
from torch.func import functional_call

from moeworks import (
    BalanceConfig,
    MoE,
    MoEConfig,
    Replay,
    Routing,
    balance_losses,
    total_balance_loss,
    updated_expert_bias,
)
from moeworks.config import AssignmentChoice, ExpertChoice, SinkhornChoice, ThresholdChoice, TopPChoice
from moeworks.errors import ConfigError
from moeworks.ops.losses import communication_loss, device_loss, load_loss, step_totals
from moeworks.ops.pools import fair_loads
from moeworks.ops.routing import RoutingContext

BALANCE = BalanceConfig(
    switch_coef=0.3,
    global_batch_coef=0.2,
    sequence_coef=0.5,
    entropy_coef=0.6,
    importance_coef=0.9,
    z_coef=0.8,
)
POOLS = ("0-3", "2-6", "1,4-5")
TYPES = [0, 1, 1, 2, 0, 1, 1, 2, 2, 1, 0, 1, 0]
VALID = [True] * 9 + [False, True, True, False]
SEQUENCES = [0] * 5 + [4] * 4 + [7] * 4

PLAIN = (
    {},
    dict(score="sigmoid", routing_scale=2.5, selection_bias=True),
    dict(score="sqrtsoftplus", renormalize=False),
    dict(score_order="after_top_k", router_bias=True),
    dict(top_k=3, weights_on="input"),
)
CHOICES = (
    *PLAIN,
    dict(score="sparsemixer", renormalize=False, sparsemixer_eps=0.4),
    dict(choice=ExpertChoice(capacity_factor=0.8, causal="no")),
    dict(choice=ExpertChoice(scope="sequence", causal="no", max_experts=3)),
    dict(choice=SinkhornChoice(iterations=7)),
    dict(choice=AssignmentChoice()),
    dict(choice=TopPChoice(p=0.6), top_k=3),
    dict(choice=ThresholdChoice(threshold=0.3, min_experts=0)),
    dict(choice=ThresholdChoice(threshold=0.3, mean_experts=1.5)),
)


def pooled(**options) -> MoEConfig:
    return make_config(**dict(num_experts=7, pools=POOLS) | options)


def inputs() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(len(TYPES), 8, dtype=torch.float64, generator=generator, requires_grad=True)
    about = dict(token_types=TYPES, valid=VALID, sequence_ids=SEQUENCES)
    return x, {name: torch.tensor(values) for name, values in about.items()}


def part_of(config: MoEConfig, number: int) -> MoEConfig:
    """The layer that a type sees."""
    return replace(config, num_experts=len(config.pool_experts[number]), pools=())


def part_weights(moe: MoE, number: int) -> dict[str, Tensor]:
    """Its weights, as parts of the whole layer's."""
    experts = list(moe.config.pool_experts[number])
    kept = straight_loop.named_weights(moe)
    return {
        name: weight if name.startswith("shared") or weight.dim() == 0 else weight[experts]
        for name, weight in kept.items()
        if not name.endswith("pools_PE")
    }


def rows_of(number: int) -> list[int]:
    return [t for t, kind in enumerate(TYPES) if kind == number]


@pytest.mark.parametrize("options", PLAIN)
def test_top_k_equals_the_straight_loop(options):
    config = pooled(num_shared_experts=1, **options)
    moe = random_moe(config)
    x, about = inputs()
    y, routing = moe(x, **about)
    losses = balance_losses([routing], BALANCE)
    got = gradients(y.square().sum() + total_balance_loss(losses, BALANCE), moe, x)

    want_y, balance = torch.zeros_like(y), torch.zeros((), dtype=torch.float64)
    for number, experts in enumerate(config.pool_experts):
        rows = rows_of(number)
        own_y, record = straight_loop.moe(
            x[rows], part_weights(moe, number), part_of(config, number),
            valid=[VALID[t] for t in rows], sequences=[SEQUENCES[t] for t in rows],
        )  # fmt: skip
        want_y = want_y.index_put((torch.tensor(rows),), own_y)
        share = sum(record.valid) / sum(VALID)
        balance = balance + share * straight_losses.balance([record], BALANCE)
        chosen = [[experts[e] for e in ids] for ids in record.ids]
        assert routing.expert_ids_TK[rows].tolist() == chosen
    torch.testing.assert_close(y, want_y, rtol=1e-12, atol=1e-12)
    assert_same(got, gradients(want_y.square().sum() + balance, moe, x), 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", CHOICES)
def test_every_choice_is_one_layer_per_type(options, training):
    config = pooled(**options)
    moe = random_moe(config).train(training)
    if "threshold" in dict(moe.router.named_buffers()):
        moe.router.choice.threshold.fill_(0.3)
    x, about = inputs()
    y, routing = moe(x, **about)
    losses = balance_losses([routing], BALANCE)
    got = gradients(y.square().sum() + total_balance_loss(losses, BALANCE), moe, x)

    want_y, balance = torch.zeros_like(y), torch.zeros((), dtype=torch.float64)
    for number, experts in enumerate(config.pool_experts):
        rows = torch.tensor(rows_of(number))
        layer = MoE(part_of(config, number)).double().train(training)
        own = {n: a[rows] for n, a in about.items() if n != "token_types"}
        own_y, decided = functional_call(layer, part_weights(moe, number), (x[rows],), own)
        want_y = want_y.index_put((rows,), own_y)
        share = int(own["valid"].sum()) / sum(VALID)
        balance = balance + share * total_balance_loss(balance_losses([decided], BALANCE), BALANCE)
        ids = torch.tensor([*experts, *[7] * (7 - len(experts))])[decided.expert_ids_TK]
        valid = own["valid"]
        slots = min(ids.shape[1], routing.top_k)
        assert torch.equal(routing.expert_ids_TK[rows][valid][:, :slots], ids[valid][:, :slots])
    torch.testing.assert_close(y, want_y, rtol=1e-12, atol=1e-12)
    assert_same(got, gradients(want_y.square().sum() + balance, moe, x), 1e-10)


@st.composite
def pools_and_types(draw) -> tuple[tuple[str, ...], list[int]]:
    count = draw(st.integers(1, 3))
    pools = [draw(st.sets(st.integers(0, 6), min_size=3)) for _ in range(count)]
    missing = set(range(7)).difference(*pools)
    pools[0] |= missing
    texts = tuple(",".join(map(str, sorted(pool))) for pool in pools)
    return texts, draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12))


@settings(max_examples=80, deadline=None)
@given(pools_and_types(), st.sampled_from(CHOICES), st.booleans(), st.integers(0, 99))
def test_no_token_leaves_its_pool(pools_types, options, training, seed):
    texts, types = pools_types
    moe = random_moe(pooled(pools=texts, **options), seed=seed).train(training)
    x = torch.randn(len(types), 8, dtype=torch.float64)
    y, routing = moe(x, token_types=torch.tensor(types))
    reach = torch.tensor([[e in moe.config.pool_experts[kind] for e in range(7)] for kind in types])
    chosen = torch.zeros(len(types), 8, dtype=torch.bool).scatter_(1, routing.expert_ids_TK, True)[:, :7]
    assert not (chosen & ~reach).any()
    assert (routing.router_probs_TE[~reach] == 0).all()
    assert (routing.router_logits_TE[~reach] == -torch.inf).all()
    if moe.config.score == "softmax":
        torch.testing.assert_close(
            routing.router_probs_TE.sum(1), torch.ones(len(types), dtype=torch.float64)
        )
    assert routing.routing_weights_TK.isfinite().all()
    if moe.config.renormalize:
        full = routing.expert_ids_TK[:, 0] < 7
        total = routing.routing_weights_TK.sum(1)[full] / moe.config.routing_scale
        torch.testing.assert_close(total, torch.ones_like(total))
    losses = balance_losses([routing], BALANCE)
    found = gradients(y.square().sum() + total_balance_loss(losses, BALANCE), moe)
    assert all(value.isfinite().all() for value in found.values())
    unseen = ~reach.any(dim=0)
    assert (found["router.weight"][unseen] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CHOICES), st.booleans(), st.integers(0, 99))
def test_one_pool_of_all_experts_changes_nothing(options, training, seed):
    plain = random_moe(pooled(pools=(), **options), seed=seed).train(training)
    one = MoE(pooled(pools=("0-6",), **options)).double().train(training)
    one.load_state_dict(plain.state_dict(), strict="cutoffs" not in str(plain.state_dict().keys()))
    x, about = inputs()
    about["token_types"] = about["token_types"] * 0
    (y, first), (again, second) = plain(x, **about), one(x, **about)
    assert torch.equal(y, again)
    for got, want in zip(
        balance_losses([second], BALANCE).values(), balance_losses([first], BALANCE).values(), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_noise_stays_inside_the_pool():
    moe = random_moe(pooled(noisy_top_k=True, input_jitter=0.1)).train()
    x, about = inputs()
    y, routing = moe(x, **about)
    assert all(
        set(ids) <= set(moe.config.pool_experts[kind])
        for ids, kind in zip(routing.expert_ids_TK.tolist(), TYPES, strict=True)
    )
    assert all(value.isfinite().all() for value in gradients(y.sum(), moe).values())
    drawn = random_moe(pooled(gumbel_noise=3.0)).train()(x, **about)[1]
    assert (drawn.router_probs_TE.gather(1, drawn.expert_ids_TK) > 0).all()


def test_cutoffs_are_learnt_for_each_type():
    config = pooled(choice=ExpertChoice(momentum=0.0))
    moe = random_moe(config).train()
    x, about = inputs()
    _, routing = moe(x, **about)
    sums = moe.router.statistics(routing, BALANCE)
    moe.router.update(sums, BALANCE)
    cutoffs = moe.router.choice.cutoffs
    for number, experts in enumerate(config.pool_experts):
        rows = [t for t in rows_of(number) if VALID[t]]
        taken = -(-len(rows) * 2 // len(experts))
        for expert in experts:
            ordered = routing.router_probs_TE[rows, expert].sort(descending=True).values
            torch.testing.assert_close(cutoffs[number, expert], ordered[taken - 1].float().to(cutoffs.dtype))
    before = cutoffs.clone()
    only = {name: value[:1] for name, value in about.items()}
    moe.router.update(moe.router.statistics(moe(x[:1], **only)[1], BALANCE), BALANCE)
    assert not torch.equal(cutoffs[0], before[0])
    assert torch.equal(cutoffs[1:], before[1:])
    assert moe.router.choice.updates.tolist() == [2, 1, 1]
    _, evaluated = moe.eval()(x, **about)
    chosen = torch.zeros(len(TYPES), 8, dtype=torch.bool).scatter_(1, evaluated.expert_ids_TK, True)[:, :7]
    above = evaluated.router_probs_TE >= cutoffs[TYPES].double()
    reach = evaluated.router_logits_TE > -torch.inf
    assert torch.equal(chosen, above & reach)


def even(frequent: int, rare: int) -> Routing:
    """Two types with a pool each, one shared expert between them, every pool used evenly."""
    pools = ((0, 1, 2), (2, 3))
    ids = torch.tensor([[t % 3] for t in range(frequent)] + [[2 + t % 2] for t in range(rare)])
    types = torch.tensor([0] * frequent + [1] * rare)
    logits = torch.full((frequent + rare, 4), -torch.inf, dtype=torch.float64)
    for t, kind in enumerate(types.tolist()):
        logits[t, list(pools[kind])] = 0.0
    return Routing(
        ids, torch.ones(len(ids), 1).double(), logits, logits.softmax(1), token_types_T=types, pools=pools
    )


def test_balanced_is_even_inside_each_pool_however_frequent_its_type():
    losses = balance_losses([even(30, 4)], BALANCE)
    for name in ("switch", "global_batch", "sequence", "entropy", "importance"):
        assert losses[name].item() == pytest.approx(1.0), name
    loads, times = fair_loads(torch.tensor([[10, 10, 10, 0], [0, 0, 2, 2]]), even(30, 4).pools)
    assert [load / times for load in loads.tolist()] == [10, 10, 12, 2]


def test_the_bias_goes_to_fair_loads_and_rests_there():
    pools = ((0, 1, 2), (2, 3))
    sign, size = (
        BalanceConfig(bias_rule="sign", bias_rate=1.0),
        BalanceConfig(bias_rule="proportional", bias_rate=1.0),
    )
    fair = torch.tensor([[10, 10, 10, 0], [0, 0, 2, 2]])
    assert updated_expert_bias(torch.zeros(4), fair, sign, pools).tolist() == [0, 0, 0, 0]
    uneven = torch.tensor([[15, 5, 10, 0], [0, 0, 3, 1]])
    assert updated_expert_bias(torch.zeros(4), uneven, sign, pools).tolist() == [-1, 1, -1, 1]
    got = updated_expert_bias(torch.zeros(4), uneven, size, pools).tolist()
    assert got == pytest.approx([-5 / 10, 5 / 10, -1 / 12, 1 / 2])


def test_a_biased_layer_becomes_balanced_in_its_pools():
    moe = random_moe(pooled(selection_bias=True), seed=3)
    nn.init.zeros_(moe.router.expert_bias)
    balance = BalanceConfig(bias_rule="sign", bias_rate=2e-3)
    types = torch.tensor([0] * 1200 + [1] * 600 + [2] * 200)
    # Not around 0: some experts win more than others.
    x = 1 + torch.randn(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def gap() -> float:
        sums = moe.router.statistics(moe(x, token_types=types)[1], balance)
        fair, times = fair_loads(sums["tokens_per_expert"], moe.config.pool_experts)
        fair = fair / times
        return ((sums["tokens_per_expert"].sum(0) - fair).abs() / fair).max().item()

    before = gap()
    for _ in range(400):
        with torch.no_grad():
            routing = moe.router(x, RoutingContext(token_types_T=types))
        moe.router.update(moe.router.statistics(routing, balance), balance)
    assert gap() < 0.1 * before
    assert gap() < 0.06


def test_capacity_is_a_share_of_the_fair_load():
    moe = random_moe(pooled(capacity_factor=0.5)).train()
    x, about = inputs()
    _, routing = moe(x, **about)
    fair = [0.0] * 7
    for number, experts in enumerate(moe.config.pool_experts):
        tokens = sum(VALID[t] for t in rows_of(number))
        for expert in experts:
            fair[expert] += tokens * 2 / len(experts)
    taken = [0] * 7
    for t, ids in enumerate(routing.expert_ids_TK.tolist()):
        for slot, expert in enumerate(ids):
            room = VALID[t] and taken[expert] < max(-(-fair[expert] * 0.5 // 1), 1)
            taken[expert] += room
            assert bool(routing.kept_TK[t, slot]) == room
    assert not routing.kept_TK[torch.tensor(VALID)].all()


def test_totals_of_parts_are_those_of_the_whole():
    moe = random_moe(pooled())
    x, about = inputs()
    whole = step_totals(moe(x, **about)[1], BALANCE)
    parts = [step_totals(moe(x[s], **{n: a[s] for n, a in about.items()})[1], BALANCE) for s in HALVES]
    for name in ("tokens", "counts_E", "probs_E"):
        torch.testing.assert_close(sum(getattr(p, name) for p in parts), getattr(whole, name))
    want = gradients(total_balance_loss(balance_losses([moe(x, **about)[1]], STEP), STEP), moe)
    got = {name: torch.zeros_like(value) for name, value in want.items()}
    for half in HALVES:
        own = moe(x[half], **{n: a[half] for n, a in about.items()})[1]
        loss = total_balance_loss(balance_losses([own], STEP, [whole]), STEP)
        for name, value in gradients(loss, moe).items():
            got[name] = got[name] + value
    assert_same(got, want, 1e-10)


HALVES = (slice(0, 5), slice(5, 13))
STEP = BalanceConfig(global_batch_coef=0.2, entropy_coef=0.6, importance_coef=0.9)


def test_types_that_are_missing_or_have_no_pool():
    moe, (x, _) = random_moe(pooled()), inputs()
    with pytest.raises(ConfigError, match=r"token_types = None: the model has 3 pools .* needs the type"):
        moe(x)
    for bad in (-1, 3):
        types = torch.tensor(TYPES)
        types[4] = bad
        with pytest.raises(
            ConfigError, match=rf"token_types = {bad}: must lie in 0 .. 2, the numbers of the pools"
        ):
            moe(x, token_types=types)


def test_losses_that_know_no_pools_say_so():
    x, about = inputs()
    _, routing = random_moe(pooled())(x, **about)
    for loss in (lambda r: device_loss(r, 7), lambda r: communication_loss(r, 7), load_loss):
        with pytest.raises(ConfigError, match=r"router.pools = .* must be empty for the \w+ loss"):
            loss(routing)


def test_replay_keeps_to_pools():
    moe, (x, about) = random_moe(pooled()), inputs()
    y, routing = moe(x, **about)
    again, forced = moe(x, **about, replay=Replay([routing]))
    assert torch.equal(again, y)
    assert torch.equal(
        balance_losses([forced], BALANCE)["switch"], balance_losses([routing], BALANCE)["switch"]
    )
    ids = routing.expert_ids_TK.clone()
    ids[3] = torch.tensor([1, 6])
    with pytest.raises(ConfigError, match=r"of token 3 = \[1, 6\]: must lie in the pool .*, \[1, 4, 5\]"):
        moe(x, **about, replay=Replay([ids]))


def test_a_checkpoint_holds_no_table_of_pools():
    assert "router.pools_PE" not in MoE(pooled()).state_dict()
