"""Other implementations of a MoE layer, with the case's weights. Each import waits for its builder.

A builder returns a module that takes [B, L, D] and returns y, or a tuple whose first item is y. Install the
peers with: pip install 'moeworks[benchmarks]'. Tutel is on no registry: build it from its source at
github.com/microsoft/tutel (NO_CUDA=1 pip install --no-build-isolation .).
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.layers import LayerData, LayerShape
from suite.registry import RefusedError, Settings

Builder = Callable[[LayerShape, LayerData, Settings], nn.Module]
MEMORY_SHARE = 0.4
"""Of the machine's memory, what a peer may need for one tensor and its gradient."""


@dataclass(frozen=True)
class Peer:
    """An implementation to stand beside."""

    name: str
    build: Builder
    exact: bool
    """Computes what we compute from the same weights; the others have weights or maths of their own."""
    rows: int = 1
    """It takes the tokens as this many sequences."""


class DenseSwiGLU(nn.Module):
    """The eager dense block of equal active FLOPs: three products and what autograd makes of them."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def dense(shape: LayerShape, data: LayerData, settings: Settings) -> nn.Module:
    """The denominator of the ratios."""
    return DenseSwiGLU(shape.D, shape.active_width).to(**settings.placement)


def transformers_block(implementation: str) -> Builder:
    """Qwen3MoeSparseMoeBlock with one of its experts implementations."""

    def build(shape: LayerShape, data: LayerData, settings: Settings) -> nn.Module:
        if implementation == "batched_mm":
            # It gathers the weights of every assignment: [T * K, 2F, D] and [T * K, D, F].
            _check_memory(3 * shape.T * shape.K * shape.F * shape.D * data.gate_up.element_size())
        qwen = required("transformers.models.qwen3_moe.modeling_qwen3_moe")
        config = qwen.Qwen3MoeConfig(
            hidden_size=shape.D,
            moe_intermediate_size=shape.F,
            num_experts=shape.E,
            num_experts_per_tok=shape.K,
            norm_topk_prob=True,
        )
        config._experts_implementation = implementation
        block = qwen.Qwen3MoeSparseMoeBlock(config).to(**settings.placement)
        return loaded(
            block,
            {
                "gate.weight": data.router_ED,
                "experts.gate_up_proj": data.gate_up,
                "experts.down_proj": data.down,
            },
        )

    return build


def st_moe(shape: LayerShape, data: LayerData, settings: Settings) -> nn.Module:
    """st-moe-pytorch: GEGLU experts with biases, capacity 1.25, and its two router losses in the forward."""
    package = required("st_moe_pytorch")
    capacity = 1.25 * shape.T / ST_MOE_ROWS * shape.K / shape.E
    # Dispatch and combine are dense [B, L, E, C].
    _check_memory(int(2 * shape.T * shape.E * capacity * data.gate_up.element_size()))
    moe = package.MoE(
        dim=shape.D,
        num_experts=shape.E,
        gating_top_n=shape.K,
        expert_hidden_mult=(shape.F + 0.5) * 1.5 / shape.D,  # it multiplies by D * 2 / 3 and rounds down
        threshold_train=0.0,
        capacity_factor_train=1.25,
    ).to(**settings.placement)
    return loaded(moe, {"gate.to_gates.weight": data.router_ED})


ST_MOE_ROWS = 8


def tutel(shape: LayerShape, data: LayerData, settings: Settings) -> nn.Module:
    """Tutel's layer with SwiGLU experts and the smallest capacity that drops nothing, in a world of one."""
    package = required("tutel.moe")
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    moe = package.moe_layer(
        gate_type={"type": "top", "k": shape.K, "capacity_factor": 0.0},
        model_dim=shape.D,
        experts={
            "type": "llama_ffn",
            "num_experts_per_device": shape.E,
            "hidden_size_per_expert": shape.F,
        },
    ).to(**settings.placement)
    gate, up = data.gate_up.transpose(1, 2).chunk(2, dim=2)
    weights = {"W_fc1": gate, "W_fc2": up, "W_fc3": data.down.transpose(1, 2)}
    return loaded(
        moe,
        {
            "gates.0.wg.weight": data.router_ED,
            **{f"experts.{name}": value.reshape(-1) for name, value in weights.items()},
        },
    )


PEERS = (
    Peer("dense SwiGLU", dense, exact=False),
    Peer("transformers grouped_mm", transformers_block("grouped_mm"), exact=True),
    Peer("transformers eager", transformers_block("eager"), exact=True),
    Peer("transformers batched_mm", transformers_block("batched_mm"), exact=True),
    Peer("st-moe-pytorch", st_moe, exact=False, rows=ST_MOE_ROWS),
    Peer("Tutel", tutel, exact=True),
)
DENSE, GROUPED = PEERS[0], PEERS[1]


def required(module: str) -> ModuleType:
    """Import a peer. Raises RefusedError when that fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RefusedError(f"cannot be imported: {error}") from error


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The module with these of its parameters replaced. Raises KeyError for one that it lacks."""
    parameters: dict[str, Any] = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return module


def _check_memory(needed: int) -> None:
    """Raises RefusedError when a tensor of this size and its gradient would not fit well."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * needed > MEMORY_SHARE * total:
        raise RefusedError(f"would need {2 * needed / 1e9:.0f} GB")
