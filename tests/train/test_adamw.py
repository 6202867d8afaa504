"""AdamW beside torch's, the gradients' norm, and clipping by a scale."""

import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import computing, needs_native
from torch import Tensor, nn

from moeworks.errors import ConfigError
from moeworks.ops.native.adamw import AdamWItem, adamw_step
from moeworks.ops.native.library import Library, library
from moeworks.train import adamw as module
from moeworks.train.adamw import AdamW, clip_scale, gradient_norm, scale_gradients_

SHAPES = [(), (1,), (5, 7), (3, 4, 33), (70_001,)]


@pytest.fixture(params=["native", "torch"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native library, and as if there were none."""
    if request.param == "torch":
        monkeypatch.setattr(module, "serving", lambda *tensors: None)
    elif isinstance(library(), str):
        pytest.skip(library())


def _params(dtype: torch.dtype, seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def _groups(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:2], "weight_decay": 0.1, "lr": 0.02}, {"params": params[2:]}]


def _steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], scale: float, count: int) -> None:
    for step in range(count):
        torch.manual_seed(100 + step)
        for number, param in enumerate(params):
            # One parameter has a gradient only now and then: its own step count lags behind.
            param.grad = None if number == 1 and step % 2 else torch.randn_like(param) * scale
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("served")
def test_it_equals_torchs(dtype: torch.dtype) -> None:
    ours, theirs = _params(dtype), _params(dtype)
    options = dict(lr=0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.0)
    optimizer = AdamW(_groups(ours), **options, fused=True)
    reference = torch.optim.AdamW(_groups(theirs), **options, fused=True)
    optimizer.gradient_scale = torch.tensor(0.25, dtype=dtype)
    _steps(optimizer, ours, 1.0, 5)
    _steps(reference, theirs, 0.25, 5)
    rtol = 3e-6 if dtype == torch.float32 else 1e-13
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[a][key], reference.state[b][key], rtol=rtol, atol=rtol)


def _native() -> Library:
    found = library()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(0, 5000),
    step=st.integers(1, 10_000),
    scale=st.floats(1e-3, 10),
    decay=st.floats(0, 0.5),
)
def test_the_native_step_is_the_formula(seed: int, size: int, step: int, scale: float, decay: float) -> None:
    torch.manual_seed(seed)
    param, grad, first, second = torch.randn(4, size)
    second = second.square()
    m = 0.9 * first.double() + 0.1 * grad.double() * scale
    v = 0.95 * second.double() + 0.05 * (grad.double() * scale).square()
    update = 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    want = param.double() * (1 - 0.01 * decay) - update
    item = AdamWItem(param, grad.contiguous(), first, second, 0.01, 0.9, 0.95, 1e-8, decay, step)
    adamw_step(_native(), [item], scale)
    for got, exact in ((param, want), (first, m), (second, v)):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


@needs_native
def test_threads_and_repetition_change_nothing() -> None:
    results = []
    for threads in (1, 2, 5):
        params = _params(torch.float32)
        items = [
            AdamWItem(p.data, p.data * 2, p.data * 0.1, p.data.square(), 0.1, 0.9, 0.99, 1e-8, 0.1, 3)
            for p in params
        ]
        for param in params:
            param.grad = param.data
        with computing(threads=threads) as lib:
            adamw_step(lib, items, 0.5)
            results.append((*(p.data for p in params), gradient_norm(params)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_native_step_refuses_what_does_not_fit() -> None:
    ones = torch.ones(3)
    for tensors, words in (
        ((ones, torch.ones(4)), "grad: has shape"),
        ((ones, ones.double()), "grad: is float64"),
    ):
        with pytest.raises(ConfigError, match=words):
            adamw_step(_native(), [AdamWItem(*tensors, ones, ones, 0.1, 0.9, 0.9, 1e-8, 0.0, 1)])
    with pytest.raises(ConfigError, match="step: counts from 1"):
        adamw_step(_native(), [AdamWItem(ones, ones, ones, ones, 0.1, 0.9, 0.9, 1e-8, 0.0, 0)])


@pytest.mark.usefixtures("served")
def test_gradients_that_are_not_contiguous_are_torchs() -> None:
    param = nn.Parameter(torch.zeros(2, 3))
    optimizer = AdamW([param], lr=1.0, weight_decay=0.0)
    param.grad = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]).t()
    optimizer.step()
    torch.testing.assert_close(param.data, -param.grad.sign())


def _with_gradients(*gradients: Tensor | None) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(1) if g is None else torch.zeros_like(g)) for g in gradients]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = None if gradient is None else gradient.clone()
    return params


def _clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """As a step does; returns the norm before."""
    params = list(parameters)
    norm = gradient_norm(params)
    scale_gradients_(params, clip_scale(norm, max_norm))
    return norm


@pytest.mark.usefixtures("served")
def test_pitfall_27_the_norm_covers_experts_and_dense_parameters_alike() -> None:
    params = _with_gradients(torch.full((2, 2, 2), 1.0), torch.tensor([1.0]), None)
    assert _clip(params, 1.5) == 3.0
    torch.testing.assert_close(params[0].grad, torch.full((2, 2, 2), 0.5))
    torch.testing.assert_close(params[1].grad, torch.tensor([0.5]))


@pytest.mark.parametrize("max_norm", [0.0, 4.0])
def test_gradients_within_the_limit_or_without_limit_stay(max_norm: float) -> None:
    params = _with_gradients(torch.tensor([3.0]), torch.tensor([0.0, 1.0]))
    assert _clip(iter(params), max_norm) == pytest.approx(math.sqrt(10))
    assert torch.equal(params[0].grad, torch.tensor([3.0]))


def test_without_gradients_the_norm_is_zero() -> None:
    assert _clip(_with_gradients(None), 1.0) == 0.0


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=6), max_norm=st.floats(0.01, 30))
def test_clipping_bounds_the_norm_and_keeps_the_direction(values: list[float], max_norm: float) -> None:
    gradients = [torch.tensor([value], dtype=torch.float64) for value in values]
    params = _with_gradients(*gradients)
    norm = _clip(params, max_norm)
    assert norm == pytest.approx(math.hypot(*values))
    clipped = torch.cat([param.grad for param in params])
    assert clipped.norm() <= max_norm * (1 + 1e-9)
    scale = min(1.0, max_norm / (float(norm) + 1e-6))
    torch.testing.assert_close(clipped, torch.cat(gradients) * scale, rtol=1e-9, atol=1e-12)
