"""Files and folders that appear whole, and locks."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moeworks.errors import DataError
from moeworks.files import (
    appearing,
    locked,
    make_folder,
    publish,
    remove,
    temporary_name,
    write_atomically,
)


def test_a_file_is_written_and_replaced_with_nothing_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"first", b"second, and longer"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_when_the_disk_refuses_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(DataError, match=r"a\.json: cannot be written: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_temporary_names_are_hidden_siblings_that_differ(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / "a") for _ in range(50)}
    assert len(names) == 50
    assert all(name.parent == tmp_path and name.name.startswith(".a.") for name in names)


def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a.json", []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noting_rename(source: Path, target: Path) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    write_atomically(path, b"x")
    (_, temporary), *rest = events
    assert temporary.startswith(str(tmp_path / ".a.json."))
    assert rest == [("rename", str(path)), ("sync", str(tmp_path))]


def test_a_folder_is_published_with_all_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    source = tmp_path / "new"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("x")
    publish(source, tmp_path / "place")
    assert synced == [str(source / "deep" / "file"), str(source / "deep"), str(source), str(tmp_path)]
    assert (tmp_path / "place" / "deep" / "file").read_text() == "x"


def test_new_folders_are_entered_durably_into_those_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    assert make_folder(tmp_path / "a" / "b")
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a")]
    assert not make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("no"), OSError(28, "No space left")])
def test_whatever_interrupts_leaves_no_temporary_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises((type(failure), DataError)), appearing(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "disk" / "real.html")
    for content in (b"first", b"second"):  # the file does not exist at first
        write_atomically(link, content)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real.html").read_bytes() == content
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.html"]


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"out: cannot be written: it is a folder; choose the name of a file"):
        write_atomically(tmp_path / "out", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"page")
        assert os.read(reader, 10) == b"page"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(DataError, match="it is a device or a pipe"), appearing(pipe):
        pass


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["file", "folder", "link", "nothing"])
def test_remove_takes_away_the_name_and_what_is_below_but_follows_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"file", "folder", "kept", "link"} - {name}
    )


HOLD = """
import sys, time
from pathlib import Path
from moeworks.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with (
            pytest.raises(DataError, match=rf"in use by process {process.pid} on \S+: wait"),
            locked(tmp_path),
        ):
            pass
        process.kill()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_those_who_wait_for_a_lock_get_it_one_by_one(tmp_path: Path) -> None:
    inside, most = [], []

    def work(number: int) -> None:
        for _ in range(20):
            with locked(tmp_path, wait=True):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert set(most) == {1} and len(most) == 80


def test_a_file_system_without_locks_lets_us_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        pass


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from moeworks.data import cache
from moeworks.errors import MoeworksError
from moeworks.files import write_atomically
from moeworks.trace import TraceHeader
from moeworks.trace.write import TraceWriter, write_trace
sys.path.insert(0, {tests!r})
from traces import random_block

root = Path(sys.argv[1])
header = TraceHeader(num_experts=8, top_k=2, layers=(0, 1))
block = random_block(header, 20_000)

def corpus():
    with cache.building(root / "corpus") as folder:
        (folder / "tokens.bin").write_bytes(b"x" * 200_000)

resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
for work in (
    lambda: write_atomically(root / "report.html", b"x" * 200_000),
    lambda: write_trace(root / "t.parquet", header, block),
    corpus,
):
    try:
        work()
    except MoeworksError as error:
        print(type(error).__name__, error)
"""


def test_a_disk_that_refuses_is_one_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the old report")
    script = LIMITED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report, trace, corpus = done.stdout.splitlines()
    assert report == f"DataError {tmp_path}/report.html: cannot be written: File too large"
    assert trace.startswith(f"DataError {tmp_path}/t.parquet: cannot be written: ")
    assert corpus.startswith(f"DataError {tmp_path}: the token cache cannot be written: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "the old report"
