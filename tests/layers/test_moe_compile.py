"""torch.compile of the MoE layer as one graph: same output, routing and gradients as without."""

import shutil

import pytest
import torch
from random_layers import assert_same, gradients, make_config, random_moe

from moeworks import BalanceConfig, MoE, balance_losses, total_balance_loss
from moeworks.config import ExpertChoice, SinkhornChoice, ThresholdChoice, TopPChoice

pytestmark = pytest.mark.compile

BALANCE = BalanceConfig(switch_coef=1, z_coef=0.1)
OPTIONS = {
    "plain": {},
    "full": dict(
        score="sigmoid",
        top_k=3,
        selection_bias=True,
        num_groups=2,
        top_k_groups=2,
        num_identity_experts=1,
        num_zero_experts=1,
        num_shared_experts=1,
        shared_token_gate=True,
        expert_linear_bias=True,
        capacity_factor=0.8,
        drop_policy="probability",
    ),
    "expert_choice": dict(choice=ExpertChoice(), capacity_factor=1.2, expert_linear_bias=True),
    "top_p": dict(choice=TopPChoice(p=0.6), top_k=3),
    "threshold": dict(choice=ThresholdChoice(threshold=0.2, min_experts=0), top_k=3),
    "sinkhorn": dict(choice=SinkhornChoice(iterations=3)),
    "gumbel": dict(gumbel_noise=0.5, noise_steps=9),
    "pools": dict(pools=("0-3", "2-5"), selection_bias=True, capacity_factor=0.8),
    "noise": dict(noisy_top_k=True, input_jitter=0.2, weights_on="input", capacity_factor=0.8),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(moe, run, x):
    torch.manual_seed(3)
    places = torch.arange(24).view(4, 6)
    y, routing = run(x, valid=places % 7 != 5, token_types=places % 2)
    loss = y.float().square().mean() + total_balance_loss(balance_losses([routing], BALANCE), BALANCE)
    return y, routing, gradients(loss, moe, x)


def assert_compiled_equals_eager(options: dict, backend: str, compiler: str, tolerance: float) -> None:
    dtype = torch.bfloat16 if backend == "grouped_mm" else torch.float64
    moe = random_moe(make_config(**options, d_model=16, d_expert=8), backend=backend, dtype=dtype)
    x = torch.randn(4, 6, 16, dtype=dtype, requires_grad=True)
    want_y, want_routing, want = step(moe, moe, x)
    y, routing, got = step(moe, torch.compile(moe, fullgraph=True, backend=compiler), x)
    for name in ("expert_ids_TK", "kept_TK", "valid_T", "sequence_ids_T"):
        assert torch.equal(getattr(routing, name), getattr(want_routing, name)), name
    assert_same({"y": y} | got, {"y": want_y} | want, tolerance)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("backend", "tolerance"), [("sorted", 1e-12), ("grouped_mm", 0.02)])
def test_one_graph(options, backend, tolerance):
    assert_compiled_equals_eager(options, backend, "aot_eager", tolerance)


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
def test_inductor_with_capacity():
    # It fused the comparison of ranks with the capacity in front of the scatter that wrote the ranks.
    torch.manual_seed(0)
    moe = MoE(make_config(d_model=16, num_experts=4, capacity_factor=1.0), backend="sorted")
    x = torch.randn(10, 16)
    y, routing = torch.compile(moe, fullgraph=True, backend="inductor")(x)
    want_y, want_routing = moe(x)
    assert torch.equal(routing.kept_TK, want_routing.kept_TK)
    assert not routing.kept_TK.all()
    torch.testing.assert_close(y, want_y, rtol=1e-5, atol=1e-6)


def test_another_batch_size_runs_the_same_layer():
    moe = random_moe(make_config(capacity_factor=1.0), backend="sorted")
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (5, 9, 16):
        x = torch.randn(count, 8, dtype=torch.float64)
        torch.testing.assert_close(compiled(x)[0], moe(x)[0], rtol=1e-12, atol=1e-12)


def test_grouped_mm_says_that_it_compiles_only_in_bfloat16():
    moe = random_moe(make_config(d_model=16, d_expert=8), backend="grouped_mm", dtype=torch.float32)
    with pytest.raises(Exception, match="compiles grouped_mm only in bfloat16"):
        torch.compile(moe, backend="aot_eager", fullgraph=True)(torch.randn(3, 16))
