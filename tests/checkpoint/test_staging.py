"""Directories that appear whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moeworks.checkpoint.staging import remove_directory, restore_replaced, staged_directory, sweep_leftovers


def _fill(directory: Path, text: str) -> None:
    (directory / "file").write_text(text)


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_nothing_carries_the_name_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "step-00000001"
    with staged_directory(target) as staged:
        _fill(staged, "new")
        assert not target.exists()
        assert _names(tmp_path) == [f".step-00000001.tmp-{os.getpid()}"]
    assert (target / "file").read_text() == "new"
    assert _names(tmp_path) == ["step-00000001"]


def test_a_failing_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "step-00000001") as staged:
        _fill(staged, "half")
        raise KeyboardInterrupt
    assert _names(tmp_path) == []


def test_an_existing_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "step-00000001"
    target.mkdir()
    (target / "only_in_the_old_one").write_text("old")
    with staged_directory(target) as staged:
        _fill(staged, "new")
        assert _names(target) == ["only_in_the_old_one"]
    assert _names(target) == ["file"]
    assert _names(tmp_path) == ["step-00000001"]


def test_if_the_new_one_cannot_take_its_place_the_old_one_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "step-00000001"
    target.mkdir()
    _fill(target, "old")
    rename = os.rename

    def refuse_staged(source: Path, destination: Path) -> None:
        if ".tmp-" in Path(source).name:
            raise OSError(errno.EIO, "no")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse_staged)
    with pytest.raises(OSError, match="no"), staged_directory(target) as staged:
        _fill(staged, "new")
    assert (target / "file").read_text() == "old"
    assert _names(tmp_path) == ["step-00000001"]


def test_remove_hides_before_it_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "step-00000001"
    target.mkdir()
    _fill(target, "old")
    deleted: list[Path] = []
    monkeypatch.setattr("moeworks.checkpoint.staging.shutil.rmtree", deleted.append)
    remove_directory(target)
    assert not target.exists()
    assert deleted == [tmp_path / f".step-00000001.trash-{os.getpid()}"]


def test_sweep_removes_what_dead_processes_left(tmp_path: Path, dead_pid: int) -> None:
    for name in (f".step-00000001.tmp-{dead_pid}", f".step-00000002.trash-{dead_pid}"):
        (tmp_path / name).mkdir()
        _fill(tmp_path / name, "rest")
    sweep_leftovers(tmp_path)
    assert _names(tmp_path) == []


def test_sweep_takes_a_leftover_of_its_own_id_for_an_earlier_process(tmp_path: Path) -> None:
    (tmp_path / f".step-00000001.tmp-{os.getpid()}").mkdir()
    sweep_leftovers(tmp_path)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("pid", [1, os.getppid()])
def test_a_leftover_does_not_live_as_long_as_another_process_has_its_id(tmp_path: Path, pid: int) -> None:
    for name in (f".step-00000001.old-{pid}", f".step-00000002.tmp-{pid}"):
        (tmp_path / name).mkdir()
    sweep_leftovers(tmp_path)
    assert _names(tmp_path) == ["step-00000001"]


def test_a_leftover_may_be_a_link_of_which_only_the_name_goes(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _fill(elsewhere, "kept")
    (tmp_path / "step-00000001").symlink_to(elsewhere)
    remove_directory(tmp_path / "step-00000001")
    assert _names(tmp_path) == ["elsewhere"]
    assert (elsewhere / "file").read_text() == "kept"


def test_sweep_leaves_strangers_alone(tmp_path: Path) -> None:
    names = [".other.tmp-99", ".step-1", "step-00000001"]
    for name in names:
        (tmp_path / name).mkdir()
    sweep_leftovers(tmp_path)
    assert _names(tmp_path) == sorted(names)


def test_a_replaced_directory_returns_only_if_its_successor_is_missing(tmp_path: Path, dead_pid: int) -> None:
    for name in ("step-00000002", f".step-00000001.old-{dead_pid}", f".step-00000002.old-{dead_pid}"):
        (tmp_path / name).mkdir()
        _fill(tmp_path / name, name)
    restore_replaced(tmp_path)
    assert (tmp_path / "step-00000001" / "file").read_text() == f".step-00000001.old-{dead_pid}"
    assert (tmp_path / "step-00000002" / "file").read_text() == "step-00000002"
    sweep_leftovers(tmp_path)
    assert _names(tmp_path) == ["step-00000001", "step-00000002"]
