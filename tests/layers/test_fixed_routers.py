"""Layers and models with fixed routers: no parameters, no gradient, and the same experts everywhere."""

import numpy as np
import pytest
import straight_policy
import torch
from random_layers import make_config
from tiny_run import (
    BYTES,
    all_state,
    differing,
    random_batch,
    tiny_config,
    tiny_corpus,
    tiny_trainer,
    write_texts,
)

from moeworks import BalanceConfig, MoE
from moeworks.checkpoint import read_checkpoint, write_checkpoint
from moeworks.config import LayerPatternConfig
from moeworks.config.choices import HashChoice, RandomChoice, RoundRobinChoice, TopKChoice
from moeworks.config.count import count_flops, count_parameters
from moeworks.errors import ConfigError
from moeworks.layers.routers import build_router
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.routing import RoutingContext

FIXED = [
    HashChoice(),
    HashChoice(function="modulo"),
    HashChoice(function="balanced", vocab_size=BYTES),
    RandomChoice(),
    RandomChoice(per="token"),
    RoundRobinChoice(),
]
NO_BALANCE = dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none")


def run_config(texts, choice, **groups):
    router = dict(choice=choice, selection_bias=False) | groups.pop("router", {})
    return tiny_config(texts, router=router, balance=NO_BALANCE, **groups)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("fixed") / "texts")


@pytest.fixture(scope="module")
def corpus(texts):
    return tiny_corpus(tiny_config(texts))


def routed(choice, ids, positions=None, *, training=False, **options):
    config = make_config(choice=choice, **options)
    positions = torch.arange(len(ids)) if positions is None else positions
    router = build_router(config, 8).train(training)
    return router(torch.zeros(len(ids), 8), RoutingContext(token_ids_T=ids, positions_T=positions))


def test_the_experts_are_those_of_the_formulas():
    ids = torch.tensor([3, 99, 3, 7])
    places = [0, 1, 2, 0]
    positions = torch.tensor(places)
    assert routed(HashChoice(seed=4), ids).expert_ids_TK.tolist() == [
        straight_policy.universal(int(i), 4, 6, 2) for i in ids
    ]
    assert routed(RandomChoice(seed=4, per="token"), ids).expert_ids_TK.tolist() == [
        straight_policy.drawn([4, int(i)], 6, 2) for i in ids
    ]
    assert routed(RandomChoice(seed=4), ids, positions).expert_ids_TK.tolist() == [
        straight_policy.drawn([4, int(i), p, 0], 6, 2) for i, p in zip(ids, places, strict=True)
    ]
    assert routed(RoundRobinChoice(), ids, positions).expert_ids_TK.tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
        [0, 1],
    ]


@pytest.mark.parametrize("choice", FIXED, ids=str)
def test_no_parameters_no_gradient_even_weights(choice):
    moe = MoE(make_config(choice=choice, top_k=3, routing_scale=2.0)).double()
    assert list(moe.router.parameters()) == []
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    y, routing = moe(x, token_ids=torch.arange(10).view(2, 5))
    assert (routing.routing_weights_TK == 2 / 3).all()
    assert not any(tensor.requires_grad for tensor in routing.tensors())
    assert all(len(set(row)) == 3 for row in routing.expert_ids_TK.tolist())
    y.sum().backward()
    used = set(routing.expert_ids_TK.flatten().tolist())
    for expert, grad in enumerate(moe.experts.down_proj.grad):
        assert bool(grad.abs().sum() > 0) == (expert in used)


@pytest.mark.parametrize("choice", FIXED[:-1], ids=str)
def test_what_is_not_known_is_an_error(choice):
    with pytest.raises(ConfigError, match=r"needs token_ids: call the layer as moe\(x, token_ids=...\)"):
        MoE(make_config(choice=choice))(torch.randn(5, 8))


def test_round_robin_needs_nothing_and_is_balanced():
    routing = MoE(make_config(choice=RoundRobinChoice()))(torch.randn(2, 9, 8))[1]
    assert routing.tokens_per_expert().tolist() == [6] * 6
    assert routing.expert_ids_TK[9].tolist() == [0, 1]  # each row starts anew


def test_a_balanced_table_needs_a_vocabulary():
    with pytest.raises(ConfigError, match=r"router.choice.vocab_size = None: must be given"):
        MoE(make_config(choice=HashChoice(function="balanced")))


@pytest.mark.parametrize(
    "options",
    [dict(score="sigmoid"), dict(selection_bias=True), dict(router_bias=True), dict(noisy_top_k=True),
     dict(input_jitter=0.1), dict(num_groups=2, top_k_groups=2), dict(gumbel_noise=1.0)],
    ids=str,
)  # fmt: skip
def test_options_without_effect_are_refused(options):
    with pytest.raises(ConfigError, match="has no effect with choice = 'hash': it makes no scores"):
        make_config(choice=HashChoice(), **options)


def test_one_expert_needs_no_gradient_and_so_no_other_weights():
    assert routed(HashChoice(), torch.arange(5), top_k=1).routing_weights_TK.tolist() == [[1.0]] * 5


@pytest.mark.parametrize("name", ["switch", "global_batch", "sequence", "z"])
def test_balance_losses_are_refused(texts, name):
    with pytest.raises(ConfigError, match=rf"balance.{name}_coef = 0.1: must be 0 .*'hash': no gradient"):
        tiny_config(
            texts,
            router=dict(choice=HashChoice(), selection_bias=False),
            balance=NO_BALANCE | {f"{name}_coef": 0.1},
        )


def test_a_dense_model_is_not_asked(texts):
    """Its router is never built, and the default balance loss is on."""
    assert BalanceConfig().global_batch_coef > 0
    dense = dict(pattern=LayerPatternConfig(explicit=()))
    tiny_config(texts, router=dict(choice=HashChoice(), selection_bias=False), model=dense,
                balance=dict(bias_rule="none"))  # fmt: skip


# In a model.


@pytest.mark.parametrize("choice", FIXED, ids=str)
def test_counts_have_no_router(texts, choice):
    model = run_config(texts, choice).model
    count = count_parameters(model)
    assert count.router == 0
    assert count.total == sum(p.numel() for p in Decoder(model).parameters())
    plain = run_config(texts, TopKChoice()).model
    saved = 2 * 4 * 16 * len(model.moe_layers)
    assert count_flops(plain, 8, training=False) - count_flops(model, 8, training=False) == saved


@pytest.mark.parametrize("choice", FIXED, ids=str)
def test_evaluation_does_not_depend_on_the_batch(texts, choice):
    """Nor on the cut into rows, and twice is the same."""
    torch.manual_seed(0)
    model = Decoder(run_config(texts, choice).model).eval()
    tokens = random_batch().tokens_BL
    whole = model(tokens)
    for row in range(len(tokens)):
        alone = model(tokens[row : row + 1])
        for got, want in zip(alone.routings, whole.routings, strict=True):
            assert torch.equal(got.expert_ids_TK, want.expert_ids_TK[row * 12 : (row + 1) * 12])


@pytest.mark.parametrize("choice", FIXED, ids=str)
def test_decoding_with_a_cache_takes_the_same_experts(texts, choice):
    model = Decoder(run_config(texts, choice).model).eval()
    tokens = random_batch().tokens_BL[:1]
    whole = model(tokens).routings[0].expert_ids_TK
    cache = KVCache(model.config, 1, 12)
    steps = [model(tokens[:, t : t + 1], cache=cache).routings[0].expert_ids_TK for t in range(12)]
    assert torch.equal(torch.cat(steps), whole)


def test_random_experts_change_with_the_step_and_not_within_it(texts, corpus):
    trainer = tiny_trainer(run_config(texts, RandomChoice()), corpus)
    router = moe_modules(trainer.model)[0].router
    context = RoutingContext(token_ids_T=torch.arange(40), positions_T=torch.arange(40))
    x = torch.zeros(40, 16)

    def experts(training):
        return router.train(training)(x, context).expert_ids_TK

    first = experts(True)
    assert torch.equal(first, experts(True))
    assert torch.equal(first, experts(False))
    trainer.step()
    assert not torch.equal(first, experts(True))
    assert torch.equal(first, experts(False))
    assert int(router.step) == 1


def test_the_trainer_counts_the_tokens_of_the_training_text(texts, corpus):
    """Once, before the first step; the table is part of the checkpoint."""
    trainer = tiny_trainer(run_config(texts, HashChoice(function="balanced")), corpus)
    counts = [0] * BYTES
    for token in np.asarray(corpus.train.tokens).tolist():
        counts[token] += 1
    assert corpus.train.token_counts(BYTES).tolist() == counts
    for moe in moe_modules(trainer.model):
        assert moe.router.table_VK.tolist() == straight_policy.balanced(counts, 4, 2)
    tensors, _ = trainer.state()
    assert "layers.0.mlp.router.table_VK" in tensors["model"]
    loads = np.zeros(4)
    for token, row in enumerate(moe_modules(trainer.model)[0].router.table_VK.tolist()):
        loads[row] += counts[token]
    assert loads.max() / loads.mean() - 1 < 0.05


@pytest.mark.parametrize("choice", [RandomChoice(), HashChoice(function="balanced")], ids=str)
def test_a_restored_run_goes_on_exactly(texts, corpus, tmp_path, choice):
    config = run_config(texts, choice)
    straight = tiny_trainer(config, corpus)
    for _ in range(2):
        straight.step()
    saved = read_checkpoint(write_checkpoint(tmp_path / "step-00000002", *straight.state()))
    straight.step()
    resumed = tiny_trainer(config, corpus)
    resumed.restore(saved)
    resumed.step()
    assert differing(all_state(resumed), all_state(straight)) == []


def test_casting_the_model_keeps_the_experts(texts):
    model = Decoder(run_config(texts, HashChoice(function="balanced")).model)
    before = moe_modules(model)[0].router.table_VK.clone()
    assert torch.equal(moe_modules(model.bfloat16())[0].router.table_VK, before)
