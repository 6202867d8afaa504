"""Bytes of a model's weights: every matrix with its shape, since scales of blocks depend on shapes."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from moeworks.config.count import count_parameters
from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import GATED, ModelConfig
from moeworks.plan.formats import WeightFormat
from moeworks.plan.layers import mixers_of


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Equal matrices [rows, columns] of one component."""

    component: str
    """Component, named as in config.count.ParameterCount: attention, dense_mlp, experts or shared."""
    rows: int
    """Rows of each matrix: its outputs."""
    columns: int
    """Columns of each matrix: its inputs."""
    count: int = 1

    @property
    def entries(self) -> int:
        """Parameters of all `count` matrices."""
        return self.count * self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class WeightBytes:
    """Bytes of the weights by component, as config.count.ParameterCount has their number; no MTP layers."""

    embedding: int
    attention: int
    norms: int
    dense_mlp: int
    router: int
    experts: int
    shared: int
    lm_head: int

    @property
    def total(self) -> int:
        """Bytes of all components."""
        return sum(getattr(self, field.name) for field in fields(self))


@lru_cache(maxsize=64)
def weight_bytes(model: ModelConfig, form: WeightFormat) -> WeightBytes:
    """Bytes that the weights of `model` take in `form`, scales included, exactly."""
    counts = count_parameters(model)
    sizes = {field.name: 0 for field in fields(WeightBytes)}
    left = {name: getattr(counts, name) for name in sizes}
    for matrix in matrices(model):
        if matrix.component in form.covers:
            sizes[matrix.component] += matrix.count * form.matrix_bytes(matrix.rows, matrix.columns)
            left[matrix.component] -= matrix.entries
    return WeightBytes(**{name: sizes[name] + left[name] * form.rest_bytes for name in sizes})


def matrices(model: ModelConfig) -> list[Matrix]:
    """The layers' matrices without those of routers: what number formats shrink."""
    d, moe, moe_layers = model.d_model, model.moe, len(model.moe_layers)
    found = [
        replace(matrix, count=layers * matrix.count)
        for mixer, layers in mixers_of(model)
        for matrix in _mixer(mixer, d)
    ]
    found += _mlp("dense_mlp", d, model.mlp.d_ff, model.mlp.mlp_activation, model.dense_blocks)
    found += _mlp("experts", d, moe.d_expert, moe.activation, moe_layers * moe.num_experts)
    if moe.num_shared_experts:
        found += _mlp("shared", d, moe.shared_width, moe.activation, moe_layers)
    return found


def _mlp(component: str, d_model: int, width: int, activation: str, count: int) -> Iterator[Matrix]:
    """`count` feed-forward blocks."""
    into = 2 if activation in GATED else 1
    yield Matrix(component=component, rows=width, columns=d_model, count=into * count)
    yield Matrix(component=component, rows=d_model, columns=width, count=count)


def _mixer(mixer: MixerConfig, d_model: int) -> Iterator[Matrix]:
    if isinstance(mixer, MixtureOfAttentionConfig):
        width, experts = mixer.num_kv_heads * mixer.head_dim, mixer.num_experts
        yield Matrix(component="attention", rows=2 * width, columns=d_model)
        yield Matrix(component="experts", rows=width, columns=d_model, count=experts)
        yield Matrix(component="experts", rows=d_model, columns=width, count=experts)
        return
    for rows, columns in _attention(mixer, d_model):
        yield Matrix(component="attention", rows=rows, columns=columns)


def _attention(mixer: GQAConfig | MLAConfig | GatedDeltaConfig, d_model: int) -> list[tuple[int, int]]:
    """Rows and columns of a mixer's matrices."""
    match mixer:
        case GQAConfig():
            return _gqa(mixer, d_model)
        case MLAConfig():
            return _mla(mixer, d_model)
        case GatedDeltaConfig():
            return _gated_delta(mixer, d_model)


def _gqa(mixer: GQAConfig, d_model: int) -> list[tuple[int, int]]:
    width = mixer.head_dim or d_model // mixer.num_heads
    v_width = mixer.v_head_dim or width
    outputs = mixer.num_heads * v_width
    return [
        (mixer.num_heads * width + outputs * mixer.output_gate, d_model),
        (mixer.num_kv_heads * width, d_model),
        (mixer.num_kv_heads * v_width, d_model),
        (d_model, outputs),
    ]


def _mla(mixer: MLAConfig, d_model: int) -> list[tuple[int, int]]:
    heads, rank = mixer.num_heads, mixer.kv_lora_rank
    queries = heads * mixer.qk_head_dim
    if mixer.q_lora_rank is None:
        shapes = [(queries, d_model)]
    else:
        shapes = [(mixer.q_lora_rank, d_model), (queries, mixer.q_lora_rank)]
    shapes += [
        (rank + mixer.rope_head_dim, d_model),
        (heads * (mixer.nope_head_dim + mixer.v_head_dim), rank),
        (d_model, heads * mixer.v_head_dim),
    ]
    index = mixer.own_indexer
    if index is not None and mixer.q_lora_rank is not None:
        shapes += [
            (index.num_heads * index.head_dim, mixer.q_lora_rank),
            (index.head_dim, d_model),
            (index.num_heads, d_model),
        ]
    return shapes


def _gated_delta(mixer: GatedDeltaConfig, d_model: int) -> list[tuple[int, int]]:
    shapes = [
        (2 * mixer.key_width + mixer.value_width, d_model),
        (mixer.num_value_heads, d_model),
        (d_model, mixer.value_width),
    ]
    for controls in (mixer.value_width, mixer.num_decays):
        if mixer.latent_rank is None:
            shapes.append((controls, d_model))
        else:
            shapes += [(mixer.latent_rank, d_model), (controls, mixer.latent_rank)]
    return shapes
