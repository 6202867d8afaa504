"""Who holds what: weights, caches and activations on each device, and how many devices that takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from moeworks.config.count import count_parameters
from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
)
from moeworks.config.model import GATED, ModelConfig
from moeworks.plan.cache import cache_bytes, divisible_heads
from moeworks.plan.formats import WeightFormat
from moeworks.plan.layers import mixers_of
from moeworks.plan.weights import WeightBytes, weight_bytes

Split = Literal["even", "tensor", "expert"]
SPLITS: Mapping[Split, str] = {
    "even": "everything in equal parts, all at work at once: the lower bound",
    "tensor": "matrices and heads in parts; MLA latents and shared key/value heads copied",
    "expert": "routed experts in parts, the rest copied, each sequence on one device",
}
"""Ways to spread a model over devices. Real pipelines hold what "even" says, and work one stage at a time on
one batch; "tensor" also copies norms and routers; "expert" is DeepSeek-V3's decoding (section 3.4.2)."""
MOST_DEVICES = 2**20
MOST_SEQUENCES = 2**24


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be held: a model in a format, and sequences."""

    model: ModelConfig
    form: WeightFormat
    context: int
    """Tokens of each sequence."""
    batch: int
    """Sequences at a time."""
    kv_bytes: int
    """Bytes of one value in the cache."""
    prefill_tokens: int
    """Tokens that a device works on at once at most."""

    @cached_property
    def weights(self) -> WeightBytes:
        """Bytes of the weights."""
        return weight_bytes(self.model, self.form)

    @cached_property
    def spread_expert_bytes(self) -> float:
        """Bytes of the routed experts of the MoE layers; a mixture of attention's are not spread."""
        counts = count_parameters(self.model)
        mixed = sum(
            layers * mixer.num_experts * 2 * mixer.num_kv_heads * mixer.head_dim * self.model.d_model
            for mixer, layers in mixers_of(self.model)
            if isinstance(mixer, MixtureOfAttentionConfig)
        )
        return self.weights.experts * (1 - mixed / counts.experts) if counts.experts else 0.0

    @cached_property
    def sequence_bytes(self) -> int:
        """Bytes of one sequence's caches."""
        return cache_bytes(self.model, self.context, self.kv_bytes)


@dataclass(frozen=True, kw_only=True)
class DeviceLoad:
    """Bytes on the fullest device."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of weights, cache and activations."""
        return self.weights + self.cache + self.activations


def device_load(work: Workload, split: Split, devices: int) -> DeviceLoad:
    """What the fullest of `devices` devices holds under `split`, in bytes."""
    sizes = work.weights
    if split == "even":
        weights, cache = _part(sizes.total, devices), _part(work.batch * work.sequence_bytes, devices)
    elif split == "tensor":
        copied = sizes.norms + sizes.router
        weights = copied + _part(sizes.total - copied, devices)
        cache = work.batch * cache_bytes(work.model, work.context, work.kv_bytes, devices)
    else:
        experts = work.model.router.num_experts
        spread = work.spread_expert_bytes
        weights = round(sizes.total - spread + spread * _part(experts, devices) / experts)
        cache = _part(work.batch, devices) * work.sequence_bytes
    return DeviceLoad(weights=weights, cache=cache, activations=activation_bytes(work))


def activation_bytes(work: Workload) -> int:
    """An estimate of what a forward pass holds beside weights and caches, on each device, in bytes.

    The residual stream, its norm, and the widest block's inner values in 2 bytes for the tokens that are
    worked on at once, and logits in float32 for every sequence. Attention scores are never whole in memory
    (Dao et al. 2022). Kernels' work space comes out of the memory that the fraction leaves free.
    """
    model, moe = work.model, work.model.moe
    tokens = min(work.prefill_tokens, work.batch * work.context)
    inner = max(_inner_width(mixer, model.d_model) for mixer, _ in mixers_of(model))
    if model.dense_blocks:
        inner = max(inner, _branches(model.mlp.mlp_activation) * model.mlp.d_ff)
    if model.moe_layers:
        branches = _branches(moe.activation)
        routed = min(moe.top_k, moe.num_experts) * (branches * moe.d_expert + model.d_model)
        inner = max(inner, routed + branches * moe.shared_width + model.d_model * (moe.shared_width > 0))
    return 2 * tokens * (2 * model.d_model + inner) + 4 * work.batch * model.vocab_size


def devices_needed(work: Workload, split: Split, usable: float) -> int | None:
    """The fewest devices with `usable` bytes each that hold `work`; None when no number of them does."""
    candidates = allowed_devices(work.model, split, work.batch)
    if isinstance(candidates, list):
        return next((n for n in candidates if device_load(work, split, n).total <= usable), None)
    return _smallest(lambda n: device_load(work, split, n).total <= usable, candidates)


def allowed_devices(model: ModelConfig, split: Split, batch: int) -> list[int] | int:
    """Numbers of devices that `split` can use: a list, or every number up to a bound.

    Tensor parallelism needs a divisor of the query heads; expert parallelism gains nothing beyond one expert
    and one sequence per device.
    """
    if split == "tensor":
        heads = divisible_heads(model)
        small = [n for n in range(1, math.isqrt(heads) + 1) if heads % n == 0]
        return sorted({*small, *(heads // n for n in small)})
    return MOST_DEVICES if split == "even" else max(model.router.num_experts, batch)


def most_sequences(work: Workload, split: Split, devices: int, usable: float) -> int:
    """The most sequences of `work.context` tokens that `devices` devices hold beside the weights."""
    overflow = _smallest(
        lambda n: device_load(replace(work, batch=n), split, devices).total > usable, MOST_SEQUENCES
    )
    return MOST_SEQUENCES if overflow is None else overflow - 1


def devices_for_parameters(parameters: int, per_device: int) -> int:
    """Devices that hold `parameters` when each holds `per_device` of them.

    >>> devices_for_parameters(671 * 10**9, 20 * 10**9)
    34
    """
    return _part(parameters, per_device)


def _part(total: int, parts: int) -> int:
    """The largest of `parts` nearly equal parts."""
    return -(-total // parts)


def _smallest(holds: Callable[[int], bool], last: int) -> int | None:
    """The smallest of 1 .. last for which `holds`, which stays true from there on; None without one."""
    if not holds(last):
        return None
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _branches(activation: str) -> int:
    return 2 if activation in GATED else 1


def _inner_width(mixer: MixerConfig, d_model: int) -> int:
    """Values per token between a mixer's first and last projection."""
    match mixer:
        case GQAConfig():
            width = mixer.head_dim or d_model // mixer.num_heads
            v_width = mixer.v_head_dim or width
            outputs = mixer.num_heads * v_width * (1 + mixer.output_gate)
            return mixer.num_heads * width + outputs + mixer.num_kv_heads * (width + v_width)
        case GatedDeltaConfig():
            return 2 * mixer.key_width + 3 * mixer.value_width
        case MixtureOfAttentionConfig():
            return 2 * (mixer.top_k + 1) * mixer.num_kv_heads * mixer.head_dim
    return mixer.num_heads * 2 * (mixer.qk_head_dim + mixer.v_head_dim)
