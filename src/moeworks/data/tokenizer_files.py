"""The tokenizer of a run or of a GGUF file as the files that transformers and others read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import processors

from moeworks.data.gguf_tokenizer import NoTokenizerError, read_gguf_tokenizer
from moeworks.data.model_tokenizer import run_tokenizer, tokenizer_file

_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


@dataclass(frozen=True)
class TokenizerFiles:
    """Tokenizer files of a published checkpoint, and the token ids for its config.json."""

    files: Mapping[str, bytes]
    """tokenizer.json and tokenizer_config.json, by name."""
    ids: Mapping[str, int]
    """bos_token_id and eos_token_id for config.json, as far as they exist."""


def run_tokenizer_files(checkpoint: Path, max_length: int) -> TokenizerFiles | None:
    """The tokenizer of a run, by one of its checkpoints; None where its tokenizer.json is not there.

    As in training, one token begins and ends every text. Raises DataError and CheckpointError as
    `run_tokenizer` does.
    """
    if not tokenizer_file(checkpoint).is_file():
        return None
    tokenizer = run_tokenizer(checkpoint)
    ids = {"bos": tokenizer.end_of_text_id, "eos": tokenizer.end_of_text_id}
    return _files(tokenizer.backend, ids, max_length, starts=True, chat_template=None)


def gguf_tokenizer_files(path: Path, max_length: int) -> TokenizerFiles | None:
    """The tokenizer in a GGUF file; None where it holds none. Raises DataError for one of an unknown kind."""
    try:
        read = read_gguf_tokenizer(path)
    except NoTokenizerError:
        return None
    starts = read.add_bos and "bos" in read.special_ids
    return _files(read.backend, read.special_ids, max_length, starts=starts, chat_template=read.chat_template)


def _files(
    backend: tokenizers.Tokenizer,
    ids: Mapping[str, int],
    max_length: int,
    *,
    starts: bool,
    chat_template: str | None,
) -> TokenizerFiles:
    """Make the files; `ids` are special tokens by GGUF's names, `starts` puts "bos" before every text."""
    named = {_NAMES[kind]: backend.id_to_token(number) for kind, number in ids.items()}
    written = tokenizers.Tokenizer.from_str(backend.to_str())
    if starts:
        start = named["bos_token"]
        written.post_processor = processors.TemplateProcessing(
            single=[start, "$A"], pair=[start, "$A", start, "$B"], special_tokens=[(start, ids["bos"])]
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return TokenizerFiles(
        {
            "tokenizer.json": written.to_str(pretty=True).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        },
        {f"{kind}_token_id": ids[kind] for kind in ("bos", "eos") if kind in ids},
    )
