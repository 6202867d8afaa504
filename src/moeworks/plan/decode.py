"""Decode speed by the roofline: what a step reads against bandwidth, what it computes against peak FLOP/s."""

from dataclasses import dataclass
from typing import Literal

from moeworks.config.count import count_decode_flops
from moeworks.config.mixers import MixtureOfAttentionConfig
from moeworks.plan.cache import cache_read_bytes
from moeworks.plan.compute import expert_flops
from moeworks.plan.devices import Device
from moeworks.plan.layers import mixers_of
from moeworks.plan.memory import Split, Workload
from moeworks.plan.routing import expected_experts_touched

Bound = Literal["experts", "other weights", "cache", "compute"]


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes that one decode step reads."""

    experts: float
    """Routed experts that the batch touches, expected under uniform routing; a mixture of attention's too."""
    other_weights: float
    """All other weights, of the embedding only the batch's rows."""
    cache: float
    """Keys, values and states."""

    @property
    def total(self) -> float:
        """Bytes of experts, other weights and cache."""
        return self.experts + self.other_weights + self.cache


@dataclass(frozen=True, kw_only=True)
class DecodeSpeed:
    """A decode step on the busiest device; communication, launches and imbalance come on top."""

    reads: StepBytes
    """Bytes that the device reads."""
    flops: float
    """FLOPs that it computes."""
    memory_seconds: float
    """Seconds that the reads take at full bandwidth."""
    compute_seconds: float | None
    """Seconds that the FLOPs take at peak rate; None when the device's is not known."""
    step_seconds: float
    """The larger of the two: at least this long."""
    tokens_per_second: float
    """Upper bound of the whole batch's tokens per second."""
    tokens_per_second_per_sequence: float
    bound: Bound
    """What takes the time: arithmetic, or the largest part of what is read."""


def step_bytes(work: Workload) -> StepBytes:
    """Bytes that one step of `work` reads in all, each weight once."""
    return step_bytes_on(work, "even", 1)


def step_bytes_on(work: Workload, split: Split, devices: int) -> StepBytes:
    """Bytes that the busiest of `devices` devices reads in one step."""
    model, sizes = work.model, work.weights
    spread, fraction = work.spread_expert_bytes, touched_fraction(work)
    mixed = (sizes.experts - spread) * _mixed_fraction(work)
    table = 0 if model.tie_embeddings else sizes.embedding
    rows = min(table, work.batch * model.d_model * work.form.rest_bytes)
    others = sizes.total - sizes.experts - table + rows
    sequence = cache_read_bytes(model, work.context, work.kv_bytes)
    if split == "expert":
        experts = model.router.num_experts
        held = -(-experts // devices) / experts
        own = -(-work.batch // devices)
        return StepBytes(experts=spread * fraction * held + mixed, other_weights=others, cache=own * sequence)
    if split == "tensor":
        copied = sizes.norms + sizes.router
        others = copied + (others - copied) / devices
        per_rank = cache_read_bytes(model, work.context, work.kv_bytes, devices)
        return StepBytes(
            experts=(spread * fraction + mixed) / devices, other_weights=others, cache=work.batch * per_rank
        )
    return StepBytes(
        experts=(spread * fraction + mixed) / devices,
        other_weights=others / devices,
        cache=work.batch * sequence / devices,
    )


def touched_fraction(work: Workload) -> float:
    """Expected share of a MoE layer's experts that a decode step touches."""
    router = work.model.router
    touched = expected_experts_touched(router.num_experts, router.top_k, work.batch, router.num_routes)
    return touched / router.num_experts


def decode_speed(work: Workload, device: Device, split: Split, devices: int) -> DecodeSpeed | None:
    """The fastest that `devices` devices can decode; None when the device's bandwidth is not known."""
    if device.bandwidth is None:
        return None
    reads = step_bytes_on(work, split, devices)
    flops = _step_flops(work, split, devices)
    peak = device.peak(work.form.compute)
    memory = reads.total / device.bandwidth
    compute = None if peak is None else flops / peak[1]
    step = max(memory, compute or 0.0)
    parts: dict[Bound, float] = {
        "experts": reads.experts,
        "other weights": reads.other_weights,
        "cache": reads.cache,
    }
    return DecodeSpeed(
        reads=reads,
        flops=flops,
        memory_seconds=memory,
        compute_seconds=compute,
        step_seconds=step,
        tokens_per_second=work.batch / step,
        tokens_per_second_per_sequence=1 / step,
        bound="compute" if step > memory else max(parts, key=lambda part: parts[part]),
    )


def _step_flops(work: Workload, split: Split, devices: int) -> float:
    """FLOPs of one step on the busiest device; experts share a batch's evenly."""
    per_token = count_decode_flops(work.model, work.context)
    if split != "expert":
        return work.batch * per_token / devices
    routed = expert_flops(work.model)
    return -(-work.batch // devices) * (per_token - routed) + work.batch * routed / devices


def _mixed_fraction(work: Workload) -> float:
    """As touched_fraction, for the experts of a mixture of attention."""
    for mixer, _ in mixers_of(work.model):
        if isinstance(mixer, MixtureOfAttentionConfig):
            return expected_experts_touched(mixer.num_experts, mixer.top_k, work.batch) / mixer.num_experts
    return 0.0
