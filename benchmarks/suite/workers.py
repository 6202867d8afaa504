"""Where an arm runs: in this process, or in one of its own that speaks JSON lines."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from suite.registry import OPERATIONS, Case, Operation, RefusedError, Sampler, Settings

RUN = Path(__file__).parent.parent / "run.py"


@dataclass(frozen=True)
class Ready:
    """What came of preparing an arm: its first sample, or why there is none."""

    first: float | None = None
    seconds: float = 0.0
    """How long the first sample took."""
    fingerprint: tuple[float, ...] = ()
    refused: str | None = None
    failed: str | None = None


class Here:
    """Arms in this process, one at a time."""

    def __init__(self, operation: Operation, settings: Settings) -> None:
        self._operation, self._settings = operation, settings
        self._sampler: Sampler | None = None
        torch.set_num_threads(threads_of(operation, settings))

    def prepare(self, case: Case, arm_name: str) -> Ready:
        """Build the arm and take its first sample, which is a warm-up."""
        self.release()
        arms = {arm.name: arm for arm in self._operation.arms(case, self._settings)}
        try:
            self._sampler = arms[arm_name].build()
            started = time.perf_counter()
            first = self._sampler.sample()
            seconds = time.perf_counter() - started
            return Ready(first, seconds, tuple(self._sampler.fingerprint()))
        except RefusedError as reason:
            return Ready(refused=str(reason))
        except Exception as error:  # one arm's trouble must not end the others' measurement
            return Ready(failed=f"{type(error).__name__}: {error}")

    def sample(self) -> float:
        """One more sample."""
        assert self._sampler is not None
        return self._sampler.sample()

    def release(self) -> None:
        """Let go of what the arm holds."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
            gc.collect()

    close = release


class Apart:
    """The same in a process of its own, so that no arm meets another's allocator, threads or settings."""

    def __init__(self, operation: Operation, settings: Settings) -> None:
        job = json.dumps({"operation": operation.name, "settings": asdict(settings)})
        self._process = subprocess.Popen(
            [sys.executable, str(RUN), "--worker", job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self, case: Case, arm_name: str) -> Ready:
        """As Here.prepare."""
        try:
            answer = self._ask({"prepare": asdict(case), "arm": arm_name})
        except EOFError as error:
            return Ready(failed=str(error))
        answer["fingerprint"] = tuple(answer["fingerprint"])
        return Ready(**answer)

    def sample(self) -> float:
        """As Here.sample. Raises EOFError when the process has died."""
        return self._ask({"sample": True})["value"]

    def release(self) -> None:
        """As Here.release; a process that has died holds nothing."""
        with contextlib.suppress(EOFError):
            self._ask({"release": True})

    def close(self) -> None:
        """End the process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        self._process.wait()
        stdout.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        if not answer:
            raise EOFError(f"its process ended with exit code {self._process.wait()}")
        return json.loads(answer)


Worker = Here | Apart


def serve(job: str) -> None:
    """The other end of Apart: answer questions on standard input until it closes."""
    with _private_stdout() as answers:
        described = json.loads(job)
        here = Here(OPERATIONS[described["operation"]], Settings(**described["settings"]))
        for line in sys.stdin:
            question = json.loads(line)
            if "prepare" in question:
                answer = asdict(here.prepare(Case(**question["prepare"]), question["arm"]))
            elif "release" in question:
                here.release()
                answer = {}
            else:
                answer = {"value": here.sample()}
            print(json.dumps(answer), file=answers, flush=True)
        here.close()


def threads_of(operation: Operation, settings: Settings) -> int:
    """How many threads torch gets."""
    return cores() if operation.all_cores else settings.threads


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _private_stdout() -> Generator[TextIO]:
    """Standard output for answers alone: whatever a library prints goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers
