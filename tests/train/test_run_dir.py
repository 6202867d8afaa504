"""The files of a run."""

import json
import os

import pytest
from tiny_run import tiny_config

from moeworks.errors import CheckpointError, DataError
from moeworks.train.run_dir import RunDir, write_json


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "runs" / "name")


def test_all_files_lie_in_the_folder(run):
    names = {"config", "tokenizer", "metrics", "checkpoints", "summary", "report"}
    paths = {getattr(run, name) for name in names}
    assert {path.parent for path in paths} == {run.root}
    assert len(paths) == len(names)


def test_config_comes_back(run, texts):
    config = tiny_config(texts, router=dict(noisy_top_k=True), train=dict(loggers=("wandb",)))
    run.save_config(config)
    assert run.load_config() == config
    assert list(run.root.iterdir()) == [run.config]


def test_folder_without_config_is_no_run(run):
    with pytest.raises(CheckpointError, match=r"runs/name: not a run: it has no config.json"):
        run.load_config()


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"nonsense"])
def test_config_that_is_not_json(run, texts, content):
    run.save_config(tiny_config(texts))
    run.config.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"name/config.json: not JSON"):
        run.load_config()


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("train", "stepz", 3, r"config.json: train.stepz: unknown field; did you mean 'steps'"),
        ("train", "steps", "3", r"config.json: train.steps = '3': must be int"),
        ("train", "steps", 0, r"config.json: train.steps = 0: must be at least 1"),
    ],
)
def test_config_that_was_altered_names_file_and_field(run, texts, group, field, value, message):
    run.save_config(tiny_config(texts))
    data = json.loads(run.config.read_text())
    data[group][field] = value
    write_json(run.config, data)
    with pytest.raises(CheckpointError, match=message):
        run.load_config()


def test_discard_takes_back_what_a_start_wrote(run, texts):
    run.save_config(tiny_config(texts))
    run.tokenizer.write_text("{}")
    run.metrics.write_text("")
    run.discard(folder=True)
    assert not run.root.exists()
    run.discard(folder=True)


def test_discard_leaves_a_folder_that_the_start_did_not_make(run, texts):
    run.root.mkdir(parents=True)
    with run.locked() as is_new:
        assert not is_new
        run.save_config(tiny_config(texts))
        run.discard(folder=is_new)
    assert run.root.is_dir() and list(run.root.iterdir()) == []


def test_of_two_processes_one_has_the_folder(run):
    with run.locked() as is_new:
        assert is_new and run.is_empty()
        message = rf"runs/name: in use by process {os.getpid()} on .*: wait"
        with pytest.raises(DataError, match=message), RunDir(run.root).locked():
            pass
    with run.locked() as is_new:
        assert not is_new
    assert list(run.root.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    message = r"runs/name: cannot be written: Not a directory"
    with pytest.raises(DataError, match=message), RunDir(tmp_path / "runs" / "name").locked():
        pass


def test_discard_leaves_what_others_put_there(run, texts):
    run.save_config(tiny_config(texts))
    (run.root / "notes.txt").write_text("mine")
    run.discard(folder=True)
    assert [path.name for path in run.root.iterdir()] == ["notes.txt"]


def test_write_json_replaces_whole_files(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"name": "é", "values": [1, 2]})
    write_json(path, {"name": "b"})
    assert json.loads(path.read_text()) == {"name": "b"}
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "gone" / "summary.json"
    with pytest.raises(DataError, match=r"gone/summary.json: cannot be written"):
        write_json(path, {})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []
