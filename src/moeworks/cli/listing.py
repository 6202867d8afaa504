"""`moeworks list presets|models|checks|gpus|labs`: what the other verbs can be given by name.

--json prints one list of objects, each with a `name`; the rest is in the functions that LISTS names.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import tyro

from moeworks.cli.options import parse_options

LISTS: Mapping[str, str] = {
    "presets": "moeworks.cli.config",
    "models": "moeworks.cli.info",
    "checks": "moeworks.cli.diagnosis",
    "gpus": "moeworks.cli.planning",
    "labs": "moeworks.cli.labs",
}
"""From what can be listed to the module whose `print_list(matching, as_json=...)` prints it."""


@dataclass(frozen=True)
class ListOptions:
    """What there is: presets of runs, published models, checks of doctor, GPUs of plan, labs."""

    what: tyro.conf.Positional[Literal["presets", "models", "checks", "gpus", "labs"]]
    """Presets are for train and config, models for info, plan and doctor, checks for doctor --only, gpus for
    plan --gpu, labs for lab run."""
    matching: tyro.conf.Positional[str] = ""
    """Part of the names to list; all by default."""
    json: bool = False
    """Print one JSON list and nothing else."""


def parse(argv: list[str]) -> ListOptions:
    """The options that `argv` spells."""
    return parse_options(ListOptions, argv, "moeworks list")


def run(options: ListOptions) -> None:
    """Print the list."""
    # As with verbs, modules are imported when they are needed: checks need torch, the others do not.
    module = importlib.import_module(LISTS[options.what])
    module.print_list(options.matching.lower(), as_json=options.json)
