"""Muon against torch's on matrices, and matrix by matrix on stacks."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moeworks.errors import ConfigError
from moeworks.train import muon as muon_module
from moeworks.train.muon import COEFFICIENTS, Muon, orthogonalize


def _gradients(
    shape: tuple[int, ...], steps: int = 3, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(steps)]


def _start(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


def _train(
    optimizer: torch.optim.Optimizer, param: nn.Parameter, gradients: list[torch.Tensor]
) -> torch.Tensor:
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


def _ours(
    start: torch.Tensor, gradients: list[torch.Tensor], *, splits: int = 1, **options: float
) -> torch.Tensor:
    param = nn.Parameter(start.clone())
    return _train(Muon([{"params": [param], "splits": splits}], **options), param, gradients)


def _torchs(start: torch.Tensor, gradients: list[torch.Tensor], **options: float) -> torch.Tensor:
    param = nn.Parameter(start.clone())
    return _train(torch.optim.Muon([param], adjust_lr_fn="match_rms_adamw", **options), param, gradients)


OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}


@pytest.fixture
def exact_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon orthogonalises in bfloat16; here it keeps its input's precision."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@pytest.mark.usefixtures("exact_torch")
@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8), (1, 5)])
def test_equals_torchs_muon_on_matrices(shape: tuple[int, int]) -> None:
    start, gradients = _start(shape), _gradients(shape)
    torch.testing.assert_close(
        _ours(start, gradients, **OPTIONS), _torchs(start, gradients, **OPTIONS), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("native", [True, False])
def test_is_close_to_torchs_muon_as_it_comes(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Up to bfloat16, in which torch computes the update of about 0.2 * lr per element and step."""
    monkeypatch.setattr(muon_module, "_cpu_multiplies_bfloat16", lambda: native)
    start, gradients = _start((16, 24), torch.float32), _gradients((16, 24), dtype=torch.float32)
    difference = _ours(start, gradients, **OPTIONS) - _torchs(start, gradients, **OPTIONS)
    assert difference.abs().max() < 0.05 * 0.2 * OPTIONS["lr"] * len(gradients)


@pytest.mark.usefixtures("exact_torch")
@pytest.mark.parametrize("shape", [(5, 6, 9), (5, 9, 6)])
def test_every_experts_matrix_is_treated_on_its_own(shape: tuple[int, int, int]) -> None:
    start, gradients = _start(shape), _gradients(shape)
    together = _ours(start, gradients, **OPTIONS)
    for e in range(shape[0]):
        alone = _torchs(start[e], [g[e] for g in gradients], **OPTIONS)
        torch.testing.assert_close(together[e], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("exact_torch")
@pytest.mark.parametrize("shape", [(12, 8), (3, 12, 8)])
def test_the_halves_of_a_fused_pair_are_treated_apart(shape: tuple[int, ...]) -> None:
    start, gradients = _start(shape), _gradients(shape)
    fused = _ours(start, gradients, splits=2, **OPTIONS)
    for rows in (slice(0, 6), slice(6, 12)):
        half = _ours(start[..., rows, :], [g[..., rows, :] for g in gradients], **OPTIONS)
        torch.testing.assert_close(fused[..., rows, :], half, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(fused, _ours(start, gradients, **OPTIONS), atol=1e-4)


def test_one_step_in_closed_form() -> None:
    """W' = (1 - lr wd) W - lr 0.2 sqrt(max(R, C)) NS(G (1 - m^2)) with a fresh momentum."""
    start, (gradient,) = _start((2, 4, 6)), _gradients((2, 4, 6), steps=1)
    found = _ours(start, [gradient], lr=0.5, weight_decay=0.1, momentum=0.9, newton_schulz_steps=3)
    expected = 0.95 * start - 0.5 * 0.2 * math.sqrt(6) * orthogonalize(gradient, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_parameters_in_one_group_do_not_mix() -> None:
    shapes = [(4, 6), (3, 4, 6), (6, 4), (4, 6), (8, 6)]
    params = [nn.Parameter(_start(shape)) for shape in shapes]
    gradients = [_gradients(shape, steps=1)[0] for shape in shapes]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()
    starts = [param.detach().clone() for param in params]
    Muon(params, **OPTIONS).step()
    for param, start, gradient in zip(params, starts, gradients, strict=True):
        torch.testing.assert_close(
            param.detach(), _ours(start, [gradient], **OPTIONS), rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("limit", [1, 24, 60, 100])
def test_the_size_of_a_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    def run() -> list[torch.Tensor]:
        params = [nn.Parameter(_start((n, 4, 6))) for n in (1, 2, 3)]
        for param in params:
            param.grad = _gradients(tuple(param.shape), steps=1)[0]
        Muon(params, **OPTIONS).step()
        return [param.detach() for param in params]

    whole = run()
    monkeypatch.setattr(muon_module, "CPU_BATCH", limit)
    for found, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_expert_without_gradient_only_decays(dtype: torch.dtype) -> None:
    start, (gradient,) = _start((3, 4, 6), dtype), _gradients((3, 4, 6), steps=1, dtype=dtype)
    gradient[1] = 0
    found = _ours(start, [gradient], lr=0.5, weight_decay=0.5)
    assert torch.equal(found[1], start[1] * 0.75)
    assert found.isfinite().all()
    assert not torch.equal(found[0], start[0] * 0.75)


def test_a_parameter_without_a_gradient_is_skipped() -> None:
    idle, busy = nn.Parameter(_start((3, 4))), nn.Parameter(_start((3, 4)))
    busy.grad = torch.ones(3, 4, dtype=torch.float64)
    optimizer = Muon([idle, busy], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(idle, _start((3, 4)))
    assert not torch.equal(busy, _start((3, 4)))
    assert optimizer.state[idle]["momentum_buffer"].eq(0).all()


def test_transposed_gradients_are_fine() -> None:
    start, (gradient,) = _start((4, 6)), _gradients((4, 6), steps=1)
    strided = gradient.t().contiguous().t()
    param = nn.Parameter(start.clone())
    param.grad = strided
    Muon([param], **OPTIONS).step()
    torch.testing.assert_close(param.detach(), _ours(start, [gradient], **OPTIONS), rtol=1e-12, atol=1e-12)


def test_updates_have_the_rms_of_adamws() -> None:
    shape = (4, 64, 48)
    update = _ours(torch.zeros(shape), _gradients(shape, dtype=torch.float32), lr=1.0) / 3
    for matrix in update:
        assert 0.5 * 0.2 < matrix.square().mean().sqrt() < 1.2 * 0.2


def test_the_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([param])

    def closure() -> float:
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert not torch.equal(param, torch.ones(2, 2))


@pytest.mark.parametrize(("shape", "splits"), [((3,), 1), ((2, 2, 2, 2), 1), ((5, 4), 2)])
def test_shapes_that_are_no_matrices_are_refused(shape: tuple[int, ...], splits: int) -> None:
    with pytest.raises(ConfigError, match="muon: parameter shape"):
        Muon([{"params": [nn.Parameter(torch.zeros(shape))], "splits": splits}])


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.floats(1e-3, 1e6),
    seed=st.integers(0, 2**20),
)
def test_orthogonalize_is_the_polynomial_of_the_singular_values(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    """X = U S V^T goes to U p(p(...(S / |S|))) V^T with p(s) = a s + b s^3 + c s^5."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = left @ values.diag() @ right
    found = orthogonalize(scale * matrix[None], 5)[0]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("native", [True, False])
def test_float32_is_orthogonalised_in_bfloat16_where_that_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(muon_module, "_cpu_multiplies_bfloat16", lambda: native)
    matrices = _start((4, 16, 24), torch.float32)
    exact = orthogonalize(matrices.double(), 5)
    error = (orthogonalize(matrices, 5) - exact).norm() / exact.norm()
    assert 1e-4 < error < 2e-2 if native else error < 1e-5


@pytest.mark.parametrize("bfloat16", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}, {}])
def test_native_bfloat16_is_asked_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, bfloat16: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: bfloat16)
    uncached = muon_module._cpu_multiplies_bfloat16.__wrapped__
    assert uncached() == bool({"avx512_bf16", "amx_bf16"} & bfloat16.keys())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_orthogonalize_keeps_dtype_and_input(dtype: torch.dtype) -> None:
    matrices = _start((2, 6, 3), dtype)
    before = matrices.clone()
    result = orthogonalize(matrices, 5)
    assert (result.dtype, result.shape) == (dtype, (2, 6, 3))
    assert torch.equal(matrices, before)


def test_a_copy_of_the_optimizer_state_continues_bit_for_bit() -> None:
    shape = (3, 4, 6)
    gradients = _gradients(shape, steps=4)
    param = nn.Parameter(_start(shape))
    optimizer = Muon([param], **OPTIONS)
    _train(optimizer, param, gradients[:2])
    other = nn.Parameter(param.detach().clone())
    resumed = Muon([other], **OPTIONS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(_train(resumed, other, gradients[2:]), _train(optimizer, param, gradients[2:]))
