"""GGUF files that hold a tokenizer and no tensors."""

from pathlib import Path

import pytest

from moeworks.data.tokenizer import BYTE_CHARACTERS

gguf = pytest.importorskip("gguf")
BYTES = [*BYTE_CHARACTERS, "ab", "Ġab", "<|end|>"]
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
]


def write_tokenizer(path: Path, model: str, tokens: list[str], **fields) -> Path:
    """A file with a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
