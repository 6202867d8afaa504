"""A model's figures whatever the hardware: parameters, weight bytes, cache bytes and FLOPs, as one record."""

from dataclasses import dataclass

from moeworks.config.count import (
    ParameterCount,
    count_cache_bytes,
    count_decode_flops,
    count_flops,
    count_kv_bytes,
    count_parameters,
)
from moeworks.config.model import ModelConfig
from moeworks.errors import check
from moeworks.plan.compute import causal_training_flops, prefill_flops
from moeworks.plan.formats import FORMATS, value_bytes
from moeworks.plan.weights import weight_bytes

MAX_CONTEXT = 100_000_000
COMPONENTS = (
    "embedding", "attention", "norms", "dense_mlp", "router", "experts", "shared", "lm_head",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ParameterFigures:
    """Numbers of parameters. MTP layers are in none but `mtp`, as makers leave them out."""

    total: int
    active: int
    """Of one token's forward pass, the whole embedding table and the output projection included."""
    active_without_embedding: int
    """`active` without the input embedding table; the same when that is the output projection too."""
    active_without_embedding_and_lm_head: int
    """`active` without both (Kaplan et al. 2020)."""
    active_experts: int
    """Parameters of the routed experts that one token uses."""
    components: dict[str, int]
    """embedding, attention, norms, dense_mlp, router, experts, shared, lm_head: they sum to `total`."""
    mtp: int
    """Parameters of the multi-token prediction layers."""


@dataclass(frozen=True, kw_only=True)
class FlopsFigures:
    """FLOPs, in the conventions of moeworks.config.count and moeworks.plan.compute."""

    context: int
    """Length of the sequences, in tokens."""
    decode_per_token: int
    """To decode token number `context`."""
    prefill_per_token: float
    """Mean over a causal prompt of `context` tokens."""
    training_per_token: int
    """Forward and backward in sequences of `context` tokens, masked pairs counted."""
    training_per_token_causal: float
    """Forward and backward in sequences of `context` tokens, masked pairs left out."""


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What a model is and takes, without hardware. Bytes and counts are plain numbers."""

    parameters: ParameterFigures
    weight_bytes: dict[str, int]
    """By format: fp32, bf16, fp8, int8, mxfp4, int4 (see moeworks.plan.formats)."""
    kv_dtype: str
    kv_bytes_per_token: int
    """All layers; those with windows only keep the newest tokens."""
    kv_bytes_per_token_expanded: int
    """If MLA kept every head's keys and values; otherwise the same."""
    cache_bytes_per_sequence: int
    """At `flops.context` tokens: windows, chunks and recurrent states accounted for."""
    flops: FlopsFigures


def model_figures(model: ModelConfig, context: int, kv_dtype: str = "bf16") -> ModelFigures:
    """The figures of `model`, FLOPs and cache at `context` tokens; raises ConfigError for an absurd one."""
    check_context(context)
    size = value_bytes(kv_dtype)
    return ModelFigures(
        parameters=parameter_figures(count_parameters(model), tied=model.tie_embeddings),
        weight_bytes={name: weight_bytes(model, form).total for name, form in FORMATS.items()},
        kv_dtype=kv_dtype,
        kv_bytes_per_token=count_kv_bytes(model, size),
        kv_bytes_per_token_expanded=count_kv_bytes(model, size, expanded=True),
        cache_bytes_per_sequence=count_cache_bytes(model, context, size),
        flops=FlopsFigures(
            context=context,
            decode_per_token=count_decode_flops(model, context),
            prefill_per_token=prefill_flops(model, context) / context,
            training_per_token=count_flops(model, context, training=True),
            training_per_token_causal=causal_training_flops(model, context),
        ),
    )


def parameter_figures(count: ParameterCount, *, tied: bool) -> ParameterFigures:
    """`count` as it is reported; `tied` says that the embedding is the output projection."""
    return ParameterFigures(
        total=count.total,
        active=count.active,
        active_without_embedding=count.active - (0 if tied else count.embedding),
        active_without_embedding_and_lm_head=count.active_non_embedding,
        active_experts=count.active_experts,
        components={name: getattr(count, name) for name in COMPONENTS},
        mtp=count.mtp,
    )


def check_context(context: int, field: str = "context") -> None:
    """Raise ConfigError for a number of tokens that no sequence has."""
    check(1 <= context <= MAX_CONTEXT, field, context, f"must lie between 1 and {MAX_CONTEXT:,} tokens")
