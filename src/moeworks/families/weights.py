"""Rules that many families' checkpoints share. Views call methods of tensors only: nothing imports torch."""

from typing import Any

from moeworks.config.weight_rules import Either, Place, Rule, Rules, View, WeightMap


def half(number: int) -> View:
    """The first or second half of the rows: gate or up of a fused pair."""
    return lambda place, t: t.unflatten(0, (2, -1))[number]


def experts_transposed(place: Place, t: Any) -> Any:
    """[E, out, in] as [E, in, out]."""
    return t.transpose(1, 2)


TOP: Rules = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "final_norm.weight"),
    Rule("lm_head.weight", "lm_head.weight"),
)
NORMS: Rules = (
    Rule("input_layernorm.weight", "attention_norm.weight"),
    Rule("post_attention_layernorm.weight", "mlp_norm.weight"),
)


def projections(names: str) -> Rules:
    """Projections of attention, as in "qkvo", with their biases."""
    return tuple(
        Rule(f"self_attn.{n}_proj.{kind}", f"attention.{n}_proj.{kind}")
        for n in names
        for kind in ("weight", "bias")
    )


QK_NORMS: Rules = (
    Rule("self_attn.q_norm.weight", "attention.q_norm.weight"),
    Rule("self_attn.k_norm.weight", "attention.k_norm.weight"),
)
KEYS_AND_VALUES: Rules = (*projections("kv"), *QK_NORMS)
ATTENTION: Rules = (*projections("qkvo"), *QK_NORMS)
MLA: Rules = (
    Rule("self_attn.q_proj.weight", "attention.q_proj.weight"),
    Rule("self_attn.q_a_proj.weight", "attention.q_a_proj.weight"),
    Rule("self_attn.q_a_proj.bias", "attention.q_a_proj.bias"),
    Rule("self_attn.q_a_layernorm.weight", "attention.q_a_norm.weight"),
    Rule("self_attn.q_b_proj.weight", "attention.q_b_proj.weight"),
    Rule("self_attn.kv_a_proj_with_mqa.weight", "attention.kv_a_proj.weight"),
    Rule("self_attn.kv_a_proj_with_mqa.bias", "attention.kv_a_proj.bias"),
    Rule("self_attn.kv_a_layernorm.weight", "attention.kv_a_norm.weight"),
    Rule("self_attn.kv_b_proj.weight", "attention.kv_b_proj.weight"),
    Rule("self_attn.o_proj.weight", "attention.o_proj.weight"),
    Rule("self_attn.o_proj.bias", "attention.o_proj.bias"),
)
INDEXER: Rules = (
    Rule("self_attn.indexer.wq_b.weight", "attention.indexer.q_proj.weight"),
    Rule("self_attn.indexer.wk.weight", "attention.indexer.k_proj.weight"),
    Rule("self_attn.indexer.k_norm.weight", "attention.indexer.k_norm.weight"),
    Rule("self_attn.indexer.k_norm.bias", "attention.indexer.k_norm.bias"),
    Rule("self_attn.indexer.weights_proj.weight", "attention.indexer.weights_proj.weight"),
)


def gated(
    theirs: str, ours: str, *, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Rules:
    """A gated block with three matrices of its own, and their biases."""
    gate, up, down = names
    return tuple(
        rule
        for kind in ("weight", "bias")
        for rule in (
            Rule(f"{theirs}.{gate}.{kind}", f"{ours}.gate_up_proj.{kind}", half(0)),
            Rule(f"{theirs}.{up}.{kind}", f"{ours}.gate_up_proj.{kind}", half(1)),
            Rule(f"{theirs}.{down}.{kind}", f"{ours}.down_proj.{kind}"),
        )
    )


def experts(
    theirs: str,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    *,
    ours: str = "mlp.experts",
) -> Either:
    """Routed experts, each with three matrices; or fused as [E, 2F, D] and [E, D, F]."""
    gate, up, down = names
    apart = (
        Rule(f"{theirs}.{{e}}.{gate}.weight", f"{ours}.gate_up_proj", half(0)),
        Rule(f"{theirs}.{{e}}.{up}.weight", f"{ours}.gate_up_proj", half(1)),
        Rule(f"{theirs}.{{e}}.{down}.weight", f"{ours}.down_proj"),
    )
    fused = (
        Rule(f"{theirs}.gate_up_proj", f"{ours}.gate_up_proj"),
        Rule(f"{theirs}.down_proj", f"{ours}.down_proj"),
    )
    return Either((apart, fused))


def experts_fused(theirs: str) -> Either:
    """Routed experts in either layout, written fused: for classes of transformers that read nothing else."""
    apart, fused = experts(theirs).options
    return Either((fused, apart))


def plain(rules: Rules) -> tuple[Rule, ...]:
    """`rules` without choices between layouts."""
    return tuple(rule for rule in rules if isinstance(rule, Rule))


DENSE: Rules = gated("mlp", "mlp")
MOE: Rules = (Rule("mlp.gate.weight", "mlp.router.weight"), experts("mlp.experts"))
SHARED: Rules = gated("mlp.shared_experts", "mlp.shared")
SELECTION_BIAS: Rules = (Rule("mlp.gate.e_score_correction_bias", "mlp.router.expert_bias"),)
W123 = ("w1", "w3", "w2")
MIXTRAL_MOE: Rules = (
    Rule("block_sparse_moe.gate.weight", "mlp.router.weight"),
    experts("block_sparse_moe.experts", W123),
)
MIXTRAL_IN_MEMORY = ((".mlp.", ".block_sparse_moe."),)
"""What transformers calls the block of experts."""
MTP: Rules = (
    Rule("enorm.weight", "embed_norm.weight"),
    Rule("hnorm.weight", "hidden_norm.weight"),
    Rule("eh_proj.weight", "proj.weight"),
    Rule("shared_head.norm.weight", "final_norm.weight"),
)
MTP_COPIES = ("model.layers.*.embed_tokens.weight", "model.layers.*.shared_head.head.weight")
"""Copies of the embedding and the output projection in published MTP layers."""

LLAMA = WeightMap(top=TOP, layer=(*NORMS, *ATTENTION, *DENSE))
MIXTRAL = WeightMap(top=TOP, layer=(*NORMS, *ATTENTION, *MIXTRAL_MOE), renamed=MIXTRAL_IN_MEMORY)
QWEN_MOE = WeightMap(top=TOP, layer=(*NORMS, *ATTENTION, *DENSE, *MOE))
DEEPSEEK_V1 = WeightMap(top=TOP, layer=(*NORMS, *ATTENTION, *DENSE, *MOE, *SHARED))
DEEPSEEK = WeightMap(
    top=TOP,
    layer=(*NORMS, *MLA, *INDEXER, *DENSE, *MOE, *SHARED, *SELECTION_BIAS),
    mtp=MTP,
    ignored=MTP_COPIES,
)
GLM = WeightMap(
    top=TOP, layer=(*NORMS, *ATTENTION, *DENSE, *MOE, *SHARED, *SELECTION_BIAS), mtp=MTP, ignored=MTP_COPIES
)
