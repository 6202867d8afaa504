"""`moeworks train [PRESET] [options]`, and `moeworks train --resume runs/NAME`: its options."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from moeworks.cli.arguments import parse as parse_run
from moeworks.cli.options import option_name, refuse_idle
from moeworks.config.presets import DEFAULT_PRESET, dense_twin
from moeworks.config.run import RunConfig
from moeworks.errors import ConfigError, check
from moeworks.train.run_dir import RunDir

RESUMABLE = (
    "steps", "log_every", "eval_every", "eval_tokens", "checkpoint_every", "keep_last", "sample_prompt",
    "sample_tokens", "loggers",
)  # fmt: skip
"""Fields of `train` that a run may change when it is continued: the steps it takes are the same."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of the verb, beside the fields of the run."""

    resume: Path | None = None
    """A run's folder: continue it from its latest checkpoint, with its own config. --train.steps may be
    raised, and the options of metrics, validation, checkpoints and the sample may change."""
    name: str | None = None
    """Name of the run; None is the preset's name and the time."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs")
    """Folder in which every run has a folder of its own."""
    dense_twin: bool = False
    """Train the run's dense twin instead: the same active width per token, and no experts."""
    json: bool = False
    """Print the summary as one JSON object; progress goes to standard error."""


@dataclass(frozen=True)
class TrainRequest:
    """The run to train, and the folder of its files."""

    config: RunConfig
    directory: RunDir
    resume: bool
    """Continue the run in `directory`."""
    as_json: bool = False
    """Print the summary as JSON."""


def parse(argv: list[str]) -> TrainRequest:
    """The run that `argv` describes. Raises ConfigError, and CheckpointError for a --resume without a run."""
    resumed = _resumed(argv)
    if resumed is not None:
        return _continued(RunDir(resumed), argv)
    parsed = parse_run(TrainOptions, argv, "moeworks train")
    options = parsed.options
    config = dense_twin(parsed.config) if options.dense_twin else parsed.config
    name = _default_name(parsed.preset, options.dense_twin) if options.name is None else options.name
    _check_name(name)
    return TrainRequest(config, RunDir(options.out / name), resume=False, as_json=options.json)


def same_steps(config: RunConfig, other: RunConfig) -> bool:
    """Whether both take the same steps as far as both go: they differ in nothing but RESUMABLE fields."""
    free = {name: getattr(config.train, name) for name in RESUMABLE}
    return replace(other, train=replace(other.train, **free)) == config


def _resumed(argv: list[str]) -> Path | None:
    """The folder that --resume names."""
    for place, word in enumerate(argv):
        if word.startswith("--resume="):
            return Path(word.removeprefix("--resume="))
        if word == "--resume" and place + 1 < len(argv):
            return Path(argv[place + 1])
    return None


def _continued(directory: RunDir, argv: list[str]) -> TrainRequest:
    saved = directory.load_config()
    parsed = parse_run(TrainOptions, argv, "moeworks train", base=saved)
    refuse_idle(parsed.options, ("name", "out", "dense_twin"), "with --resume, which names the run")
    if not same_steps(parsed.config, saved):
        allowed = ", ".join(option_name(f"train.{name}") for name in RESUMABLE)
        raise ConfigError(
            f"--resume {directory.root} continues a run with its own config, of which only these options can"
            f" change: {allowed}"
        )
    steps = parsed.config.train.steps
    least = saved.train.steps
    check(steps >= least, "train.steps", steps, f"must be at least the run's own, {least}, with --resume")
    return TrainRequest(parsed.config, directory, resume=True, as_json=parsed.options.json)


def _check_name(name: str) -> None:
    """A run must not land outside --out, where it could meet other things."""
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise ConfigError(
            f"--name {name!r}: must be the name of one folder, without '/'; --out chooses where it is made"
        )


def _default_name(preset: str | None, is_twin: bool) -> str:
    twin = "-dense" if is_twin else ""
    return f"{preset or DEFAULT_PRESET}{twin}-{time.strftime('%Y%m%d-%H%M%S')}"
