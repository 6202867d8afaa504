"""Families without a class in transformers, against classes that compute the same by other names."""

import json
from dataclasses import replace

import torch
from parity_models import randomise_
from safetensors.torch import load_file, save_file
from tiny_families import GROUPED, PLAIN, SIZES
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, LlamaRotaryEmbedding
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersConfig,
    SwitchTransformersTop1Router,
)

from moeworks import MoEConfig, load
from moeworks.checkpoint.source import read_json
from moeworks.families import from_hf
from moeworks.layers.rope import rope_angles
from moeworks.layers.router import Router
from moeworks.ops.dispatch import apply_capacity

TOLERANCE = dict(rtol=0, atol=1e-4)
TOKENS = torch.randint(SIZES["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(3))


def write(folder, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


@torch.no_grad()
def test_minicpm_moe_is_granite_moe_with_its_experts_apart(tmp_path):
    """Top-k then softmax is softmax, top-k and renormalise; the multipliers are granite's."""
    layers, width, base = 4, 32, 8
    config = AutoConfig.for_model(
        "granitemoe", **SIZES, intermediate_size=20, num_local_experts=6, num_experts_per_tok=2,
        embedding_multiplier=12.0, residual_multiplier=1.4 / layers**0.5, logits_scaling=width / base,
        attention_multiplier=(width // 4) ** -0.5, rope_parameters=PLAIN, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", trust_remote_code=False
    ).eval()
    randomise_(theirs)
    theirs.save_pretrained(tmp_path / "granite")
    tensors = {}
    for name, tensor in load_file(tmp_path / "granite" / "model.safetensors").items():
        start = name.split("block_sparse_moe")[0] + "mlp."
        if "input_linear" in name:
            for e, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                tensors |= {f"{start}experts.{e}.w1.weight": gate, f"{start}experts.{e}.w3.weight": up}
        elif "output_linear" in name:
            tensors |= {f"{start}experts.{e}.w2.weight": expert for e, expert in enumerate(tensor)}
        elif "router" in name:
            tensors[f"{start}gate.weight"] = tensor
        else:
            tensors[name] = tensor
    mini = dict(
        model_type="minicpm", vocab_size=97, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=20, num_experts=6,
        num_experts_per_tok=2, scale_emb=12,
        scale_depth=1.4, dim_model_base=base, max_position_embeddings=64, rms_norm_eps=config.rms_norm_eps,
    )  # fmt: skip
    write(tmp_path, mini, tensors)
    got = load(tmp_path, dtype=torch.float32)(TOKENS).logits_BLV
    torch.testing.assert_close(got, theirs(TOKENS).logits, **TOLERANCE)


@torch.no_grad()
def test_deepseek_v1_is_v2s_experts_under_llamas_attention(tmp_path):
    options = GROUPED | dict(n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0)
    config = AutoConfig.for_model(
        "deepseek_v2", **SIZES | dict(num_key_value_heads=4), **options, topk_method="greedy",
        rope_parameters=PLAIN, q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=8,
        v_head_dim=8,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
    llama = LlamaConfig(**SIZES | dict(num_key_value_heads=4), intermediate_size=48, rope_parameters=PLAIN)
    llama._attn_implementation = "eager"
    for index, layer in enumerate(theirs.model.layers):
        layer.self_attn = LlamaAttention(llama, index)
    theirs.model.rotary_emb = LlamaRotaryEmbedding(llama)
    theirs.eval()
    randomise_(theirs)
    theirs.save_pretrained(tmp_path / "composed")
    wanted = ("norm_topk_prob", "first_k_dense_replace", "moe_intermediate_size", "n_shared_experts")
    first = dict(
        model_type="deepseek", vocab_size=97, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=48, n_routed_experts=8, num_experts_per_tok=3,
        max_position_embeddings=64, rms_norm_eps=config.rms_norm_eps, rope_theta=10_000.0,
        **{key: options[key] for key in wanted},
    )  # fmt: skip
    write(tmp_path, first, load_file(tmp_path / "composed" / "model.safetensors"))
    got = load(tmp_path, dtype=torch.float32)(TOKENS).logits_BLV
    torch.testing.assert_close(got, theirs(TOKENS).logits, **TOLERANCE)


@torch.no_grad()
def test_kimi_k2_is_deepseek_v3_by_another_name(saved_models, tmp_path):
    theirs, folder = saved_models("deepseek_v3")
    config = read_json(folder / "config.json") | {"model_type": "kimi_k2"}
    write(tmp_path, config, load_file(folder / "model.safetensors"))
    got = load(tmp_path, dtype=torch.float32)(TOKENS).logits_BLV
    torch.testing.assert_close(got, theirs(TOKENS).logits, **TOLERANCE)


@torch.no_grad()
def test_router_and_capacity_of_switch_transformers():
    """Top-1 of a softmax, weighted by its probability, the first tokens of an expert kept; the
    encoder-decoder around it is not ours."""
    config = SwitchTransformersConfig(d_model=16, num_experts=5, expert_capacity=6, router_jitter_noise=0.0)
    theirs = SwitchTransformersTop1Router(config).eval()
    torch.nn.init.normal_(theirs.classifier.weight)
    moe = MoEConfig(
        d_model=16, num_experts=5, top_k=1, renormalize=False, eval_capacity_factor=6 * 5 / 40, d_expert=4
    )
    ours = Router(moe, 16)
    ours.weight.copy_(theirs.classifier.weight)
    x = torch.randn(1, 40, 16)
    kept, probabilities, _ = theirs(x)
    routing = apply_capacity(ours(x[0]), moe, training=False)
    chosen = torch.nn.functional.one_hot(routing.expert_ids_TK[:, 0], 5) * routing.kept_TK
    assert torch.equal(chosen, kept[0])
    assert not routing.kept_TK.all()
    torch.testing.assert_close(routing.routing_weights_TK, probabilities[0])


@torch.no_grad()
def test_longrope_of_phimoe_inside_the_original_context(tmp_path):
    rope = dict(
        rope_type="longrope", rope_theta=10_000.0, original_max_position_embeddings=40, short_mscale=1.2,
        long_mscale=1.3, factor=2.0, short_factor=[1.1, 1.2, 1.3, 1.4], long_factor=[2.0, 2.5, 3.0, 4.0],
    )  # fmt: skip
    config = AutoConfig.for_model(
        "phimoe", **SIZES, intermediate_size=20, num_local_experts=6, rope_parameters=rope
    )
    theirs = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", trust_remote_code=False
    ).eval()
    randomise_(theirs)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(TOKENS).logits_BLV, theirs(TOKENS).logits, **TOLERANCE)


@torch.no_grad()
def test_longrope_of_phimoe_beyond_the_original_context(tmp_path):
    """transformers 5 takes short_factor with long_mscale there, so it is given the long factors as its short
    ones; 30 tokens are more than 20."""
    rope = dict(
        rope_type="longrope", rope_theta=10_000.0, original_max_position_embeddings=20, short_mscale=1.2,
        long_mscale=1.3, factor=2.0, short_factor=[1.1, 1.2, 1.3, 1.4], long_factor=[2.0, 2.5, 3.0, 4.0],
    )  # fmt: skip
    sizes = dict(**SIZES, intermediate_size=20, num_local_experts=6)
    given = rope | dict(short_factor=rope["long_factor"])
    config = AutoConfig.for_model("phimoe", **sizes, rope_parameters=given)
    theirs = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", trust_remote_code=False
    ).eval()
    randomise_(theirs)
    theirs.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json") | {"rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(TOKENS).logits_BLV, theirs(TOKENS).logits, **TOLERANCE)


@torch.no_grad()
def test_deepseek_v2_with_renormalised_weights(saved_models, tmp_path):
    """transformers ignores norm_topk_prob, so its routers' weights are divided by their sum from outside."""
    theirs, folder = saved_models("deepseek_v2_lite")
    tensors, config = load_file(folder / "model.safetensors"), read_json(folder / "config.json")
    write(tmp_path, config | {"norm_topk_prob": True, "routed_scaling_factor": 1.0}, tensors)

    def renormalise(module, args, output):
        logits, weights, experts = output
        return logits, weights / weights.sum(dim=-1, keepdim=True), experts

    gates = [layer.mlp.gate for layer in theirs.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(renormalise) for gate in gates]
    want = theirs(TOKENS).logits
    for hook in hooks:
        hook.remove()
    assert len(gates) == 3
    assert (want - theirs(TOKENS).logits).abs().amax() > 1e-2
    got = load(tmp_path, dtype=torch.float32)(TOKENS).logits_BLV
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_longrope_beyond_the_original_context_takes_the_long_factors():
    """The documented rule; transformers 5 takes short_factor with long_mscale there."""
    model = from_hf(
        dict(
            model_type="phimoe", **SIZES, intermediate_size=20,
            num_local_experts=6, rms_norm_eps=1e-5,
            rope_scaling=dict(
                type="longrope", short_mscale=1.2, long_mscale=1.3, short_factor=[1.0, 1.0, 1.0, 1.0],
                long_factor=[2.0, 2.0, 2.0, 2.0],
            ),
            original_max_position_embeddings=40,
        )
    )  # fmt: skip
    attention = model.attention
    places = torch.arange(50)
    short = rope_angles(places, attention.rope_theta, attention.rope, 8, longest=40)
    long = rope_angles(places, attention.rope_theta, attention.rope, 8, longest=41)
    plain = replace(attention.rope, scaling="none")
    torch.testing.assert_close(short, 1.2 * rope_angles(places, attention.rope_theta, plain, 8))
    torch.testing.assert_close(
        long[:, ::2], 1.3 * rope_angles(places, attention.rope_theta, plain, 8)[:, :25]
    )
