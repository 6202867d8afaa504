"""Devices: memory, bandwidth and peak arithmetic, as their makers publish them.

Decimal units (1 GB = 10^9 bytes) as in the data sheets. FLOP/s are dense: where a sheet prints the figure
with 2:4 sparsity, half of it stands here. A figure that no maker's document gives is left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moeworks.errors import ConfigError, check, nearest

GB, T = 10**9, 1e12
WIDER = {"fp8": "bf16", "bf16": "fp32"}
"""What a device without an arithmetic computes in instead."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is known of a kind of device."""

    name: str
    memory: int | None = None
    """Memory in bytes."""
    bandwidth: float | None = None
    """Bandwidth of its memory, bytes per second."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """Peak dense FLOP/s in fp32 (without tensor cores), bf16 and fp8, products summed in float32."""
    link: float | None = None
    """Bandwidth to the other devices of a node (NVLink, Infinity Fabric), bytes per second and direction."""
    parameters: int | None = None
    """Parameters that it holds: a free value instead of `memory`."""
    source: str = "given on the command line"

    def peak(self, kind: str) -> tuple[str, float] | None:
        """Peak FLOP/s in `kind`, or in the next wider arithmetic that it has; None when none is known."""
        wider: str | None = kind
        while wider is not None:
            if wider in self.flops:
                return wider, self.flops[wider]
            wider = WIDER.get(wider)
        return None


_HOPPER = {"fp32": 67 * T, "bf16": 989.4 * T, "fp8": 1978.9 * T}
_A100 = {"fp32": 19.5 * T, "bf16": 312 * T}
_CDNA3 = {"fp32": 163.4 * T, "bf16": 1307.4 * T, "fp8": 2614.9 * T}

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="h100", memory=80 * GB, bandwidth=3350 * GB, flops=_HOPPER, link=450 * GB,
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM)",
        ),
        Device(
            name="h800", memory=80 * GB, bandwidth=3350 * GB, flops=_HOPPER, link=200 * GB,
            source="H100 with NVLink at 400 GB/s (DeepSeek, arXiv:2505.09343, section 2.3)",
        ),
        Device(
            name="h200", memory=141 * GB, bandwidth=4800 * GB, flops=_HOPPER, link=450 * GB,
            source="NVIDIA H200 Tensor Core GPU data sheet (SXM)",
        ),
        Device(
            name="b200", memory=180 * GB, bandwidth=8000 * GB, link=900 * GB,
            flops={"bf16": 2250 * T, "fp8": 4500 * T},
            source="NVIDIA DGX B200 data sheet, an eighth of the system",
        ),
        Device(
            name="a100-80gb", memory=80 * GB, bandwidth=2039 * GB, flops=_A100, link=300 * GB,
            source="NVIDIA A100 Tensor Core GPU data sheet (80 GB SXM)",
        ),
        Device(
            name="a100-40gb", memory=40 * GB, bandwidth=1555 * GB, flops=_A100, link=300 * GB,
            source="NVIDIA A100 Tensor Core GPU data sheet (40 GB SXM)",
        ),
        Device(
            name="l40s", memory=48 * GB, bandwidth=864 * GB,
            flops={"fp32": 91.6 * T, "bf16": 362 * T, "fp8": 733 * T},
            source="NVIDIA L40S data sheet",
        ),
        Device(
            name="l4", memory=24 * GB, bandwidth=300 * GB,
            flops={"fp32": 30.3 * T, "bf16": 121 * T, "fp8": 242.5 * T},
            source="NVIDIA L4 data sheet",
        ),
        Device(
            name="rtx-3090", memory=24 * GB, bandwidth=936 * GB, flops={"fp32": 35.6 * T, "bf16": 71 * T},
            source="NVIDIA Ampere GA102 white paper, appendix A",
        ),
        Device(
            name="rtx-4090", memory=24 * GB, bandwidth=1008 * GB,
            flops={"fp32": 82.6 * T, "bf16": 165.2 * T, "fp8": 330.3 * T},
            source="NVIDIA Ada GPU architecture white paper, appendix A",
        ),
        Device(
            name="rtx-5090", memory=32 * GB, bandwidth=1792 * GB,
            flops={"fp32": 104.8 * T, "bf16": 209.5 * T, "fp8": 419 * T},
            source="NVIDIA RTX Blackwell GPU architecture white paper, appendix A",
        ),
        Device(
            name="mi300x", memory=192 * GB, bandwidth=5300 * GB, flops=_CDNA3, link=448 * GB,
            source="AMD Instinct MI300X data sheet; seven links of 64 GB/s",
        ),
        Device(
            name="mi325x", memory=256 * GB, bandwidth=6000 * GB, flops=_CDNA3, link=448 * GB,
            source="AMD Instinct MI325X data sheet; seven links of 64 GB/s",
        ),
        Device(
            name="m2-ultra", memory=192 * GB, bandwidth=800 * GB,
            source="Apple Mac Studio (2023) specifications, largest memory; Apple gives no FLOP/s",
        ),
        Device(
            name="m4-max", memory=128 * GB, bandwidth=546 * GB,
            source="Apple MacBook Pro (2024) specifications, largest memory; Apple gives no FLOP/s",
        ),
        Device(
            name="m3-ultra", memory=512 * GB, bandwidth=819 * GB,
            source="Apple Mac Studio (2025) specifications, largest memory; Apple gives no FLOP/s",
        ),
        Device(
            name="laptop-cpu", memory=32 * GB, bandwidth=89.6 * GB, flops={"fp32": 0.9 * T},
            source="arithmetic: two channels of DDR5-5600; 8 cores x 3.5 GHz x 32 FLOP (two AVX2 FMAs)",
        ),
    )
}  # fmt: skip
"""The devices by name."""

ALIASES = {"a100": "a10080gb", "3090": "rtx3090", "4090": "rtx4090", "5090": "rtx5090", "laptop": "laptopcpu"}
_BY_BARE_NAME = {re.sub("[^a-z0-9]", "", name): device for name, device in DEVICES.items()}
DEFAULT_DEVICE = "h100"


def device_named(name: str) -> Device:
    """The device called `name`, whatever its case, blanks and hyphens.

    Raises ConfigError with the nearest name when there is none.
    """
    bare = re.sub("[^a-z0-9]", "", name.lower())
    bare = ALIASES.get(bare, bare)
    if bare not in _BY_BARE_NAME:
        raise ConfigError(f"gpu = {name!r}: unknown; {nearest(name.lower(), DEVICES)}")
    return _BY_BARE_NAME[bare]


def with_memory(device: Device | None, memory: int | None, parameters: int | None) -> Device:
    """`device` with another amount of memory; without one, a device of which only that is known.

    `memory` is in bytes, `parameters` says instead how many parameters it holds; raises ConfigError unless
    exactly one of them is given.
    """
    check(
        (memory is None) != (parameters is None),
        "gpu_memory",
        memory,
        "give this or parameters, not both",
    )
    return replace(device or Device(name="free values"), memory=memory, parameters=parameters)
