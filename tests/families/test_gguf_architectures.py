"""GGUF files of every architecture, made from published tensors as llama.cpp's converters make them.

Names go through the gguf package's own map from published names; permutations and packing are written out
here, apart from the rules that read them. No file of llama.cpp's own is at hand: what is checked is that map,
the converters' conventions as read, and that every tensor comes back exactly.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_layers import randomise_

from moeworks import Decoder, load, save
from moeworks.checkpoint.bindings import bind
from moeworks.checkpoint.quantized import dequantize_mxfp4
from moeworks.errors import ConfigError
from moeworks.families import family_of, from_hf
from moeworks.families.gguf_architectures import ARCHITECTURES
from moeworks.families.gguf_rope import scaling_of_divisors

gguf = pytest.importorskip("gguf")

SIZES = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=20_000.0,
)  # fmt: skip
KEYS = {
    "block_count": 3, "context_length": 64, "embedding_length": 32, "attention.head_count": 4,
    "attention.head_count_kv": 2, "rope.freq_base": 20_000.0, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
GROUPED = dict(
    n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=20,
    intermediate_size=48, first_k_dense_replace=1, routed_scaling_factor=1.7,
)  # fmt: skip
GROUPED_KEYS = {
    "expert_count": 8, "expert_shared_count": 2, "expert_used_count": 3, "expert_feed_forward_length": 20,
    "feed_forward_length": 48, "leading_dense_block_count": 1, "expert_weights_scale": 1.7,
}  # fmt: skip
MLA = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10, num_key_value_heads=4)
SPLIT_KEYS = {
    "attention.head_count_kv": 1, "attention.kv_lora_rank": 16, "attention.key_length": 20,
    "attention.value_length": 16, "attention.key_length_mla": 12, "attention.value_length_mla": 10,
    "rope.dimension_count": 4,
}  # fmt: skip
WHOLE_KEYS = {
    "attention.head_count_kv": 4, "attention.kv_lora_rank": 16, "attention.key_length": 12,
    "attention.value_length": 10, "rope.dimension_count": 4,
}  # fmt: skip
YARN = dict(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0,
)  # fmt: skip
YARN_KEYS = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0,
}  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)  # fmt: skip
FEW = {"feed_forward_length": 20, "expert_count": 6, "expert_used_count": 3}
_V3 = dict(GROUPED, n_group=4, topk_group=2, norm_topk_prob=True, model_type="deepseek_v3", **MLA)
_V3["num_nextn_predict_layers"] = 0
_V3_KEYS = GROUPED_KEYS | {
    "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_norm": True,
    "expert_gating_func": 2,
}  # fmt: skip
_GLM = dict(
    GROUPED, model_type="glm4_moe", head_dim=12, attention_bias=True, use_qk_norm=True, norm_topk_prob=True,
    partial_rotary_factor=0.5, num_nextn_predict_layers=1,
)  # fmt: skip
CASES = {
    "deepseek": (
        dict(GROUPED, model_type="deepseek", norm_topk_prob=False) | {"routed_scaling_factor": None},
        GROUPED_KEYS | {"expert_weights_scale": 1.0, "rope.dimension_count": 8, "rope.scaling.type": "none"},
    ),
    "deepseek2 V3": (
        dict(_V3, q_lora_rank=24, rope_scaling=dict(YARN, mscale=0.7, mscale_all_dim=0.7)),
        _V3_KEYS | SPLIT_KEYS | YARN_KEYS
        | {"attention.q_lora_rank": 24, "rope.scaling.yarn_log_multiplier": 0.07},
    ),
    "deepseek2 V3 whole": (dict(_V3, q_lora_rank=None), _V3_KEYS | WHOLE_KEYS),
    "deepseek2 V2": (
        dict(
            GROUPED, **MLA, model_type="deepseek_v2", norm_topk_prob=False, n_group=4, topk_group=2,
            topk_method="group_limited_greedy", q_lora_rank=24,
        ),
        GROUPED_KEYS | SPLIT_KEYS
        | {"attention.q_lora_rank": 24, "expert_group_count": 4, "expert_group_used_count": 2},
    ),
    "deepseek2 V2 Lite": (
        dict(GROUPED, **MLA, model_type="deepseek_v2", norm_topk_prob=False, q_lora_rank=None),
        GROUPED_KEYS | WHOLE_KEYS | {"expert_gating_func": 1},
    ),
    "glm4moe": (
        _GLM,
        GROUPED_KEYS
        | {
            "block_count": 4, "nextn_predict_layers": 1, "attention.key_length": 12,
            "rope.dimension_count": 6, "expert_gating_func": 2, "expert_weights_norm": True,
            "attention.value_length": 12,
        },
    ),
    "glm4moe Air": (
        _GLM | dict(attention_bias=False, use_qk_norm=False, num_nextn_predict_layers=0),
        GROUPED_KEYS
        | {"attention.key_length": 12, "rope.dimension_count": 6, "expert_weights_norm": True},
    ),
    "dots1": (
        dict(GROUPED, model_type="dots1", norm_topk_prob=True),
        GROUPED_KEYS | {"expert_weights_norm": True, "expert_gating_func": 2},
    ),
    "gpt-oss": (
        dict(
            model_type="gpt_oss", intermediate_size=64, head_dim=16, num_local_experts=4,
            num_experts_per_tok=2, sliding_window=8, rope_scaling=dict(YARN, truncate=False),
        ),
        YARN_KEYS
        | {
            "feed_forward_length": 64, "expert_feed_forward_length": 64, "attention.key_length": 16,
            "attention.sliding_window": 8, "expert_count": 4, "expert_used_count": 2,
        },
    ),
    "ernie4_5-moe": (
        dict(
            model_type="ernie4_5_moe", intermediate_size=48, moe_intermediate_size=20, moe_num_experts=6,
            moe_k=3, moe_num_shared_experts=2, moe_layer_start_index=1, tie_word_embeddings=True,
        ),
        {
            "feed_forward_length": 48, "expert_count": 6, "expert_used_count": 3, "expert_shared_count": 2,
            "expert_feed_forward_length": 20, "leading_dense_block_count": 1, "interleave_moe_layer_step": 1,
            "expert_shared_feed_forward_length": 24,
        },
    ),
    "granitemoe": (
        dict(
            model_type="granitemoeshared", intermediate_size=20, num_local_experts=6, num_experts_per_tok=3,
            embedding_multiplier=3.0, logits_scaling=2.5, residual_multiplier=0.4, attention_multiplier=0.2,
            shared_intermediate_size=28, tie_word_embeddings=True,
        ),
        FEW
        | {
            "embedding_scale": 3.0, "logit_scale": 2.5, "residual_scale": 0.4, "attention.scale": 0.2,
            "expert_shared_feed_forward_length": 28, "rope.dimension_count": 8,
        },
    ),
    "phimoe": (
        dict(
            model_type="phimoe", intermediate_size=20, num_local_experts=6, num_experts_per_tok=2,
            attention_bias=True, lm_head_bias=True, sliding_window=32,
            rope_scaling=dict(
                type="longrope", short_factor=[1.0, 1.1, 1.2, 1.5], long_factor=[1.0, 2.0, 3.5, 6.25],
                short_mscale=1.24, long_mscale=1.24, original_max_position_embeddings=16,
            ),
        ),
        FEW
        | {
            "rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.24,
            "expert_used_count": 2, "attention.sliding_window": 32, "rope.dimension_count": 8,
        },
    ),
    "dbrx": (
        dict(
            model_type="dbrx", d_model=32, n_heads=4, n_layers=3, max_seq_len=64,
            attn_config=dict(clip_qkv=0.7, kv_n_heads=2, rope_theta=20_000.0),
            ffn_config=dict(ffn_hidden_size=20, moe_num_experts=6, moe_top_k=3),
        ),
        FEW | {"attention.clamp_kqv": 0.7, "attention.layer_norm_epsilon": 1e-5},
    ),
    "grok": (
        dict(
            model_type="grok-1", intermediate_size=20, num_experts=6, num_experts_per_tok=3,
            attn_output_multiplier=0.3, max_attn_value=1.5, embedding_multiplier_scale=7.0,
            output_multiplier_scale=0.6, tie_word_embeddings=True,
        ),
        FEW
        | {
            "attention.output_scale": 0.3, "attn_logit_softcapping": 1.5, "embedding_scale": 7.0,
            "logit_scale": 0.6, "router_logit_softcapping": 30.0,
        },
    ),
    "llama4": (
        dict(
            model_type="llama4_text", intermediate_size=20, intermediate_size_mlp=48, num_local_experts=4,
            num_experts_per_tok=1, head_dim=64, interleave_moe_layer_step=2, rope_scaling=LLAMA3,
            num_hidden_layers=4, rope_theta=500_000.0, attention_chunk_size=8192,
        ),
        {
            "block_count": 4, "feed_forward_length": 48, "expert_feed_forward_length": 20, "expert_count": 4,
            "expert_used_count": 1, "interleave_moe_layer_step": 2, "attention.key_length": 64,
            "rope.dimension_count": 64, "rope.freq_base": 500_000.0, "leading_dense_block_count": 0,
        },
    ),
    "llama": (
        dict(
            model_type="mixtral", intermediate_size=20, num_local_experts=6, num_experts_per_tok=3,
            head_dim=64, rope_scaling=LLAMA3 | dict(factor=32.0), rope_theta=500_000.0,
        ),
        FEW | {"attention.key_length": 64, "rope.dimension_count": 64, "rope.freq_base": 500_000.0},
    ),
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def published(model: Decoder, config: dict) -> Tensors:
    """The tensors of its published checkpoint."""
    bindings = bind(family_of(config).weights, model.config, dict(model.state_dict()))
    return {binding.name: binding.collect() for binding in bindings}


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Halves of a head become neighbours."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def merged(tensors: Tensors) -> Tensors:
    """Experts in one tensor of three dimensions."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():  # experts come in numerical order
        found.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(tensor)
    return {
        n: torch.stack(parts) if ".experts." in n and len(parts) > 1 else parts[0]
        for n, parts in found.items()
    }


def converted(case: str, tensors: Tensors) -> Tensors:
    """What the converter of this architecture does before it maps names."""
    out: Tensors = {}
    arch = case.split()[0]
    for name, t in merged(tensors).items():
        if arch in ("llama", "deepseek", "granitemoe") and (found := re.search(r"\.([qk])_proj\.", name)):
            out[name] = permuted(t, 4 if found[1] == "q" else 2)
        elif name.endswith("kv_b_proj.weight") and "whole" not in case and "Lite" not in case:
            k, v = t.view(4, 18, 16).split([8, 10], dim=1)
            out |= {name.replace("kv_b", "k_b"): k.transpose(1, 2), name.replace("kv_b", "v_b"): v}
        elif name.endswith("e_score_correction_bias"):
            out[name.removesuffix("_bias") + ".bias"] = t.squeeze()
        elif name.endswith("sinks"):
            out[name + ".weight"] = t
        elif arch == "gpt-oss" and "gate_up_proj" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            rows = t if kind == "bias" else t.transpose(1, 2)
            for number, part in enumerate(("gate_proj", "up_proj")):
                out[f"{name.split('gate_up')[0]}{part}.{kind}"] = rows[:, number::2]
        elif arch == "llama4" and "gate_up_proj" in name:
            for part, rows in zip(("gate_proj", "up_proj"), t.transpose(1, 2).chunk(2, dim=1), strict=True):
                out[name.replace("gate_up_proj", f"{part}.weight")] = rows
        elif arch in ("gpt-oss", "llama4") and "experts.down_proj" in name:
            bias = name.endswith("_bias")
            out[name.replace("down_proj_bias", "down_proj.bias") if bias else f"{name}.weight"] = (
                t if bias else t.transpose(1, 2)
            )
        elif name.endswith("input_linear.weight"):
            kind = "shexp" if "shared" in name else "exps"
            for part, rows in zip(("gate", "up"), t.chunk(2, dim=-2), strict=True):
                out[f"blk.{name.split('.')[2]}.ffn_{part}_{kind}.weight"] = rows
        elif "ffn.experts.mlp" in name:
            cube = t.view(6, 20, 32)
            out[name + ".weight"] = cube.transpose(1, 2) if name.endswith("w2") else cube
        else:
            out[name] = t
    return out


GROK = {
    "pre_attn_norm.scale": "attn_norm", "post_attn_norm.scale": "attn_output_norm",
    "pre_moe_norm.scale": "ffn_norm", "post_moe_norm.scale": "layer_output_norm", "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "attn.o_proj": "attn_output",
    "moe_block.gate": "ffn_gate_inp", "moe_block.experts.linear": "ffn_gate_exps",
    "moe_block.experts.linear_v": "ffn_up_exps", "moe_block.experts.linear_1": "ffn_down_exps",
}  # fmt: skip


def named(arch: str, tensors: Tensors, blocks: int) -> Tensors:
    """Under llama.cpp's names."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table, out = gguf.get_tensor_name_map(kinds[arch], blocks), {}
    for name, tensor in tensors.items():
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if arch == "grok" and (found := re.match(r"model\.layers\.(\d+)\.(.*?)(\.weight)?$", name)):
            theirs = f"blk.{found[1]}.{GROK[found[2]]}.weight"
        elif arch == "grok" and name == "model.norm.scale":
            theirs = "output_norm.weight"
        elif arch == "llama" and ".block_sparse_moe.experts." in name:
            found = re.match(r"model\.(layers\.\d+)\.block_sparse_moe\.(experts\.\w+)\.weight", name)
            theirs = table.get_name(f"{found[1]}.feed_forward.{found[2]}.weight", try_suffixes=(".weight",))
        assert theirs is not None or name.startswith("blk."), name
        out[theirs or name] = tensor
    return out


def divisors(config: dict) -> torch.Tensor:
    """rope_freqs as the converter computes them."""
    rope, width = config["rope_scaling"], config["head_dim"]
    factors = []
    for place in range(0, width, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (place / width)
        turns = rope["original_max_position_embeddings"] / wavelength
        if turns > rope["high_freq_factor"]:
            factors.append(1.0)
        elif turns < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (turns - 1.0) / (rope["high_freq_factor"] - 1.0)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors)


def write(path, case: str, *, types=None, change=None) -> tuple[Decoder, dict]:
    given, more = CASES[case]
    arch, config = case.split()[0], dict(SIZES | given) if case != "dbrx" else dict(given, vocab_size=97)
    keys = KEYS | more
    if case == "dbrx":
        del keys["attention.layer_norm_rms_epsilon"]
    torch.manual_seed(0)
    model = randomise_(Decoder(from_hf(config)), std=0.2).eval()
    tensors = named(arch, converted(case, published(model, config)), keys["block_count"])
    if config.get("rope_scaling", {}).get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = divisors(config)
    if case == "phimoe":
        for kind in ("long", "short"):
            tensors[f"rope_factors_{kind}.weight"] = torch.tensor(config["rope_scaling"][f"{kind}_factor"])
    if change is not None:
        change(keys, tensors)
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](f"{arch}.{key}", value)
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.detach().numpy())
        kind = (types or {}).get(name.split(".")[2] if name.startswith("blk.") else name)
        if kind is None or name.endswith("bias"):
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, config


def test_every_architecture_has_a_case():
    assert {case.split()[0] for case in CASES} | {"qwen2moe", "qwen3moe", "olmoe"} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_back(tmp_path, case):
    model, _ = write(tmp_path / "m.gguf", case)
    back = load(tmp_path / "m.gguf")
    assert back.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    again = load(save(back, tmp_path / "published"))
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_mxfp4_experts(tmp_path):
    kind = gguf.GGMLQuantizationType.MXFP4
    model, _ = write(
        tmp_path / "m.gguf", "gpt-oss", types={f"ffn_{n}_exps": kind for n in ("gate", "up", "down")}
    )
    back = load(tmp_path / "m.gguf").state_dict()
    for key, value in model.state_dict().items():
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            rounded = gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), kind), kind)
            assert torch.equal(back[key], torch.from_numpy(rounded)), key
            assert not torch.equal(back[key], value)
        else:
            assert torch.equal(back[key], value), key


def test_mxfp4_blocks_of_a_gguf_file_are_those_of_the_published_files():
    """llama.cpp moves the nibbles: the first half of a block lies in the low ones, the rest in the others."""
    rng = np.random.default_rng(0)
    blocks = torch.from_numpy(rng.integers(0, 256, (2, 3, 2, 16), dtype=np.uint8))
    scales = torch.from_numpy(rng.integers(118, 136, (2, 3, 2), dtype=np.uint8))
    nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)  # in the order of the values
    packed = nibbles[..., :16] | nibbles[..., 16:] << 4
    rows = torch.cat([scales.unsqueeze(-1), packed], dim=-1).flatten(-2).numpy()
    values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(values, dequantize_mxfp4(blocks, scales).float().numpy())


def test_a_table_that_is_not_llama3s_is_kept_as_it_is(tmp_path):
    table = [1.0, 1.5, *[3.0] * 30]

    def change(keys, tensors):
        tensors["rope_freqs.weight"] = torch.tensor(table)

    write(tmp_path / "m.gguf", "llama", change=change)
    rope = load(tmp_path / "m.gguf").config.attention.rope
    assert rope.scaling == "longrope" and list(rope.short_factors) == list(rope.long_factors) == table
    assert scaling_of_divisors([1.0] * 8, 10_000.0, 64) is None


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("deepseek2 V3", "expert_gating_func", 3, r"expert_gating_func = 3: must be softmax"),
        ("deepseek2 V3", "rope.scaling.type", "su", r"rope\.scaling\.type = 'su': known"),
        ("deepseek2 V3", "rope.scaling.yarn_ext_factor", 0.5, r"yarn_ext_factor = 0\.5: only 1"),
        ("glm4moe", "expert_gating_func", 1, r"expert_gating_func = 1: only 2"),
        ("gpt-oss", "swiglu_clamp_exp", 3.0, r"gpt-oss\.swiglu_clamp_exp = 3\.0: unknown"),
        ("grok", "attention.temperature_length", 5, r"attention\.temperature_length = 5: unknown"),
        ("dbrx", "attention.layer_norm_epsilon", 1e-3, r"layer_norm_epsilon = 0\.001"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_have_is_refused(tmp_path, case, key, value, message):
    write(tmp_path / "m.gguf", case, change=lambda keys, tensors: keys.update({key: value}))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "m.gguf")


def test_a_file_may_hold_the_whole_projection_beside_its_parts(tmp_path):
    def change(keys, tensors):
        tensors["blk.0.attn_kv_b.weight"] = torch.zeros(72, 16)

    model, _ = write(tmp_path / "m.gguf", "deepseek2 V3", change=change)
    assert torch.equal(load(tmp_path / "m.gguf").embed.weight, model.embed.weight)


def test_fused_queries_keys_and_values(tmp_path):
    def change(keys, tensors):
        for layer in range(3):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{n}.{kind}") for n in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = torch.cat(parts)

    model, config = write(tmp_path / "m.gguf", "phimoe", change=change)
    back = load(tmp_path / "m.gguf")
    assert back.config == replace(model.config) and config["attention_bias"]
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())


def test_an_architecture_that_is_not_read_is_named_with_those_that_are(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3next")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        ConfigError, match=r"'qwen3next': not one that is read; .*\(read: llama, .*, llama4\)"
    ):
        load(tmp_path / "m.gguf")
