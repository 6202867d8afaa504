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

from moeworks.config.codec import unions_of_kinds
from moeworks.config.presets import DEFAULT_PRESET, PRESETS, preset
from moeworks.config.run import RunConfig
from moeworks.errors import ConfigError, check, nearest

Options = TypeVar("Options")


@dataclass(frozen=True)
class Parsed(Generic[Options]):
    """What a verb was called with."""

    options: Options
    """The verb's own options."""
    config: RunConfig
    """The preset with its overrides."""
    preset: str | None
    """The preset that was named; None when the default one was taken."""

    @property
    def chosen(self) -> bool:
        """A preset was named, or a field differs from the default preset's."""
        return self.preset is not None or self.config != preset()


@dataclass(frozen=True)
class NoOptions:
    """For verbs without options of their own."""


def run_config(argv: list[str], prog: str) -> RunConfig:
    """The run that `argv` describes; `prog` ('moeworks train') stands in the help. Raises as parse does."""
    return parse(NoOptions, argv, prog).config


def parse(options_cls: type[Options], argv: list[str], prog: str) -> Parsed[Options]:
    """The options and the run that `argv` describes.

    `options_cls` is a dataclass whose fields all have defaults; `name: str` becomes --name, `dense_twin:
    bool = False` becomes --dense-twin, and the strings under the fields become their help.

    Raises ConfigError for an unknown preset and for a value that breaks a rule of the config. For --help, an
    unknown option (with the nearest ones) and a value of a wrong type tyro prints and raises SystemExit.
    """
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    base, rest = _choose_kinds(preset(name or DEFAULT_PRESET), rest)
    command = _command(options_cls, base)
    description = (
        f"Arguments: [PRESET] [options]; PRESET is {' | '.join(PRESETS)} (default: {DEFAULT_PRESET})."
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
    return make_dataclass(
        "Command",
        [
            ("options", Annotated[options_cls, unnamed], field(default=options_cls())),
            ("config", Annotated[RunConfig, unnamed], field(default=base)),
        ],
        frozen=True,
    )


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
    """Which options choose kinds, for the help."""
    texts = (
        f"--{path.replace('_', '-')} {' | '.join(kind.replace('_', '-') for kind in members)}"
        for path, members in unions_of_kinds(RunConfig)
    )
    return f"Kinds, which have options of their own: {'; '.join(texts)}."


@contextlib.contextmanager
def _own_errors() -> Generator[None]:
    """Raise the ConfigError that made tyro exit, instead of its account of it.

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
