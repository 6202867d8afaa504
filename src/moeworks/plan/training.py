"""Time, memory and money of a training run."""

import math
from dataclasses import dataclass

from moeworks.config.count import count_flops, count_parameters
from moeworks.config.model import ModelConfig
from moeworks.errors import check
from moeworks.plan.compute import causal_training_flops
from moeworks.plan.devices import Device

STATE_BYTES = 16
"""Per parameter: bf16 weight and gradient, float32 weight and Adam's two moments (ZeRO, section 3.1)."""
DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What training on a token budget takes."""

    tokens: int
    seq_len: int
    devices: int
    mfu: float
    """Share of the devices' peak bf16 FLOP/s that the model's FLOPs reach, masked pairs counted."""
    flops_per_token: int
    """FLOPs per token, forward and backward, of all pairs of positions (PaLM, appendix B)."""
    flops_per_token_causal: float
    """FLOPs per token, forward and backward, without masked pairs."""
    flops: float
    """FLOPs of the whole run."""
    device_seconds: float
    """Seconds of all devices, added up."""
    seconds: float
    """Seconds from start to end."""
    tokens_per_second: float
    price_per_hour: float | None
    """Price of one device for one hour."""
    cost: float | None
    """Cost of the run, in the price's currency; None without a price."""
    state_bytes: int
    """Weights, gradients and optimizer state, 16 bytes per parameter with MTP layers."""
    devices_for_state: int | None
    """Devices that hold the state when it is spread over all of them; None when their memory is not known."""
    tokens_per_parameter: float
    """Tokens per parameter, all of them."""
    tokens_per_active_parameter: float
    """Tokens per active parameter (20 is what Hoffmann et al. 2022 found best for dense models)."""


def plan_training(
    model: ModelConfig,
    device: Device,
    *,
    tokens: int,
    seq_len: int,
    devices: int,
    mfu: float,
    price_per_hour: float | None = None,
    usable: float | None = None,
) -> TrainingPlan:
    """Training `model` on `tokens` tokens in sequences of `seq_len`; `usable` bytes of a device hold state.

    Raises ConfigError when the device's bf16 FLOP/s are not known, and for numbers out of range.
    """
    check(0 < mfu <= 1, "mfu", mfu, "must lie above 0 and be at most 1")
    check(devices >= 1, "gpus", devices, "must be at least 1")
    price = price_per_hour
    check(price is None or 0 <= price < math.inf, "price", price, "must not be negative, and finite")
    peak = device.peak("bf16")
    check(peak is not None, "gpu", device.name, "its peak FLOP/s are not known, and training time needs them")
    assert peak is not None
    counts, per_token = count_parameters(model), count_flops(model, seq_len, training=True)
    device_seconds = tokens * per_token / (peak[1] * mfu)
    state = STATE_BYTES * (counts.total + counts.mtp)
    hours = device_seconds / 3600
    return TrainingPlan(
        tokens=tokens,
        seq_len=seq_len,
        devices=devices,
        mfu=mfu,
        flops_per_token=per_token,
        flops_per_token_causal=causal_training_flops(model, seq_len),
        flops=float(tokens) * per_token,
        device_seconds=device_seconds,
        seconds=device_seconds / devices,
        tokens_per_second=tokens / (device_seconds / devices),
        price_per_hour=price_per_hour,
        cost=None if price_per_hour is None else hours * price_per_hour,
        state_bytes=state,
        devices_for_state=None if usable is None else -int(-state // usable),
        tokens_per_parameter=tokens / counts.total,
        tokens_per_active_parameter=tokens / counts.active,
    )
