"""The native RMSNorm and rotary positions: forward and backward beside float64, in every memory order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isa import EVERY_ISA, using_isa
from native_cases import computing, needs_native
from torch import Tensor

from moeworks.errors import ConfigError
from moeworks.layers.rope import apply_rope, reference_rope, rope_table
from moeworks.ops.native import norm, rope
from moeworks.ops.norm import rms_norm

pytestmark = needs_native


def _close(got: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    """Within a few roundings of float32 of the largest element."""
    assert got.dtype == torch.float32 and exact.dtype == torch.float64
    limit = 1e-6 * scale * max(1e-3, float(exact.abs().max())) if exact.numel() else 0.0
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=limit)


def _gradients(function, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype)))


def _exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16), rows=st.integers(1, 40), width=st.integers(1, 70), size=st.floats(1e-3, 1e3)
)
def test_rms_norm_forward_and_backward(seed: int, rows: int, width: int, size: float) -> None:
    torch.manual_seed(seed)
    x, weight, grad = torch.randn(rows, width) * size, torch.randn(width), torch.randn(rows, width)
    got = _gradients(lambda a, w: rms_norm(a, w, 1e-6), [x, weight], grad)
    want = _gradients(lambda a, w: _exact_norm(a, w, 1e-6), [x.double(), weight.double()], grad)
    # A row's gradient is a difference of terms of the size of grad / rms(x).
    rms = float(x.double().square().mean(-1).add(1e-6).sqrt().min())
    _close(got[0], want[0])
    torch.testing.assert_close(got[1].double(), want[1], rtol=0, atol=4e-6 * 16 / rms)
    _close(got[2], want[2], scale=rows)


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_rms_norm_with_every_instruction_set_over_many_blocks(isa: str) -> None:
    x, weight, grad = torch.randn(900, 77), torch.randn(77), torch.randn(900, 77)
    with using_isa(isa):
        got = _gradients(lambda a, w: rms_norm(a, w, 1e-5), [x, weight], grad)
    want = _gradients(lambda a, w: _exact_norm(a, w, 1e-5), [x.double(), weight.double()], grad)
    for mine, exact in zip(got, want, strict=True):
        _close(mine, exact, scale=4)


def test_rms_norm_without_weight_and_with_a_frozen_one() -> None:
    x = torch.randn(5, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(rms_norm(x, None, None).square().sum(), x)
    (want,) = torch.autograd.grad(torch.nn.functional.rms_norm(x, (8,)).square().sum(), x)
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)
    rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    assert x.grad is not None


def test_nan_and_no_tokens_pass_through() -> None:
    assert rms_norm(torch.full((1, 4), torch.nan), torch.ones(4), 1e-6).isnan().all()
    assert rms_norm(torch.empty(0, 4), torch.ones(4), 1e-6).shape == (0, 4)
    assert apply_rope(torch.empty(2, 3, 0, 4), rope_table(0, 4, 10.0)).shape == (2, 3, 0, 4)


def _orders(x_BHLP: Tensor) -> dict[str, Tensor]:
    """The same values in several orders of memory."""
    return {
        "heads outside": x_BHLP.contiguous(),
        "heads inside": x_BHLP.transpose(1, 2).contiguous().transpose(1, 2),
        "part of a wider one": torch.cat([x_BHLP, x_BHLP], dim=-1)[..., : x_BHLP.shape[-1]],
        "batch inside": x_BHLP.transpose(0, 2).contiguous().transpose(0, 2),
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 20)),
)
def test_rope_forward_and_backward_in_every_order_of_memory(seed: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(seed)
    batch, heads, length, half = shape
    x, grad = torch.randn(2, batch, heads, length, 2 * half)
    table = rope_table(length + 3, 2 * half, 100.0)[:, 3:]
    want = _gradients(lambda a: reference_rope(a, table), [x.double()], grad)
    for x_ in _orders(x).values():
        leaf = x_.detach().requires_grad_()
        y = apply_rope(leaf, table)
        _close(y.detach(), want[0])
        for grad_ in _orders(grad).values():
            (got,) = torch.autograd.grad(y, leaf, grad_, retain_graph=True)
            _close(got, want[1])


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("half", [1, 3, 4, 8, 16, 17, 32])
def test_rope_with_every_instruction_set(isa: str, half: int) -> None:
    x, table = torch.randn(2, 3, 50, 2 * half), rope_table(50, 2 * half, 10_000.0)
    with using_isa(isa):
        _close(apply_rope(x, table), reference_rope(x.double(), table))


def test_threads_change_nothing() -> None:
    x, weight = torch.randn(5000, 40), torch.randn(40)
    results = []
    for threads in (1, 4):
        with computing(threads=threads):
            results.append(_gradients(lambda a, w: rms_norm(a, w, 1e-6), [x, weight], x))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight: has shape"):
        norm.rms_norm(torch.ones(2, 3), torch.ones(4), 1e-6)
    with pytest.raises(ConfigError, match="x: is not contiguous"):
        norm.rms_norm(torch.ones(3, 2).t(), torch.ones(3), 1e-6)
    with pytest.raises(ConfigError, match="even width"):
        rope.rope(torch.ones(2, 3), torch.ones(2, 1, 1), 1, False)
    with pytest.raises(ConfigError, match="repeats: must be positive"):
        rope.rope(torch.ones(2, 4), torch.ones(2, 1, 2), 0, False)


def test_the_operators_are_well_formed() -> None:
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    torch.library.opcheck(norm.rms_norm, (x, weight, 1e-6))
    torch.library.opcheck(rope.rope, (x, rope_table(5, 6, 10.0), 1, False))
