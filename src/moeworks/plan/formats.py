"""How weights are stored: bits per entry, and the scales beside them."""

from collections.abc import Mapping
from dataclasses import dataclass

from moeworks.errors import ConfigError, nearest

LAYER_MATRICES = frozenset({"attention", "dense_mlp", "experts", "shared"})
"""Components (names as in config.count.ParameterCount) whose matrices formats may shrink. Routers, norms,
biases, embeddings and the output projection stay wide: so do the published FP8 and MXFP4 checkpoints."""


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """One way to store weights."""

    name: str
    bits: int
    """Bits of one entry of a matrix that the format covers."""
    block: tuple[int | None, int | None] = (None, None)
    """Rows and columns that share a scale; None means all of them. Rows are outputs, columns inputs."""
    scale_bytes: int = 0
    """Bytes of one scale; 0 means there are none."""
    covers: frozenset[str] = LAYER_MATRICES
    """Components whose matrices it stores."""
    rest_bytes: int = 2
    """Bytes of one value of everything else."""
    compute: str = "bf16"
    """Kind of arithmetic that its products run in (a key of Device.flops)."""
    about: str
    """What it is, and whose layout."""

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one covered matrix with its scales; a block at an edge has a scale of its own."""
        height, width = (size or extent for size, extent in zip(self.block, (rows, columns), strict=True))
        scales = -(-rows // height) * -(-columns // width)
        return -(-rows * columns * self.bits // 8) + scales * self.scale_bytes


FORMATS: Mapping[str, WeightFormat] = {
    entry.name: entry
    for entry in (
        WeightFormat(name="fp32", bits=32, rest_bytes=4, compute="fp32", about="4 bytes everywhere"),
        WeightFormat(name="bf16", bits=16, about="2 bytes everywhere (fp16 is the same size)"),
        WeightFormat(
            name="fp8",
            bits=8,
            block=(128, 128),
            scale_bytes=4,
            compute="fp8",
            about="layer matrices in e4m3, a float32 scale per 128 x 128 block (DeepSeek-V3, section 3.3)",
        ),
        WeightFormat(
            name="int8",
            bits=8,
            block=(1, None),
            scale_bytes=2,
            about="layer matrices in 8 bits, a 16-bit scale per output, products in bf16",
        ),
        WeightFormat(
            name="mxfp4",
            bits=4,
            block=(1, 32),
            scale_bytes=1,
            covers=frozenset({"experts"}),
            about="experts in e2m1, an 8-bit scale per 32 inputs (OCP MX v1.0; gpt-oss), products in bf16",
        ),
        WeightFormat(
            name="int4",
            bits=4,
            block=(1, 128),
            scale_bytes=2,
            about="layer matrices in 4 bits, a 16-bit scale per 128 inputs (GPTQ, AWQ), products in bf16",
        ),
    )
}
"""The formats by name."""

ALIASES: Mapping[str, str] = {
    "fp16": "bf16", "float16": "bf16", "bfloat16": "bf16", "float32": "fp32", "float8": "fp8"
}  # fmt: skip
"""Other names for the same sizes."""

VALUE_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp8": 1}
"""Bytes of one value of a cache or an activation, by the name of its type."""


def weight_format(name: str) -> WeightFormat:
    """The format called `name`; raises ConfigError with the nearest name when there is none."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in FORMATS:
        raise ConfigError(f"dtype = {name!r}: unknown; {nearest(key, FORMATS)}")
    return FORMATS[key]


def value_bytes(name: str, field: str = "kv_dtype") -> int:
    """Bytes of one value of type `name`; raises ConfigError, naming `field`, when there is no such type."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in VALUE_BYTES:
        raise ConfigError(f"{field} = {name!r}: unknown; {nearest(key, VALUE_BYTES)}")
    return VALUE_BYTES[key]
