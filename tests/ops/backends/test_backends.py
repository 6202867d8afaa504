"""Every backend against the reference, forward and backward, and the choice among them."""

from typing import get_args

import pytest
import torch
from random_layers import assert_same, gradients, make_config, random_moe

from moeworks.config.model import Activation
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
def test_equals_the_reference(backend, dtype, tolerance, options):
    moe = random_moe(make_config(**options), dtype=dtype)
    x = torch.randn(11, 8, dtype=dtype, requires_grad=True)
    valid = torch.arange(11) % 5 != 3
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
