"""Check every annotated function of moeworks at run time, shapes included, unless --no-jaxtyping is given."""

import sys
from types import ModuleType

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Time says nothing about correctness, and machines are busy.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

TYPECHECKER = "moeworks_typechecker"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-jaxtyping",
        action="store_true",
        help="leave moeworks as it is: the hook breaks fullgraph compilation (tests marked `compile`)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-jaxtyping"):
        return
    # The hook imports its checker by name; this one takes an int for a float, as PEP 484 does.
    module = ModuleType(TYPECHECKER)
    module.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
    sys.modules[TYPECHECKER] = module
    install_import_hook("moeworks", f"{TYPECHECKER}.check")
