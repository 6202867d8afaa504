"""The bandit router in layers and models: what it learns, when its state moves, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from random_layers import make_config
from tiny_run import (
    BYTES,
    all_state,
    differing,
    random_batch,
    split_rows,
    tiny_config,
    tiny_corpus,
    tiny_trainer,
    write_texts,
)

from moeworks import BalanceConfig, MoE
from moeworks.checkpoint import read_checkpoint, write_checkpoint
from moeworks.config import BanditChoice, TopKChoice
from moeworks.config.count import count_flops, count_parameters
from moeworks.errors import ConfigError
from moeworks.layers.bandit import BanditRouter
from moeworks.layers.routers import build_router
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.routing import RoutingContext
from moeworks.parallel.world import World
from moeworks.train.step import accumulate_gradients, routers_of
from moeworks.train.trainer import build_model

BALANCE = BalanceConfig()
NO_BALANCE = dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none")
CLOSE = dict(rtol=1e-9, atol=1e-9)


def run_config(texts, choice=None, **groups):
    router = dict(choice=choice or BanditChoice(), selection_bias=False) | groups.pop("router", {})
    return tiny_config(texts, router=router, balance=NO_BALANCE | groups.pop("balance", {}), **groups)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("bandit") / "texts")


@pytest.fixture(scope="module")
def corpus(texts):
    return tiny_corpus(tiny_config(texts))


def make_router(**options) -> BanditRouter:
    torch.manual_seed(0)
    choice = BanditChoice(**dict(buckets=4, vocab_size=4) | options.pop("choice", {}))
    router = build_router(make_config(**dict(choice=choice, num_experts=4, top_k=1) | options), 8)
    assert isinstance(router, BanditRouter)
    return router


def context(tokens: int, kinds: int = 4) -> RoutingContext:
    places = torch.arange(tokens)
    return RoutingContext(token_ids_T=places % kinds, positions_T=places)


def taught(router: BanditRouter, steps: int, loss_of, tokens: int = 64) -> BanditRouter:
    """Steps in which each token's loss is a function of its id and its experts, and grows less."""
    about = context(tokens)
    x = torch.zeros(tokens, 8)
    for step in range(steps):
        routing = router(x, about)
        losses = loss_of(about.token_ids_T, routing.expert_ids_TK) + 3 * 0.97**step
        record = replace(routing, token_losses_T=losses)
        router.update(router.statistics(record, BALANCE), BALANCE)
    return router


@pytest.mark.parametrize("top_k", [1, 2])
def test_it_finds_the_best_arms(top_k):
    """Each kind of token has one expert that costs less, in noise larger than the difference."""
    noise = torch.Generator().manual_seed(5)

    def loss(ids, experts):
        right = (experts == ((ids + 1) % 4)[:, None]).any(dim=1)
        return 1.0 - 0.6 * right + torch.randn(len(ids), generator=noise)

    router = taught(make_router(top_k=top_k), 100, loss)
    ids = torch.arange(4)
    best = router.eval()(torch.zeros(4, 8), context(4)).expert_ids_TK
    assert (best == ((ids + 1) % 4)[:, None]).any(dim=1).all()
    # Nor does it spend its training on the others.
    routing = router.train()(torch.zeros(64, 8), context(64))
    right = (routing.expert_ids_TK == ((torch.arange(64) % 4 + 1) % 4)[:, None]).any(dim=1)
    assert right.float().mean() > 0.6


def test_it_follows_a_change_because_it_forgets():
    """The best expert becomes one of the bad: with discount 1 old rewards outweigh the new for long."""

    def loss(best):
        return lambda ids, experts: 1.0 - (experts[:, 0] == best).float()

    found = {}
    for discount in (0.9, 1.0):
        router = make_router(choice=dict(discount=discount, exploration=0.3))
        taught(taught(router, 80, loss(1)), 40, loss(3))
        found[discount] = router.eval()(torch.zeros(4, 8), context(4)).expert_ids_TK[:, 0].tolist()
    assert found[0.9] == [3] * 4
    assert found[1.0].count(1) >= 3


def test_no_parameters_no_gradient_even_weights():
    moe = MoE(make_config(choice=BanditChoice(buckets=10), top_k=3, routing_scale=2.0)).double()
    assert list(moe.router.parameters()) == []
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    y, routing = moe(x, token_ids=torch.arange(10).view(2, 5))
    assert (routing.routing_weights_TK == 2 / 3).all()
    assert not any(tensor.requires_grad for tensor in routing.tensors())
    assert all(len(set(row)) == 3 for row in routing.expert_ids_TK.tolist())
    assert not routing.ranked and not routing.variable
    y.sum().backward()


def test_the_state_moves_in_update_alone():
    router = taught(make_router(), 3, lambda ids, experts: ids.float())
    before = {name: value.clone() for name, value in router.state_dict().items()}
    assert float(before["counts"].sum()) > 0 and int(before["step"]) == 3
    for training in (True, False):
        router.train(training)(torch.zeros(64, 8), context(64))
    routing = router.train()(torch.zeros(64, 8), context(64))
    sums = router.statistics(replace(routing, token_losses_T=torch.ones(64)), BALANCE)
    assert differing(before, router.state_dict()) == []
    assert torch.equal(router(torch.zeros(64, 8), context(64)).expert_ids_TK, routing.expert_ids_TK)
    router.update(sums, BALANCE)
    assert set(differing(before, router.state_dict())) == {*before} - {"salt"}


def test_without_rewards_only_the_draws_change():
    router = make_router()
    assert router.statistics(router(torch.zeros(9, 8), context(9)), BALANCE) == {}
    router.update({}, BALANCE)
    assert int(router.step) == 1 and not router.counts.any()


def test_layers_try_different_combinations():
    first, second = make_router(), build_router(make_router().config, 8)
    assert int(first.salt) != int(second.salt)
    assert not torch.equal(
        first(torch.zeros(64, 8), context(64)).expert_ids_TK,
        second(torch.zeros(64, 8), context(64)).expert_ids_TK,
    )


@pytest.mark.parametrize(
    "options",
    [dict(score="sigmoid"), dict(selection_bias=True), dict(router_bias=True), dict(noisy_top_k=True),
     dict(input_jitter=0.1), dict(num_groups=2, top_k_groups=2), dict(gumbel_noise=1.0)],
    ids=str,
)  # fmt: skip
def test_options_without_effect_are_refused(options):
    with pytest.raises(ConfigError, match="has no effect with choice = 'bandit': it makes no scores"):
        make_config(choice=BanditChoice(), **options)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (dict(exploration=-1.0), "exploration = -1.0: must be finite and not negative"),
        (dict(discount=0.0), r"discount = 0.0: must lie in \(0, 1\]"),
        (dict(baseline_decay=1.1), r"baseline_decay = 1.1: must lie in \[0, 1\]"),
        (dict(rounds=0), "rounds = 0: must be at least 1"),
        (dict(buckets=0), "buckets = 0: must be at least 1, or None"),
        (dict(seed=-1), "seed = -1: must lie between 0"),
    ],
)
def test_what_is_refused(options, rule):
    with pytest.raises(ConfigError, match=f"router.choice.{rule}"):
        BanditChoice(**options)


def test_what_is_not_known_is_an_error():
    with pytest.raises(ConfigError, match=r"router.choice.buckets = None: must be given outside of a model"):
        MoE(make_config(choice=BanditChoice()))
    with pytest.raises(ConfigError, match=r"needs token_ids: call the layer as moe\(x, token_ids=...\)"):
        MoE(make_config(choice=BanditChoice(buckets=4)))(torch.randn(5, 8))
    with pytest.raises(ConfigError, match="positions = None: a bandit router needs them in training"):
        make_router()(torch.zeros(4, 8), RoutingContext(token_ids_T=torch.arange(4)))


def test_buckets_of_a_vocabulary():
    small, large = BanditChoice().in_vocabulary(300), BanditChoice().in_vocabulary(50_000)
    assert (small.buckets, small.vocab_size) == (300, 300)
    assert (large.buckets, large.vocab_size) == (4096, 50_000)
    assert BanditChoice(buckets=7).in_vocabulary(300).buckets == 7


@pytest.mark.parametrize("name", ["switch", "global_batch", "z"])
def test_balance_losses_are_refused(texts, name):
    with pytest.raises(ConfigError, match=rf"balance.{name}_coef = 0.1: must be 0 .*'bandit': no gradient"):
        run_config(texts, balance={f"{name}_coef": 0.1})


def test_multi_token_prediction_is_refused(texts):
    with pytest.raises(ConfigError, match=r"num_mtp_layers = 1: must be 0 with router.choice = 'bandit'"):
        run_config(texts, model=dict(num_mtp_layers=1))


def test_the_state_stays_exact_in_bfloat16(texts):
    model = Decoder(run_config(texts).model)
    model.layers[0].mlp.router.rewards.fill_(-7.654321)
    router = model.bfloat16().layers[0].mlp.router
    assert router.rewards.dtype == torch.float32
    assert float(router.rewards[0, 0]) == pytest.approx(-7.654321)


# In a model.


def test_counts_have_no_router(texts):
    model = run_config(texts).model
    count = count_parameters(model)
    assert count.router == 0
    assert count.total == sum(p.numel() for p in Decoder(model).parameters())
    plain = replace(model, router=replace(model.router, choice=TopKChoice()))
    saved = 2 * 4 * 16 * len(model.moe_layers)
    assert count_flops(plain, 8, training=True) - count_flops(model, 8, training=True) == 3 * saved


def test_evaluation_does_not_depend_on_the_batch_and_a_cache_changes_nothing(texts, corpus):
    trainer = tiny_trainer(run_config(texts), corpus)
    trainer.step()
    model, tokens = trainer.model.float().eval(), random_batch().tokens_BL
    whole = model(tokens).routings
    for row in range(len(tokens)):
        for got, want in zip(model(tokens[row : row + 1]).routings, whole, strict=True):
            assert torch.equal(got.expert_ids_TK, want.expert_ids_TK[row * 12 : (row + 1) * 12])
    cache = KVCache(model.config, 1, 12)
    steps = [model(tokens[:1, t : t + 1], cache=cache).routings[0].expert_ids_TK for t in range(12)]
    assert torch.equal(torch.cat(steps), whole[0].expert_ids_TK[:12])


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_give_the_same_step(texts, parts, checkpointing):
    """The same experts, losses and statistics, with rows of unequal numbers of valid tokens."""

    def step_of(config, batches):
        torch.manual_seed(0)
        model = build_model(config, torch.device("cpu")).train()
        return accumulate_gradients(model, batches, config, World(), routers_of(model))

    batch, plain = random_batch(), run_config(texts)
    config = run_config(texts, train=dict(activation_checkpointing=checkpointing, accumulation=parts))
    got, want = step_of(config, split_rows(batch, parts)), step_of(plain, [batch])
    torch.testing.assert_close(got.loss, want.loss, **CLOSE)
    assert torch.equal(got.counts_lE, want.counts_lE)
    torch.testing.assert_close(got.statistics, want.statistics, **CLOSE)
    # Two experts a token, each with the token's whole reward; padding gave none.
    valid = int(batch.valid_BL.sum())
    for sums in want.statistics:
        assert float(sums["taken"].sum()) == 2 * valid
        assert float(sums["gained"].sum()) == pytest.approx(-2 * valid * float(want.loss))


def test_a_step_teaches_every_layer(texts, corpus):
    trainer = tiny_trainer(run_config(texts), corpus)
    step = trainer.step()
    assert step.losses.router == {}
    for moe in moe_modules(trainer.model):
        router = moe.router
        assert router.buckets == BYTES and int(router.step) == 1
        tokens = router.counts.sum(dim=1) / 2
        assert float(tokens.sum()) == 8 * 16
        mean = float((router.baseline * tokens).sum() / tokens.sum())
        assert mean == pytest.approx(-float(step.losses.loss))


def test_a_restored_run_goes_on_exactly(texts, corpus, tmp_path):
    config = run_config(texts)
    straight = tiny_trainer(config, corpus)
    for _ in range(3):
        straight.step()
    saved = read_checkpoint(write_checkpoint(tmp_path / "step-00000003", *straight.state()))
    for _ in range(2):
        straight.step()
    resumed = tiny_trainer(config, corpus)
    resumed.restore(saved)
    for _ in range(2):
        resumed.step()
    assert differing(all_state(resumed), all_state(straight)) == []
    assert any("router.counts" in name for name in all_state(straight))
