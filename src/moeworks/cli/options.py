"""What the options of several verbs share."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal

import tyro

from moeworks.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
"""Types of weights, in both spellings."""
LONG_DTYPES: Mapping[str, str] = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""From the short names of types to torch's."""


def parse_options(kind: Any, argv: list[str], prog: str) -> Any:
    """The options of `kind`, a dataclass or a union of subcommands, that `argv` spells.

    A flag is one option: no --no-json stands beside --json. For --help and for what it refuses tyro prints
    and raises SystemExit.
    """
    return tyro.cli(kind, prog=prog, args=argv, config=(tyro.conf.FlagCreatePairsOff,))


def option_name(name: str) -> str:
    """The option of a field: --max-tokens of max_tokens."""
    return f"--{name.replace('_', '-')}"


def refuse_idle(options: Any, names: Iterable[str], why: str) -> None:
    """Raise ConfigError when one of the fields `names` of `options` is set: an option that would do nothing.

    Args:
        options: a dataclass; a field at its default counts as not set.
        why: the rest of the sentence after "has no effect", such as "without --data".
    """
    defaults = {field.name: _default(field) for field in fields(options)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            flag = "no_" + name if defaults[name] is True else name
            raise ConfigError(f"{option_name(flag)} has no effect {why}")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
