"""Tokenizers of GGUF files as files for transformers and others. Those of runs: tests/test_saving.py."""

from pathlib import Path

import pytest
from tiny_gguf import BYTES, PIECES, gguf, write_tokenizer

from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.data.tokenizer_files import gguf_tokenizer_files
from moeworks.errors import DataError


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    return folder


def pieces(path: Path) -> Path:
    scores = [0.0] * 259 + [-9.0, -7.0, -8.0, -2.0, -3.0, -1.0]
    types = [2, 3, 3, *[6] * 256, *[1] * 6]
    return write_tokenizer(
        path, "llama", PIECES, token_scores=scores, token_types=types, bos_token_id=1, eos_token_id=2,
        chat_template="{{ messages }}",
    )  # fmt: skip


def byte_level(path: Path) -> Path:
    types = [1] * 258 + [3]
    return write_tokenizer(
        path, "gpt2", BYTES, token_merges=["a b", "Ġ ab"], token_types=types, eos_token_id=258
    )


@pytest.mark.parametrize("make", [pieces, byte_level])
def test_it_is_read_back_as_it_was(tmp_path: Path, make) -> None:
    path = make(tmp_path / "m.gguf")
    found = gguf_tokenizer_files(path, 128)
    assert found is not None
    ours = tokenizer_of(path, 1000)
    again = tokenizer_of(write_all(tmp_path, found.files), 1000)
    assert (again.start_ids, again.stop_ids) == (ours.start_ids, ours.stop_ids)
    assert again.chat_template == ours.chat_template
    for text in ("ab ab  b", "\tline\né", ""):
        assert again.encode_prompt(text) == ours.encode_prompt(text)
    assert found.ids["eos_token_id"] == ours.stop_ids[0]


@pytest.mark.parametrize("make", [pieces, byte_level])
def test_transformers_reads_it(tmp_path: Path, make) -> None:
    transformers = pytest.importorskip("transformers")
    path = make(tmp_path / "m.gguf")
    found = gguf_tokenizer_files(path, 128)
    assert found is not None
    theirs = transformers.AutoTokenizer.from_pretrained(
        write_all(tmp_path, found.files), trust_remote_code=False
    )
    ours = tokenizer_of(path, 1000)
    for text in ("ab ab  b", "line\né"):
        assert theirs(text).input_ids == ours.encode_prompt(text)
    assert theirs.eos_token_id == ours.stop_ids[0]
    assert theirs.model_max_length == 128


def test_a_file_without_one_has_none(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_tokenizer_files(tmp_path / "m.gguf", 128) is None


def test_one_of_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.model = 'bert'"):
        gguf_tokenizer_files(write_tokenizer(tmp_path / "m.gguf", "bert", ["a"]), 128)
