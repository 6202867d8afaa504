"""Tiny random transformers models with weights that hide nothing: no norm at 1, no bias at 0."""

import copy
from pathlib import Path

import torch
from tiny_families import TINY
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM


def from_saved(folder: Path, model_type: str) -> PreTrainedModel:
    """What transformers reads from a folder. Its automatic class does not know of Mistral 4's text model."""
    kind = Mistral4ForCausalLM if model_type == "mistral4" else AutoModelForCausalLM
    return kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()


@torch.no_grad()
def randomise_(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that make every option matter: norms about 1, biases about 0.2, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        if "inv_freq" in name or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("A_log"):
            tensor.copy_(noise * 0.5)
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_((tensor.mean() > 0.5) + noise * 0.2)
        elif tensor.dim() <= 1 or name.endswith("bias"):
            tensor.copy_(noise * 0.2)
        elif ("gate" in name.split(".")[-2:][0] and "proj" not in name) or "router" in name:
            tensor.copy_(noise * 0.7)
        else:
            tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The transformers model in float32 and evaluation mode, with eager attention."""
    tiny = TINY[name]
    config = AutoConfig.for_model(tiny.model_type, **dict(tiny.options))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    if tiny.model_type == "mistral4":
        model = Mistral4ForCausalLM._from_config(config, attn_implementation="eager").float().eval()
    else:
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()
    randomise_(model, seed)
    return model


@torch.no_grad()
def rounding_error(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """How far the logits move when every weight moves by one unit in its last place, at most or not at all.

    Each operation of a float32 model rounds by as much, so two correct implementations may differ by a few
    times this, on any processor. It is a property of the model: near 1e-5 for most, and 1e-4 for recurrences.
    """
    want, moved = model(tokens).logits, 0.0
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        near = copy.deepcopy(model)
        for weight in near.parameters():
            step = torch.randint(-1, 2, weight.shape, generator=generator)
            weight.mul_(1 + torch.finfo(weight.dtype).eps * step)
        moved = max(moved, (near(tokens).logits - want).abs().max().item())
    return moved
