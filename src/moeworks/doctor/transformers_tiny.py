"""Tiny random models of the MoE classes of the installed transformers."""

import copy
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from moeworks.doctor import hf_routing
from moeworks.errors import ConfigError

_LARGEST = 12_000_000
"""Parameters of a tiny model."""
_PLAIN = dict(rope_type="default", rope_theta=10_000.0)
_SIZES: dict[str, Any] = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_parameters=_PLAIN,
    intermediate_size=48, intermediate_size_mlp=48, moe_intermediate_size=24,
    shared_expert_intermediate_size=24, shared_intermediate_size=24, num_experts=12, n_routed_experts=12,
    num_local_experts=12, moe_num_experts=12, num_experts_per_tok=3, moe_k=3, moe_topk=3, top_k_experts=3,
    num_experts_per_token=3, n_shared_experts=1, num_shared_experts=1, moe_num_shared_experts=1, n_group=4,
    topk_group=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=8, index_n_heads=24, index_head_dim=8, index_topk=8, first_k_dense_replace=1,
    d_model=32, d_ff=48, d_kv=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_layers=2, num_decoder_layers=2,
    num_heads=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=2, encoder_sparse_step=1,
    decoder_sparse_step=1, expert_capacity=64, n_heads=4, n_layers=3, max_seq_len=64, moe_layer_start_index=1,
    moe_layer_end_index=2, num_dense_layers=1, dropout_rate=0.0, dropout=0.0, attention_dropout=0.0,
    activation_dropout=0.0, interleave_moe_layer_step=1,
)  # fmt: skip
_LATENT = dict(
    q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    num_key_value_heads=4,
)  # fmt: skip
_UNGROUPED = dict(n_group=1, topk_group=1)

_OPTIONS: dict[str, dict[str, Any]] = {
    "axk1": _LATENT, "axk2": _LATENT, "bailing_hybrid": _LATENT, "deepseek_v2": _LATENT | dict(
        topk_method="group_limited_greedy", qk_rope_head_dim=4),
    "deepseek_v3": _LATENT, "deepseek_v32": _LATENT, "glm_moe_dsa": _LATENT, "glm4_moe_lite": _LATENT,
    "mistral4": _LATENT, "mistral_large4": _LATENT, "dots3_note": _LATENT,
    "dbrx": dict(ffn_config=dict(ffn_hidden_size=24, moe_num_experts=12, moe_top_k=3),
                 attn_config=dict(clip_qkv=0.7, kv_n_heads=2, rope_theta=10_000.0)),
    "doge": dict(is_moe=True, num_experts=16),
    "ernie4_5_vl_moe": dict(
        moe_intermediate_size=[24, 16], rope_parameters=_PLAIN | dict(mrope_section=[1, 1, 2])
    ),
    "gemma4": dict(enable_moe_block=True, vocab_size_per_layer_input=97),
    "granitemoehybrid": dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4),
    "hunyuan_v1_moe": dict(intermediate_size=24),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "jetmoe": dict(kv_channels=8, num_key_value_heads=2),
    "kimi_linear": _LATENT | dict(linear_head_dim=8, linear_num_heads=4),
    "laguna": dict(moe_routed_scaling_factor=1.7),
    "lfm2_moe": dict(layer_types=["full_attention"] * 3),
    "longcat_flash": _LATENT | dict(zero_expert_num=2, ffn_hidden_size=48, expert_ffn_hidden_size=24),
    "muse_spark": dict(moe_hidden_size=16),
    "deepseek_ocr2": dict(num_key_value_heads=4, mlp_layer_types=["dense", "sparse", "sparse"]),
    "unlimited_ocr": dict(num_key_value_heads=4),
    "step3p7": dict(sliding_window=8, num_hidden_layers=4),
    "beam": dict(num_hidden_layers=4),
    "hy_v4": dict(qk_rope_head_dim=4),
    "hy_v4_vl": dict(qk_rope_head_dim=4),
    "glm4v_moe": dict(rope_parameters=_PLAIN | dict(mrope_section=[1, 1, 0])),
    "inkling2": dict(unpadded_vocab_size=97),
    "inkling2_loop": dict(unpadded_vocab_size=97),
    "phimoe": dict(num_experts_per_tok=2, router_jitter_noise=0.2),
    "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip
"""What a family needs beside _SIZES, by the folder of transformers' models."""

_CLASSES = (
    "ForCausalLM",
    "TextModel",
    "ForConditionalGeneration",
    "EncoderTextModel",
    "ForTokenClassification",
    "Model",
)


def moe_families() -> list[str]:
    """The folders of the installed transformers whose modelling code has experts behind a router."""
    root = Path(transformers.__file__).parent / "models"
    pattern = re.compile(r"class \w*(Experts|SparseMoe\w*|SparseMLP|MoeMLP|CDMoE|MoE|Moe)\b")
    files = sorted(root.glob("*/modeling_*.py"))
    return sorted({f.parent.name for f in files if pattern.search(f.read_text("utf-8"))})


def tiny_family(name: str) -> PreTrainedModel:
    """A tiny random model of a family. Raises ConfigError that says why none could be built."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    reasons = []
    for kind in _candidates(module):
        try:
            return _checked(tiny_class(kind, name))
        except Exception as error:  # whatever a class of someone else's raises
            words = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{kind.__name__}: {' '.join(words)[:160]}")
    raise ConfigError("; ".join(reasons[:2]) if reasons else "no class of a language model")


def named_class(name: str) -> type[PreTrainedModel]:
    """A class of transformers by its name. Raises ConfigError when there is none."""
    found = getattr(transformers, name, None)
    if not (inspect.isclass(found) and issubclass(found, PreTrainedModel)):
        raise ConfigError(
            f"transformers:{name}: no model class of this name in transformers {transformers.__version__}"
        )
    return found


def tiny_class(kind: type[PreTrainedModel], family: str | None = None) -> PreTrainedModel:
    """A tiny random model of a class, in float32 and evaluation mode."""
    disable_progress_bar()
    family = family or kind.__module__.split(".")[-2]
    config_class: Any = kind.config_class
    try:
        return _built(kind, tiny_config(config_class, family))
    except Exception:  # of any kind, where the rotation has a form of its own
        return _built(kind, tiny_config(config_class, family, rotation=False))


def _built(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    if size > _LARGEST:
        raise ConfigError(f"its config has parts that stay large: {size / 1e6:,.0f} M parameters")
    torch.manual_seed(0)
    model = kind(config).float().eval()
    enliven_(model)
    with torch.no_grad():
        tokens = torch.arange(6).view(1, 6) + 3
        more = dict(decoder_input_ids=tokens) if model.config.is_encoder_decoder else {}
        model(input_ids=tokens, use_cache=False, **more)
    return model


def tiny_config(
    config_class: type[PretrainedConfig], family: str, *, rotation: bool = True
) -> PretrainedConfig:
    """Its config with the sizes above, as far as it has such fields; `rotation`: with a plain rope too."""
    known = set(getattr(config_class, "__dataclass_fields__", ()))
    known |= set(getattr(config_class, "attribute_map", ()))
    options = {k: v for k, v in _SIZES.items() if k in known} | _OPTIONS.get(family, {})
    if not rotation:
        options.pop("rope_parameters", None)
    config = config_class(**copy.deepcopy(options))
    config._attn_implementation = "eager"
    return config


def _candidates(module: Any) -> Iterator[type[PreTrainedModel]]:
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, PreTrainedModel) and c.__module__ == module.__name__
    ]
    for ending in _CLASSES:
        for kind in classes:
            if kind.__name__.endswith(ending) and not kind.__name__.endswith("PreTrainedModel"):
                yield kind


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """`model` if it has MoE layers."""
    names = {type(m).__name__ for m in model.modules()}
    if not names & set(hf_routing.UNREADABLE):
        hf_routing.find_blocks(model)
    return model


@torch.no_grad()
def enliven_(model: nn.Module) -> None:
    """Random weights under which experts and routers matter: matrices by their fan-in, sharp routers, biases
    that are not 0, norms about 1."""
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        if name.endswith("tid2eid"):  # a table of experts for each token id
            count = int(max(tensor.max() + 1, tensor.shape[-1], 6))
            tensor.copy_(torch.rand(*tensor.shape[:-1], count).argsort(-1)[..., : tensor.shape[-1]])
        if not tensor.is_floating_point() or "inv_freq" in name or tensor.numel() < 2:
            continue
        noise = torch.randn(tensor.shape)
        parts = name.split(".")
        router = (
            any(p in ("gate", "router", "wg") or "router" in p for p in parts[-3:])
            and "proj" not in parts[-2]
        )
        if re.search(r"(correction_bias|expert_bias|expert_biases|balancing_biases)$", name):
            tensor.copy_(0.05 * noise)
        elif name.endswith(("A_log", "dt_bias")) or "scale" in parts[-1] or "sink" in parts[-1]:
            continue
        elif "norm" in name and tensor.dim() == 1:
            if name.endswith("weight"):
                tensor.add_(0.1 * noise)
        elif name.endswith("bias") and tensor.dim() <= 2:
            tensor.copy_(0.1 * noise)
        elif router and tensor.dim() == 2:
            tensor.copy_(noise * 1.5 * tensor.shape[-1] ** -0.5)
        elif tensor.dim() >= 2 and isinstance(tensor, nn.Parameter):
            tensor.copy_(noise * tensor.shape[-1] ** -0.5)
