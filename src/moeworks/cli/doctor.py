"""`moeworks doctor MODEL_OR_PYTHON_OBJECT`: its options.

--json prints one object: `subject`, `kind`, and `findings`, a list of objects with `check`, `title`,
`verdict` ("pass", "fail", "not applicable"), `message` and `pitfalls`; with --all-transformers a list of
objects with `family`, `model`, `reason` and `diagnosis`, such an object or null. The exit code is 0 when
every check that applies holds, 1 when one does not, 2 for bad input.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moeworks.cli.options import parse_options, refuse_idle
from moeworks.errors import ConfigError


@dataclass(frozen=True)
class DoctorOptions:
    """Does this MoE do what it claims? Named checks, each with measured numbers."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_OR_PYTHON_OBJECT")] = None
    """A run, checkpoint or published checkpoint; a preset or config.json, of which a tiny random model is
    built; transformers:ClassName, likewise; or module:attribute, any Python object: a MoE, Decoder or
    config, a transformers model or class, or a function that returns one."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CHECK")] = ()
    """Run this check alone (moeworks list checks); may be given several times."""
    all_transformers: bool = False
    """Examine every MoE family of the installed transformers, and write the table."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("docs/conformance.md")
    """With --all-transformers: where the table goes."""
    json: bool = False
    """Print JSON and nothing else."""


def parse(argv: list[str]) -> DoctorOptions:
    """The options that `argv` spells. Raises ConfigError when they name nothing to examine, or two things."""
    options = parse_options(DoctorOptions, argv, "moeworks doctor")
    if (options.model is None) != options.all_transformers:
        raise ConfigError("doctor: name a model, or give --all-transformers; one of the two")
    if not options.all_transformers:
        refuse_idle(options, ("out",), "without --all-transformers")
    return options
