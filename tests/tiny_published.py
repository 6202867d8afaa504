"""Small checkpoints in published layouts, written by moeworks itself, and ways to damage them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from random_layers import randomise_
from safetensors.torch import load_file, save_file

from moeworks import Decoder, save
from moeworks.families import BY_PRESET, from_hf
from moeworks.families.base import Json

SMALL = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32,
)  # fmt: skip
MIXTRAL = SMALL | dict(
    model_type="mixtral", intermediate_size=12, num_local_experts=12, num_experts_per_tok=2
)
DEEPSEEK = SMALL | dict(
    model_type="deepseek_v3", intermediate_size=24, moe_intermediate_size=12, n_routed_experts=4,
    num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1,
    kv_lora_rank=8, q_lora_rank=12, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6,
    num_nextn_predict_layers=1, num_key_value_heads=4,
)  # fmt: skip
LLAMA = SMALL | dict(model_type="llama", intermediate_size=24, tie_word_embeddings=True)


def make(config: Mapping[str, Any], *, seed: int = 0) -> Decoder:
    """A model of a published config with random weights."""
    torch.manual_seed(seed)
    return randomise_(Decoder(from_hf(config)), std=0.3).eval()


def write(folder: Path, config: Mapping[str, Any], **options: Any) -> Decoder:
    """`make` saved to `folder`, its config.json being `config` and no more; returns the model."""
    model = make(config)
    family = next(f for f in BY_PRESET.values() if config["model_type"] in f.model_types)
    save(model, folder, family=family.name, **options)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return model


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    config: Json = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Apply `change` to the tensors of model.safetensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
