"""The layer on a GPU; these run where there is one."""

import copy

import pytest
import torch

from moeworks import MoE, MoEConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _gradients(moe: MoE, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y, _ = moe(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in moe.parameters() if p.grad is not None)]


def _pair(backend: str, dtype: torch.dtype, **options: object) -> tuple[MoE, MoE]:
    """The layer on the GPU with `backend`, and the reference with the same weights in float64 on the CPU."""
    torch.manual_seed(0)
    config = MoEConfig(d_model=64, d_expert=48, num_experts=8, top_k=2, **options)
    on_gpu = MoE(config, backend=backend).to("cuda", dtype)
    reference = MoE(config, backend="reference").double()
    reference.load_state_dict({k: v.double().cpu() for k, v in on_gpu.state_dict().items()})
    return on_gpu, reference


@pytest.mark.parametrize("options", [{}, {"capacity_factor": 0.75}, {"expert_linear_bias": True}], ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("sorted", torch.float32, 1e-4), ("grouped_mm", torch.bfloat16, 3e-2)],
)
def test_gpu_backends_agree_with_the_reference(
    backend: str, dtype: torch.dtype, tolerance: float, options: dict[str, object]
) -> None:
    on_gpu, reference = _pair(backend, dtype, **options)
    x = torch.randn(4, 32, 64, dtype=dtype, device="cuda")
    expected = _gradients(reference, x.double().cpu())
    for value, wanted in zip(_gradients(on_gpu, x), expected, strict=True):
        error = (value.double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-12)
        assert error < tolerance


def test_the_gpu_takes_grouped_mm_in_bfloat16_and_says_why_not_in_float32() -> None:
    on_gpu, _ = _pair("auto", torch.bfloat16)
    assert on_gpu.explain_backend(torch.randn(2, 64, device="cuda").bfloat16()).startswith("grouped_mm")
    full = copy.deepcopy(on_gpu).float()
    assert "refuses" in full.explain_backend(torch.randn(2, 64, device="cuda"))
