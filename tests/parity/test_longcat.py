"""LongCat-Flash with identity experts: what transformers computes, and what it saves.

transformers holds a gate and an up projection for each identity expert, writes them and asks for them; in
published checkpoints there are none. They are passed over here, and ours are filled up before it reads them.
"""

import json

import pytest
import torch
from parity_models import from_saved, randomise_
from safetensors.torch import load_file, save_file
from tiny_families import MLA, PLAIN, longcat
from transformers import AutoConfig, AutoModelForCausalLM

from moeworks import load, save
from moeworks.models.cache import KVCache

ROUTED, IDENTITY, WIDTH = 8, 5, 20
TOLERANCE = dict(rtol=0, atol=1e-4)
TOKENS = torch.randint(97, (2, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The transformers model, the folder that it saved, and one in the published layout."""
    options = longcat(MLA, n_routed_experts=ROUTED, zero_expert_num=IDENTITY, rope_parameters=PLAIN)
    config = AutoConfig.for_model("longcat_flash", **options)
    theirs = (
        AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False)
        .float()
        .eval()
    )
    randomise_(theirs)
    saved, published = (tmp_path_factory.mktemp(name) for name in ("saved", "published"))
    theirs.save_pretrained(saved)
    tensors = load_file(saved / "model.safetensors")
    routed = {name: t for name, t in tensors.items() if expert_of(name) < ROUTED}
    assert len(tensors) - len(routed) == 2 * 2 * IDENTITY
    save_file(routed, published / "model.safetensors")
    (published / "config.json").write_text((saved / "config.json").read_text())
    return theirs, saved, published


def expert_of(name: str) -> int:
    """The number of the expert that a tensor belongs to; -1 for others."""
    return int(name.split(".experts.")[1].split(".")[0]) if ".experts." in name else -1


@torch.no_grad()
def test_logits_and_decoding(made):
    theirs, _, published = made
    model, want = load(published, dtype=torch.float32), theirs(TOKENS).logits
    output = model(TOKENS)
    torch.testing.assert_close(output.logits_BLV, want, **TOLERANCE)
    chosen = torch.cat([routing.expert_ids_TK for routing in output.routings])
    assert len(output.routings) == 2
    assert (chosen < ROUTED).any() and (chosen >= ROUTED).any()
    cache = KVCache(model.config, 2, 30)
    pieces = [model(piece, cache=cache).logits_BLV for piece in TOKENS.split([11, 1, 1, 17], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), want, **TOLERANCE)


@torch.no_grad()
def test_what_we_write_is_the_published_layout_and_computes_the_same_there(made, tmp_path):
    theirs, _, published = made
    out = save(load(published, dtype=torch.float32), tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    want = load_file(published / "model.safetensors")
    assert tensors.keys() == want.keys()
    assert all(torch.equal(tensors[name], want[name]) for name in want)
    for layer in range(2):
        for expert in range(ROUTED, ROUTED + IDENTITY):
            for part in ("gate_proj", "up_proj"):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
                tensors[name] = torch.zeros(WIDTH, theirs.config.hidden_size)
    save_file(tensors, out / "model.safetensors")
    back = from_saved(out, "longcat_flash")
    torch.testing.assert_close(back(TOKENS).logits, theirs(TOKENS).logits, rtol=0, atol=0)


def test_what_transformers_saves_is_read_without_the_weights_of_identity_experts(made, tmp_path):
    """Each expert apart, as it publishes them, and all in one tensor, as it holds them."""
    theirs, saved, published = made
    theirs.save_pretrained(tmp_path / "own", save_original_format=False)
    want = load(published, dtype=torch.float32)
    for folder in (saved, tmp_path / "own"):
        got = load(folder, dtype=torch.float32)
        assert got.config == want.config
        assert all(torch.equal(got.state_dict()[name], value) for name, value in want.state_dict().items())


def test_gradients_reach_every_tensor(made):
    """The shortcut too; identity experts have none."""
    model = load(made[2], dtype=torch.float32)
    model(TOKENS).logits_BLV.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert json.loads((made[2] / "config.json").read_text())["zero_expert_num"] == IDENTITY
