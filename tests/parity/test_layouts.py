"""Every family in every layout that transformers writes: the published one and that of its memory.

`save_pretrained` undoes its renames and fusions, and `save_original_format=False` (and anybody who writes a
state_dict) does not. Both must be the same model here.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import TINY

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


def test_a_tensor_under_two_names_is_an_error_that_names_both(saved_models, tmp_path):
    folder = state_dict_folder(saved_models, "mixtral", tmp_path / "twice")
    tensors = load_file(folder / "model.safetensors")
    gate = "model.layers.0.mlp.gate.weight"
    tensors["model.layers.0.block_sparse_moe.gate.weight"] = tensors[gate].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="are two names of one tensor") as error:
        load(folder)
    assert gate in str(error.value) and "block_sparse_moe.gate" in str(error.value)
