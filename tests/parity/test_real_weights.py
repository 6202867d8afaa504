"""A real trained model, karpathy's stories260K, against transformers: logits, bits per byte, a story.

The weights are no part of this project; without them the tests are skipped.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from moeworks import Decoder, load
from moeworks.config.generate import SamplingConfig
from moeworks.generate.loop import generate

MODELS = Path(__file__).parents[2].parent / "shared" / "data" / "models"
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    " she saw a big red ball. She wanted to play with it, but it was too high."
)
pytestmark = pytest.mark.skipif(
    not (MODELS / "stories260K.bin").is_file(), reason=f"needs stories260K.bin and tok512.bin in {MODELS}"
)


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Neighbours of a head as halves: from Meta's order of rows to that of transformers."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of llama2.c's file format as a published checkpoint of the Llama family."""
    content = (MODELS / "stories260K.bin").read_bytes()
    d, f, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", content[:28])
    numbers, at = np.frombuffer(content, dtype="<f4", offset=28).copy(), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = math.prod(shape)
        at += size
        return torch.from_numpy(numbers[at - size : at]).view(shape)

    kv = d // heads * kv_heads
    tensors = {"model.embed_tokens.weight": take(vocab, d)}
    names = (
        ("input_layernorm", (d,)), ("self_attn.q_proj", (d, d)), ("self_attn.k_proj", (kv, d)),
        ("self_attn.v_proj", (kv, d)), ("self_attn.o_proj", (d, d)), ("post_attention_layernorm", (d,)),
        ("mlp.gate_proj", (f, d)), ("mlp.down_proj", (d, f)), ("mlp.up_proj", (f, d)),
    )  # fmt: skip
    for name, shape in names:
        for layer, weight in enumerate(take(layers, *shape)):
            swapped = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-1])
            weight = weight if swapped is None else permuted(weight, swapped)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    tensors["model.norm.weight"] = take(d)
    config = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=vocab, hidden_size=d,
        intermediate_size=f, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=length, rms_norm_eps=1e-5,
        tie_word_embeddings=True, torch_dtype="float32",
    )  # fmt: skip
    place = tmp_path_factory.mktemp("stories")
    (place / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, place / "model.safetensors")
    return place


@pytest.fixture(scope="module")
def vocabulary() -> list[tuple[bytes, float]]:
    content, pieces, at = (MODELS / "tok512.bin").read_bytes(), [], 4
    while at < len(content):
        score, size = struct.unpack_from("<fi", content, at)
        pieces.append((content[at + 8 : at + 8 + size], score))
        at += 8 + size
    return pieces


def encode(text: str, vocabulary: list[tuple[bytes, float]]) -> list[int]:
    """As llama2.c does: characters, and then the best merges; 1 begins a text."""
    known = {piece: (i, score) for i, (piece, score) in reversed(list(enumerate(vocabulary)))}
    pieces = [letter.encode() for letter in f" {text}"]
    while True:
        merges = [(known[a + b][1], -i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in known]  # noqa: B905, RUF007
        if not merges:
            return [1, *(known[piece][0] for piece in pieces)]
        at = -max(merges)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def bits_per_byte(logits: torch.Tensor, ids: list[int]) -> float:
    log_probabilities = logits[0, :-1].log_softmax(-1)
    return -log_probabilities[range(len(ids) - 1), ids[1:]].sum().item() / math.log(2) / len(TEXT)


@torch.no_grad()
def test_logits_and_bits_per_byte_are_those_of_transformers(folder, vocabulary):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load(folder)
    assert sum(p.numel() for p in model.parameters()) == 260_032
    ids = encode(TEXT, vocabulary)
    got, want = model(torch.tensor([ids])).logits_BLV, theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert bits_per_byte(got, ids) == pytest.approx(bits_per_byte(want, ids), abs=1e-5)
    assert bits_per_byte(got, ids) < 1.0


def test_it_tells_a_story(folder, vocabulary):
    model: Decoder = load(folder)
    ids = generate(model, encode("Once upon a time", vocabulary), 60, sampling=SamplingConfig(temperature=0))
    story = b"".join(vocabulary[i][0] for i in ids).decode(errors="replace")
    assert story.startswith(", there was a little girl named")
    assert {"the", "and", "to"} & set(story.split())
