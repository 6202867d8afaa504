"""Serving a model: how many devices, what each holds, how fast they decode, what they send to each other."""

from dataclasses import dataclass

from moeworks.config.count import count_parameters
from moeworks.config.model import ModelConfig
from moeworks.errors import check
from moeworks.plan.compute import prefill_flops
from moeworks.plan.decode import DecodeSpeed, StepBytes, decode_speed, step_bytes, touched_fraction
from moeworks.plan.devices import Device
from moeworks.plan.figures import check_context
from moeworks.plan.formats import value_bytes, weight_format
from moeworks.plan.memory import (
    MOST_DEVICES,
    SPLITS,
    DeviceLoad,
    Split,
    Workload,
    activation_bytes,
    allowed_devices,
    device_load,
    devices_for_parameters,
    devices_needed,
    most_sequences,
)
from moeworks.plan.routing import Traffic, expert_traffic

MOST_BATCH = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServingRequest:
    """What is asked for."""

    dtype: str = "bf16"
    """Format of the weights (moeworks.plan.formats)."""
    kv_dtype: str = "bf16"
    context: int = 8192
    """Tokens of each sequence."""
    batch: int = 1
    """Sequences at a time."""
    devices: int | None = None
    """Devices to use; None means as few as hold it."""
    devices_per_node: int = 8
    memory_fraction: float = 0.9
    """Share of a device's memory to use; the rest is for the driver, kernels and fragments."""
    prefill_tokens: int = 8192
    """Tokens of prompts that are read at a time."""

    def __post_init__(self) -> None:
        check_context(self.context)
        check(1 <= self.batch <= MOST_BATCH, "batch", self.batch, f"must lie between 1 and {MOST_BATCH:,}")
        devices = self.devices
        check(
            devices is None or 1 <= devices <= MOST_DEVICES,
            "gpus",
            devices,
            f"must lie between 1 and {MOST_DEVICES:,}",
        )
        check(self.devices_per_node >= 1, "gpus_per_node", self.devices_per_node, "must be at least 1")
        share = self.memory_fraction
        check(0 < share <= 1, "memory_fraction", share, "must lie above 0 and be at most 1")
        check(self.prefill_tokens >= 1, "prefill_tokens", self.prefill_tokens, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """One way to spread the model over devices."""

    split: Split
    needed: int | None
    """Fewest devices that hold it; None when no number of them does (or their memory is not known)."""
    devices: int | None
    """Devices that the rest is for: those asked for, or those needed."""
    problem: str | None
    """Why it does not work, if it does not."""
    load: DeviceLoad | None
    """What the fullest device holds, in bytes."""
    most_sequences: int | None
    """Sequences of the context that fit beside the weights."""
    decode: DecodeSpeed | None
    prefill_seconds: float | None
    """To read one sequence's prompt of `context` tokens on all devices at peak FLOP/s, at least."""


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What serving takes."""

    request: ServingRequest
    device: Device
    usable_bytes: int | None
    """Of a device's memory."""
    weight_bytes: int
    cache_bytes: int
    """Of all sequences."""
    activation_bytes: int
    """On each device."""
    devices_needed: int | None
    """Under the even split."""
    experts_touched: float | None
    """Expected experts of a MoE layer that one decode step touches, of num_experts; None without experts."""
    step_bytes: StepBytes
    """Read per decode step by all devices together, each weight once."""
    splits: tuple[SplitPlan, ...]
    traffic_devices: Traffic | None
    """Expert-parallel traffic when every device holds its share of experts; None on one device."""
    traffic_nodes: Traffic | None
    """Expert-parallel traffic between nodes of devices_per_node devices; None within one node."""
    exchange_seconds: float | None
    """What a decode step's traffic takes at full link speed; None between nodes, or without that speed."""


def plan_serving(model: ModelConfig, device: Device, request: ServingRequest) -> ServingPlan:
    """How `device`s serve `model` as `request` says.

    A device of `parameters` instead of bytes holds weights alone: caches and activations are not counted.
    Raises ConfigError for unknown formats.
    """
    work = Workload(
        model=model,
        form=weight_format(request.dtype),
        context=request.context,
        batch=request.batch,
        kv_bytes=value_bytes(request.kv_dtype),
        prefill_tokens=request.prefill_tokens,
    )
    usable = None if device.memory is None else int(device.memory * request.memory_fraction)
    kinds = [split for split in SPLITS if model.moe_layers or split != "expert"]
    if device.parameters is not None:
        kinds = kinds[:1]
    splits = tuple(_split_plan(work, device, request, split, usable) for split in kinds)
    spread = next((s.devices for s in reversed(splits) if s.devices and s.split != "tensor"), None)
    traffic, nodes, exchange = _traffic(work, device, request, spread)
    return ServingPlan(
        request=request,
        device=device,
        usable_bytes=usable,
        weight_bytes=work.weights.total,
        cache_bytes=work.batch * work.sequence_bytes,
        activation_bytes=activation_bytes(work),
        devices_needed=splits[0].needed,
        experts_touched=touched_fraction(work) * model.router.num_experts if model.moe_layers else None,
        step_bytes=step_bytes(work),
        splits=splits,
        traffic_devices=traffic,
        traffic_nodes=nodes,
        exchange_seconds=exchange,
    )


def _split_plan(
    work: Workload, device: Device, request: ServingRequest, split: Split, usable: int | None
) -> SplitPlan:
    if device.parameters is not None:
        needed = devices_for_parameters(count_parameters(work.model).total, device.parameters)
    else:
        needed = None if usable is None else devices_needed(work, split, usable)
    devices = request.devices or needed
    problem = _problem(work, split, devices, needed)
    if devices is None or (problem is not None and request.devices is None):
        return SplitPlan(
            split=split, needed=needed, devices=None, problem=problem, load=None, most_sequences=None,
            decode=None, prefill_seconds=None,
        )  # fmt: skip
    peak = device.peak(work.form.compute)
    flops = prefill_flops(work.model, work.context)
    return SplitPlan(
        split=split,
        needed=needed,
        devices=devices,
        problem=problem,
        load=device_load(work, split, devices) if usable is not None else None,
        most_sequences=None if usable is None else most_sequences(work, split, devices, usable),
        decode=None if problem else decode_speed(work, device, split, devices),
        prefill_seconds=None if problem or peak is None else flops / (peak[1] * devices),
    )


def _problem(work: Workload, split: Split, devices: int | None, needed: int | None) -> str | None:
    """Why `devices` devices cannot do it."""
    allowed = allowed_devices(work.model, split, work.batch)
    if needed is None:
        most = allowed[-1] if isinstance(allowed, list) else allowed
        load = device_load(work, split, most)
        part = max(("weights", "cache", "activations"), key=lambda name: getattr(load, name))
        return f"never fits: of {most:,} devices each would hold {load.total / 1e9:,.1f} GB, mostly {part}"
    if devices is not None and devices < needed:
        return f"does not fit, needs at least {needed:,} devices"
    if isinstance(allowed, list) and devices not in allowed:
        return f"{devices:,} devices do not divide the {allowed[-1]} query heads"
    return None


def _traffic(
    work: Workload, device: Device, request: ServingRequest, devices: int | None
) -> tuple[Traffic | None, Traffic | None, float | None]:
    """Traffic between devices and between nodes, and a decode step's time for it at link speed."""
    if not work.model.moe_layers or devices is None or devices == 1:
        return None, None, None
    dispatch = 1 if work.form.compute == "fp8" else 2  # DeepSeek-V3, section 3.3.3: FP8 out, bf16 back
    between = expert_traffic(work.model, devices, dispatch)
    nodes = -(-devices // request.devices_per_node)
    within = expert_traffic(work.model, nodes, dispatch) if nodes > 1 else None
    exchange = None
    if device.link is not None and nodes == 1:
        exchange = work.batch * between.bytes_per_token / (devices * device.link)
    return between, within, exchange
