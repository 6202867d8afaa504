import warnings

import pytest
import torch

from moeworks.layers.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_formula(dtype: torch.dtype) -> None:
    norm = RMSNorm(8, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(3, 8, dtype=dtype)
    exact = x.double()
    want = exact * (exact.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * norm.weight.double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(norm(x).double(), want, rtol=tolerance, atol=tolerance)


def test_float32_weights_serve_a_bfloat16_input_without_a_warning() -> None:
    norm, x = RMSNorm(8, eps=1e-6), torch.randn(3, 8).bfloat16().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = norm(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32
