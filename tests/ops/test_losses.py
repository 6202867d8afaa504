"""Closed forms of the balance losses: 1 at perfect balance, a maximum at collapse, padding, sequences."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from random_layers import logits_for, make_routing

from moeworks import BalanceConfig, Routing, balance_losses, total_balance_loss
from moeworks.config import RouterConfig
from moeworks.errors import ConfigError
from moeworks.ops import losses
from moeworks.ops.scoring import route

E = 8
ONE_LAYER = {
    "switch": losses.switch_loss,
    "sequence": losses.sequence_loss,
    "device": lambda r: losses.device_loss(r, 4),
    "communication": lambda r: losses.communication_loss(r, 4),
    "entropy": losses.entropy_loss,
    "importance": losses.importance_loss,
}


def balanced(top_k: int = 2, score: str = "softmax") -> Routing:
    """Every expert in every slot equally often."""
    ids = [[(t + s) % E for s in range(top_k)] for t in range(E)]
    return make_routing(logits_for(ids, E), top_k=top_k, score=score)


def collapsed(expert: int = 0, tokens: int = 8) -> Routing:
    return make_routing(logits_for([[expert]] * tokens, E, height=500.0), top_k=1)


def random_routing(seed: int = 0, tokens: int = 20, **options) -> Routing:
    torch.manual_seed(seed)
    return make_routing(torch.randn(tokens, E, dtype=torch.float64), **options)


def join(first: Routing, second: Routing) -> Routing:
    """One batch of both batches' tokens; the second's sequences are others than the first's."""
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    return first.with_tensors(tuple(torch.cat(pair) for pair in pairs))


@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_1_at_perfect_balance_whatever_k_and_score(name, score, top_k):
    assert ONE_LAYER[name](balanced(top_k, score)).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "want"),
    # E for losses over experts, the number of devices for losses over devices, 2 for the entropy form.
    [("switch", E), ("sequence", E), ("importance", E), ("device", 4), ("communication", 4), ("entropy", 2)],
)
def test_the_stated_maximum_at_collapse(name, want):
    assert ONE_LAYER[name](collapsed()).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", ["importance", "entropy"])
def test_losses_of_the_mean_probability_are_never_below_1(name):
    for seed in range(20):
        assert ONE_LAYER[name](random_routing(seed)).item() >= 1 - 1e-12


def test_one_expert_is_always_balanced():
    routing = make_routing(torch.randn(5, 1, dtype=torch.float64), top_k=1)
    for loss in (losses.switch_loss, losses.entropy_loss, losses.importance_loss, losses.sequence_loss):
        assert loss(routing).item() == pytest.approx(1)


@pytest.mark.parametrize("name", [*ONE_LAYER, "z"])
def test_gradients_are_finite_at_total_collapse(name):
    logits = torch.zeros(6, E)  # float32, where the other probabilities underflow to 0
    logits[:, 0] = 1000
    logits.requires_grad_()
    loss = (ONE_LAYER | {"z": losses.router_z_loss})[name](make_routing(logits, top_k=1))
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", ["switch", "sequence", "device", "communication", "entropy", "importance"])
def test_a_gradient_step_improves_the_balance(name):
    logits = torch.randn(64, E, dtype=torch.float64) + torch.arange(E) * 0.5
    before = losses.switch_loss(make_routing(logits)).item()
    for _ in range(50):
        logits.requires_grad_()
        (grad,) = torch.autograd.grad(ONE_LAYER[name](make_routing(logits)), logits)
        logits = (logits - 20 * grad).detach()
    assert losses.switch_loss(make_routing(logits)).item() < before - 0.1


def test_z_loss_by_hand():
    routing = make_routing(torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64), top_k=2)
    want = (math.log(2) ** 2 + math.log(math.e + math.e**3) ** 2) / 2
    assert losses.router_z_loss(routing).item() == pytest.approx(want)


def test_switch_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]], dtype=torch.float64)
    routing = make_routing(probs.log(), top_k=1)
    # f = (1/2, 1/2, 0), P = (0.5, 0.4, 0.1)
    assert losses.switch_loss(routing).item() == pytest.approx(3 * (0.5 * 0.5 + 0.5 * 0.4))


def test_communication_counts_a_token_once_per_device():
    # Two devices with two experts each: token 0 stays on device 0, token 1 goes to both.
    routing = make_routing(logits_for([[0, 1], [0, 2]], 4, height=500.0))
    assert losses.communication_loss(routing, 2).item() == pytest.approx(2 * 2 / 3 * 1.0)


def test_device_losses_need_equal_devices():
    for loss in (losses.device_loss, losses.communication_loss):
        with pytest.raises(ConfigError, match=r"num_devices = 3: must divide the number of experts, 8"):
            loss(random_routing(), 3)


def test_load_counts_the_choice_without_the_bias_and_all_of_it():
    bias = torch.tensor([9.0] + [0.0] * (E - 1))
    biased, plain = random_routing(expert_bias_E=bias), random_routing()
    assert torch.equal(losses.load_counts(biased), plain.tokens_per_expert())
    dropped = replace(plain, kept_TK=torch.zeros(20, 2, dtype=torch.bool))
    assert torch.equal(losses.load_counts(dropped), plain.tokens_per_expert())


def test_two_layers_collapsed_on_other_experts_are_averaged_and_not_pooled():
    config = BalanceConfig(switch_coef=1, global_batch_coef=1, importance_coef=1)
    for loss in balance_losses([collapsed(0), collapsed(5)], config).values():
        assert loss.item() == pytest.approx(E)


def test_sequences_are_weighted_by_their_tokens():
    first = random_routing(0, 6, sequence_ids_T=torch.zeros(6, dtype=torch.int64))
    second = random_routing(1, 18, sequence_ids_T=torch.ones(18, dtype=torch.int64))
    want = (6 * losses.sequence_loss(first) + 18 * losses.sequence_loss(second)) / 24
    torch.testing.assert_close(losses.sequence_loss(join(first, second)), want)
    assert losses.sequence_loss(join(first, second)) != losses.switch_loss(join(first, second))


@pytest.mark.parametrize("loss", [losses.sequence_loss, losses.router_z_loss])
def test_independent_of_micro_batching(loss):
    sequences = torch.arange(6).repeat_interleave(4)
    whole = random_routing(tokens=24, sequence_ids_T=sequences)
    for cut in (4, 8, 20):
        parts = [
            whole.with_tensors(tuple(t[s] for t in whole.tensors())) for s in (slice(0, cut), slice(cut, 24))
        ]
        split = (cut * loss(parts[0]) + (24 - cut) * loss(parts[1])) / 24
        torch.testing.assert_close(split, loss(whole))


def add_totals(*parts: losses.StepTotals) -> losses.StepTotals:
    names = [f.name for f in dataclasses.fields(losses.StepTotals)]
    return losses.StepTotals(**{n: sum(getattr(p, n) for p in parts) for n in names})


@pytest.mark.parametrize("name", sorted(losses.STEP_WIDE))
def test_step_wide_losses_do_not_depend_on_micro_batches(name: str):
    """Each part has the loss of the whole, and the parts' gradients are the whole's."""
    config = BalanceConfig(**{"global_batch_coef": 0, f"{name}_coef": 1, "num_devices": 2})
    logits = torch.randn(24, 4, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(24, 4, dtype=torch.float64) + 0.1
    router = RouterConfig(num_experts=4, top_k=2, noisy_top_k=True)
    torch.manual_seed(0)
    routing = route(logits, router, noise_std_TE=noise)
    cuts = (slice(0, 6), slice(6, 24))
    parts = [routing.with_tensors(tuple(t[cut] for t in routing.tensors())) for cut in cuts]
    totals = add_totals(*(losses.step_totals(part, config) for part in parts))
    whole = balance_losses([routing], config)[name]
    found = [balance_losses([part], config, [totals])[name] for part in parts]
    for loss in found:
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    (want,) = torch.autograd.grad(whole, logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(sum(found), logits, retain_graph=True)
    torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-14)
    assert want.abs().max() > 0
    alone = balance_losses([parts[0]], config)[name]
    assert (alone - whole).abs() > 1e-4


def test_each_layer_uses_its_own_totals():
    routings, config = [random_routing(0), random_routing(1)], BalanceConfig(global_batch_coef=1)
    totals = [losses.step_totals(r, config) for r in reversed(routings)]
    loss = balance_losses(routings, config, totals)["global_batch"]
    want = sum(losses.switch_loss(r, t) for r, t in zip(routings, totals, strict=True)) / 2
    torch.testing.assert_close(loss, want)


def test_padding_counts_in_no_loss():
    real = random_routing(0, 12, sequence_ids_T=torch.arange(12) // 6)
    junk = random_routing(1, 5, sequence_ids_T=torch.arange(5))
    padded = replace(join(real, junk), valid_T=torch.arange(17) < 12)
    for loss in (*ONE_LAYER.values(), losses.router_z_loss):
        torch.testing.assert_close(loss(padded), loss(real))


def test_only_padding_gives_0_and_no_nan():
    padded = replace(random_routing(), valid_T=torch.zeros(20, dtype=torch.bool))
    for loss in (losses.switch_loss, losses.sequence_loss, losses.router_z_loss, losses.importance_loss):
        assert loss(padded).item() == 0


def test_a_coefficient_of_0_is_not_computed(monkeypatch):
    def refuse(*_args):
        raise AssertionError("computed")

    for name in ("sequence_loss", "entropy_loss", "importance_loss", "router_z_loss", "load_loss"):
        monkeypatch.setattr(losses, name, refuse)
    config = BalanceConfig(switch_coef=0.5, global_batch_coef=0)
    assert set(balance_losses([random_routing()], config)) == {"switch"}
    assert balance_losses([random_routing()], BalanceConfig(global_batch_coef=0)) == {}
    assert total_balance_loss({}, config) == 0.0


def test_a_model_without_moe_layers_has_no_losses():
    assert balance_losses([], BalanceConfig(switch_coef=1)) == {}


def test_the_total_is_the_sum_of_coefficient_times_loss():
    config = BalanceConfig(switch_coef=0.5, global_batch_coef=0, z_coef=0.1)
    routing = random_routing()
    with torch.no_grad():
        total = total_balance_loss(balance_losses([routing], config), config)
    want = 0.5 * losses.switch_loss(routing) + 0.1 * losses.router_z_loss(routing)
    torch.testing.assert_close(total, want)


def test_an_error_when_no_gradient_flows():
    config = BalanceConfig(switch_coef=0.5)
    found = balance_losses([random_routing()], config)
    with pytest.raises(ConfigError, match=r"balance\.switch_coef = 0\.5: the loss carries no gradient"):
        total_balance_loss(found, config)
