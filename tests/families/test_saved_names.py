"""Families without a class in transformers: tensors there and back, under the names of their releases."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import TINY
from tiny_published import SMALL, change_tensors, make

from moeworks import load, save
from moeworks.families import family_of

CONFIGS = {
    "deepseek_v1": SMALL | dict(
        model_type="deepseek", intermediate_size=24, moe_intermediate_size=12, n_routed_experts=3,
        n_shared_experts=2, num_experts_per_tok=2, first_k_dense_replace=1, num_hidden_layers=2,
    ),
    "minicpm_moe": SMALL | dict(
        model_type="minicpm", intermediate_size=12, num_experts=3, num_experts_per_tok=2, scale_emb=12,
        scale_depth=1.4, dim_model_base=8, num_hidden_layers=1,
    ),
    "grok1": SMALL | dict(
        model_type="grok-1", intermediate_size=12, num_experts=3, num_experts_per_tok=2, rms_norm_eps=1e-5,
        attn_output_multiplier=0.3, max_attn_value=30.0, embedding_multiplier_scale=7.0,
        output_multiplier_scale=0.6, num_hidden_layers=1,
    ),
}  # fmt: skip

TOP = {"model.embed_tokens": (40, 16), "model.norm": (16,)}
ATTENTION = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "input_layernorm": (16,), "post_attention_layernorm": (16,),
}  # fmt: skip


def gated(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Three matrices of a feed-forward block."""
    into = {f"{name}.{part}": (width, 16) for part in ("gate_proj", "up_proj")}
    return into | {f"{name}.down_proj": (16, width)}


def in_layer(number: int, *groups: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"model.layers.{number}.{name}": shape for group in groups for name, shape in group.items()}


def experts(prefix: str, into: tuple[str, ...], out: str) -> dict[str, tuple[int, ...]]:
    """Three experts of width 12."""
    found: dict[str, tuple[int, ...]] = {}
    for e in range(3):
        found |= {f"{prefix}.{e}.{part}": (12, 16) for part in into} | {f"{prefix}.{e}.{out}": (16, 12)}
    return found


NAMES = {
    "deepseek_v1": TOP
    | {"lm_head": (40, 16)}
    | in_layer(0, ATTENTION, gated("mlp", 24))
    | in_layer(
        1, ATTENTION, {"mlp.gate": (3, 16)}, gated("mlp.shared_experts", 24),
        experts("mlp.experts", ("gate_proj", "up_proj"), "down_proj"),
    ),
    "minicpm_moe": TOP
    | in_layer(0, ATTENTION, {"mlp.gate": (3, 16)}, experts("mlp.experts", ("w1", "w3"), "w2")),
    "grok1": TOP
    | in_layer(
        0,
        {f"attn.{n}_proj": (8 if n in "kv" else 16, 16) for n in "qkvo"},
        {"moe_block.gate": (3, 16)},
        experts("moe_block.experts", ("linear", "linear_v"), "linear_1"),
        dict.fromkeys(("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"), (16,)),
    ),
}  # fmt: skip


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes. The port of Grok-1 calls the weight of a norm its scale."""
    ends = {key: "scale" if name == "grok1" and "norm" in key else "weight" for key in NAMES[name]}
    return {f"{key}.{ends[key]}": shape for key, shape in NAMES[name].items()}


@pytest.fixture(params=CONFIGS)
def name(request) -> str:
    return request.param


def saved(name: str, folder: Path, **options) -> tuple:
    """A model with random weights, and the folder that it was saved to."""
    model = make(CONFIGS[name])
    return model, save(model, folder, family=family_of(CONFIGS[name]).name, **options)


def test_names_and_shapes_are_the_published_ones(name, tmp_path):
    _, folder = saved(name, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == published(name)
    assert json.loads((folder / "config.json").read_text())["model_type"] == CONFIGS[name]["model_type"]


@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
def test_there_and_back_is_exact(name, tmp_path, shard_bytes):
    model, folder = saved(name, tmp_path / "a", shard_bytes=shard_bytes)
    again = load(folder, dtype=torch.float32)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    other = save(again, tmp_path / "b", shard_bytes=shard_bytes)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in other.iterdir()} == written


def test_each_expert_is_the_one_of_its_number(tmp_path):
    """Numbers run in numerical order, and gate and up projections do not change places."""
    model, folder = saved("grok1", tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    experts = model.layers[0].mlp.experts
    for e in range(3):
        gate, up = experts.gate_up_proj[e].chunk(2)
        for part, weight in (("linear", gate), ("linear_v", up), ("linear_1", experts.down_proj[e])):
            assert torch.equal(tensors[f"model.layers.0.moe_block.experts.{e}.{part}.weight"], weight)


def test_indexers_stand_where_a_layer_has_its_own_and_in_the_draft_layer(tmp_path):
    """GLM-5.2's releases have them in the layers that do not share, and in the one after the last."""
    config = dict(TINY["glm_moe_dsa_shared"].options, model_type="glm_moe_dsa", num_nextn_predict_layers=1)
    model = make(config)
    folder = save(model, tmp_path / "a", family="glm_moe_dsa")
    tensors = load_file(folder / "model.safetensors")
    holders = {int(key.split(".")[2]) for key in tensors if ".indexer." in key}
    assert holders == {0, 2, 5}
    assert json.loads((folder / "config.json").read_text())["indexer_types"] == config["indexer_types"]
    again = load(folder, dtype=torch.float32)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_grok_ports_call_a_norms_weight_by_either_name(tmp_path):
    model, folder = saved("grok1", tmp_path / "a")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.endswith(".scale")]:
            tensors[key.removesuffix("scale") + "weight"] = tensors.pop(key)

    change_tensors(folder, rename)
    again = load(folder, dtype=torch.float32)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
