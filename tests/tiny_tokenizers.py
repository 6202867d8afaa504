"""A published checkpoint's folder with a tokenizer, small enough for every test."""

import json
from pathlib import Path
from typing import Any

from tiny_published import LLAMA, write
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from moeworks import Decoder
from moeworks.data.tokenizer import build_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<eos>"
VOCAB = 264
BOS, EOS = 257, 258


def byte_backend(*, framed: bool = False) -> Tokenizer:
    """A token per byte, <|endoftext|> 256, <bos> 257, <eos> 258; `framed` puts <bos> before a text."""
    backend = build_tokenizer("bytes", 257, []).backend
    backend.add_special_tokens([AddedToken("<bos>", special=True), AddedToken("<eos>", special=True)])
    if framed:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return backend


def write_folder(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    framed: bool = True,
) -> Decoder:
    """A tiny published model with tokenizer.json and tokenizer_config.json; `generation` its advice."""
    base = LLAMA | dict(vocab_size=VOCAB, max_position_embeddings=64)
    model = write(folder, base | (config or {}))
    byte_backend(framed=framed).save(str(folder / "tokenizer.json"))
    given = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(given | (tokenizer or {})))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return model
