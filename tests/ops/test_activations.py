import math

import pytest
import torch

from moeworks.config.model import GATED
from moeworks.ops.activations import activate, activate_backward

ALL = ["swiglu", "geglu", "geglu_tanh", "clamped_swiglu", "relu", "gelu", "relu2"]


def phi(h: float) -> float:
    """The normal distribution function."""
    return 0.5 * (1 + math.erf(h / math.sqrt(2)))


def clamped(g: float, u: float) -> float:
    """gpt-oss's: the gate is clamped from above, the other factor on both sides, and 1 is added to it."""
    g, u = min(g, 7.0), max(-7.0, min(u, 7.0))
    return g / (1 + math.exp(-1.702 * g)) * (u + 1)


def gelu_tanh(h: float) -> float:
    """The approximation of Hendrycks and Gimpel (2016)."""
    return 0.5 * h * (1 + math.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


CLOSED_FORMS = {
    "clamped_swiglu": clamped,
    "geglu_tanh": lambda g, u: gelu_tanh(g) * u,
    "swiglu": lambda g, u: g / (1 + math.exp(-g)) * u,
    "geglu": lambda g, u: g * phi(g) * u,
    "relu": lambda h: max(h, 0.0),
    "gelu": lambda h: h * phi(h),
    "relu2": lambda h: max(h, 0.0) ** 2,
}


@pytest.mark.parametrize("activation", ALL)
def test_closed_form(activation):
    values = [-2.0, -0.5, 0.0, 9.0, 0.3, 1.0, 4.0, -8.0]
    hidden = torch.tensor(values, dtype=torch.float64)
    if activation in GATED:
        want = [CLOSED_FORMS[activation](values[i], values[4 + i]) for i in range(4)]
    else:
        want = [CLOSED_FORMS[activation](h) for h in values]
    torch.testing.assert_close(activate(hidden, activation), torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ALL)
def test_the_hand_written_backward_equals_autograd(activation, dtype):
    torch.manual_seed(0)
    hidden = (3 * torch.randn(4, 5, 8, dtype=dtype)).requires_grad_()
    out = activate(hidden, activation)
    grad = torch.randn_like(out)
    (want,) = torch.autograd.grad(out, hidden, grad)
    got = activate_backward(grad, hidden.detach(), activation)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ALL)
def test_the_slope_at_0_is_autograds(activation):
    hidden = torch.zeros(3, 2, requires_grad=True)
    out = activate(hidden, activation)
    (want,) = torch.autograd.grad(out, hidden, torch.ones_like(out))
    assert torch.equal(activate_backward(torch.ones_like(out), hidden.detach(), activation), want)


@pytest.mark.parametrize("activation", ALL)
def test_no_rows_are_fine(activation):
    hidden = torch.randn(0, 8)
    out = activate(hidden, activation)
    assert out.shape == (0, 4 if activation in ("swiglu", "geglu") else 8)
    assert activate_backward(out, hidden, activation).shape == hidden.shape


@pytest.mark.parametrize("activation", ALL)
def test_large_values_stay_finite(activation):
    hidden = torch.tensor([[-1e4, 1e4, 1e3, -1e3]])
    out = activate(hidden, activation)
    assert out.isfinite().all()
    assert activate_backward(torch.ones_like(out), hidden, activation).isfinite().all()
