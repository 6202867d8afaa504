"""Known bugs of MoE code, for every router beside plain top-k: one test per bug, over all of them.

Numbers are those of tests/test_pitfalls.py and tests/test_pitfalls_training.py, which hold top-k to them.
"""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from native_cases import needs_native
from random_layers import gradients, make_config, random_moe, randomise_
from tiny_run import random_batch, split_rows, tiny_config, tiny_corpus, tiny_trainer, write_texts
from torch.utils.checkpoint import checkpoint

from moeworks import BalanceConfig, MoE, balance_losses, total_balance_loss
from moeworks.config import (
    AssignmentChoice,
    CapacityConfig,
    ExpertChoice,
    LayerPatternConfig,
    RouterConfig,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)
from moeworks.errors import ConfigError
from moeworks.layers.router import Router
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops import losses
from moeworks.ops.dispatch import apply_capacity, dispatch
from moeworks.ops.routing import Routing
from moeworks.parallel.world import World
from moeworks.train.step import accumulate_gradients, routers_of, update_routers
from moeworks.train.trainer import build_model

ROUTERS = {
    "expert_choice": dict(choice=ExpertChoice()),
    "expert_choice_always": dict(choice=ExpertChoice(causal="always")),
    "expert_choice_plain": dict(choice=ExpertChoice(causal="no", scope="sequence")),
    "sinkhorn": dict(choice=SinkhornChoice()),
    "assignment": dict(choice=AssignmentChoice()),
    "top_p": dict(choice=TopPChoice(p=0.6), top_k=3),
    "threshold": dict(choice=ThresholdChoice(threshold=0.2, mean_experts=1.5, min_experts=0), top_k=3),
    "gumbel": dict(gumbel_noise=1.0, noise_steps=4),
    "quantile": dict(selection_bias=True),
}
STATE = ("expert_choice", "expert_choice_always", "threshold", "gumbel", "quantile")
ALL = BalanceConfig(
    switch_coef=1, sequence_coef=1, device_coef=1, communication_coef=1, entropy_coef=1, importance_coef=1,
    z_coef=0.1, num_devices=2, bias_rule="quantile", bias_rate=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("pitfalls") / "texts")


@pytest.fixture(scope="module")
def corpus(texts):
    return tiny_corpus(tiny_config(texts))


every_router = pytest.mark.parametrize("name", ROUTERS)
every_state = pytest.mark.parametrize("name", STATE)


def layer_of(name: str, **options) -> MoE:
    return random_moe(make_config(**ROUTERS[name] | options))


def tokens(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def recorded_passes(moe: MoE) -> list[Routing]:
    """What its router returns from now on, recomputation included."""
    records: list[Routing] = []
    moe.router.register_forward_hook(lambda module, inputs, routing: records.append(routing))
    return records


def moved(moe: MoE, routing: Routing) -> dict[str, torch.Tensor]:
    """The buffers of its router after one update by `routing`."""
    moe.router.update(moe.router.statistics(routing, ALL), ALL)
    return {name: b.clone() for name, b in moe.router.named_buffers()}


def run_config(texts, name: str, **groups):
    balance = dict(bias_rule="quantile" if name == "quantile" else "none", bias_rate=0.5)
    router = dict(selection_bias=False) | ROUTERS[name]
    return tiny_config(texts, router=router, balance=balance | groups.pop("balance", {}), **groups)


def seeded_step(config, batches):
    torch.manual_seed(0)
    model = randomise_(build_model(config, torch.device("cpu")), std=0.3).train()
    torch.manual_seed(1)
    found = accumulate_gradients(model, batches, config, World(), routers_of(model))
    grads = {n: p.grad for n, p in model.named_parameters()}
    update_routers(routers_of(model), found.statistics, config.balance)
    return found, grads, {n: b for n, b in model.named_buffers() if "router" in n}


# Router.


@pytest.mark.parametrize("name", [n for n in ROUTERS if "top_k" not in ROUTERS[n]])
def test_pitfall_01_top_1_weights_that_are_always_1(name):
    with pytest.raises(ConfigError, match="every routing weight is 1"):
        make_config(**ROUTERS[name] | dict(top_k=1)).check_trainable()
    moe = layer_of(name, top_k=1, renormalize=False)
    y, _ = moe(tokens())
    y.square().sum().backward()
    assert moe.router.weight.grad.any()


def test_pitfall_02_the_dual_bias_is_no_weight():
    moe = layer_of("quantile")
    _, routing = moe(tokens())
    scores_TK = routing.router_probs_TE.gather(1, routing.expert_ids_TK)
    torch.testing.assert_close(routing.routing_weights_TK, scores_TK / scores_TK.sum(1, keepdim=True))


def test_pitfall_02_tokens_without_experts_give_no_nan():
    moe = layer_of("threshold", score="sigmoid", renormalize_eps=0.0)
    with torch.no_grad():
        moe.router.choice.threshold.fill_(0.999999)
    x = tokens().requires_grad_()
    y, routing = moe(x)
    assert routing.num_assignments() == 0
    found = gradients(y.sum() + routing.routing_weights_TK.sum(), moe, x)
    assert not y.any()
    assert all(not g.any() for g in found.values())


@pytest.mark.parametrize("name", [n for n in ROUTERS if n not in ("gumbel", "quantile")])
def test_pitfall_03_groups_that_a_choice_would_ignore(name):
    with pytest.raises(ConfigError, match=r"router.num_groups = 2: must be 1 with router.choice"):
        make_config(**ROUTERS[name], num_groups=2, top_k_groups=2)
    with pytest.raises(ConfigError, match=r"router.selection_bias = True: must be False"):
        make_config(**ROUTERS[name], selection_bias=True)


@every_state
def test_pitfall_05_state_stays_float32_through_casts_and_files(name, tmp_path):
    moe = random_moe(make_config(**ROUTERS[name]), dtype=torch.float32)
    before = {n: b.clone() for n, b in moe.router.named_buffers()}
    moe = moe.bfloat16()
    torch.save(moe.state_dict(), tmp_path / "state.pt")
    fresh = MoE(make_config(**ROUTERS[name])).bfloat16()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert before
    for n, b in fresh.router.named_buffers():
        assert b.dtype in (torch.float32, torch.int64)
        assert torch.equal(b, before[n])


@every_router
def test_pitfall_06_the_router_is_float32_under_autocast(name):
    moe = random_moe(make_config(**ROUTERS[name]), dtype=torch.float32)
    x = tokens().float()
    torch.manual_seed(0)
    want = moe(x)[1]
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = moe(x)
    assert y.dtype == torch.bfloat16
    assert routing.router_probs_TE.dtype == torch.float32
    assert torch.equal(routing.expert_ids_TK, want.expert_ids_TK)


@every_router
def test_pitfall_08_ties_are_settled_the_same_way_every_time(name):
    moe, x = layer_of(name), tokens(4).repeat(6, 1)
    first = None
    for _ in range(3):
        torch.manual_seed(0)
        ids_TK = moe(x)[1].expert_ids_TK
        first = ids_TK if first is None else first
        assert torch.equal(ids_TK, first)


# Losses.


@every_router
def test_pitfall_12_every_loss_has_a_gradient_and_is_at_least_1(name):
    moe = layer_of(name)
    found = balance_losses([moe(tokens())[1]], ALL)
    for loss_name, loss in found.items():
        moe.zero_grad()
        loss.backward(retain_graph=True)
        assert moe.router.weight.grad.any(), loss_name
        assert loss_name == "z" or loss > 0.5, loss_name


@every_router
def test_pitfall_13_load_counts_before_drops(name):
    moe = layer_of(name)
    torch.manual_seed(0)
    routing = moe(tokens())[1]
    dropped = apply_capacity(routing, replace(moe.config, capacity_factor=0.3), training=True)
    assert dropped.dropped_fraction() > 0.2
    assert torch.equal(losses.load_counts(dropped), losses.load_counts(routing))


@every_router
def test_pitfall_14_padding_counts_nowhere(name):
    """Other tokens in the padding change no output, count, loss, gradient, drop or state."""
    valid = torch.arange(24) % 4 != 3
    x = tokens()
    seen = []
    for filler in (0.0, 5.0):
        moe = layer_of(name, capacity_factor=1.0)
        padded = x.clone()
        padded[~valid] = filler
        torch.manual_seed(0)
        y, routing = moe(padded, valid=valid)
        found = balance_losses([routing], ALL)
        (y[valid].square().sum() + total_balance_loss(found, ALL)).backward()
        assert routing.tokens_per_expert().sum() == routing.num_assignments() <= 18 * routing.top_k
        assert not y[~valid].any()
        seen.append((
            y[valid].detach(), routing.tokens_per_expert(), routing.dropped_fraction(), *found.values(),
            moe.router.weight.grad, *moved(moe, routing).values(),
        ))  # fmt: skip
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["top_p", "threshold", "quantile"])
def test_pitfall_15_and_16_a_step_does_not_depend_on_micro_batches(texts, name):
    """Where tokens do not compete: same loss, gradients, counts, and the same state afterwards."""
    config = run_config(texts, name, balance=dict(importance_coef=0.1, device_coef=0.1, num_devices=2))
    batch = random_batch()
    losses_1, grads_1, state_1 = seeded_step(config, [batch])
    losses_4, grads_4, state_4 = seeded_step(config, split_rows(batch, 4))
    torch.testing.assert_close(losses_4.loss, losses_1.loss)
    torch.testing.assert_close(losses_4.balance, losses_1.balance)
    torch.testing.assert_close(grads_4, grads_1)
    assert torch.equal(losses_4.counts_lE, losses_1.counts_lE)
    if name == "threshold":
        torch.testing.assert_close(state_4, state_1)


@every_router
def test_pitfall_18_nothing_keeps_a_routing_alive(name):
    moe = layer_of(name)
    y, routing = moe(tokens())
    y.sum().backward()
    moved(moe, routing)
    watched = weakref.ref(routing.router_logits_TE)
    del y, routing
    gc.collect()
    assert watched() is None


# State.


@every_state
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_pitfall_17_and_21_checkpointing_counts_once(name, use_reentrant):
    plain, again = layer_of(name), layer_of(name)
    torch.manual_seed(0)
    _, want = plain(tokens())
    records = recorded_passes(again)

    def run(x):
        y, routing = again(x)
        return (y, *routing.tensors())

    torch.manual_seed(0)
    y, *tensors = checkpoint(run, tokens().requires_grad_(), use_reentrant=use_reentrant)
    y.sum().backward()
    assert len(records) == 2
    assert len(tensors) == len(want.tensors())
    routing = want.with_tensors(tuple(tensors))
    a, b = moved(plain, want), moved(again, routing)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_pitfall_22_a_forward_changes_no_state(name, training):
    moe = layer_of(name).train(training)
    before = {n: t.clone() for n, t in moe.state_dict().items()}
    moe(tokens())
    assert all(torch.equal(t, before[n]) for n, t in moe.state_dict().items())


@every_state
def test_pitfall_23_state_of_layers_behind_a_dense_one_moves(texts, corpus, name):
    pattern = LayerPatternConfig(explicit=(1,))
    trainer = tiny_trainer(run_config(texts, name, model=dict(pattern=pattern)), corpus)
    before = {n: b.clone() for n, b in trainer.model.named_buffers() if "router" in n}
    trainer.step()
    assert before
    for n, b in trainer.model.named_buffers():
        assert n not in before or not torch.equal(b, before[n]), n


@every_state
def test_pitfall_24_state_moves_once_per_optimizer_step(texts, name, monkeypatch):
    calls = []
    update = Router.update
    monkeypatch.setattr(Router, "update", lambda *args: (calls.append(1), update(*args)))
    _, _, state = seeded_step(run_config(texts, name), split_rows(random_batch(), 4))
    assert len(calls) == 2  # layers
    for n, b in state.items():
        assert not n.endswith(("updates", "noise_step")) or b == 1


# Dispatch and capacity.


@every_router
@pytest.mark.parametrize(
    "backend", ["reference", "sorted", "grouped_mm", pytest.param("native", marks=needs_native)]
)
def test_pitfall_29_experts_and_rows_without_tokens(name, backend):
    moe = random_moe(make_config(**ROUTERS[name]), backend=backend, dtype=torch.float32)
    x = tokens().float().requires_grad_()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        y, _ = moe(x, valid=torch.arange(24) < 2)
        found = gradients(y.square().sum(), moe, x)
        none, empty = moe(x, valid=torch.zeros(24, dtype=torch.bool))
        found |= {f"none {n}": g for n, g in gradients(none.sum(), moe, x).items()}
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.isfinite().all()
    assert not none.any()
    assert empty.num_assignments() == 0 == empty.dropped_fraction()
    assert all(g.isfinite().all() for g in found.values())


@every_router
def test_pitfall_31_capacity_is_never_above_the_tokens(name):
    _, routing = layer_of(name, capacity_factor=100.0, min_capacity=1000)(tokens(3))
    filled_TK = torch.ones_like(routing.kept_TK) if routing.filled_TK is None else routing.filled_TK
    assert torch.equal(routing.kept_TK, filled_TK)
    for count in (0, 1, 2):
        y, routing = layer_of(name)(tokens(count))
        assert y.shape == (count, 8)
        assert (routing.tokens_per_expert() <= count).all()


@every_router
def test_pitfall_32_dropping_by_probability_ranks_probabilities(name):
    moe = layer_of(name, capacity_factor=0.4, drop_policy="probability")
    with torch.no_grad():
        moe.router.weight.mul_(3)
    _, routing = moe(tokens())
    filled_TK = torch.ones_like(routing.kept_TK) if routing.filled_TK is None else routing.filled_TK
    chosen_TK = routing.router_probs_TE.gather(1, routing.expert_ids_TK.clamp(max=5))
    assert (filled_TK & ~routing.kept_TK).any()
    for expert in range(6):
        mine = (routing.expert_ids_TK == expert) & filled_TK
        if (mine & ~routing.kept_TK).any():
            assert chosen_TK[mine & routing.kept_TK].min() >= chosen_TK[mine & ~routing.kept_TK].max()


@every_router
def test_pitfall_35_evaluation_is_never_random(name):
    moe = layer_of(name).eval()
    assert torch.equal(moe(tokens())[0], moe(tokens())[0])


@every_router
def test_pitfall_37_padding_reaches_no_expert(name):
    moe, valid = layer_of(name), torch.arange(24) % 4 != 0
    torch.manual_seed(0)
    y, routing = moe(tokens(), valid=valid)
    assert dispatch(routing, 6).rows_per_expert_E.sum() == routing.num_assignments()
    assert not routing.kept_TK[~valid].any()
    assert not y[~valid].any()


@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
@every_router
def test_pitfall_37_whatever_stands_in_padding_reaches_neither_output_nor_gradient(name, filler):
    moe, valid = layer_of(name, num_shared_experts=1, shared_token_gate=True), torch.arange(24) % 4 != 0
    results = []
    for value in (0.0, filler):
        x = tokens().masked_fill(~valid[:, None], value).requires_grad_()
        torch.manual_seed(0)
        y, routing = moe(x, valid=valid)
        loss = y.square().sum() + total_balance_loss(balance_losses([routing], ALL), ALL)
        results.append({"y": y.detach()} | gradients(loss, moe, x))
    for part, want in results[0].items():
        assert torch.equal(results[1][part], want), part


# Causality.


def decoder(texts, router: dict, **model) -> Decoder:
    torch.manual_seed(0)
    config = replace(tiny_config(texts).model, router=RouterConfig(**dict(num_experts=4) | router), **model)
    made = randomise_(Decoder(config).double(), std=0.5)
    for moe in moe_modules(made):
        for n, b in moe.router.named_buffers():
            b.fill_(1 if n.endswith("updates") else 0.25)
    return made


def leaks(model: Decoder, seed: int = 0) -> bool:
    """Whether other tokens at the end change the logits of those before them, in any of a few texts."""
    found = False
    for text in range(6):
        torch.manual_seed(seed + text)
        ids = torch.randint(200, (1, 16))
        other = ids.clone()
        other[:, 10:] = torch.randint(200, (1, 6))
        with torch.no_grad():
            one, two = (model(x).logits_BLV[:, :10] for x in (ids, other))
        # Sums of another shape round otherwise; another expert is no rounding.
        found |= not torch.allclose(one, two, rtol=1e-9, atol=1e-9)
    return found


LOOKING = {
    "expert_choice": dict(choice=ExpertChoice()),
    "expert_choice_sequence": dict(choice=ExpertChoice(causal="no", scope="sequence")),
    "sinkhorn": dict(choice=SinkhornChoice()),
    "assignment": dict(choice=AssignmentChoice()),
}


@pytest.mark.parametrize("router", LOOKING.values(), ids=LOOKING)
def test_pitfall_38_global_choices_leak_later_tokens_in_training(texts, router):
    model = decoder(texts, router).train()
    assert leaks(model)
    assert all(moe.looks_ahead() for moe in moe_modules(model))


CAUSAL = {
    "expert_choice_always": dict(choice=ExpertChoice(causal="always")),
    "top_p": dict(choice=TopPChoice(), top_k=3),
    "threshold": dict(choice=ThresholdChoice(), top_k=3),
    "top_k": {},
}


@pytest.mark.parametrize("router", CAUSAL.values(), ids=CAUSAL)
def test_pitfall_38_choices_of_tokens_never_leak(texts, router):
    for training in (True, False):
        model = decoder(texts, router).train(training)
        assert not leaks(model)
        assert not any(moe.looks_ahead() for moe in moe_modules(model))


@pytest.mark.parametrize("router", [r for n, r in LOOKING.items() if n != "expert_choice_sequence"])
def test_pitfall_38_causal_variants_leak_nothing_in_evaluation(texts, router):
    model = decoder(texts, router).eval()
    assert not leaks(model)
    assert any(len(set(r.expert_ids_TK[:, 0].tolist())) > 1 for r in model(torch.arange(16)[None]).routings)


def test_pitfall_38_without_one_evaluation_refuses_and_encoding_does_not(texts):
    model = decoder(texts, dict(choice=ExpertChoice(causal="no")))
    model.train()(torch.arange(16)[None])
    with pytest.raises(ConfigError, match=r"experts choose among all tokens.* would know what it predicts"):
        model.eval()(torch.arange(16)[None])
    moe_modules(model)[0].eval()(torch.randn(2, 5, 16, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"model.router.choice = 'expert_choice': cannot be validated"):
        run_config(texts, "expert_choice_plain")


@pytest.mark.parametrize("policy", ["probability", "batch_priority"])
def test_pitfall_38_dropping_by_probability_leaks_and_by_position_does_not(texts, policy):
    limited = CapacityConfig(capacity_factor=0.5, drop_policy=policy)
    assert leaks(decoder(texts, {}, capacity=limited).train())
    assert not leaks(decoder(texts, {}, capacity=limited).eval())  # dropless there
    assert not leaks(decoder(texts, {}, capacity=replace(limited, drop_policy="position")).train())
    both = replace(limited, eval_capacity_factor=0.5)
    with pytest.raises(ConfigError, match="loses its expert to later ones"):
        decoder(texts, {}, capacity=both).eval()(torch.arange(16)[None])
    with pytest.raises(ConfigError, match=rf"drop_policy = '{policy}': cannot be validated"):
        tiny_config(texts, model=dict(capacity=both))


@every_router
def test_pitfall_39_recomputing_routes_the_same(name):
    moe = layer_of(name)
    records = recorded_passes(moe)
    checkpoint(lambda x: moe(x)[0], tokens().requires_grad_(), use_reentrant=False).sum().backward()
    first, again = records
    for a, b in zip(first.tensors(), again.tensors(), strict=True):
        assert torch.equal(a, b)
