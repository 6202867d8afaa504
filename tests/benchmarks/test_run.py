"""The command line, as one calls it: --list, and tiny runs of operations in each mode."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import run
from suite.registry import OPERATIONS

CELL = "E 8, k 2, F 16, d 32, T 64"


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Arms in this process set its threads, and Tutel starts a process group."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def call(tmp_path: Path, *words: str) -> dict:
    path = tmp_path / "out.json"
    assert run.main([*words, "--quick", "--threads", "1", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_list_names_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(f"{name} " in output for name in OPERATIONS)


def test_an_unknown_operation_is_an_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["layers"])
    assert "no operation 'layers'; did you mean 'layer'?" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["layer", "--device", "cuda"])
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_layer_runs_all_arms_that_are_installed_and_ours_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markdown = tmp_path / "out.md"
    record = call(tmp_path, "layer", "--markdown", str(markdown))
    (operation,) = record["operations"]
    assert (operation["name"], operation["mode"], operation["rounds"]) == ("layer", "together", 2)
    (case,) = operation["cases"]
    assert case["name"] == CELL and case["shape"]["E"] == 8
    arms = {arm["name"]: arm for arm in case["arms"]}
    for name in ("moeworks reference", "moeworks sorted", "moeworks grouped_mm"):
        assert arms[name]["agrees"] is True
        assert len(arms[name]["samples"]) == 2 and arms[name]["ratio"]["median"] > 0
    assert all(arm["samples"] or arm["refused"] or arm["failed"] for arm in arms.values())
    assert f"| | {CELL} |" in markdown.read_text("utf-8")
    assert "moeworks sorted" in capsys.readouterr().out


def test_processes_of_their_own_give_the_same_results(tmp_path: Path) -> None:
    words = ("layer", "--arms", "sorted", "--rounds", "1")
    together = call(tmp_path, *words)["operations"][0]["cases"][0]["arms"]
    apart = call(tmp_path, *words, "--mode", "apart")["operations"][0]
    assert apart["mode"] == "apart"
    arms = apart["cases"][0]["arms"]
    assert [arm["name"] for arm in arms] == ["moeworks sorted", "moeworks sorted, recompute", "dense SwiGLU"]
    assert arms[0]["fingerprint"] == pytest.approx(together[0]["fingerprint"], rel=1e-5)
    assert len(arms[0]["samples"]) == 1


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_memory_is_measured_in_new_processes(tmp_path: Path) -> None:
    record = call(tmp_path, "layer_memory", "--arms", "sorted", "--rounds", "1")
    operation = record["operations"][0]
    assert operation["mode"] == "fresh"
    arm = operation["cases"][0]["arms"][0]
    assert arm["name"] == "moeworks sorted" and arm["failed"] is None and len(arm["samples"]) == 1


@pytest.mark.parametrize("name", ["train_step", "default_train"])
def test_backends_begin_with_the_same_loss(name: str, tmp_path: Path) -> None:
    arms = call(tmp_path, name, "--rounds", "1")["operations"][0]["cases"][0]["arms"]
    ours = [arm for arm in arms if arm["ours"]]
    assert len(ours) >= 3
    assert all(arm["agrees"] for arm in arms if not arm["refused"])


@pytest.mark.parametrize("name", ["step_time", "routing_statistics"])
def test_the_other_training_operations_run(name: str, tmp_path: Path) -> None:
    arms = call(tmp_path, name, "--rounds", "1")["operations"][0]["cases"][0]["arms"]
    assert all(len(arm["samples"]) == 1 for arm in arms)


def test_a_spinning_process_lives_no_longer_than_its_arm(tmp_path: Path) -> None:
    record = call(tmp_path, "contention", "--arms", "sorted, one core busy", "--rounds", "1")
    arms = record["operations"][0]["cases"][0]["arms"]
    assert [arm["over"] for arm in arms] == [None, "moeworks sorted"]
    assert arms[1]["ratio"]["median"] > 0


def test_trouble_of_ours_is_an_exit_code() -> None:
    def record(**arm: object) -> dict:
        arm = {"name": "a", "ours": True, "failed": None, "agrees": None} | arm
        return {"operations": [{"cases": [{"arms": [arm]}]}]}

    assert run.troubles(record()) == []
    assert run.troubles(record(failed="MemoryError: gone")) == ["a"]
    assert run.troubles(record(failed="MemoryError: gone", ours=False)) == []
    assert run.troubles(record(agrees=False, ours=False)) == ["a"]
