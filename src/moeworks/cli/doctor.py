"""`moeworks doctor MODEL_OR_PYTHON_OBJECT`: its options.

--json prints one object: `subject`, `kind`, and `findings`, a list of objects with `check`, `title`,
`verdict` ("pass", "fail", "not applicable"), `message` and `pitfalls`; with --all-transformers a list of
objects with `family`, `model`, `reason` and `diagnosis`, such an object or null; with --list a list of the
checks. The exit code is 0 when every check that applies holds, 1 when one does not, 2 for bad input.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moeworks.errors import ConfigError


@dataclass(frozen=True)
class DoctorOptions:
    """Does this MoE do what it claims? Named checks, each with measured numbers."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_OR_PYTHON_OBJECT")] = None
    """A run, checkpoint or published checkpoint; a preset or config.json, of which a tiny random model is
    built; transformers:ClassName, likewise; or module:attribute, any Python object: a MoE, Decoder or
    config, a transformers model or class, or a function that returns one."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CHECK")] = ()
    """Run this check alone; may be given several times."""
    list: bool = False
    """List the checks, with explanations and the known bugs that each guards against."""
    all_transformers: bool = False
    """Examine every MoE family of the installed transformers, and write the table."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("docs/conformance.md")
    """With --all-transformers: where the table goes."""
    json: bool = False
    """Print JSON and nothing else."""


def parse(argv: list[str]) -> DoctorOptions:
    """The options that `argv` spells. Raises ConfigError when they name nothing to do, or two things."""
    options = tyro.cli(DoctorOptions, prog="moeworks doctor", args=argv)
    asked = [options.model is not None, options.list, options.all_transformers]
    if sum(asked) != 1:
        raise ConfigError("doctor: name a model, or give --list or --all-transformers (one of the three)")
    if options.out != DoctorOptions.out and not options.all_transformers:
        raise ConfigError("--out has no effect without --all-transformers")
    return options
