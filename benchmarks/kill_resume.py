"""Kill a training run at random moments; each time --resume must end where an undisturbed run ends.

    python benchmarks/kill_resume.py --kills 20

Every run is the real command in a process of its own. It is killed with SIGKILL, half of the times as soon
as a checkpoint is seen being written, and resumed; then all tensors of its last checkpoint (weights, biases,
optimizer) are compared with the undisturbed run's bit for bit, and its metrics but for their timings.
Exit code 1 when any differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import moeworks

CHECKPOINT_EVERY = 5
COMMAND = [sys.executable, "-u", "-m", "moeworks", "train"]
TIMINGS = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Setting:
    """What all runs of one call share."""

    root: Path
    steps: int

    def start(self, name: str) -> list[str]:
        """The command of a new run: a tiny model with everything random switched on, on our own source."""
        fields = {
            "data": self.root / "texts",
            "corpus.cache-dir": self.root / "cache",
            "model.router.input-jitter": 0.05,
            "balance.bias-rule": "sign",
            "train.steps": self.steps,
            "train.batch-size": 16,
            "train.seq-len": 128,
            "train.threads": 1,
            "train.device": "cpu",
            "train.eval-every": 4 * CHECKPOINT_EVERY,
            "train.checkpoint-every": CHECKPOINT_EVERY,
            "out": self.root,
            "name": name,
        }
        options = [word for field, value in fields.items() for word in (f"--{field}", str(value))]
        return [*COMMAND, "smoke", *options, "--model.router.selection-bias", "--model.router.noisy-top-k"]

    def resume(self, name: str) -> list[str]:
        """The command that continues the run."""
        return [*COMMAND, "--resume", str(self.root / name)]


@dataclass(frozen=True)
class Moment:
    """When a run was killed."""

    after: float
    """Seconds after its first step."""
    step: int
    """The last step in its metrics."""
    leftover: str
    """The unfinished directory that the kill left among the checkpoints, or ''."""


def run_to_the_end(command: list[str]) -> str:
    """Its output. Raises CalledProcessError when it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def kill(command: list[str], run: Path, wait: float, *, aim: bool) -> Moment | None:
    """Kill the run `wait` seconds after its first step, or if `aim` at the next checkpoint after that.

    None when it ended before.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    first = time.perf_counter()
    while process.poll() is None:
        seconds = time.perf_counter() - first
        if seconds >= wait and (not aim or _unfinished(run)):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.stdout.close()
    if process.wait() != -signal.SIGKILL:
        return None
    return Moment(time.perf_counter() - first, records(run)[-1]["step"], _unfinished(run))


def _unfinished(run: Path) -> str:
    folder = run / "checkpoints"
    hidden = [name for name in os.listdir(folder) if name.startswith(".")] if folder.is_dir() else []
    return hidden[0] if hidden else ""


def records(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without their timings; a last line that was cut off is left out."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in parsed]


def difference(run: Path, other: Path, steps: int) -> str:
    """What differs between the ends of two runs, or ''."""
    ends = [folder / "checkpoints" / f"step-{steps:08d}" for folder in (run, other)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        if (ends[0] / name).read_bytes() != (ends[1] / name).read_bytes():
            return name
    return "" if records(run) == records(other) else "metrics.jsonl"


def one_kill(setting: Setting, number: int, longest: float) -> tuple[str, bool]:
    """Start, kill, resume, compare: a line of text, and whether all was equal."""
    name, aim = f"killed-{number:02}", number % 2 == 0
    run = setting.root / name
    while (moment := kill(setting.start(name), run, random.uniform(0, longest), aim=aim)) is None:
        shutil.rmtree(run)  # it ended before the kill
    output = run_to_the_end(setting.resume(name))
    differs = difference(run, setting.root / "undisturbed", setting.steps)
    start = next(line for line in output.splitlines() if line.startswith(("resuming", "no checkpoint")))
    where = f"in the middle of {moment.leftover}" if moment.leftover else "between checkpoints"
    verdict = f"DIFFERS in {differs}" if differs else "equal"
    resumed = start.split("/")[-1]
    text = f"{moment.after:5.2f} s, step {moment.step:3}, {where}; resumed from {resumed}: {verdict}"
    return text, not differs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many runs to kill")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), options.steps)
        shutil.copytree(Path(moeworks.__file__).parent, setting.root / "texts")
        run_to_the_end(setting.start("undisturbed"))
        summary = json.loads((setting.root / "undisturbed" / "summary.json").read_text())
        print(f"undisturbed: {options.steps} steps in {summary['seconds']:.1f} s", flush=True)
        equal = 0
        for number in range(1, options.kills + 1):
            text, same = one_kill(setting, number, 0.8 * summary["seconds"])
            equal += same
            print(f"kill {number:2}/{options.kills}: {text}", flush=True)
    print(f"{equal} of {options.kills} resumed runs equal the undisturbed one bit for bit")
    return 0 if equal == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
