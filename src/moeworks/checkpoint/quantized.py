"""Published quantised weights, read as floating-point tensors: block-scaled FP8 and MXFP4.

Formats: DeepSeek-V3's README_WEIGHTS.md (a scale per 128 x 128 block, the last of which may be ragged: there
are ceil(rows / 128) * ceil(columns / 128) scales), and the OCP Microscaling specification 1.0 (blocks of 32
values of 4 bits with a power of two).
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moeworks.checkpoint.source import FolderSource, Source
from moeworks.errors import CheckpointError

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
_ACTIVATION_SCALES = (".input_scale", "activation_scale")
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BLOCK = 32
_EXPONENT_BIAS = 127


def dequantized(source: FolderSource, config: Mapping[str, Any]) -> Source:
    """`source`, read through the quantisation that a config.json declares. Raises CheckpointError."""
    inner = config.get("text_config")
    declared = config.get("quantization_config")
    if declared is None and isinstance(inner, Mapping):
        declared = inner.get("quantization_config")
    if declared is None:
        quantised = sorted(name for name in source.names() if source.dtype(name) in FP8)
        if quantised:
            raise CheckpointError(
                f"{quantised[0]} is FP8, but config.json has no quantization_config with its block size"
            )
        return source
    method = declared.get("quant_method") if isinstance(declared, dict) else declared
    if method == "fp8":
        return Fp8Source(source, _block_size(declared))
    if method == "mxfp4":
        return Mxfp4Source(source)
    raise CheckpointError(f"quantization_config.quant_method = {method!r}: known: 'fp8', 'mxfp4'")


class Fp8Source:
    """FP8 weights with a scale per block under NAME_scale_inv; scales are not listed as tensors."""

    def __init__(self, source: FolderSource, block: tuple[int, int]) -> None:
        self._source, self._block = source, block
        self._scales: dict[str, str] = {}
        names = source.names()
        for name in names:
            if source.dtype(name) in FP8:
                scale = next((name + s for s in _SCALE_SUFFIXES if name + s in names), None)
                if scale is None:
                    raise CheckpointError(f"{name} is FP8 and has no scales ({name}{_SCALE_SUFFIXES[0]})")
                self._check(name, scale)
                self._scales[name] = scale

    def names(self) -> set[str]:
        """Names of all tensors except the scales of weights and of activations."""
        hidden = set(self._scales.values())
        return {n for n in self._source.names() if n not in hidden and not n.endswith(_ACTIVATION_SCALES)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the weight."""
        return self._source.shape(name)

    def tensor(self, name: str) -> Tensor:
        """Data type of the values: float32 for FP8 weights."""
        if name not in self._scales:
            return self._source.tensor(name)
        return dequantize_fp8(self._source.tensor(name), self._source.tensor(self._scales[name]), self._block)

    def release(self, name: str) -> None:
        """Pages of a tensor and its scales given back to the system."""
        self._source.release(name)

    def read_into(self, name: str, out: Tensor) -> bool:
        """Fill `out` straight from the file; False for quantised tensors."""
        return name not in self._scales and self._source.read_into(name, out)

    def _check(self, name: str, scale: str) -> None:
        shape, got = self._source.shape(name), self._source.shape(scale)
        if len(shape) not in (2, 3):
            raise CheckpointError(
                f"{name} has shape {shape}; FP8 is read of matrices, and of experts' together"
            )
        *experts, rows, columns = shape
        want = (*experts, -(-rows // self._block[0]), -(-columns // self._block[1]))
        if got != want and got not in ((), (1,)):
            raise CheckpointError(
                f"{scale} has shape {got}; {name} {shape} in blocks of {self._block} has {want}"
            )


class Mxfp4Source:
    """MXFP4 weights in pairs NAME_blocks, NAME_scales, read as NAME [E, in, out]."""

    def __init__(self, source: FolderSource) -> None:
        self._source = source
        names = source.names()
        self._packed = {n.removesuffix("_blocks") for n in names if n.endswith("_blocks")}
        for name in sorted(self._packed):
            blocks = source.shape(f"{name}_blocks")
            if f"{name}_scales" not in names or source.shape(f"{name}_scales") != blocks[:-1]:
                raise CheckpointError(f"{name}_scales: missing, or not of the shape {blocks[:-1]}")
            if len(blocks) != 4 or blocks[-1] != _BLOCK // 2:
                raise CheckpointError(f"{name}_blocks has shape {blocks}, not [E, out, in / 32, 16]")
            if any(source.dtype(f"{name}_{kind}") != torch.uint8 for kind in ("blocks", "scales")):
                raise CheckpointError(f"{name}_blocks and its scales must be of 8 bits")

    def names(self) -> set[str]:
        """Names of all tensors; packed weights go by their own names."""
        hidden = {f"{name}_{kind}" for name in self._packed for kind in ("blocks", "scales")}
        return self._source.names() - hidden | self._packed

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor: [E, in, out] for packed weights."""
        if name not in self._packed:
            return self._source.shape(name)
        experts, out, groups, _ = self._source.shape(f"{name}_blocks")
        return experts, groups * _BLOCK, out

    def tensor(self, name: str) -> Tensor:
        """Data type of the values: bfloat16 for packed weights, which holds every MXFP4 value."""
        if name not in self._packed:
            return self._source.tensor(name)
        blocks, scales = (self._source.tensor(f"{name}_{kind}") for kind in ("blocks", "scales"))
        return dequantize_mxfp4(blocks, scales).transpose(1, 2)

    def release(self, name: str) -> None:
        """Pages of a tensor and its scales given back to the system."""
        for kind in ("_blocks", "_scales") if name in self._packed else ("",):
            self._source.release(name + kind)

    def read_into(self, name: str, out: Tensor) -> bool:
        """Fill `out` straight from the file; False for quantised tensors."""
        return name not in self._packed and self._source.read_into(name, out)


def dequantize_fp8(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """float32 [N, K] or [E, N, K]: each block times its scale; the last blocks of a matrix may be ragged."""
    wide = scales.float()
    if wide.numel() == 1:
        return weight.float() * wide.reshape(())
    rows, columns = weight.shape[-2:]
    block = min(block[0], rows), min(block[1], columns)
    spread = wide.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    return weight.float() * spread.repeat_interleave(block[1], dim=-1)[..., :columns]


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """bfloat16 [E, out, in] from uint8 [E, out, in / 32, 16] and [E, out, in / 32]; low nibble first."""
    values = torch.tensor(FP4_VALUES, dtype=torch.bfloat16)
    out = torch.empty(*blocks.shape[:-1], _BLOCK, dtype=torch.bfloat16)
    for expert in range(blocks.shape[0]):  # one expert at a time, to hold little more than the result
        packed = blocks[expert].int()
        exponents = (scales[expert].int() - _EXPONENT_BIAS).unsqueeze(-1)
        out[expert, ..., 0::2] = torch.ldexp(values[packed & 15], exponents)
        out[expert, ..., 1::2] = torch.ldexp(values[packed >> 4], exponents)
    return out.flatten(2)


def _block_size(declared: Mapping[str, Any]) -> tuple[int, int]:
    block = declared.get("weight_block_size", [128, 128])
    if block is None:  # one scale for a whole matrix
        return sys.maxsize, sys.maxsize
    if not (isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)):
        raise CheckpointError(f"quantization_config.weight_block_size = {block!r}: must be two sizes")
    return block[0], block[1]
