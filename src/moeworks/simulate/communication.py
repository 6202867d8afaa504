"""How many devices a token is sent to, and the bytes, with and without a limit on devices.

Device d holds the d-th of D equal runs of experts. A token is sent once to each device that holds one of its
experts, and its result comes back from each.
"""

from dataclasses import dataclass

import numpy as np

from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.expected import check_devices, expected_devices


@dataclass(frozen=True, eq=False)
class CommunicationTable:
    """One value per layer, a mean over tokens."""

    layers: tuple[int, ...]
    num_devices: int
    max_devices: int | None
    devices: np.ndarray
    """float [l]: distinct devices of a token."""
    uniform: float
    """What experts drawn alike would give, see trace.expected.expected_devices."""
    histogram: np.ndarray
    """int64 [l, D + 1]: tokens by their number of devices."""
    lost_assignments: np.ndarray
    """float [l]: share of assignments that the limit drops; 0 without one."""
    lost_weight: np.ndarray | None
    """float [l]: share of routing weight that goes with them; None where the trace has no weights."""


def communication(
    trace: RoutingTrace, num_devices: int, *, max_devices: int | None = None
) -> CommunicationTable:
    """Devices of a token, layer by layer.

    With `max_devices` M each token keeps the M devices with the greatest sum of routing weights (without
    weights: the most experts; ties to lower devices) and drops its other assignments: the price of a limit
    that the router was not trained with. A trained one (DeepSeek-V2, section 2.2.2) chooses other experts
    instead, and is seen in `devices` of its own trace without a limit.

    Raises ConfigError when the devices do not divide the experts, or M is out of range.
    """
    trace.require_full_slots("communication")
    header = trace.header
    check_devices(header.num_experts, num_devices)
    limit = num_devices if max_devices is None else max_devices
    check(1 <= limit <= num_devices, "max_devices", max_devices, f"must lie between 1 and {num_devices}")
    each = header.num_experts // num_devices
    weighted = "weights" in header.fields
    histograms, lost, weight_lost = [], [], []
    for layer in header.layers:
        device = trace.ids(layer).astype(np.int64) // each
        weights = trace.weights(layer).astype(np.float64) if weighted else np.ones(device.shape)
        kept = keep_devices(device, weights, num_devices, limit)
        on = np.zeros((len(device), num_devices), np.bool_)
        rows = np.arange(len(device))[:, None]
        on[np.broadcast_to(rows, device.shape)[kept], device[kept]] = True
        histograms.append(np.bincount(on.sum(axis=1), minlength=num_devices + 1))
        lost.append(1 - kept.mean())
        weight_lost.append(1 - (weights * kept).sum() / max(weights.sum(), 1e-12))
    histogram = np.stack(histograms)
    number = np.arange(num_devices + 1)
    fits = header.top_k <= limit * each
    return CommunicationTable(
        layers=header.layers,
        num_devices=num_devices,
        max_devices=max_devices,
        devices=(histogram * number).sum(axis=1) / np.maximum(histogram.sum(axis=1), 1),
        uniform=expected_devices(header.num_experts, header.top_k, num_devices, limit) if fits else limit,
        histogram=histogram,
        lost_assignments=np.array(lost),
        lost_weight=np.array(weight_lost) if weighted else None,
    )


def keep_devices(device: np.ndarray, weights: np.ndarray, num_devices: int, limit: int) -> np.ndarray:
    """bool [T, K]: assignments on the `limit` devices of each token with the greatest weight."""
    if limit >= min(num_devices, device.shape[1]):
        return np.ones(device.shape, np.bool_)
    score = np.zeros((len(device), num_devices))
    rows = np.arange(len(device))
    for slot in range(device.shape[1]):
        score[rows, device[:, slot]] += weights[:, slot]
    order = np.argsort(-score, axis=1, kind="stable")[:, :limit]
    chosen = np.zeros(score.shape, np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return np.take_along_axis(chosen, device, axis=1)


def bytes_per_token(
    table: CommunicationTable, d_model: int, *, dispatch_bytes: float = 1, combine_bytes: float = 2
) -> np.ndarray:
    """float [l]: devices * d_model * (dispatch_bytes + combine_bytes), less the local share.

    Bytes are of one number on the way out (FP8: 1) and back (bfloat16: 2; DeepSeek-V3, section 3.3). A
    token is as likely to live on any device, so of its destinations one in `num_devices` is its own.
    """
    check(d_model >= 1, "d_model", d_model, "must be at least 1")
    remote = table.devices * (1 - 1 / table.num_devices)
    return remote * d_model * (dispatch_bytes + combine_bytes)
