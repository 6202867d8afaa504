import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from moeworks.data import cache
from moeworks.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder with two files."""
    target = tmp_path / "key"
    with cache.building(target) as temporary:
        (temporary / "part").mkdir()
        (temporary / "a.bin").write_bytes(b"some bytes")
        (temporary / "part" / "b.bin").write_bytes(b"more")
        names = ("a.bin", "part/b.bin")
        cache.write_meta(
            temporary, {"format": 3}, {name: cache.file_checksum(temporary / name) for name in names}
        )
    return target


def test_a_finished_folder_is_read_back(folder: Path) -> None:
    meta = cache.read_meta(folder)
    assert meta["format"] == 3
    assert meta["files"]["a.bin"] == [10, hashlib.sha256(b"some bytes").hexdigest()]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("name", ["a.bin", "part/b.bin"])
def test_a_truncated_altered_or_missing_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{name}: missing, or not of {len(content)} bytes"):
        cache.read_meta(folder)
    (folder / name).write_bytes(b"X" + content[1:])
    with pytest.raises(DataError, match=rf"{name}: altered"):
        cache.read_meta(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing"):
        cache.read_meta(folder)


def test_an_altered_meta_is_noticed(folder: Path) -> None:
    path = folder / "meta.json"
    good = path.read_text()
    for bad, message in [
        (good.replace('"format": 3', '"format": 4'), "altered"),
        ("[]", "altered"),
        (good[:-5], "missing or not JSON"),
    ]:
        path.write_text(bad)
        with pytest.raises(DataError, match=rf"meta\.json: {message}"):
            cache.read_meta(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"meta\.json: missing or not JSON"):
        cache.read_meta(folder)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder with a file that is too large to be read whole at every opening."""
    monkeypatch.setattr(cache, "CHECKED_BYTES", 1000)
    monkeypatch.setattr(cache, "_SAMPLE_BYTES", 16)
    with cache.building(tmp_path / "key") as temporary:
        (temporary / "tokens.bin").write_bytes(bytes(range(1, 251)) * 400)
        cache.write_meta(
            temporary, {"format": 3}, {"tokens.bin": cache.file_checksum(temporary / "tokens.bin")}
        )
    return tmp_path / "key"


def test_of_a_large_file_samples_are_read(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "file_checksum", lambda path: pytest.fail("the whole file was read"))
    assert cache.read_meta(large)["format"] == 3


@pytest.mark.parametrize(("start", "stop"), [(0, 100_000), (98_000, 100_000), (0, 20), (50_000, 52_000)])
def test_zeros_in_a_large_file_are_noticed(large: Path, start: int, stop: int) -> None:
    content = bytearray((large / "tokens.bin").read_bytes())
    content[start:stop] = bytes(stop - start)
    (large / "tokens.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.bin: altered \(the sha256 of its samples differs\)"):
        cache.read_meta(large)


def test_a_large_file_of_an_earlier_version_is_read_whole(large: Path) -> None:
    meta = json.loads((large / "meta.json").read_text())
    del meta["samples"]
    (large / "meta.json").write_text(json.dumps(meta))
    assert cache.read_meta(large)["format"] == 3
    (large / "tokens.bin").write_bytes(bytes(100_000))
    with pytest.raises(DataError, match=r"tokens\.bin: altered \(its sha256 differs\)"):
        cache.read_meta(large)


def test_samples_do_not_change_what_a_corpus_is_known_by(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = cache.meta_checksum(cache.read_meta(folder))
    monkeypatch.setattr(cache, "CHECKED_BYTES", 3)
    again = folder.parent / "again"
    with cache.building(again) as temporary:
        shutil.copytree(folder / "part", temporary / "part")
        shutil.copy(folder / "a.bin", temporary)
        sums = {name: cache.file_checksum(temporary / name) for name in ("a.bin", "part/b.bin")}
        cache.write_meta(temporary, {"format": 3}, sums)
    assert cache.meta_checksum(cache.read_meta(again)) == known


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good"), cache.building(tmp_path / "key") as temporary:
        (temporary / "a.bin").write_bytes(b"half")
        raise DataError("no good")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_way_out(tmp_path: Path) -> None:
    message = (
        r"the token cache cannot be written: No space left on device; corpus\.cache_dir sets another place"
    )
    with pytest.raises(DataError, match=message), cache.building(tmp_path / "key"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_the_first_wins_and_the_other_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "key"
    with cache.building(target) as slow:
        (slow / "who").write_text("slow")
        with cache.building(target) as fast:
            assert fast != slow
            (fast / "who").write_text("fast")
        assert (target / "who").read_text() == "fast"
    assert (target / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_processes_left_goes_after_a_week(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".key.1-a", ".key.2-b", ".other.1-a"))
    for path in (old, young, other):
        path.mkdir()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with cache.building(tmp_path / "key"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([young, other, tmp_path / "key"])


def test_discarding_twice_is_as_good_as_once(folder: Path) -> None:
    for _ in range(2):
        cache.discard(folder)
        assert list(folder.parent.iterdir()) == []


def test_the_cache_lies_in_the_home_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.corpora_folder(None) == tmp_path / ".cache" / "moeworks" / "corpora"
    assert cache.corpora_folder(str(tmp_path / "mine")) == tmp_path / "mine" / "corpora"
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"file/corpora: the token cache cannot be written: .*corpus\.cache_dir"
    ):
        cache.corpora_folder(str(tmp_path / "file"))
