"""Sharing the cores: the scheduler's counters, the verdict on them, and the team that makes threads sleep."""

import os
import threading
from pathlib import Path

import pytest
import torch

from moeworks.ops.native.cores import Contention, SleepingTeam, run_delay, sharing_cores
from moeworks.ops.native.library import torch_openmp

needs_openmp = pytest.mark.skipif(torch_openmp() is None, reason="torch computes without libgomp here")


def task(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "schedstat").write_text(text)


def test_delay_is_the_sum_over_threads_in_seconds(tmp_path: Path) -> None:
    task(tmp_path, "10", "5000 2000000000 7\n")
    task(tmp_path, "11", "0 500000000 1\n")
    assert run_delay(tmp_path) == pytest.approx(2.5)


def test_a_thread_that_ends_while_it_is_read_does_not_count(tmp_path: Path) -> None:
    task(tmp_path, "10", "5000 2000000000 7\n")
    (tmp_path / "11").mkdir()
    assert run_delay(tmp_path) == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["", "0", "not a number"])
def test_a_system_without_the_counters_gives_none(tmp_path: Path, text: str) -> None:
    task(tmp_path, "10", text)
    assert run_delay(tmp_path) is None
    assert run_delay(tmp_path / "absent") is None


def test_contention_starts_at_once_and_ends_after_a_calm_second() -> None:
    contention = Contention()
    assert not contention.update(0.04)
    assert contention.update(0.3)
    calm = [contention.update(0.0) for _ in range(5)]
    assert calm == [True, True, True, True, False]


def test_a_single_disturbance_starts_the_calm_anew() -> None:
    contention = Contention()
    contention.update(0.3)
    assert all(contention.update(waited) for waited in (0.0, 0.0, 0.0, 0.15, 0.0, 0.0, 0.0, 0.0))


@needs_openmp
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_team_has_more_threads_than_processors_and_ends_with_its_leader() -> None:
    address = torch_openmp()
    assert address is not None
    before = len(os.listdir("/proc/self/task"))
    team = SleepingTeam(address)
    during = len(os.listdir("/proc/self/task"))
    team.dismiss()
    assert during - before >= (os.cpu_count() or 1) + 1
    assert not any(thread.name == "moeworks-sleeping-team" for thread in threading.enumerate())


@needs_openmp
def test_results_are_the_same_inside_and_outside() -> None:
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    outside = a @ b
    with sharing_cores():
        address = torch_openmp()
        assert address is not None
        team = SleepingTeam(address)
        inside = a @ b
        team.dismiss()
    assert torch.equal(inside, outside)
    assert not any(thread.name.startswith("moeworks-") for thread in threading.enumerate())
