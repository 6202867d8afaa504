"""Training steps of the default preset: per backend, beside its dense twin, and what statistics cost."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from moeworks.config import RunConfig
from moeworks.config.presets import DEFAULT_PRESET, dense_twin, preset
from moeworks.ops.backends import BACKENDS, Backend
from moeworks.ops.native import library
from moeworks.train import loop, step
from suite.registry import Arm, Case, Operation, RefusedError, Sampler, Settings, register
from suite.sampling import milliseconds, per_second
from suite.trainers import QUICK_DATA, our_trainer

TWIN = "dense twin"
PURE = "pure torch"
"""As where moeworks was installed without a compiler."""


def preset_cases(settings: Settings) -> list[Case]:
    """The default preset; the smoke preset for --quick."""
    name = "smoke" if settings.quick else DEFAULT_PRESET
    train = preset(name).train
    return [Case(name, {"preset": name, "B": train.batch_size, "L": train.seq_len})]


def backend_arms(case: Case, settings: Settings) -> list[Arm]:
    """Tokens a second on each backend, and without the native library at all."""
    config = _config(case, settings)
    tokens = config.train.batch_size * config.train.seq_len

    def sampled(run: Callable[[], None]) -> Callable[[], float]:
        return per_second(run, tokens, settings)

    builds = {f"moeworks {name}": partial(_built, config, sampled, cast(Backend, name)) for name in BACKENDS}
    builds[PURE] = partial(_without_native, config, sampled)
    return [Arm(name=name, build=build, ours=True, maths="the first loss") for name, build in builds.items()]


def twin_arms(case: Case, settings: Settings) -> list[Arm]:
    """Milliseconds of the run on the backend that it chooses, and of its dense twin."""
    config = _config(case, settings)
    return [
        Arm(name=name, build=partial(_built, run, lambda f: milliseconds(f, settings)), ours=name != TWIN)
        for name, run in (("moeworks", config), (TWIN, dense_twin(config)))
    ]


def statistics_arms(case: Case, settings: Settings) -> list[Arm]:
    """The share of a step that counts, dropped shares and load figures take."""
    return [Arm(name="moeworks", build=partial(_statistics, _config(case, settings)), ours=True)]


def _config(case: Case, settings: Settings) -> RunConfig:
    config = preset(str(case.shape["preset"]))
    config = replace(config, train=replace(config.train, threads=settings.threads, device="cpu"))
    if not settings.quick:
        return config
    return replace(config, **QUICK_DATA)


def _built(
    config: RunConfig,
    sampled: Callable[[Callable[[], None]], Callable[[], float]],
    backend: Backend = "auto",
) -> Sampler:
    trainer = our_trainer(config, backend)
    losses: list[float] = []

    def run() -> None:
        losses.append(float(trainer.step().losses.loss))

    return Sampler(sampled(run), lambda: [losses[0]])


def _without_native(
    config: RunConfig, sampled: Callable[[Callable[[], None]], Callable[[], float]]
) -> Sampler:
    """Raises RefusedError in a process that has the library already."""
    if library.library.cache_info().currsize:
        raise RefusedError("needs a process of its own")
    library._find = lambda: None
    return _built(config, sampled)


def _statistics(config: RunConfig) -> Sampler:
    """Wraps the functions that compute them inside real steps, until it is closed."""
    trainer, watch = our_trainer(config), Stopwatch()
    originals = {name: getattr(step, name) for name in ("_detached", "summed")}
    for name, function in originals.items():
        setattr(step, name, watch.wrap(function))
    records = watch.wrap(loop.Interval.records)

    def sample() -> float:
        watch.seconds, started = 0.0, time.perf_counter()
        interval = loop.Interval()
        taken = trainer.step()
        interval.add(taken, 1.0, config)
        records(interval, trainer, taken.learning_rate)
        return 100 * watch.seconds / (time.perf_counter() - started)

    def close() -> None:
        for name, function in originals.items():
            setattr(step, name, function)

    return Sampler(sample, close=close)


class Stopwatch:
    """Adds up the time spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


register(
    Operation(
        name="default_train",
        summary="Training step of the default preset, on each backend",
        unit="tokens/s",
        reference=PURE,
        higher_is_better=True,
        rounds=15,
        cases=preset_cases,
        arms=backend_arms,
    )
)
register(
    Operation(
        name="step_time",
        summary="Training step of the default preset, over that of its dense twin",
        unit="ms",
        reference=TWIN,
        rounds=15,
        cases=preset_cases,
        arms=twin_arms,
    )
)
register(
    Operation(
        name="routing_statistics",
        summary="Share of a training step of the default preset that its routing statistics take (bar: 2 %)",
        unit="% of a step",
        reference=None,
        rounds=20,
        cases=preset_cases,
        arms=statistics_arms,
    )
)
