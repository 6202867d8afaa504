"""The latest checkpoint of a run, pruning, and kills at any moment."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.checkpoint import (
    checkpoint_dir,
    find_latest,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    step_of,
    write_checkpoint,
)
from moeworks.errors import CheckpointError, ConfigError
from moeworks.files import locked


def _write(root: Path, *steps: int) -> list[Path]:
    weights = {"model": {"weight": torch.ones(4)}}
    return [write_checkpoint(checkpoint_dir(root, step), weights, {"step": step}) for step in steps]


def _damage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"short")


def _steps(root: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(root)]


def test_latest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    _write(tmp_path, 1000, 30, 200)
    assert latest_checkpoint(tmp_path) == checkpoint_dir(tmp_path, 1000)


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_an_error(tmp_path: Path, exists: bool) -> None:
    root = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        latest_checkpoint(root)


def test_a_damaged_latest_is_named_with_the_last_good_one(tmp_path: Path) -> None:
    _, _, middle, last = _write(tmp_path, 1, 2, 3, 4)
    _damage(middle)
    _damage(last)
    with pytest.raises(CheckpointError, match=r"step-00000004.*truncated.*last good .*step-00000002"):
        latest_checkpoint(tmp_path)


def test_a_latest_without_description_is_not_passed_over(tmp_path: Path) -> None:
    _, last = _write(tmp_path, 1, 2)
    (last / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002 is not a readable.*last good .*step-00000001"):
        latest_checkpoint(tmp_path)


def test_damage_everywhere_is_said(tmp_path: Path) -> None:
    for path in _write(tmp_path, 1, 2):
        _damage(path)
    with pytest.raises(CheckpointError, match=r"no other checkpoint in .* is whole"):
        latest_checkpoint(tmp_path)


def test_damage_to_an_older_one_does_not_matter(tmp_path: Path) -> None:
    older, last = _write(tmp_path, 1, 2)
    _damage(older)
    assert latest_checkpoint(tmp_path) == last


def test_a_checkpoint_whose_replacement_was_killed_is_found(tmp_path: Path) -> None:
    (path,) = _write(tmp_path, 7)
    os.rename(path, tmp_path / f".step-00000007.old-{os.getpid()}")
    assert latest_checkpoint(tmp_path) == path


def test_what_a_killed_replacement_left_is_found_whoever_has_its_process_id(tmp_path: Path) -> None:
    (path,) = _write(tmp_path, 7)
    os.rename(path, tmp_path / ".step-00000007.old-1")
    assert list_checkpoints(tmp_path) == []
    assert find_latest(tmp_path) == path


def test_there_may_be_no_latest(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "nowhere") is None


def test_a_living_writer_is_waited_for(tmp_path: Path) -> None:
    """A reader that looks between the two renames of a replacement must not undo the first."""
    (path,) = _write(tmp_path, 7)
    aside = tmp_path / ".step-00000007.old-1"
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            os.rename(path, aside)
            found = pool.submit(find_latest, tmp_path)
            with pytest.raises(TimeoutError):
                found.result(timeout=0.2)
            assert aside.is_dir()
            os.rename(aside, path)
        assert found.result() == path


def test_a_restoration_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = _write(tmp_path, 7)
    os.rename(path, tmp_path / f".step-00000007.old-{os.getpid()}")
    monkeypatch.setattr("moeworks.checkpoint.staging.os.rename", _read_only)
    with pytest.raises(CheckpointError, match=r"cannot put back .*Read-only"):
        latest_checkpoint(tmp_path)


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    paths = _write(tmp_path, 1, 2, 3, 4, 5)
    assert prune_checkpoints(tmp_path, keep_last=2, best_step=2) == [paths[0], paths[2]]
    assert _steps(tmp_path) == [2, 4, 5]
    assert len(list(tmp_path.iterdir())) == 3


@given(
    steps=st.sets(st.integers(0, 50), max_size=8),
    keep_last=st.integers(1, 5),
    best_step=st.none() | st.integers(0, 50),
)
def test_prune_keeps_exactly_the_last_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep_last: int, best_step: int | None
) -> None:
    root = tmp_path_factory.mktemp("run")
    for step in steps:
        checkpoint_dir(root, step).mkdir()
    prune_checkpoints(root, keep_last, best_step)
    assert set(_steps(root)) == set(sorted(steps)[-keep_last:]) | ({best_step} & steps)


def test_prune_never_deletes_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_last = 0"):
        prune_checkpoints(tmp_path, keep_last=0)


def _read_only(*_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_deletion_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1, 2)
    monkeypatch.setattr("moeworks.checkpoint.staging.os.rename", _read_only)
    with pytest.raises(CheckpointError, match=r"cannot delete .*step-00000001: .*Read-only"):
        prune_checkpoints(tmp_path, keep_last=1)
    assert _steps(tmp_path) == [1, 2]


# A parent that imports torch once and forks a writer for every kill. Writers write step after step, each step
# twice, and prune to one; the parent checks what a reader would find.
KILL_LOOP = """
import os, random, shutil, signal, sys, time
from itertools import count
from pathlib import Path
import torch
from moeworks.checkpoint import *

root = Path(sys.argv[1])
DYING_CALLS = [(os, name) for name in ("rename", "fsync", "rmdir", "unlink", "mkdir")]

def write(step):
    tensors = {"model": {"weight": torch.full((200_000,), float(step))}, "rng": {"x": torch.tensor(step)}}
    write_checkpoint(checkpoint_dir(root, step), tensors, {"step": step})

def write_on(first):
    for step in count(first):
        write(step)
        write(step)
        prune_checkpoints(root, keep_last=1)

def die_before_call(number):
    left = [number]
    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for module, name in DYING_CALLS:
        setattr(module, name, dying(getattr(module, name)))

def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def check():
    found = list_checkpoints(root)
    for path in found:
        checkpoint = read_checkpoint(path)
        step = checkpoint.state["step"]
        assert step == step_of(path) == checkpoint.tensors["rng"]["x"]
        assert checkpoint.tensors["model"]["weight"].eq(step).all()
    step = step_of(latest_checkpoint(root))
    assert step >= (step_of(found[-1]) if found else 1), (step, found)
    return step

def at_random_moments(kills):
    rng = random.Random(0)
    step = 1
    for _ in range(kills):
        pid = in_child(lambda: write_on(step))
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        step = check()

def before_every_call():
    for number in count(1):
        def work():
            die_before_call(number)
            write(2)
            prune_checkpoints(root, keep_last=1)
            write(2)  # replaces the only one there is
        _, status = os.waitpid(in_child(work), 0)
        assert check() in (1, 2)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return number - 1
        shutil.rmtree(checkpoint_dir(root, 2), ignore_errors=True)
        write(1)

write(1)
if sys.argv[2] == "random":
    at_random_moments(10)
    print("survived")
else:
    print("survived", before_every_call())
write(9)
print(sorted(path.name for path in root.iterdir() if path.name.startswith(".")))
"""


def _kill(root: Path, how: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", KILL_LOOP, str(root), how], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_every_listed_checkpoint_is_whole_after_kills_at_random_moments(tmp_path: Path) -> None:
    assert _kill(tmp_path, "random") == ["survived", "[]"]


def test_every_listed_checkpoint_is_whole_after_a_kill_before_any_step_of_writing(tmp_path: Path) -> None:
    survived, leftovers = _kill(tmp_path, "steps")
    assert int(survived.removeprefix("survived ")) > 20
    assert leftovers == "[]"
    assert read_checkpoint(latest_checkpoint(tmp_path)).state == {"step": 9}
