"""Cross-entropy by chunks beside F.cross_entropy on all logits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from isa import EVERY_ISA, using_isa
from torch import Tensor

from moeworks.errors import ConfigError
from moeworks.ops import cross_entropy as module
from moeworks.ops.cross_entropy import linear_cross_entropy, token_cross_entropies
from moeworks.ops.native.library import library


@pytest.fixture(params=["native", "torch"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native library, and as if there were none."""
    if request.param == "torch":
        monkeypatch.setattr(module, "serving", lambda *tensors: None)
    elif isinstance(library(), str):
        pytest.skip(library())


def _inputs(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    scale = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) > 0.3)
    return [hidden, head, targets, scale]


def _plain(hidden: Tensor, head: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(hidden, head), targets, reduction="none") * scale).sum()


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    hidden, head = (t.detach().clone().requires_grad_() for t in inputs[:2])
    loss = function(hidden, head, *inputs[2:])
    # The loss is part of a larger one: its gradient is not 1.
    return (loss.detach(), *torch.autograd.grad(3.0 * loss, (hidden, head)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.integers(1, 40),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 50),
    chunk=st.integers(1, 40),
)
def test_in_float64_it_is_exact_however_it_is_cut(
    seed: int, tokens: int, width: int, vocabulary: int, chunk: int
) -> None:
    inputs = _inputs(tokens, width, vocabulary, torch.float64, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_CPU", 1)
        patch.setattr(module, "CHUNK_ROWS", chunk)
        got = _with_gradients(linear_cross_entropy, inputs)
    want = _with_gradients(_plain, inputs)
    for mine, exact in zip(got, want, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.usefixtures("served")
def test_in_float32_it_is_close_to_float64(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_CPU", 1)
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
    inputs = _inputs(70, 16, 333, torch.float32)
    got = _with_gradients(linear_cross_entropy, inputs)
    want = _with_gradients(_plain, [inputs[0].double(), inputs[1].double(), inputs[2], inputs[3].double()])
    for mine, exact in zip(got, want, strict=True):
        assert (mine.double() - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("vocabulary", [1, 7, 16, 33, 5000])
def test_every_instruction_set(isa: str, vocabulary: int) -> None:
    inputs = _inputs(9, 8, vocabulary, torch.float32)
    want = _with_gradients(_plain, [inputs[0].double(), inputs[1].double(), inputs[2], inputs[3].double()])
    with using_isa(isa):
        got = _with_gradients(linear_cross_entropy, inputs)
    for mine, exact in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("served")
def test_bfloat16_rounds_logits_and_their_gradients_as_a_linear_layer_under_autocast() -> None:
    hidden, head, targets, scale = _inputs(50, 16, 70, torch.float32)
    hidden = hidden.bfloat16()

    def plain(hidden: Tensor, head: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = F.linear(hidden, head)
        return (F.cross_entropy(logits.float(), targets, reduction="none") * scale).sum()

    got = _with_gradients(linear_cross_entropy, [hidden, head, targets, scale])
    want = _with_gradients(plain, [hidden, head, targets, scale])
    assert [t.dtype for t in got] == [t.dtype for t in want]
    torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=0)
    for mine, exact in zip(got[1:], want[1:], strict=True):
        assert (mine.double() - exact.double()).norm() <= 0.005 * exact.double().norm()


@pytest.mark.usefixtures("served")
def test_without_gradients_the_losses_are_those_of_each_token() -> None:
    hidden, head, targets, scale = _inputs(20, 4, 30, torch.float32)
    losses = token_cross_entropies(hidden.requires_grad_(), head, targets)
    assert not losses.requires_grad
    torch.testing.assert_close(
        losses, F.cross_entropy(F.linear(hidden, head), targets, reduction="none").detach()
    )
    with torch.no_grad():
        total = linear_cross_entropy(hidden, head, targets, scale)
    torch.testing.assert_close(total, (losses * scale).sum())


@pytest.mark.parametrize(("hidden_learns", "head_learns"), [(True, False), (False, True)])
def test_only_what_learns_gets_a_gradient(hidden_learns: bool, head_learns: bool) -> None:
    hidden, head, targets, scale = _inputs(6, 4, 5, torch.float32)
    hidden.requires_grad_(hidden_learns)
    head.requires_grad_(head_learns)
    linear_cross_entropy(hidden, head, targets, scale).backward()
    assert (hidden.grad is not None, head.grad is not None) == (hidden_learns, head_learns)


@pytest.mark.usefixtures("served")
def test_far_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, head = torch.tensor([[1.0], [1.0]]), torch.tensor([[3e4], [0.0], [-3e4]])
    losses = token_cross_entropies(hidden, head, torch.tensor([0, 2]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 6e4]))
    assert token_cross_entropies(hidden * torch.nan, head, torch.tensor([0, 1])).isnan().all()


def test_no_tokens() -> None:
    hidden, head = torch.zeros(0, 4, requires_grad=True), torch.zeros(5, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, head, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and torch.equal(head.grad, torch.zeros(5, 4))


def test_the_native_kernel_refuses_targets_outside_the_vocabulary() -> None:
    if isinstance(library(), str):
        pytest.skip(library())
    for target in (-1, 5):
        with pytest.raises(ConfigError, match=f"targets: {target} lies outside 0 .. 4"):
            token_cross_entropies(torch.zeros(1, 4), torch.zeros(5, 4), torch.tensor([target]))
