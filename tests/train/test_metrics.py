"""metrics.jsonl and the other loggers."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from tiny_run import full_disk, tiny_config

from moeworks.errors import DataError, MissingDependencyError
from moeworks.train.metrics import MetricsSink, flatten, open_loggers

TRAIN = {
    "kind": "train",
    "step": 2,
    "loss": 1.5,
    "balance": {"z": 0.25},
    "max_vio": [0.5, 1.0],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


# The file.


def test_a_line_is_in_the_file_at_once_and_goes_to_every_logger(path):
    seen: list[dict[str, Any]] = []
    sink = MetricsSink(path, [seen.append, seen.append])
    sink.write(TRAIN)
    assert json.loads(path.read_text()) == TRAIN
    assert seen == [TRAIN, TRAIN]
    sink.close()


def test_sync_tells_the_length(path):
    sink = MetricsSink(path, [])
    assert sink.sync() == 0
    sink.write({"step": 1})
    assert sink.sync() == path.stat().st_size > 0
    sink.close()


def test_reopening_keeps_what_the_checkpoint_knows_of_and_nothing_more(path):
    sink = MetricsSink(path, [])
    sink.write({"step": 1})
    known = sink.sync()
    sink.write({"step": 2})
    sink.close()
    again = MetricsSink(path, [], keep_bytes=known)
    assert steps(path) == [1]
    assert again.sync() == known
    again.write({"step": 3})
    assert again.sync() == path.stat().st_size
    again.close()
    assert steps(path) == [1, 3]


def test_a_new_run_starts_an_empty_file(path):
    path.write_text("of another run\n")
    MetricsSink(path, []).close()
    assert path.read_bytes() == b""


def test_a_file_that_was_shortened_does_not_grow_by_zeros(path):
    path.write_text('{"step": 1}\n')
    sink = MetricsSink(path, [], keep_bytes=1000)
    sink.write({"step": 2})
    sink.close()
    assert steps(path) == [1, 2]


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone/metrics.jsonl: cannot be written: No such file"):
        MetricsSink(tmp_path / "gone" / "metrics.jsonl", [])


def test_full_disk(path):
    sink = MetricsSink(path, [])
    with full_disk(), pytest.raises(DataError, match=r"metrics.jsonl: cannot be written: "):
        sink.write(TRAIN)


# Other loggers.


def test_flatten_takes_numbers_and_leaves_words_and_flags():
    assert flatten(TRAIN) == {"step": 2, "loss": 1.5, "balance/z": 0.25, "max_vio/0": 0.5, "max_vio/1": 1.0}
    assert flatten({"tokens_per_expert": [[1, 2], [3]], "best": None}) == {
        "tokens_per_expert/0/0": 1, "tokens_per_expert/0/1": 2, "tokens_per_expert/1/0": 3,
    }  # fmt: skip


def test_no_logger_by_default(texts, tmp_path):
    assert open_loggers(tiny_config(texts), tmp_path) == []


def test_logger_that_is_not_installed_says_how_to_install_it(texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config(texts, train=dict(loggers=("wandb",)))
    with pytest.raises(MissingDependencyError, match=r"pip install 'moeworks\[wandb\]'"):
        open_loggers(config, tmp_path)


def test_tensorboard_gets_every_number(texts, tmp_path, monkeypatch):
    written, folders = [], []

    class SummaryWriter:
        def __init__(self, folder) -> None:
            folders.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append("flushed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (log,) = open_loggers(tiny_config(texts, train=dict(loggers=("tensorboard",))), tmp_path)
    log({"kind": "train", "step": 2, "loss": 1.5, "max_vio": [0.5]})
    assert folders == [tmp_path / "tensorboard"]
    assert written == [("train/loss", 1.5, 2), ("train/max_vio/0", 0.5, 2), "flushed"]


def test_wandb_goes_on_with_the_run_of_the_same_name(texts, tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            logged.append((numbers, step))

    module = ModuleType("wandb")
    module.init = lambda **options: started.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    (log,) = open_loggers(tiny_config(texts, train=dict(loggers=("wandb",))), tmp_path)
    log({"kind": "eval", "step": 4, "bits_per_byte": 2.0})
    assert (started[0]["id"], started[0]["resume"]) == (tmp_path.name, "allow")
    assert started[0]["config"]["train"]["loggers"] == ["wandb"]
    assert logged == [({"eval/bits_per_byte": 2.0}, 4)]
