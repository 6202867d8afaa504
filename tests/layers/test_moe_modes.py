"""The MoE layer in every dtype, under autocast and checkpointing, with any shape and with idle experts."""

import pytest
import torch
from random_layers import assert_same, gradients, make_config, random_moe
from torch.utils.checkpoint import checkpoint

from moeworks import BalanceConfig, MoE, balance_losses, total_balance_loss
from moeworks.ops.native.library import Library, library

BALANCE = BalanceConfig(switch_coef=1, sequence_coef=1, global_batch_coef=0, z_coef=0.1)
FULL = dict(
    num_identity_experts=1,
    num_zero_experts=1,
    num_shared_experts=1,
    shared_token_gate=True,
    selection_bias=True,
    expert_linear_bias=True,
    router_bias=True,
    capacity_factor=1.0,
)


def balance(routing) -> torch.Tensor:
    return total_balance_loss(balance_losses([routing], BALANCE), BALANCE)


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_has_the_input_dtype_and_the_router_is_at_least_float32(dtype, backend):
    if (dtype, backend) == (torch.float64, "grouped_mm"):
        pytest.skip("grouped_mm has no float64 and says so")
    moe = random_moe(make_config(**FULL, d_model=16, d_expert=8), backend=backend, dtype=dtype)
    x = torch.randn(3, 5, 16, dtype=dtype, requires_grad=True)
    y, routing = moe(x)
    assert y.dtype == dtype
    router_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for tensor in (routing.router_logits_TE, routing.router_probs_TE, routing.routing_weights_TK):
        assert tensor.dtype == router_dtype
    for name, gradient in gradients(y.float().square().mean() + balance(routing), moe, x).items():
        assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
def test_bfloat16_is_close_to_float32(backend):
    config = make_config(num_shared_experts=1, d_model=16, d_expert=8)
    moe = random_moe(config, backend=backend, dtype=torch.bfloat16)
    exact = MoE(config, backend="reference")
    exact.load_state_dict(moe.state_dict())
    x = torch.randn(20, 16, dtype=torch.bfloat16)
    (y, routing), (want, want_routing) = moe(x), exact(x.float())
    assert torch.equal(routing.expert_ids_TK, want_routing.expert_ids_TK)
    # bfloat16 keeps 8 bits: 1/256 of the largest value, a few roundings in a row.
    assert (y.float() - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
def test_autocast_gives_bfloat16_output_and_a_float32_router(backend):
    config = make_config(**FULL, d_model=16, d_expert=8)
    moe = random_moe(config, backend=backend, dtype=torch.float32)
    x = torch.randn(2, 7, 16, requires_grad=True)
    want_y, want_routing = moe(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = moe(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(routing.router_logits_TE, want_routing.router_logits_TE)
    assert (y - want_y).abs().max() < 0.03 * want_y.abs().max()
    for name, gradient in gradients(y.float().square().mean() + balance(routing), moe, x).items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all(), name


def plain(moe, x):
    return moe(x)


def non_reentrant(moe, x):
    return checkpoint(moe, x, use_reentrant=False)


def reentrant(moe, x):
    """The Routing's tensors leave the checkpointed function beside y, and the record is built anew."""
    records = []

    def run(x):
        y, routing = moe(x)
        records.append(routing)
        return (y, *routing.tensors())

    y, *tensors = checkpoint(run, x, use_reentrant=True)
    return y, records[0].with_tensors(tuple(tensors))


@pytest.mark.parametrize("run", [non_reentrant, reentrant])
@pytest.mark.parametrize("options", [FULL, dict(noisy_top_k=True, input_jitter=0.2, score="sigmoid")])
def test_checkpointing_changes_no_loss_gradient_or_count(run, options):
    moe = random_moe(make_config(**options))
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for way in (plain, run):
        torch.manual_seed(1)
        y, routing = way(moe, x)
        loss = y.square().mean() + balance(routing)
        results.append((loss, routing.tokens_per_expert(), gradients_by_backward(loss, moe, x)))
    (loss, counts, found), (loss_again, counts_again, found_again) = results
    assert torch.equal(loss, loss_again)
    assert torch.equal(counts, counts_again)
    assert_same(found_again, found, 1e-14)
    assert found["router.weight"].any()


def gradients_by_backward(loss, moe, x) -> dict[str, torch.Tensor]:
    """As `gradients`; reentrant checkpointing refuses torch.autograd.grad."""
    moe.zero_grad()
    x.grad = None
    loss.backward()
    return {name: p.grad.clone() for name, p in (("x", x), *moe.named_parameters())}


@pytest.mark.parametrize("shape", [(8,), (6, 8), (2, 3, 8), (1, 2, 3, 8), (3, 1, 2, 1, 8)])
def test_any_leading_dimensions(shape):
    moe = random_moe(make_config(**FULL | {"capacity_factor": None}))
    x = torch.randn(shape, dtype=torch.float64)
    y, routing = moe(x)
    assert y.shape == shape
    assert routing.expert_ids_TK.shape == (x.numel() // 8, 2)
    torch.testing.assert_close(y.reshape(-1, 8), moe(x.reshape(-1, 8))[0])


def test_a_transposed_input_is_fine():
    moe, x = random_moe(make_config(**FULL)), torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.equal(moe(x.transpose(0, 1).contiguous())[0], moe(x.transpose(0, 1))[0])


def test_without_sequence_ids_each_row_is_a_sequence():
    moe, x = random_moe(make_config()), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rows = torch.arange(6).view(2, 3, 1).expand(2, 3, 5)
    assert torch.equal(moe(x)[1].sequence_ids_T, moe(x, sequence_ids=rows)[1].sequence_ids_T)
    assert moe(x[0, 0])[1].sequence_ids_T is None


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (0, 3, 8)])
@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
@pytest.mark.parametrize("options", [{}, FULL, dict(noisy_top_k=True, weights_on="input")])
def test_empty_input_gives_zero_gradients_and_not_none(shape, backend, options):
    moe = random_moe(make_config(**options), backend=backend, dtype=torch.float32)
    x = torch.randn(shape, requires_grad=True)
    y, routing = moe(x)
    assert y.shape == shape
    assert routing.tokens_per_expert().sum() == 0
    assert routing.dropped_fraction() == 0
    (y.sum() + balance(routing)).backward()
    for name, parameter in moe.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_experts_without_tokens_get_a_zero_gradient(backend, activation):
    config = make_config(activation=activation, expert_linear_bias=True, router_bias=True)
    moe = random_moe(config, backend=backend, dtype=torch.float32)
    with torch.no_grad():
        moe.router.bias.copy_(torch.tensor([0.0, 99.0, 0.0, 0.0, 98.0, 0.0]))
    y, routing = moe(torch.randn(10, 8))
    assert routing.tokens_per_expert().tolist() == [0, 10, 0, 0, 10, 0]
    y.square().sum().backward()
    for name, parameter in moe.experts.named_parameters():
        busy = parameter.grad.flatten(1).abs().sum(1)
        assert parameter.grad.isfinite().all(), name
        assert (busy > 0).tolist() == [False, True, False, False, True, False], name


@pytest.mark.parametrize("backend", ["reference", "sorted", "grouped_mm"])
def test_only_padding_gives_zeros(backend):
    moe = random_moe(make_config(), backend=backend, dtype=torch.float32)
    y, routing = moe(torch.randn(4, 8), valid=torch.zeros(4, dtype=torch.bool))
    assert not y.any()
    (y.sum() + balance(routing)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in moe.parameters())


def test_explain_backend_names_the_backend_and_the_reason():
    moe = MoE(make_config())
    expected = "native: on the CPU" if isinstance(library(), Library) else "sorted: native refuses: "
    assert moe.explain_backend(torch.randn(2, 8)).startswith(expected)
    doubles = moe.double().explain_backend(torch.randn(2, 8, dtype=torch.float64))
    assert doubles.startswith("sorted: native refuses: ")
    assert MoE(make_config(), backend="reference").explain_backend(torch.randn(2, 8)) == (
        "reference: it was asked for"
    )
