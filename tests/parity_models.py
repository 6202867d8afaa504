"""Tiny random transformers models with weights that hide nothing: no norm at 1, no bias at 0."""

import torch
from tiny_families import TINY
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


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
    model = AutoModelForCausalLM.from_config(config).float().eval()
    randomise_(model, seed)
    return model
