"""Every error that moeworks raises on purpose.

MoeworksError                 the command line prints it in one message and exits with 2
├── ConfigError (ValueError)  a field, its value, and the rule that the value breaks
├── DataError                 a corpus, file or tokenizer that cannot be used
├── CheckpointError           a checkpoint that is missing, altered, or of another model
├── TrainingError             training cannot go on (a loss or gradient that is not finite)
├── NotFiniteError            a model's outputs are NaN or infinite; says at which token and in which module
└── MissingDependencyError    an optional package is needed; says how to install it
"""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class MoeworksError(Exception):
    """Base of all errors that moeworks raises on purpose."""


class ConfigError(MoeworksError, ValueError):
    """A configuration field holds a value that breaks a rule."""


class DataError(MoeworksError):
    """A corpus, file or tokenizer that cannot be used."""


class CheckpointError(MoeworksError):
    """A checkpoint that is missing, altered, or belongs to another model."""


class TrainingError(MoeworksError):
    """Training cannot go on."""


class NotFiniteError(MoeworksError):
    """A model's outputs are NaN or infinite."""


class MissingDependencyError(MoeworksError, ImportError):
    """An optional package is needed and not installed."""


def check(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise ConfigError naming `field`, `value` and `rule` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} = {value!r}: {rule}")


def present(value: T | None, field: str, rule: str) -> T:
    """`value`, or ConfigError naming `field` and `rule` when it is None."""
    if value is None:
        raise ConfigError(f"{field} = None: {rule}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean 'x'?" with the known name closest to `name`, or else a list of all names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional `module`; if it is missing, say which extra of moeworks brings it.

    Raises MissingDependencyError.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed; install it with: pip install 'moeworks[{extra}]'"
        ) from error
