"""What routing statistics cost: their share of a training step of the default preset.

    python benchmarks/routing_statistics.py [--steps 20]

Counts, dropped shares and load figures are timed inside real steps by wrapping the functions that compute
them; the bar is 2 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import write_result

from moeworks.config.presets import preset
from moeworks.data.shards import prepare
from moeworks.parallel.world import World
from moeworks.train import loop, step
from moeworks.train.trainer import Trainer


class Stopwatch:
    """Adds up the time spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    config = preset("laptop")
    corpus = prepare(config.data, config.corpus, config.model.vocab_size)
    trainer = Trainer(config, corpus, World())
    watch = Stopwatch()
    step._detached = watch.wrap(step._detached)
    step._combined = watch.wrap(step._combined)
    records = watch.wrap(loop._Interval.records)
    shares, milliseconds = [], []
    for _ in range(3):
        trainer.step()
    for _ in range(steps):
        watch.seconds, started = 0.0, time.perf_counter()
        interval = loop._Interval()
        interval.add(trainer.step())
        records(interval, trainer, 1.0)
        total = time.perf_counter() - started
        shares.append(watch.seconds / total)
        milliseconds.append(1000 * total)
    figures = {
        "median_step_ms": round(statistics.median(milliseconds), 1),
        "median_share_percent": round(100 * statistics.median(shares), 3),
        "max_share_percent": round(100 * max(shares), 3),
    }
    print(figures)
    write_result("routing_statistics", figures)


if __name__ == "__main__":
    main()
