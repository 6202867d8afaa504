"""Small layers with random weights, and routings made from logits, for tests."""

import torch
from torch import Tensor, nn

from moeworks import MoE, MoEConfig, Routing
from moeworks.config.model import RouterConfig
from moeworks.ops.scoring import route


def make_config(**options) -> MoEConfig:
    return MoEConfig(**{**dict(d_model=8, d_expert=4, num_experts=6, top_k=2), **options})


@torch.no_grad()
def randomise_(module: nn.Module, std: float = 0.5) -> nn.Module:
    """Every parameter and every expert_bias random, also those that start at 0 or 1."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * std)
    return module


def random_moe(
    config: MoEConfig, *, backend: str = "auto", dtype: torch.dtype = torch.float64, seed: int = 0
) -> MoE:
    torch.manual_seed(seed)
    return randomise_(MoE(config, backend=backend).to(dtype))


def make_routing(logits: Tensor, *, top_k: int = 2, groups: int = 1, **fields) -> Routing:
    """The routing of a router whose logits are given; `fields` go to route, other options to RouterConfig."""
    names = {"expert_bias_E", "noise_std_TE", "valid_T", "sequence_ids_T"}
    options = {name: fields.pop(name) for name in set(fields) - names}
    options = (
        dict(num_experts=logits.shape[1], top_k=top_k, renormalize=top_k > 1, num_groups=groups) | options
    )
    return route(logits, RouterConfig(**options), **fields)


def logits_for(expert_ids: list[list[int]], num_experts: int, *, height: float = 50.0) -> Tensor:
    """float64 logits that choose `expert_ids`, in this order, nearly all the probability on the first."""
    logits = torch.zeros(len(expert_ids), num_experts, dtype=torch.float64)
    for row, ids in zip(logits, expert_ids, strict=True):
        for slot, expert in enumerate(ids):
            row[expert] = height / (slot + 1)
    return logits


def gradients(loss: Tensor, module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter by name, and of the inputs by number."""
    named = {**dict(module.named_parameters()), **{f"input {i}": x for i, x in enumerate(inputs)}}
    values = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return dict(zip(named, values, strict=True))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Both hold the same names and, to `tolerance`, the same values."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
