import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import CorpusConfig
from moeworks.data.documents import Document
from moeworks.data.files import SourceFile
from moeworks.data.readers import LONGEST_PIECE_BYTES, PIECE_BYTES, read_file, read_hugging_face, split_prose
from moeworks.errors import DataError, MissingDependencyError

PLAIN = CorpusConfig()
LABELLED = CorpusConfig(text_field="body", domain_field="topic")


def read(path: Path, config: CorpusConfig = PLAIN, skipped: Counter | None = None) -> list[Document]:
    return list(read_file(SourceFile(path, "here"), config, Counter() if skipped is None else skipped))


def test_a_small_text_is_one_document_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGrüße\r\nzwei\n".encode())
    assert read(path) == [Document("Grüße\r\nzwei\n", "here", str(path))]


def test_an_empty_text_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.py").touch()
    assert read(tmp_path / "a.txt") == read(tmp_path / "b.py") == []


def test_large_prose_is_cut_at_blank_lines_and_code_is_not(tmp_path: Path) -> None:
    text = "".join(f"{'word ' * 100}{number}\n\n" for number in range(200))
    for name in ("a.txt", "a.py"):
        (tmp_path / name).write_text(text)
    pieces = read(tmp_path / "a.txt")
    assert "".join(piece.text for piece in pieces) == text
    assert all(PIECE_BYTES <= len(piece.text) < PIECE_BYTES + 600 for piece in pieces[:-1])
    assert all(piece.text.endswith("\n\n") for piece in pieces)
    assert [piece.source for piece in pieces[:2]] == [str(tmp_path / "a.txt"), f"{tmp_path / 'a.txt'}:1"]
    assert [document.text for document in read(tmp_path / "a.py")] == [text]


def test_prose_without_blank_lines_is_cut_at_line_ends_and_endless_lines_anywhere(tmp_path: Path) -> None:
    lines = "x" * 99 + "\n"
    (tmp_path / "lines.txt").write_text(lines * 2000)
    pieces = read(tmp_path / "lines.txt")
    assert len(pieces) == 4 and all(piece.text.endswith("\n") for piece in pieces)
    (tmp_path / "endless.txt").write_text("y" * (3 * LONGEST_PIECE_BYTES + 5))
    sizes = [len(piece.text) for piece in read(tmp_path / "endless.txt")]
    assert sizes == [LONGEST_PIECE_BYTES] * 3 + [5]


@given(st.lists(st.text(max_size=20).map(lambda line: (line + "\n") * 500), max_size=30))
def test_pieces_hold_the_whole_text(lines: list[str]) -> None:
    pieces = list(split_prose(iter(lines)))
    assert "".join(pieces) == "".join(lines)
    assert all(pieces[:-1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"abc\0def", "with NUL bytes"), (b"caf\xe9", "not in UTF-8"), ("ß".encode()[:1], "not in UTF-8")],
)
@pytest.mark.parametrize("name", ["a.txt", "a.py", "LICENSE"])
def test_binary_files_are_skipped_and_counted(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    skipped: Counter[str] = Counter()
    assert read(tmp_path / name, skipped=skipped) == []
    assert skipped == {reason: 1}


def test_binary_bytes_far_into_a_text_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text\n" * 300_000 + b"\0")
    skipped: Counter[str] = Counter()
    assert read(tmp_path / "a.txt", skipped=skipped) == [] and skipped == {"with NUL bytes": 1}


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.jsonl", "a.parquet"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"{name}: cannot be read: .*[Nn]o such file"):
        read(tmp_path / name)


def test_jsonl_gives_a_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"body": "eins", "topic": "x"}, {"body": "zwei\n\nß", "topic": 2}, {"body": "", "topic": "x"}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert read(path, LABELLED) == [
        Document("eins", "x", f"{path}:1"),
        Document("zwei\n\nß", "2", f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", r"a\.jsonl:2: not a line of JSON in UTF-8"),
        (b'{"text": "caf\xe9"}', r"a\.jsonl:2: not a line of JSON in UTF-8"),
        (b"[" * 200_000, r"a\.jsonl:2: not a line of JSON in UTF-8"),
        (b'"text"', r"a\.jsonl:2: holds a str, not an object"),
        (b'{"body": "b"}', r"a\.jsonl:2: no field 'text'; it has: body"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_by_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_parquet_gives_a_document_per_row_over_all_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    body = [f"text {number}" for number in range(3000)]
    body[5], body[6] = "", None
    pq.write_table(pa.table({"body": body, "topic": ["even", "odd"] * 1500, "more": range(3000)}), path)
    documents = read(path, LABELLED)
    assert [document.text for document in documents] == [text for text in body if text]
    assert documents[-1] == Document("text 2999", "odd", f"{path}:2999")


@pytest.mark.parametrize("config", [PLAIN, CorpusConfig(text_field="body", domain_field="text")])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, config: CorpusConfig) -> None:
    pq.write_table(pa.table({"body": ["a"], "topic": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; it has: body, topic"):
        read(tmp_path / "a.parquet", config)


def test_a_column_that_is_not_text_and_a_broken_file_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:0: field 'text' is a int, not text"):
        read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read"):
        read(tmp_path / "b.parquet")


def use_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: object) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hugging_face_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str, streaming: bool, trust_remote_code: bool) -> Iterator[dict]:
        assert (name, split, streaming, trust_remote_code) == ("someone/poems", "train", True, False)
        return iter([{"text": "one"}, {"text": ""}, {"text": "three"}])

    use_datasets(monkeypatch, load_dataset)
    assert list(read_hugging_face("someone/poems", PLAIN)) == [
        Document("one", "poems", "hf:someone/poems:0"),
        Document("three", "poems", "hf:someone/poems:2"),
    ]


def test_an_unknown_dataset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **settings: object) -> None:
        raise FileNotFoundError("nobody published that")

    use_datasets(monkeypatch, load_dataset)
    with pytest.raises(DataError, match="hf:x: the dataset cannot be read: nobody published that"):
        list(read_hugging_face("x", PLAIN))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"moeworks\[hf\]"):
        list(read_hugging_face("x", PLAIN))
