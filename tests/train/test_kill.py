"""Real processes that are killed, or told to stop, and go on where they were.

benchmarks/kill_resume.py does the same as often as one likes, at the size of a longer run.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import write_texts

from moeworks.cli.main import main

STEPS = 32
TIMINGS = ("seconds", "tokens_per_second")
FILES = ("model.safetensors", "optimizer.safetensors")

# Runs the command in a process that kills itself when the function `{target}` is called for the {nth} time.
SUICIDE = """
import os, signal, sys
from moeworks.checkpoint import series, staging, store
from moeworks.cli.main import main
from moeworks.train import loop, metrics

calls = 0
original = {target}

def killing(*args, **options):
    global calls
    calls += 1
    if calls == {nth}:
        {last_words}
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)

{target} = killing
sys.exit(main(sys.argv[1:]))
"""

MOMENTS = {
    "before the files of a checkpoint": ("store._write_manifest", "pass"),
    "before a checkpoint gets its name": ("staging.publish", "pass"),
    "between checkpoint and pruning": ("loop.prune_checkpoints", "pass"),
    "while an old checkpoint is deleted": (
        "series.remove_directory",
        "os.rename(args[0], staging._hidden(args[0], 'trash'))",
    ),
    "in the middle of a line of metrics": (
        "metrics.MetricsSink.write",
        'args[0]._file.write(b\'{"kind": "tr\')',
    ),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run in which everything random is on; without its place."""
    texts = write_texts(tmp_path_factory.mktemp("kill") / "texts")
    fields = {
        "data": texts, "corpus.cache-dir": texts.parent / "cache", "train.steps": STEPS, "train.seed": 5,
        "train.threads": 1, "train.device": "cpu", "train.batch-size": 8, "train.eval-every": 15,
        "train.checkpoint-every": 4, "model.router.input-jitter": 0.1, "balance.bias-rule": "sign",
    }  # fmt: skip
    options = [word for field, value in fields.items() for word in (f"--{field}", str(value))]
    return ["train", "smoke", *options, "--model.router.selection-bias", "--model.router.noisy-top-k"]


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([*command, "--out", str(out), "--name", "run"]) == 0
    return out / "run"


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_goes_on_to_the_same_end(run: Path, undisturbed: Path) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    ends = [folder / "checkpoints" / f"step-{STEPS:08d}" for folder in (run, undisturbed)]
    for name in FILES:
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name
    assert records(run) == records(undisturbed)
    assert not list(run.rglob(".*")), "something unfinished was left behind"


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_the_worst_moment(moment, command, undisturbed, tmp_path):
    target, last_words = MOMENTS[moment]
    script = SUICIDE.format(target=target, nth=3, last_words=last_words)
    argv = [*command, "--out", str(tmp_path), "--name", "run"]
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_goes_on_to_the_same_end(tmp_path / "run", undisturbed)


def start(command: list[str], out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, after its first step."""
    argv = [sys.executable, "-u", "-m", "moeworks", *command, "--out", str(out), "--name", "run"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/"):
            return process
    raise AssertionError(f"ended with {process.wait()} before its first step")


@pytest.mark.parametrize("kill", range(3))
def test_killed_at_a_random_moment(kill, command, undisturbed, tmp_path):
    process = start(command, tmp_path)
    seconds = random.uniform(0, json.loads((undisturbed / "summary.json").read_text())["seconds"])
    time.sleep(seconds)
    process.kill()
    process.communicate()
    print(f"killed {seconds:.3f} s after the first step")
    assert_goes_on_to_the_same_end(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop(number, command, undisturbed, tmp_path):
    process = start(command, tmp_path)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"Continue with: moeworks train --resume {tmp_path / 'run'}" in output
    assert_goes_on_to_the_same_end(tmp_path / "run", undisturbed)
