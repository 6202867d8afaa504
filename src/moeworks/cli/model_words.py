"""A model's shape in words, and as plain values for JSON."""

from collections import Counter
from typing import Any

from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
)
from moeworks.config.model import ModelConfig

Rows = list[tuple[str, str]]


def shape_rows(model: ModelConfig) -> Rows:
    """Names and descriptions of what the model is made of."""
    tied = "tied" if model.tie_embeddings else "not tied"
    rows = [
        (
            "size",
            f"width {model.d_model:,}, vocabulary {model.vocab_size:,} (embeddings {tied}),"
            f" up to {model.max_seq_len:,} positions",
        ),
        ("layers", _layers(model)),
    ]
    for mixer, layers in Counter(model.mixer_of_layers).items():
        rows.append(("mixer", f"{mixer_words(mixer)}, in {layers} layers"))
    if model.moe_layers:
        rows.append(("experts", _experts(model)))
        rows.append(("routing", _routing(model)))
    if model.num_mtp_layers:
        rows.append(("MTP", f"{model.num_mtp_layers} more layer(s) that predict further tokens"))
    return rows


def shape_record(model: ModelConfig) -> dict[str, Any]:
    """The shape of a model as plain values: `layers`, and `routing`, which is None for a dense model."""
    router, moe = model.router, model.moe
    kinds = Counter(mixer.kind for mixer in model.mixer_of_layers)
    layers = {
        "total": model.num_layers,
        "moe": len(model.moe_layers),
        "dense": model.num_layers - len(model.moe_layers),
        "mtp": model.num_mtp_layers,
        "mixers": dict(kinds),
    }
    routing = {
        "num_experts": router.num_experts,
        "top_k": router.top_k,
        "num_shared_experts": moe.num_shared_experts,
        "d_expert": moe.d_expert,
        "d_shared": moe.shared_width,
        "score": router.score,
        "renormalize": router.renormalize,
        "routing_scale": router.routing_scale,
        "selection_bias": router.selection_bias,
        "num_groups": router.num_groups,
        "top_k_groups": router.top_k_groups,
    }
    return {"layers": layers, "routing": routing if model.moe_layers else None}


def mixer_words(mixer: MixerConfig) -> str:
    """One mixer in words."""
    match mixer:
        case GQAConfig():
            reach = f", window {mixer.window:,}" if mixer.window else ""
            reach += f", chunks of {mixer.chunk:,}" if mixer.chunk else ""
            positions = "" if mixer.rope.enabled else ", without positions"
            heads = f"{mixer.num_heads} query heads, {mixer.num_kv_heads} key/value heads"
            return f"grouped-query attention: {heads}{reach}{positions}"
        case GatedDeltaConfig():
            heads = f"{mixer.num_key_heads} key heads, {mixer.num_value_heads} states"
            return f"gated delta rule: {heads} of {mixer.key_head_dim} x {mixer.value_head_dim}"
        case MixtureOfAttentionConfig():
            heads = f"{mixer.num_kv_heads} heads each"
            return f"mixture of attention: {mixer.num_experts} experts, {mixer.top_k} per token, {heads}"
    index = f", the {mixer.indexer.top_k:,} keys that an indexer chooses" if mixer.indexer else ""
    return (
        f"latent attention (MLA): {mixer.num_heads} heads, latent {mixer.kv_lora_rank}"
        f" + {mixer.rope_head_dim} for positions{index}"
    )


def _layers(model: ModelConfig) -> str:
    moe = len(model.moe_layers)
    if not moe:
        return f"{model.num_layers}, all dense (feed-forward width {model.mlp.d_ff:,})"
    if moe == model.num_layers:
        return f"{model.num_layers}, all with experts"
    dense = f"{model.num_layers - moe} dense (feed-forward width {model.mlp.d_ff:,})"
    return f"{model.num_layers}: {dense}, {moe} with experts"


def _experts(model: ModelConfig) -> str:
    moe = model.moe
    text = f"{moe.num_experts} of width {moe.d_expert:,}, {moe.top_k} per token"
    if moe.num_shared_experts:
        gate = ", gated" if moe.shared_token_gate else ""
        text += f"; {moe.num_shared_experts} shared (width {moe.shared_width:,} together{gate})"
    return text


def _routing(model: ModelConfig) -> str:
    router = model.router
    order = "of the chosen logits" if router.score_order == "after_top_k" else "of all logits"
    parts = [f"{router.score} {order}"]
    if router.renormalize and router.score_order == "before_top_k":
        parts.append("renormalised")
    if router.routing_scale != 1:
        parts.append(f"times {router.routing_scale:g}")
    if router.weights_on == "input":
        parts.append("weights on the experts' input")
    if router.selection_bias:
        parts.append("a bias in the selection")
    if router.num_groups > 1:
        parts.append(f"{router.top_k_groups} of {router.num_groups} groups per token")
    return ", ".join(parts)
