import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moeworks.config import CorpusConfig
from moeworks.data import PreparedCorpus, TokenStore, is_validation, iter_documents, prepare, shards
from moeworks.errors import DataError

REPOSITORY = Path(__file__).parents[2]


def decode(corpus: PreparedCorpus, store: TokenStore) -> list[tuple[str, str]]:
    """(text, domain) of every document of `store`."""
    spans = pairwise(store.document_starts)
    texts = [corpus.tokenizer.decode(store.tokens[a + 1 : b]) for a, b in spans]
    return list(zip(texts, (corpus.domains[domain] for domain in store.document_domains), strict=True))


def cached_files(config: CorpusConfig) -> dict[str, tuple[int, int]]:
    root = Path(str(config.cache_dir))
    found = {str(path.relative_to(root)): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_stores_hold_every_document_on_its_side(
    texts_folder: Path, config: CorpusConfig, tokenizer: str
) -> None:
    corpus = prepare((str(texts_folder),), replace(config, tokenizer=tokenizer), 300)
    documents = list(iter_documents((str(texts_folder),), config))
    for store, side in ((corpus.train, False), (corpus.validation, True)):
        wanted = [document for document in documents if is_validation(document.text, 0.2) == side]
        assert decode(corpus, store) == [(document.text, document.domain) for document in wanted]
        assert store.document_bytes.tolist() == [len(document.text.encode()) for document in wanted]
        assert (store.tokens[store.document_starts[:-1]] == corpus.tokenizer.end_of_text_id).all()
        assert store.num_domains == 2
    assert corpus.domains == ("notes", "poems")
    assert corpus.train.tokens.dtype == np.uint16


def test_a_second_call_reads_no_document_and_writes_nothing(
    texts_folder: Path, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare((str(texts_folder),), config, 300)
    before = cached_files(config)
    monkeypatch.setattr(shards, "iter_documents", None)
    second = prepare((str(texts_folder),), config, 300)
    assert cached_files(config) == before
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.tokens, first.train.tokens)


def test_touched_files_with_the_same_content_are_not_tokenised_again(
    texts_folder: Path, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare((str(texts_folder),), config, 300)
    before = cached_files(config)
    (texts_folder / "notes" / "00.md").touch()
    monkeypatch.setattr(shards, "build_tokenizer", None)
    assert prepare((str(texts_folder),), config, 300).fingerprint == first.fingerprint
    after = cached_files(config)
    assert {name: after[name] for name in before} == before
    assert [name for name in set(after) - set(before) if not name.endswith(".key")] == []


def test_changes_of_text_or_settings_make_another_corpus(texts_folder: Path, config: CorpusConfig) -> None:
    data = (str(texts_folder),)
    prints = [prepare(data, config, 300).fingerprint]
    prints.append(prepare(data, replace(config, validation_fraction=0.4), 300).fingerprint)
    prints.append(prepare(data, replace(config, tokenizer="bpe"), 300).fingerprint)
    prints.append(prepare(data, replace(config, tokenizer="bpe"), 290).fingerprint)
    (texts_folder / "notes" / "00.md").write_text("another text")
    prints.append(prepare(data, config, 300).fingerprint)
    (texts_folder / "notes" / "00.md").rename(texts_folder / "poems" / "00.md")
    prints.append(prepare(data, config, 300).fingerprint)
    assert len(set(prints)) == len(prints)


def test_the_result_is_the_same_in_another_process_and_cache(
    texts_folder: Path, config: CorpusConfig, tmp_path: Path
) -> None:
    bpe = replace(config, tokenizer="bpe")
    code = (
        "import sys; from moeworks.config import CorpusConfig; from moeworks.data import prepare\n"
        "config = CorpusConfig(validation_fraction=0.2, cache_dir=sys.argv[2])\n"
        "print(prepare((sys.argv[1],), config, 300).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(texts_folder), str(tmp_path / "other")]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "3"}
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert other.strip() == prepare((str(texts_folder),), bpe, 300).fingerprint


@pytest.mark.parametrize(
    "name", ["train/tokens.bin", "validation/document_starts.bin", "tokenizer.json", "meta.json"]
)
def test_a_damaged_cache_is_built_again(texts_folder: Path, config: CorpusConfig, name: str) -> None:
    first = prepare((str(texts_folder),), config, 300)
    (path,) = Path(str(config.cache_dir)).rglob(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    told: list[str] = []
    again = prepare((str(texts_folder),), config, 300, progress=told.append)
    assert again.fingerprint == first.fingerprint
    assert told[0].startswith("the cached corpus is damaged and is built again: ") and name in told[0]
    told.clear()
    prepare((str(texts_folder),), config, 300, progress=told.append)
    assert told == []


@pytest.mark.parametrize("content", [b"", b"no such key", b"\0", b"\xff"])
def test_a_damaged_shortcut_costs_a_look_at_the_documents_only(
    texts_folder: Path, config: CorpusConfig, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare((str(texts_folder),), config, 300)
    (shortcut,) = Path(str(config.cache_dir)).rglob("*.key")
    shortcut.write_bytes(content)
    monkeypatch.setattr(shards, "build_tokenizer", None)
    assert prepare((str(texts_folder),), config, 300).fingerprint == first.fingerprint
    assert len(shortcut.read_bytes()) == 32


def test_progress_tells_the_stages(texts_folder: Path, config: CorpusConfig) -> None:
    (texts_folder / "picture.txt").write_bytes(b"\0")
    told: list[str] = []
    prepare((str(texts_folder),), replace(config, tokenizer="bpe"), 300, progress=told.append)
    assert told[0] == "corpus: 60 documents, 0.0 MB, 2 domains"
    assert told[1] == "training a tokenizer of 300 tokens"
    assert told[2] == "tokenising: 100 %"
    assert [line.split(":")[0] for line in told[3:5]] == ["train", "validation"]
    assert told[5:] == ["skipped 1 files that are not text"]


def test_many_small_batches_give_the_same_as_one(
    texts_folder: Path, config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare((str(texts_folder),), config, 300)
    monkeypatch.setattr(shards, "_BATCH_BYTES", 100)
    told: list[str] = []
    other = replace(config, cache_dir=str(tmp_path / "other"))
    second = prepare((str(texts_folder),), other, 300, progress=told.append)
    assert second.fingerprint == first.fingerprint
    assert [line for line in told if line.startswith("tokenising")] == [
        f"tokenising: {tenths}0 %" for tenths in range(1, 11)
    ]


def test_bpe_sees_an_even_sample_of_the_training_side_only(
    texts_folder: Path, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    build = shards.build_tokenizer

    def watch(kind: str, vocab_size: int, texts: object) -> object:
        seen.extend(texts)
        return build(kind, vocab_size, seen)

    monkeypatch.setattr(shards, "build_tokenizer", watch)
    monkeypatch.setattr(shards, "BPE_BYTES", 5000)
    prepare((str(texts_folder),), replace(config, tokenizer="bpe"), 300)
    documents = [document.text for document in iter_documents((str(texts_folder),), config)]
    trained = [text for text in documents if not is_validation(text, 0.2)]
    assert 4000 < len("".join(seen)) < 6500 < len("".join(trained))
    places = [trained.index(text) for text in seen]
    assert places == sorted(places) and places[0] == 0 and places[-1] > len(trained) * 0.8


def test_a_corpus_that_changes_while_it_is_read_is_refused(
    texts_folder: Path, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = shards.build_tokenizer

    def meddle(*settings: object) -> object:
        (texts_folder / "late" / "x").mkdir(parents=True, exist_ok=True)
        (texts_folder / "late" / "x" / "new.md").write_text("one more")
        return build(*settings)

    monkeypatch.setattr(shards, "build_tokenizer", meddle)
    with pytest.raises(DataError, match="the corpus changed while it was read"):
        prepare((str(texts_folder),), config, 300)
    assert [name for name in cached_files(config) if name.endswith(".bin")] == []


def test_a_single_document_is_cut_and_both_sides_are_filled(tmp_path: Path, config: CorpusConfig) -> None:
    text = "first\n\nsecond\n\nthird\n\n"
    (tmp_path / "only.txt").write_text(text)
    corpus = prepare((str(tmp_path / "only.txt"),), config, 300)
    (head, tail) = decode(corpus, corpus.train) + decode(corpus, corpus.validation)
    assert head[0] + tail[0] == text and head[1] == tail[1] == "only"


def test_a_tokenizer_of_the_user_is_part_of_the_key(
    texts_folder: Path, config: CorpusConfig, tmp_path: Path
) -> None:
    data, path = (str(texts_folder),), tmp_path / "mine.json"
    prepare(data, config, 300).tokenizer.save(path)
    mine = replace(config, tokenizer=str(path))
    first = prepare(data, mine, 300)
    assert first.tokenizer.vocab_size == 257
    prepare(data, replace(config, tokenizer="bpe"), 300).tokenizer.save(path)
    assert prepare(data, mine, 300).tokenizer.vocab_size == 300
    with pytest.raises(DataError, match=r"mine\.json: its 300 tokens do not fit model\.vocab_size = 299"):
        prepare(data, mine, 299)


def test_a_tokenizer_that_drops_everything_leaves_a_side_empty(
    texts_folder: Path, config: CorpusConfig, tmp_path: Path
) -> None:
    model = {"type": "BPE", "vocab": {"é": 0}, "merges": []}
    token = {"id": 1, "content": "</s>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    (tmp_path / "odd.json").write_text(
        json.dumps({"version": "1.0", "model": model, "added_tokens": [token | flags]})
    )
    with pytest.raises(DataError, match="the corpus is too small: its train side holds no token"):
        prepare((str(texts_folder),), replace(config, tokenizer=str(tmp_path / "odd.json")), 300)


def test_pythons_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BPE_BYTES", 1_000_000)
    config = CorpusConfig(cache_dir=str(tmp_path))
    corpus = prepare(("stdlib:",), config, 512)
    assert corpus.tokenizer.vocab_size == 512
    assert {"asyncio", "docstrings", "email", "modules"} <= set(corpus.domains)
    sizes = [int(store.document_bytes.sum()) for store in (corpus.train, corpus.validation)]
    assert sum(sizes) > 5_000_000 and 0.005 < sizes[1] / sum(sizes) < 0.2
    assert 1.8 < sizes[0] / corpus.train.num_tokens < 2.8
    assert prepare(("stdlib:",), config, 512).fingerprint == corpus.fingerprint


def test_real_texts_in_two_domains(tmp_path: Path) -> None:
    folder = REPOSITORY.parent / "shared" / "data" / "corpus"
    if not folder.is_dir():
        pytest.skip("the folder shared/data/corpus beside the repository is not there")
    config = CorpusConfig(tokenizer="bytes", cache_dir=str(tmp_path))
    corpus = prepare((str(folder / "[dw]*_en.txt"),), config, 257)
    assert corpus.domains == ("drama_en", "wiki_en")
    total = sum(path.stat().st_size for path in folder.glob("[dw]*_en.txt"))
    held_out = int(corpus.validation.document_bytes.sum())
    assert int(corpus.train.document_bytes.sum()) + held_out == total
    assert 0.02 < held_out / total < 0.09
    assert set(corpus.validation.document_domains.tolist()) == {0, 1}
    assert corpus.train.document_bytes.max() <= 80_000
