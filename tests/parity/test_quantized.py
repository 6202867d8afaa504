"""Quantised checkpoints against transformers: gpt-oss in MXFP4, DeepSeek-V3 in blocks of FP8."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moeworks import load
from moeworks.checkpoint.quantized import dequantize_mxfp4
from moeworks.checkpoint.source import read_json


def test_mxfp4_as_transformers_unpacks_it():
    blocks = torch.randint(256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), dtype=torch.uint8)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(dequantize_mxfp4(blocks, scales).transpose(1, 2), want)


def rewrite(folder, source, change, declared: dict) -> None:
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors |= change(name, tensor)
    config = read_json(source / "config.json") | {"quantization_config": declared}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


@torch.no_grad()
def test_gpt_oss_from_mxfp4_computes_with_the_unpacked_weights(saved_models, tmp_path):
    theirs, folder = saved_models("gpt_oss_32")
    unpacked: dict[str, torch.Tensor] = {}

    def pack(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: tensor}
        experts, width, out = tensor.shape
        blocks = torch.randint(256, (experts, out, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 126, (experts, out, width // 32), dtype=torch.uint8)
        unpacked[name] = dequantize_mxfp4(blocks, scales).transpose(1, 2).float()
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    rewrite(tmp_path, folder, pack, {"quant_method": "mxfp4"})
    theirs.load_state_dict(unpacked, strict=False)
    assert unpacked
    tokens = torch.randint(97, (2, 20))
    got = load(tmp_path, dtype=torch.float32)(tokens).logits_BLV
    torch.testing.assert_close(got, theirs(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_deepseek_v3_from_fp8_is_close_to_what_was_quantised(saved_models, tmp_path):
    """Blocks of 8 x 8 on matrices whose sizes they do not divide, which transformers reads wrong."""
    _, folder = saved_models("deepseek_v3")
    block = 8

    def quantise(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if tensor.dim() != 2 or "proj" not in name:
            return {name: tensor}
        rows, columns = tensor.shape
        scales = torch.empty(-(-rows // block), -(-columns // block))
        values = torch.empty_like(tensor)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                place = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
                scales[i, j] = tensor[place].abs().max() / 400
                values[place] = tensor[place] / scales[i, j]
        return {name: values.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}

    declared = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    rewrite(tmp_path, folder, quantise, declared)
    model = load(tmp_path, dtype=torch.float32)
    reference = load(folder, dtype=torch.float32)
    for name, value in reference.state_dict().items():
        # e4m3 keeps 3 bits of the mantissa: at most 1/16 off, and small values down to a step of 2^-9.
        close = model.state_dict()[name]
        assert ((close - value).abs() <= value.abs() / 16 + value.abs().max() / 400 / 100).all(), name
