"""What went wrong in other Mixture-of-Experts code, one test each, named after the pitfall it guards against.

Numbers are those of the project's list of pitfalls; each docstring says what went wrong and where. Those of
the training loop, data parallelism and checkpoints are in test_pitfalls_training.py.
"""

import copy
import gc
import weakref

import pytest
import torch
from random_layers import gradients, logits_for, make_config, make_routing, random_moe
from torch.utils.checkpoint import checkpoint

from moeworks import BalanceConfig, MoE, Routing, balance_losses, updated_expert_bias
from moeworks.config.model import RouterConfig
from moeworks.errors import ConfigError
from moeworks.ops import losses
from moeworks.ops.dispatch import apply_capacity, dispatch
from moeworks.ops.scoring import mask_groups

SWITCH = BalanceConfig(switch_coef=1, global_batch_coef=0)
BIASED = dict(selection_bias=True, score="sigmoid")


def tokens(count: int = 32, width: int = 8) -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randn(count, width, dtype=torch.float64)


def recorded_passes(moe: MoE) -> list[Routing]:
    """Fills with what the router returned, pass by pass, recomputation included."""
    passes: list[Routing] = []
    moe.router.register_forward_hook(lambda module, inputs, routing: passes.append(routing))
    return passes


@pytest.mark.parametrize(
    "options", [dict(renormalize=True), dict(score_order="after_top_k", renormalize=False)]
)
def test_pitfall_01_top_1_weights_that_are_always_1(options):
    """softmax after top-1 is 1 and the router learns nothing: Megatron-LM#894, minimind#858."""
    with pytest.raises(ConfigError, match=r"router\.top_k = 1: .*gets no gradient"):
        RouterConfig(num_experts=6, top_k=1, **options).check_trainable()
    moe = random_moe(make_config(top_k=1, renormalize=False))
    assert gradients(moe(tokens())[0].square().sum(), moe)["router.weight"].abs().max() > 1e-3


def test_pitfall_02_the_selection_bias_is_no_weight():
    """The bias leaked into the combine weights, or they were recovered as biased - bias, which underflows.

    vllm#12002, flashinfer#3875.
    """
    moe = random_moe(make_config(**BIASED, renormalize=False))
    _, routing = moe(tokens())
    chosen = routing.router_logits_TE.sigmoid().gather(1, routing.expert_ids_TK)
    assert torch.equal(routing.routing_weights_TK, chosen)
    moe.router.expert_bias += 1e6  # the same for all: nothing may change
    assert torch.equal(moe(tokens())[1].routing_weights_TK, chosen)


def test_pitfall_02_renormalising_weights_that_underflow():
    """0 / 0 when every chosen sigmoid underflows: flashinfer#3803."""
    routing = make_routing(torch.full((2, 4), -200.0), score="sigmoid")
    assert torch.equal(routing.routing_weights_TK, torch.zeros(2, 2))


def test_pitfall_03_masked_groups_never_win():
    """Losing groups masked with 0 win once biased scores are negative.

    ktransformers#1148, vllm#13474, flashinfer#2168.
    """
    for group_score in ("max", "top2_sum"):
        moe = random_moe(make_config(**BIASED, num_groups=2, top_k_groups=1, group_score=group_score))
        moe.router.expert_bias.zero_()
        ids = moe(tokens())[1].expert_ids_TK
        moe.router.expert_bias -= 2  # a constant: no choice may change
        assert torch.equal(moe(tokens())[1].expert_ids_TK, ids)


def test_pitfall_04_the_group_score_is_what_its_name_says():
    """DeepSeek-V2 takes a group's best, V3 the sum of its two best; Megatron-LM !2801 had a third rule."""
    values = torch.tensor([[0.9, 0.1, 0.1, 0.6, 0.5, 0.3]])  # max prefers the first group, the sum the second
    for name, kept in (("max", [True, False]), ("top2_sum", [False, True])):
        config = make_config(num_groups=2, top_k_groups=1, group_score=name)
        assert mask_groups(values, config).isfinite()[0, ::3].tolist() == kept


def test_pitfall_05_expert_bias_stays_float32():
    """Cast to bfloat16, 238 distinct biases became 8 and 98.5 % of tokens changed experts.

    sglang#37133, Megatron-LM#1482.
    """
    moe = MoE(make_config(**BIASED, num_experts=256, top_k=8))
    moe.router.expert_bias.copy_(8 + torch.arange(256) * 1e-4)
    exact = moe.router.expert_bias.clone()
    moe = copy.deepcopy(moe.bfloat16()).to(torch.bfloat16)
    assert moe.router.weight.dtype == torch.bfloat16
    other = MoE(moe.config).bfloat16()
    other.load_state_dict(moe.state_dict())
    for module in (moe, other, other.float()):
        assert module.router.expert_bias.dtype == torch.float32
        assert torch.equal(module.router.expert_bias, exact)


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_pitfall_06_the_router_is_float32_under_autocast_and_jitter_does_not_upcast(jitter):
    """The router ran in bfloat16, or its jitter changed the dtype of the output.

    torchtitan#2389, Automodel#3255, Megatron-LM !3774.
    """
    moe, x = random_moe(make_config(input_jitter=jitter), dtype=torch.float32), tokens().float()
    torch.manual_seed(0)
    exact = moe(x)[1].router_logits_TE
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moe(x)[1].router_logits_TE, exact)
    y, routing = moe.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert routing.router_logits_TE.dtype == routing.routing_weights_TK.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
def test_pitfall_07_the_output_bias_is_weighted(backend):
    """An expert's output bias added without its routing weight: Automodel#2591 (loss 8.2 instead of 4.5)."""
    config = make_config(expert_linear_bias=True, routing_scale=2.5)
    moe = random_moe(config, backend=backend, dtype=torch.float32)
    with torch.no_grad():
        moe.experts.down_proj.zero_()
    y, routing = moe(tokens().float())
    want = (routing.routing_weights_TK[..., None] * moe.experts.down_bias[routing.expert_ids_TK]).sum(1)
    torch.testing.assert_close(y, want)


def test_pitfall_08_ties_go_to_the_lower_id():
    """top-k left the order of equal scores open, so recompute and ranks disagreed.

    torchtitan#3600, Automodel#3140.
    """
    for count in (3, 64, 257):
        routing = make_routing(torch.zeros(count, 160), top_k=6, groups=8, top_k_groups=3)
        assert routing.expert_ids_TK.tolist() == [[0, 1, 2, 3, 4, 5]] * count


def test_pitfall_09_layers_are_averaged_and_not_pooled():
    """Collapse of two layers on different experts cancels when layers are concatenated.

    transformers#28255, #31464.
    """
    collapsed = [make_routing(logits_for([pair] * 8, 16, height=99.0)) for pair in ([0, 1], [2, 3])]
    for loss in balance_losses(collapsed, SWITCH).values():
        # Half of the load on an expert with all the probability; pooled it would be 4.
        assert loss.item() == pytest.approx(8)


def test_pitfall_11_the_loss_takes_the_softmax_once():
    """softmax(softmax(logits)) is nearly uniform and gives no signal: transformers#45120."""
    logits = logits_for([[0]] * 8, 64).requires_grad_()
    assert losses.switch_loss(make_routing(logits, top_k=1)).item() == pytest.approx(64)
    mild = (0.02 * logits.detach()).requires_grad_()
    routing = make_routing(mild, top_k=1)
    torch.testing.assert_close(losses.mean_probs(routing), mild.softmax(1).mean(0))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_pitfall_12_the_loss_is_not_constant_and_scores_are_normalised(score):
    """The loss was a constant, P was not normalised for sigmoid scores, or P was the raw logits.

    transformers#28093, Megatron-LM !2801 and !3279.
    """
    logits = (torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).double() - 5).requires_grad_()
    routing = make_routing(logits, score=score)
    assert losses.mean_probs(routing).sum().item() == pytest.approx(1)
    loss = losses.switch_loss(routing)
    assert loss.item() > 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() > 1e-4


def test_pitfall_13_load_counts_before_drops_and_without_the_bias():
    """f taken after capacity or from the biased choice hides the imbalance: Megatron-LM !3279."""
    logits = torch.randn(64, 6, dtype=torch.float64) + torch.arange(6)
    plain = make_routing(logits)
    biased = make_routing(logits, expert_bias_E=-torch.arange(6.0))
    dropped = apply_capacity(biased, make_config(capacity_factor=0.5), training=True)
    assert dropped.dropped_fraction() > 0.3
    assert not torch.equal(biased.tokens_per_expert(), plain.tokens_per_expert())
    for loss in (losses.switch_loss, losses.sequence_loss, lambda r: losses.device_loss(r, 2)):
        assert torch.equal(loss(dropped), loss(plain))
    # What moves the bias is the load that the bias produced, before any of it was dropped.
    assert torch.equal(dropped.tokens_per_expert(), biased.tokens_per_expert())


def test_pitfall_14_padding_counts_nowhere():
    """Padding counted in f, P, the z-loss, the counts of the bias, or the capacity.

    transformers#28505, Megatron-LM#1984, torchtitan#4594, Automodel#3223.
    """
    real, junk = tokens(12), 30 * tokens(20)
    moe = random_moe(make_config(**BIASED, capacity_factor=1.0))
    valid = torch.arange(32) % 8 < 3
    x = torch.zeros(32, 8, dtype=torch.float64)
    x[valid], x[~valid] = real, junk
    _, padded = moe(x, valid=valid)
    _, plain = moe(real)
    config = BalanceConfig(
        switch_coef=1,
        sequence_coef=1,
        z_coef=1,
        entropy_coef=1,
        importance_coef=1,
        device_coef=1,
        num_devices=3,
    )
    for name, loss in balance_losses([plain], config).items():
        torch.testing.assert_close(balance_losses([padded], config)[name], loss, msg=name)
    assert torch.equal(padded.tokens_per_expert(), plain.tokens_per_expert())
    assert torch.equal(padded.kept_TK[valid], plain.kept_TK)


def test_pitfall_15_the_sequence_loss_does_not_depend_on_the_micro_batch():
    """It was right for one sequence per batch only: Megatron-LM#5798; a packed row is not one sequence."""
    sequences = torch.arange(4).repeat_interleave(8)
    moe = random_moe(make_config())
    _, whole = moe(tokens(32), sequence_ids=sequences)
    parts = [moe(part)[1] for part in tokens(32).split(8)]
    one_by_one = torch.stack([losses.sequence_loss(part) for part in parts]).mean()
    torch.testing.assert_close(losses.sequence_loss(whole), one_by_one)
    _, as_rows = moe(tokens(32).view(4, 8, 8))
    torch.testing.assert_close(losses.sequence_loss(as_rows), one_by_one)


def test_pitfall_18_nothing_keeps_a_routing_alive():
    """Module-global lists of losses leaked graphs and mixed steps: megablocks#119, #82, #69."""
    moe = random_moe(make_config())
    y, routing = moe(tokens())
    losses.switch_loss(routing).backward(retain_graph=True)
    watched = [weakref.ref(routing), weakref.ref(routing.router_probs_TE), weakref.ref(y)]
    del y, routing
    gc.collect()
    assert [ref() for ref in watched] == [None] * 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_pitfall_21_checkpointing_counts_once(use_reentrant):
    """A counter in forward counts twice under recompute, by use_reentrant.

    torchtitan (a `// 2`), Automodel#3247.
    """
    moe = random_moe(make_config(**BIASED))
    passes = recorded_passes(moe)
    state = {name: value.clone() for name, value in moe.state_dict().items()}

    def run(x):
        y, routing = moe(x)
        return (y, *routing.tensors())

    y, *tensors = checkpoint(run, tokens().requires_grad_(), use_reentrant=use_reentrant)
    routing = passes[0].with_tensors(tuple(tensors))
    (y.sum() + losses.switch_loss(routing)).backward()
    assert len(passes) == 2
    assert routing.tokens_per_expert().sum() == 32 * 2
    assert moe.router.weight.grad.any()
    assert all(torch.equal(value, state[name]) for name, value in moe.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_pitfall_22_a_forward_changes_no_state(training):
    """Evaluation moved counters that the next update used; no_grad protects no buffer: torchtitan#4148."""
    moe = random_moe(make_config(**BIASED, noisy_top_k=True)).train(training)
    before = {name: tensor.clone() for name, tensor in (*moe.named_parameters(), *moe.named_buffers())}
    with torch.no_grad():
        moe(tokens())
    after = dict((*moe.named_parameters(), *moe.named_buffers()))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
def test_pitfall_29_experts_and_rows_without_tokens(backend):
    """Uninitialised rows behind the last expert: 0 * NaN = NaN in gradients.

    pytorch#154557, #193633, torchtitan#1237.
    """
    config = make_config(capacity_factor=0.5, num_zero_experts=2, router_bias=True, expert_linear_bias=True)
    moe = random_moe(config, backend=backend, dtype=torch.float32)
    with torch.no_grad():
        moe.router.bias[2:5] = -99.0
    x = tokens().float().requires_grad_()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        y, routing = moe(x, valid=torch.arange(32) < 20)
        found = gradients(y.square().sum(), moe, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert routing.dropped_fraction() > 0.1 and y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not any(g[2:5].any() for name, g in found.items() if name.startswith("experts."))


def test_pitfall_31_capacity_is_never_above_the_tokens_and_counts_k():
    """Capacity above the number of tokens crashed, or forgot k: DeepSpeed#5353, #8155, Megatron-LM#2214."""
    generous = random_moe(make_config(capacity_factor=100.0, min_capacity=1000))
    _, routing = generous(tokens(3))
    assert routing.kept_TK.all()
    ids = logits_for([[0, 1, 2]] * 8, 4)
    routing = apply_capacity(make_routing(ids, top_k=3), make_config(capacity_factor=1.0), training=True)
    assert routing.kept_TK.sum(0).tolist() == [6, 6, 6]  # 8 tokens * 3 slots / 4 experts


def test_pitfall_32_dropping_by_probability_ranks_probabilities():
    """Ranking logits let unchosen experts (0) beat negative logits; almost nothing was kept.

    DeepSpeed#7986.
    """
    torch.manual_seed(0)
    logits = torch.randn(64, 4, dtype=torch.float64) - 10
    config = make_config(capacity_factor=1.0, drop_policy="probability")
    routing = apply_capacity(make_routing(logits), config, training=True)
    full = routing.tokens_per_expert().clamp(max=32)
    kept = torch.bincount(routing.expert_ids_TK[routing.kept_TK], minlength=4)
    assert torch.equal(kept, full)
    chosen = routing.router_probs_TE.gather(1, routing.expert_ids_TK)
    for expert in range(4):
        mine = routing.expert_ids_TK == expert
        if (mine & ~routing.kept_TK).any():
            assert chosen[mine & routing.kept_TK].min() >= chosen[mine & ~routing.kept_TK].max()


def test_pitfall_35_evaluation_is_never_random_and_experts_start_different():
    """Two eval calls differed by up to 12.4, and all experts started as copies.

    DeepSpeed 0.19.8, fairscale 0.4.13.
    """
    config = make_config(
        noisy_top_k=True,
        input_jitter=0.5,
        capacity_factor=0.5,
        eval_capacity_factor=1.0,
        drop_policy="probability",
    )
    moe, x = random_moe(config).eval(), tokens()
    assert torch.equal(moe(x)[0], moe(x)[0])
    moe.train()
    assert not torch.equal(moe(x)[0], moe(x)[0])
    fresh = MoE(config).experts.down_proj.flatten(1)
    assert torch.pdist(fresh).min() > 0.1


def test_pitfall_37_padding_reaches_no_expert_and_results_repeat():
    """Padding tokens routed to real experts: Megatron-LM#4922; scatter_add in any order: flashinfer#5221."""
    moe, valid = random_moe(make_config(top_k=4)), torch.arange(32) % 4 != 0
    y, routing = moe(tokens(), valid=valid)
    assert dispatch(routing, 6).rows_per_expert_E.sum() == 24 * 4
    assert not y[~valid].any()
    assert all(torch.equal(moe(tokens(), valid=valid)[0], y) for _ in range(3))


def test_pitfall_39_recomputing_routes_the_same():
    """Recompute chose other experts, or failed on other shapes: torchtitan#3146, Automodel#2635, #3325."""
    options = dict(noisy_top_k=True, input_jitter=0.3, capacity_factor=0.7, drop_policy="probability")
    moe = random_moe(make_config(**options))
    passes = recorded_passes(moe)
    y = checkpoint(lambda x: moe(x)[0], tokens().requires_grad_(), use_reentrant=False)
    y.sum().backward()
    first, again = passes
    for got, want in zip(again.tensors(), first.tensors(), strict=True):
        assert torch.equal(got, want)


def test_the_bias_moves_against_the_load_that_it_saw():
    """The sign of the update decides between balance and collapse."""
    step = updated_expert_bias(torch.zeros(3), torch.tensor([9, 3, 0]), BalanceConfig(bias_rule="sign"))
    assert step.tolist() == pytest.approx([-1e-3, 1e-3, 1e-3])
