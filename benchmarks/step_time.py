"""Time of a training step, a preset beside its dense twin, alternating in one process.

python benchmarks/step_time.py [PRESET] [--steps 30] [--threads N]
"""

import argparse
import statistics
import time

import torch
from common import write_result

from moeworks.config.presets import DEFAULT_PRESET, dense_twin, preset
from moeworks.data.shards import prepare
from moeworks.parallel.world import World
from moeworks.train.trainer import Trainer

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", nargs="?", default=DEFAULT_PRESET)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = preset(options.preset)
    corpus = prepare(config.data, config.corpus, config.model.vocab_size)
    trainers = {
        "moe": Trainer(config, corpus, World()),
        "dense": Trainer(dense_twin(config), corpus, World()),
    }
    milliseconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for number in range(WARM_UP + options.steps):
        for kind, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step()
            if number >= WARM_UP:
                milliseconds[kind].append(1000 * (time.perf_counter() - started))
    medians = {kind: round(statistics.median(values), 1) for kind, values in milliseconds.items()}
    figures = {
        "preset": options.preset,
        "median_step_ms": medians,
        "ratio": medians["moe"] / medians["dense"],
    }
    print(figures)
    write_result("step_time", figures)


if __name__ == "__main__":
    main()
