import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from moeworks.config import CorpusConfig
from moeworks.data import iter_documents
from moeworks.data.corpus import corpus_files, source_signature
from moeworks.errors import DataError

PLAIN = CorpusConfig()


def test_files_of_all_kinds_come_in_the_order_of_data(tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("prose")
    (tmp_path / "a.jsonl").write_text('{"text": "record"}\n')
    (tmp_path / "m.py").write_text("code = 1\n")
    first = list(iter_documents((str(tmp_path / "z.txt"), str(tmp_path)), PLAIN))
    assert [(document.text, document.domain) for document in first] == [
        ("prose", "z"),
        ("record", "a"),
        ("code = 1\n", "m"),
    ]
    assert first == list(iter_documents((str(tmp_path / "z.txt"), str(tmp_path)), PLAIN))


def test_documents_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\nnot json at all\n')
    documents = iter_documents((str(tmp_path),), PLAIN)
    assert next(documents).text == "first"
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        next(documents)


def test_sources_can_be_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("mine")
    rows = ModuleType("datasets")
    rows.load_dataset = lambda *args, **settings: iter([{"text": "theirs"}])
    monkeypatch.setitem(sys.modules, "datasets", rows)
    documents = list(iter_documents(("hf:some/set", "stdlib:", str(tmp_path)), PLAIN))
    assert documents[0].text == "mine" and documents[-1].text == "theirs"
    assert {"a", "json", "modules", "docstrings", "set"} <= {document.domain for document in documents}


def test_binary_files_are_counted_beside_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0\1\2")
    (tmp_path / "b.txt").write_text("text")
    skipped: Counter[str] = Counter()
    assert [document.text for document in iter_documents((str(tmp_path),), PLAIN, skipped)] == ["text"]
    assert skipped == {"with NUL bytes": 1}


def test_a_binary_only_corpus_says_how_many_and_why(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"\0\1\2")
    (tmp_path / "3.py").write_bytes(b"\xff\xfe")
    message = r"no text at all; skipped 4 files that are not text: 1 not in UTF-8, 3 with NUL bytes"
    with pytest.raises(DataError, match=message):
        list(iter_documents((str(tmp_path),), PLAIN))


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: no text at all$"):
        list(iter_documents((str(tmp_path / "a.txt"),), PLAIN))


def test_the_signature_follows_names_sizes_times_and_domains(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("text")
    before = source_signature((str(tmp_path),))
    assert before == source_signature((str(tmp_path),)) == source_signature((str(tmp_path / "*.txt"),))
    path.write_text("longer text")
    longer = source_signature((str(tmp_path),))
    path.rename(tmp_path / "two.txt")
    renamed = source_signature((str(tmp_path),))
    (tmp_path / "three.txt").write_text("more")
    assert len({before, longer, renamed, source_signature((str(tmp_path),))}) == 4


def test_only_files_have_a_signature(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert source_signature(("hf:some/set", str(tmp_path))) is None
    assert source_signature(("stdlib:",)) not in (None, source_signature((str(tmp_path),)))
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.txt: cannot be read"):
        source_signature((str(tmp_path),))


def test_the_files_of_pythons_library_follow_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    files = corpus_files(("stdlib:", str(tmp_path)))
    assert files[0].path == tmp_path / "a.txt" and files[1].path.suffix == ".py"
