"""From a verb's arguments to its options and a run's config.

Every verb that takes a run is called as `VERB [PRESET] [options]`. PRESET is the first argument unless
that begins with a hyphen; all others are options: those of the verb, and one for each field of the run's
config by its dotted path (`--model.router.top-k 2`, or `top_k`), which override the preset. A part of the
config that comes in several kinds is chosen by its path (`--model.router.choice expert-choice`), and then has
the options of that kind (`--model.router.choice.capacity-factor 1.5`).
"""

import contextlib
import copy
import io
import sys
from collections.abc import Generator
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro

from moeworks.cli.options import LONG_DTYPES
from moeworks.config.codec import unions_of_kinds
from moeworks.config.presets import DEFAULT_PRESET, PRESETS, preset
from moeworks.config.run import RunConfig
from moeworks.errors import ConfigError, check, nearest

Options = TypeVar("Options")


@dataclass(frozen=True)
class Parsed(Generic[Options]):
    """The options and the run of one call of a verb."""

    options: Options
    """The verb's own options."""
    config: RunConfig
    """The preset with its overrides."""
    preset: str | None
    """Name of the preset; None when the default one was taken."""


@dataclass(frozen=True)
class NoOptions:
    """Options of verbs that have none of their own."""


def run_config(argv: list[str], prog: str) -> RunConfig:
    """The run that `argv` describes; `prog` ('moeworks train') is the name in the help. Raises as parse
    does."""
    return parse(NoOptions, argv, prog).config


def parse(
    options_cls: type[Options], argv: list[str], prog: str, base: RunConfig | None = None
) -> Parsed[Options]:
    """The options and the run that `argv` describes.

    `options_cls` is a dataclass whose fields all have defaults; `name: str` becomes --name, `dense_twin:
    bool = False` becomes --dense-twin, and the strings under the fields become their help. `base` is what
    options override in the place of a preset.

    Raises ConfigError for an unknown preset and for a value that breaks a rule of the config. For --help, an
    unknown option (with the nearest ones) and a value of a wrong type tyro prints and raises SystemExit.
    """
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    if base is not None and name is not None:
        raise ConfigError(f"preset = {name!r}: the run has a config of its own, so no preset can be named")
    base, rest = _choose_kinds(base or preset(name or DEFAULT_PRESET), _spelled_out(rest))
    command = _command(options_cls, base)
    description = (
        f"Arguments: [PRESET] [options]; PRESET is {' | '.join(PRESETS)} (default: {DEFAULT_PRESET})."
        f" Short for fields: {', '.join(f'{short} is {name}' for short, name in _SHORT.items())}."
        f" {_kinds_text()}"
    )
    with _own_errors():
        # Kinds are chosen above: tyro sees the options of the chosen ones.
        parsed = tyro.cli(
            command, prog=prog, description=description, args=rest, config=(tyro.conf.AvoidSubcommands,)
        )
    return Parsed(parsed.options, parsed.config, name)


def _command(options_cls: type[Options], base: RunConfig) -> type:
    """A dataclass of the options and the run, in which neither's name is part of the fields' names."""
    unnamed = tyro.conf.arg(name="")
    own: Any = Annotated[options_cls, unnamed, tyro.conf.FlagCreatePairsOff]
    return make_dataclass(
        "Command",
        [
            ("options", own, field(default=options_cls())),
            ("config", Annotated[RunConfig, unnamed], field(default=base)),
        ],
        frozen=True,
    )


_SHORT = {
    "--context": "--train.seq-len",
    "--batch-size": "--train.batch-size",
    "--steps": "--train.steps",
    "--seed": "--train.seed",
    "--device": "--train.device",
    "--dtype": "--train.precision",
}
"""Options as other verbs call them, and the fields of a run that they are."""


def _spelled_out(argv: list[str]) -> list[str]:
    """`argv` with the options' full names, and with torch's names of types."""
    words, before = [], ""
    for word in argv:
        option, equals, value = word.partition("=")
        option = _SHORT.get(option.replace("_", "-"), option)
        if before == "--train.precision":
            option = LONG_DTYPES.get(option, option)
        elif option == "--train.precision":
            value = LONG_DTYPES.get(value, value)
        words.append(option + equals + value)
        before = option
    return words


def _choose_kinds(base: RunConfig, argv: list[str]) -> tuple[RunConfig, list[str]]:
    """`base` with the kinds that `argv` chooses, and the arguments that are left."""
    unions, rest = dict(unions_of_kinds(RunConfig)), []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        path = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or path not in unions:
            rest.append(word)
            continue
        kind = (value if equals else next(words, "")).replace("-", "_")
        members = unions[path]
        check(kind in members, path, kind, nearest(kind, members))
        base = _with_part(base, path.split("."), members[kind]())
    return base, rest


def _with_part(config: Any, path: list[str], part: object) -> Any:
    """A copy of nested dataclasses with another `part` at `path`, which no rule has looked at yet.

    The options that follow may make a config valid that is not while they have not been read.
    """
    name, *rest = path
    changed = copy.copy(config)
    value = _with_part(getattr(config, name), rest, part) if rest else part
    object.__setattr__(changed, name, value)
    return changed


def _kinds_text() -> str:
    """The options that choose kinds, as text for the help."""
    texts = (
        f"--{path.replace('_', '-')} {' | '.join(kind.replace('_', '-') for kind in members)}"
        for path, members in unions_of_kinds(RunConfig)
    )
    return f"Kinds, which have options of their own: {'; '.join(texts)}."


@contextlib.contextmanager
def _own_errors() -> Generator[None]:
    """Raise the ConfigError that made tyro exit, in place of what tyro prints about it.

    tyro catches every ValueError of a constructor, prints it and exits; that error is then a context of the
    SystemExit. What tyro refuses on its own account (options, types) passes as it is.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if (error := _config_error(stop)) is not None:
            raise error from None
        sys.stderr.write(printed.getvalue())
        raise


def _config_error(stop: SystemExit) -> ConfigError | None:
    error = stop.__context__
    while error is not None and not isinstance(error, ConfigError):
        error = error.__context__
    return error
