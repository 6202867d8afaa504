import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from moeworks.checkpoint.quantized import FP4_VALUES, dequantize_fp8, dequantize_mxfp4, dequantized
from moeworks.checkpoint.source import FolderSource
from moeworks.errors import CheckpointError

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


def source(folder, tensors: dict[str, torch.Tensor], config: dict):
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return dequantized(FolderSource(folder), config)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_every_value_takes_the_scale_of_its_block(rows, columns, high, wide):
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // high), -(-columns // wide)) + 0.5
    got = dequantize_fp8(weight, scales, (high, wide))
    for i in range(rows):
        for j in range(columns):
            assert got[i, j] == weight[i, j].float() * scales[i // high, j // wide]


def test_the_ragged_blocks_of_deepseek_v3():
    """kv_a_proj: 576 rows in blocks of 128 have ceil(576 / 128) = 5 scales, the last for 64 rows."""
    weight = torch.ones(576, 256).to(torch.float8_e4m3fn)
    scales = torch.arange(10, dtype=torch.float32).view(5, 2)
    got = dequantize_fp8(weight, scales, (128, 128))
    assert got[0, 0] == 0 and got[575, 255] == 9 and got[511, 128] == 7 and got[512, 128] == 9


def test_an_fp8_source_hides_the_scales(tmp_path):
    weight, scale = torch.randn(5, 7).to(torch.float8_e4m3fn), torch.rand(3, 3)
    tensors = {"w.weight": weight, "w.weight_scale_inv": scale, "n.weight": torch.ones(3).bfloat16()}
    read = source(tmp_path, tensors, FP8)
    assert read.names() == {"w.weight", "n.weight"}
    assert read.shape("w.weight") == (5, 7)
    assert torch.equal(read.tensor("w.weight"), dequantize_fp8(weight, scale, (2, 3)))
    assert torch.equal(read.tensor("n.weight"), torch.ones(3).bfloat16())
    out = torch.empty(5, 7, dtype=torch.float8_e4m3fn)
    assert not read.read_into("w.weight", out) and read.read_into("n.weight", torch.empty(3).bfloat16())


def test_scales_of_another_shape_are_an_error(tmp_path):
    """transformers divides shapes instead, and reads ragged blocks wrong."""
    tensors = {"w.weight": torch.ones(5, 7).to(torch.float8_e4m3fn), "w.weight_scale_inv": torch.ones(2, 3)}
    with pytest.raises(CheckpointError, match=r"w.weight_scale_inv has shape \(2, 3\); .* has \(3, 3\)"):
        source(tmp_path, tensors, FP8)


def test_fp8_without_scales_or_without_a_declaration_is_an_error(tmp_path):
    tensors = {"w.weight": torch.ones(5, 7).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match=r"w\.weight is FP8 and has no scales"):
        source(tmp_path, tensors, FP8)
    with pytest.raises(CheckpointError, match=r"w\.weight is FP8, but config\.json has no quantization"):
        source(tmp_path, tensors, {})


@pytest.mark.parametrize("block", [[128], [0, 128], "128x128", [128.0, 128]])
def test_a_block_size_that_is_none(tmp_path, block):
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    with pytest.raises(CheckpointError, match="weight_block_size"):
        source(tmp_path, {"n.weight": torch.ones(3)}, config)


def test_no_block_size_is_one_scale_for_a_matrix(tmp_path):
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}
    weight = torch.randn(5, 7).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(2.0), torch.tensor([2.0]), torch.tensor([[2.0]])):
        read = source(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scale}, config)
        assert torch.equal(read.tensor("w.weight"), 2 * weight.float())


def test_experts_together_have_blocks_each(tmp_path):
    """As transformers writes an FP8 model whose names it keeps; beside a text model's own declaration."""
    weight, scale = torch.randn(4, 5, 7).to(torch.float8_e4m3fn), torch.rand(4, 3, 3)
    tensors = {
        "gate_up_proj": weight,
        "gate_up_proj_scale_inv": scale,
        "gate_up_proj_activation_scale": scale + 1,
    }
    read = source(tmp_path, tensors, {"text_config": FP8})
    assert read.names() == {"gate_up_proj"}
    want = [dequantize_fp8(w, s, (2, 3)) for w, s in zip(weight, scale, strict=True)]
    assert torch.equal(read.tensor("gate_up_proj"), torch.stack(want))


@pytest.mark.parametrize("declared", [{"quant_method": "gptq"}, {}, "awq", 3])
def test_other_quantisations_are_refused_by_name(tmp_path, declared):
    with pytest.raises(CheckpointError, match="known: 'fp8', 'mxfp4'"):
        source(tmp_path, {"n.weight": torch.ones(3)}, {"quantization_config": declared})


def packed(experts: int = 2, out: int = 3, groups: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (experts, out, groups, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 134, (experts, out, groups), dtype=torch.uint8, generator=generator)
    return blocks, scales


def test_mxfp4_value_by_value():
    blocks, scales = packed()
    got = dequantize_mxfp4(blocks, scales)
    assert got.shape == (2, 3, 64) and got.dtype == torch.bfloat16
    for e, o, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(64)).tolist():
        byte = int(blocks[e, o, i // 32, (i % 32) // 2])
        nibble = byte & 15 if i % 2 == 0 else byte >> 4
        assert got[e, o, i] == FP4_VALUES[nibble] * 2.0 ** (int(scales[e, o, i // 32]) - 127)


def test_an_mxfp4_source_reads_pairs_as_one_tensor(tmp_path):
    blocks, scales = packed()
    read = source(tmp_path, {"x.gate_up_proj_blocks": blocks, "x.gate_up_proj_scales": scales}, MXFP4)
    assert read.names() == {"x.gate_up_proj"}
    assert read.shape("x.gate_up_proj") == (2, 64, 3)
    assert torch.equal(read.tensor("x.gate_up_proj"), dequantize_mxfp4(blocks, scales).transpose(1, 2))
    read.release("x.gate_up_proj")


@pytest.mark.parametrize(
    "change",
    [
        lambda blocks, scales: {"x_blocks": blocks},
        lambda blocks, scales: {"x_blocks": blocks, "x_scales": scales[:1]},
        lambda blocks, scales: {"x_blocks": blocks[..., :8], "x_scales": scales},
        lambda blocks, scales: {"x_blocks": blocks[0], "x_scales": scales[0]},
        lambda blocks, scales: {"x_blocks": blocks.int(), "x_scales": scales},
    ],
)
def test_pairs_that_do_not_fit_are_an_error(tmp_path, change):
    with pytest.raises(CheckpointError, match="x_"):
        source(tmp_path, change(*packed()), MXFP4)
