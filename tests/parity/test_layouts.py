"""Every family in every layout that transformers writes: the published one and that of its memory.

`save_pretrained` undoes its renames and fusions, and `save_original_format=False` (and anybody who writes a
state_dict) does not. Both must be the same model here.
"""

from pathlib import Path

import pytest
import torch
from parity_models import randomise_
from safetensors.torch import load_file, save_file
from tiny_families import TINY
from transformers import AutoConfig, AutoModelForImageTextToText

from moeworks import load
from moeworks.errors import CheckpointError

ONE_LAYOUT = {
    "llama", "llama3", "llama4", "llama4_top2", "gpt_oss", "gpt_oss_32", "mistral4", "mistral4_half", "dbrx",
    "jetmoe",
}  # fmt: skip
"""Those whose two layouts are one, a tied output projection aside."""


HEAD = {"lm_head.weight"}


def state_dict_folder(saved_models, name: str, folder: Path) -> Path:
    """The tiny model's state_dict, tied projections too, beside its config.json."""
    theirs, published = saved_models(name)
    folder.mkdir()
    tensors = {key: tensor.clone().contiguous() for key, tensor in theirs.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((published / "config.json").read_text())
    return folder


@pytest.mark.parametrize("name", TINY)
def test_both_layouts_are_one_model(saved_models, name, tmp_path):
    _, published = saved_models(name)
    in_memory = state_dict_folder(saved_models, name, tmp_path / "state_dict")
    names = [load_file(folder / "model.safetensors").keys() - HEAD for folder in (published, in_memory)]
    assert (names[0] == names[1]) == (name in ONE_LAYOUT)
    want, got = (load(folder, dtype=torch.float32) for folder in (published, in_memory))
    assert got.config == want.config
    for key, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["mixtral", "kimi_linear", "granitemoe"])
def test_what_transformers_writes_when_told_to_keep_its_names(saved_models, name, tmp_path):
    theirs, published = saved_models(name)
    theirs.save_pretrained(tmp_path / "own", save_original_format=False)
    want, got = (load(folder, dtype=torch.float32) for folder in (published, tmp_path / "own"))
    assert all(torch.equal(got.state_dict()[key], value) for key, value in want.state_dict().items())


VISION = {
    "llama4": dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28,
        patch_size=14, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16,
    ),
    "qwen3_5_moe": dict(
        depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32,
        num_position_embeddings=16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_the_text_model_beside_a_vision_tower(name, tmp_path):
    text = {**TINY[name].options, "model_type": TINY[name].model_type}
    config = AutoConfig.for_model(name, text_config=text, vision_config=VISION[name])
    whole = (
        AutoModelForImageTextToText.from_config(config, attn_implementation="eager", trust_remote_code=False)
        .float()
        .eval()
    )
    randomise_(whole)
    tokens = torch.randint(97, (1, 30), generator=torch.Generator().manual_seed(5))
    # Llama 4's outer class asks for images.
    want = (whole.language_model if name == "llama4" else whole)(input_ids=tokens).logits
    for published in (True, False):
        whole.save_pretrained(tmp_path / str(published), save_original_format=published)
        model = load(tmp_path / str(published), dtype=torch.float32)
        torch.testing.assert_close(model(tokens).logits_BLV, want, rtol=0, atol=1e-4)


def test_a_tensor_under_two_names_is_an_error_that_names_both(saved_models, tmp_path):
    folder = state_dict_folder(saved_models, "mixtral", tmp_path / "twice")
    tensors = load_file(folder / "model.safetensors")
    gate = "model.layers.0.mlp.gate.weight"
    tensors["model.layers.0.block_sparse_moe.gate.weight"] = tensors[gate].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="are two names of one tensor") as error:
        load(folder)
    assert gate in str(error.value) and "block_sparse_moe.gate" in str(error.value)
