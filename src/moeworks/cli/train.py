"""`moeworks train [PRESET] [options]`, and `moeworks train --resume runs/NAME`: its options."""

import time
from dataclasses import dataclass
from pathlib import Path

from moeworks.cli.arguments import parse as parse_run
from moeworks.config.presets import DEFAULT_PRESET, dense_twin
from moeworks.config.run import RunConfig
from moeworks.errors import ConfigError
from moeworks.train.run_dir import RunDir


@dataclass(frozen=True)
class TrainOptions:
    """Options of the verb, beside the fields of the run."""

    resume: Path | None = None
    """A run's folder: continue it from its latest checkpoint, with its own config."""
    name: str | None = None
    """Name of the run; the default is the preset's name and the time."""
    out: Path = Path("runs")
    """Folder that holds runs."""
    dense_twin: bool = False
    """Train the run's dense twin instead: the same active width per token, and no experts."""


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained, and where its files go."""

    config: RunConfig
    directory: RunDir
    resume: bool
    """Continue the run in `directory`."""


def parse(argv: list[str]) -> TrainRequest:
    """The run that `argv` describes. Raises ConfigError, and CheckpointError for a --resume without a run."""
    parsed = parse_run(TrainOptions, argv, "moeworks train")
    options = parsed.options
    if options.resume is None:
        config = dense_twin(parsed.config) if options.dense_twin else parsed.config
        name = options.name
        if name is None:
            name = _default_name(parsed.preset, options.dense_twin)
        _check_name(name)
        return TrainRequest(config, RunDir(options.out / name), resume=False)
    if parsed.chosen or options != TrainOptions(resume=options.resume):
        raise ConfigError(
            f"--resume {options.resume} continues a run with its own config: it takes no preset and no"
            " other option"
        )
    directory = RunDir(options.resume)
    return TrainRequest(directory.load_config(), directory, resume=True)


def _check_name(name: str) -> None:
    """A run must not land outside --out, where it could meet other things."""
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise ConfigError(
            f"--name {name!r}: must be the name of one folder, without '/'; --out chooses where it is made"
        )


def _default_name(preset: str | None, is_twin: bool) -> str:
    twin = "-dense" if is_twin else ""
    return f"{preset or DEFAULT_PRESET}{twin}-{time.strftime('%Y%m%d-%H%M%S')}"
