"""Every backend against the reference, forward and backward, and the choice among them."""

from collections import Counter
from typing import get_args

import pytest
import torch
from random_layers import assert_same, gradients, make_config, random_moe
from torch.utils._python_dispatch import TorchDispatchMode

from moeworks.config.model import Activation
from moeworks.errors import ConfigError
from moeworks.ops.backends import BACKENDS, choose_backend
from moeworks.ops.experts import ExpertWeights
from moeworks.ops.native.library import Library, library

OPTIONS = {
    **{name: dict(activation=name) for name in get_args(Activation)},
    "biases": dict(expert_linear_bias=True),
    "input": dict(weights_on="input", expert_linear_bias=True, activation="relu2"),
    "top_1": dict(top_k=1, renormalize=False),
    "top_all": dict(top_k=6, expert_linear_bias=True),
    "capacity": dict(capacity_factor=0.5, expert_linear_bias=True),
    "capacity_input": dict(capacity_factor=0.5, weights_on="input", expert_linear_bias=True),
    "zero_computation": dict(num_identity_experts=2, num_zero_experts=1, top_k=4),
}


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("sorted", torch.float64, 1e-12),
        ("sorted", torch.float32, 1e-5),
        # float32 sums in another order: eps is 1.2e-7, values and sums of a dozen terms are around 1 to 10.
        ("grouped_mm", torch.float32, 1e-5),
    ],
)
def test_equals_the_reference(backend, dtype, tolerance, options, padding):
    moe = random_moe(make_config(**options), dtype=dtype)
    x = torch.randn(11, 8, dtype=dtype, requires_grad=True)
    valid = torch.arange(11) % 5 != 3 if padding else None
    results = []
    for moe.experts.backend in ("reference", backend):
        torch.manual_seed(1)
        y, _ = moe(x, valid=valid)
        results.append({"y": y} | gradients((y * torch.randn_like(y)).sum(), moe, x))
    assert_same(results[1], results[0], tolerance)


def weights(dtype: torch.dtype = torch.float32, width: int = 8) -> ExpertWeights:
    return ExpertWeights(
        torch.zeros(2, 8, width, dtype=dtype),
        torch.zeros(2, width, 4, dtype=dtype),
        None,
        None,
        "swiglu",
        "output",
    )


def test_auto_takes_native_on_the_cpu_where_it_is_built():
    name, reason = choose_backend(torch.zeros(3, 8), weights())
    if isinstance(library(), Library):
        assert (name, reason[:10]) == ("native", "on the CPU")
    else:
        assert (name, reason[:16]) == ("sorted", "native refuses: ")


def test_auto_takes_sorted_where_native_refuses():
    name, reason = choose_backend(torch.zeros(3, 8, dtype=torch.float64), weights())
    assert name == "sorted"
    assert reason.startswith("native refuses: ")


def test_the_reference_and_sorted_serve_everything():
    for name in ("reference", "sorted"):
        assert BACKENDS[name].refusal(torch.zeros(3, 8), weights()) is None


def test_grouped_mm_refuses_with_a_reason():
    refusal = BACKENDS["grouped_mm"].refusal
    assert refusal(torch.zeros(3, 8), weights()) is None
    assert "float64" in refusal(torch.zeros(3, 8).double(), weights(torch.float64))
    assert "width of 6" in refusal(torch.zeros(3, 6), weights(width=6))
    assert "width of 4 in torch.bfloat16" in refusal(torch.zeros(3, 8).bfloat16(), weights(torch.bfloat16))


@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_stands_in_padding_reaches_neither_output_nor_gradient(backend, filler):
    if backend == "native" and not isinstance(library(), Library):
        pytest.skip("the native library is not built")
    config = make_config(
        num_identity_experts=1, num_shared_experts=1, expert_linear_bias=True, d_model=16, d_expert=8
    )
    moe, valid = random_moe(config, backend=backend, dtype=torch.float32), torch.arange(11) % 5 != 3
    results = []
    for value in (0.0, filler):
        torch.manual_seed(1)
        x = torch.randn(11, 16).masked_fill(~valid[:, None], value).requires_grad_()
        y, _ = moe(x, valid=valid)
        results.append({"y": y.detach()} | gradients(y.square().sum(), moe, x))
    for part, want in results[0].items():
        assert torch.equal(results[1][part], want), part


class Written(TorchDispatchMode):
    """Counts what operators are called, and the elements that conversions of dtype write."""

    def __init__(self):
        super().__init__()
        self.calls, self.converted = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if func is torch.ops.aten._to_copy.default:
            self.converted += made.numel()
        return made


def test_grouped_mm_masks_no_rows_where_every_row_is_computed():
    moe, x = random_moe(make_config(), dtype=torch.float32, backend="grouped_mm"), torch.randn(11, 8)
    with Written() as all_rows:
        moe(x)
    with Written() as some_rows:
        moe(x, valid=torch.arange(11) % 5 != 3)
    assert all_rows.calls["masked_fill"] == all_rows.calls["searchsorted"] == 0
    assert some_rows.calls["masked_fill"] > 0


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("biases", [False, True])
def test_under_autocast_one_token_converts_the_matrices_of_its_experts_and_no_others(backend, biases):
    if backend == "native" and not isinstance(library(), Library):
        pytest.skip("the native library is not built")
    config = make_config(num_experts=32, top_k=2, d_model=16, d_expert=16, expert_linear_bias=biases)
    moe, x = random_moe(config, backend=backend, dtype=torch.float32), torch.randn(1, 16)
    stack = sum(p.numel() for p in moe.experts.parameters())
    with Written() as written, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        moe(x)
    # One kernel takes the whole stack, so that one is converted.
    assert (written.converted >= stack) if backend == "grouped_mm" else (written.converted < stack / 8)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "native"])
def test_under_autocast_gradients_of_float32_weights_are_close_and_follow_the_weights(backend):
    config = make_config(expert_linear_bias=True, d_model=16, d_expert=8)
    moe, x = random_moe(config, dtype=torch.float32), torch.randn(11, 16)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moe.experts.backend = backend
            got = gradients(moe(x)[0].float().square().sum(), moe)
        moe.experts.backend = "reference"
        want = gradients(moe(x)[0].square().sum(), moe)
        for name, gradient in got.items():
            assert gradient.dtype == torch.float32
            assert (gradient - want[name]).norm() <= 0.05 * want[name].norm() + 1e-6, name
        for parameter in moe.experts.parameters():
            parameter.data.mul_(1.5)  # leaves the version of the parameter as it was


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [slice(0, 4), slice(0, 5)])
def test_weights_of_fewer_experts_than_the_router_chooses_among_are_an_error(backend, kept):
    if backend == "native" and not isinstance(library(), Library):
        pytest.skip("the native library is not built")
    moe = random_moe(make_config(num_zero_experts=1), backend=backend, dtype=torch.float32)
    for name in ("gate_up_proj", "down_proj"):
        setattr(moe.experts, name, torch.nn.Parameter(getattr(moe.experts, name)[kept].detach()))
    rule = f"experts with weights = {kept.stop}: must match the router, which chooses among 6"
    with pytest.raises(ConfigError, match=rule):
        moe(torch.randn(11, 8))
