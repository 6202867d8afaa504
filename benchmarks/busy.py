"""Tokens per second of a whole training run beside busy processes.

    python benchmarks/busy.py --rounds 3 --markdown busy.md

A run alone, then beside 1, 2 and 4 processes that each keep a core busy, in interleaved rounds: how much of
its fair share of the cores it keeps. `--python` measures other installations in the same rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUSY = "while True: sum(i * i for i in range(100000))"
CASES = (0, 1, 2, 4)
"""Numbers of busy processes."""


def fair_share(busy: int, cores: int) -> float:
    """The share of `cores` that `cores` threads get beside `busy` processes that each take what they can.

    A thread that shares its core with one process has half of it; b processes leave it 1 / (1 + b).
    """
    full, extra = divmod(busy, cores)
    return sum(1 / (1 + full + (core < extra)) for core in range(cores)) / cores


@dataclass(frozen=True)
class Setting:
    """What all runs of one call share."""

    records: int
    """Lines of metrics, of five steps each; the first warms up."""
    options: list[str]
    """More options of `moeworks train`."""
    patience: float = 300.0
    """Seconds until a run that has not written them is given up."""

    def tokens_per_second(self, python: str, busy: int) -> float:
        """The median over lines of metrics of a run of the default preset beside `busy` processes."""
        neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        with tempfile.TemporaryDirectory() as folder:
            command = [python, "-m", "moeworks", "train", "--name", "run", "--out", folder]
            command += ["--train.steps", "100000", "--train.log-every", "5", "--train.eval-every", "100000"]
            silent = subprocess.DEVNULL
            run = subprocess.Popen([*command, *self.options], stdout=silent, stderr=silent)
            try:
                speeds = _speeds(Path(folder, "run", "metrics.jsonl"), run, self.records, self.patience)
            finally:
                for process in (run, *neighbours):
                    process.kill()
                    process.wait()
        return statistics.median(speeds[1:])


def _speeds(metrics: Path, run: subprocess.Popen, records: int, patience: float) -> list[float]:
    end = time.monotonic() + patience
    speeds: list[float] = []
    while len(speeds) < records:
        if time.monotonic() > end or run.poll() is not None:
            raise SystemExit(f"{metrics}: {len(speeds)} of {records} lines after {patience:.0f} s")
        time.sleep(0.2)
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        speeds = [record["tokens_per_second"] for record in found if record["kind"] == "train"]
    return speeds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=6, help="lines of metrics a run, of five steps each")
    parser.add_argument("--busy", type=int, nargs="+", default=list(CASES))
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters with moeworks")
    parser.add_argument("--markdown", type=Path)
    args, options = parser.parse_known_args()
    setting = Setting(args.records, options)
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for busy in args.busy:
            for python in args.python:
                speeds.setdefault((python, busy), []).append(setting.tokens_per_second(python, busy))
                print(f"{python}, {busy} busy: {speeds[python, busy][-1]:.0f} tokens/s", file=sys.stderr)
    table = "\n".join(_table(speeds, args.python, args.busy))
    print(table)
    if args.markdown:
        args.markdown.write_text(table + "\n")


def _table(speeds: dict[tuple[str, int], list[float]], pythons: list[str], busy: list[int]) -> Iterator[str]:
    """Medians over rounds; shares are of the first interpreter's first number of processes."""
    cores = len(os.sched_getaffinity(0))
    alone = statistics.median(speeds[pythons[0], busy[0]])
    yield "| run | busy processes | tokens/s (min to max) | of alone | fair share | of the fair share |"
    yield "|---|---|---|---|---|---|"
    for number, python in enumerate(pythons, start=1):
        for count in busy:
            values = speeds[python, count]
            share, fair = statistics.median(values) / alone, fair_share(count, cores)
            yield (
                f"| {number} | {count} | {statistics.median(values):.0f} ({min(values):.0f} to"
                f" {max(values):.0f}) | {share:.2f} | {fair:.2f} | {share / fair:.2f} |"
            )


if __name__ == "__main__":
    main()
