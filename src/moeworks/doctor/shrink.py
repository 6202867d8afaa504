"""A tiny model of a given architecture: every kind of layer and every rule of routing stays, sizes go.

Twelve experts where the rules allow it: more than ten, so that an order of strings shows.
"""

from dataclasses import replace
from typing import Any

import torch

from moeworks.config.layout import LayerPatternConfig
from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.layers.router import Router
from moeworks.models.decoder import Decoder, moe_modules

LENGTH = 64
_LAYERS = 4


def shrink(config: ModelConfig) -> ModelConfig:
    """The architecture of `config` with a few small layers."""
    layers = _representatives(config)
    changes: dict[str, Any] = dict(
        vocab_size=97,
        d_model=32,
        num_layers=len(layers),
        max_seq_len=LENGTH,
        num_mtp_layers=min(config.num_mtp_layers, 1),
        attention=_mixer(config.attention),
        mixers=tuple(_mixer(m) for m in config.mixers),
        pattern=_pattern([old in config.moe_layers for old in layers]),
        mlp=replace(config.mlp, d_ff=48) if set(layers) - set(config.moe_layers) else config.mlp,
        router=_router(config.router),
        experts=replace(config.experts, d_expert=12),
        shared=replace(
            config.shared,
            num_shared_experts=min(config.shared.num_shared_experts, 2),
            d_shared=None if config.shared.d_shared is None else 10,
        ),
        capacity=replace(config.capacity, min_capacity=1),
    )
    if config.layer_mixers is not None:
        changes["layer_mixers"] = tuple(config.layer_mixers[old] for old in layers)
    return replace(config, **changes)


def build_tiny(config: ModelConfig, seed: int = 0) -> Decoder:
    """A random model of the shrunken config, with routers that decide and biases that are not 0."""
    torch.manual_seed(seed)
    model = Decoder(shrink(config))
    enliven_(model)
    return model


@torch.no_grad()
def enliven_(model: torch.nn.Module) -> None:
    """Routers as sharp as trained ones, and small random biases where biases start at 0."""
    for moe in moe_modules(model):
        if isinstance(moe.router, Router):
            moe.router.weight.mul_(3)
            for bias in (moe.router.expert_bias, moe.router.bias):
                if bias is not None:
                    bias.copy_(0.05 * torch.randn_like(bias))
        for name, parameter in moe.experts.named_parameters():
            if name.endswith("_bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))


def _representatives(config: ModelConfig) -> list[int]:
    """Layers, ascending: one of each kind, and more MoE layers up to _LAYERS, two at least if there are
    two."""
    kinds: dict[tuple[object, bool], int] = {}
    for layer in range(config.num_layers):
        choice = 0 if config.layer_mixers is None else config.layer_mixers[layer]
        kinds.setdefault((choice, layer in config.moe_layers), layer)
    chosen = set(kinds.values())
    for layer in config.moe_layers:
        moes = len(chosen & set(config.moe_layers))
        if len(chosen) < _LAYERS or moes < 2:
            chosen.add(layer)
    return sorted(chosen)


def _pattern(sparse: list[bool]) -> LayerPatternConfig:
    """As dense layers first where that says it, which every published family can express."""
    first = sparse.index(True)
    if all(sparse[first:]):
        return LayerPatternConfig(first_dense=first)
    return LayerPatternConfig(explicit=tuple(i for i, moe in enumerate(sparse) if moe))


def _router(router: RouterConfig) -> RouterConfig:
    groups = min(router.num_groups, 4)
    identity, zero = min(router.num_identity_experts, 2), min(router.num_zero_experts, 2)
    experts = min(router.num_experts, 12)
    if groups > 1:
        experts = max(experts, 2 * groups)
        experts += -(experts + identity + zero) % groups
    keep = min(router.top_k_groups, max(groups // 2, 1)) if groups > 1 else 1
    fits = keep * ((experts + identity + zero) // groups)
    return replace(
        router,
        num_experts=experts,
        num_identity_experts=identity,
        num_zero_experts=zero,
        num_groups=groups,
        top_k_groups=keep,
        top_k=min(router.top_k, 3, fits),
    )


def _mixer(mixer: MixerConfig) -> MixerConfig:
    if isinstance(mixer, MLAConfig):
        # With few heads the indexer's scores are often all 0 behind their ReLU, and then tie.
        indexer = mixer.indexer and replace(mixer.indexer, num_heads=24, head_dim=8, top_k=8)
        return replace(
            mixer, num_heads=4, q_lora_rank=mixer.q_lora_rank and 16, kv_lora_rank=12, nope_head_dim=8,
            rope_head_dim=4, v_head_dim=8, indexer=indexer, rope=_rope(mixer.rope, 4),
        )  # fmt: skip
    if isinstance(mixer, GatedDeltaConfig):
        return replace(mixer, num_key_heads=2, num_value_heads=4, key_head_dim=8, value_head_dim=8)
    if isinstance(mixer, MixtureOfAttentionConfig):
        return replace(mixer, num_kv_heads=2, head_dim=8, num_experts=4, rope=_rope(mixer.rope, 8))
    assert isinstance(mixer, GQAConfig)
    shared = 2 if mixer.num_kv_heads < mixer.num_heads else 4
    return replace(
        mixer, num_heads=4, num_kv_heads=shared, head_dim=8, rope=_rope(mixer.rope, 8),
        window=mixer.window and 8, chunk=mixer.chunk and 8,
    )  # fmt: skip


def _rope(rope: Any, width: int) -> Any:
    """Rotations of a smaller head, without the tables of a long context."""
    dim = rope.dim and min(rope.dim, width // 2 if width > 4 else width)
    return replace(
        rope, dim=dim, scaling="none", factor=1.0, original_max_seq_len=None, short_factors=(),
        long_factors=(), attention_factor=None, short_mscale=None, long_mscale=None,
    )  # fmt: skip
