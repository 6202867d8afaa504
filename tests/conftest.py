"""Check every annotated function of moeworks at run time, shapes included, unless --no-jaxtyping is given.

With --no-native the tests run as they do where moeworks was installed without its native library.
"""

import importlib
import os
import signal
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
    parser.addoption(
        "--no-native", action="store_true", help="do without the native library, as if it were not built"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A job in the background ignores Ctrl-C, and so do processes that it starts; tests send it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # No test cuts the power, and waiting for the disk costs 10 ms a file. Processes that tests start do wait.
    os.fsync = lambda descriptor: None
    if not config.getoption("--no-jaxtyping"):
        check_annotations()
    if config.getoption("--no-native"):
        # Not an import at the top: the hook must come before moeworks.
        importlib.import_module("moeworks.ops.native.library")._find = lambda: None


def check_annotations() -> None:
    # The hook imports its checker by name; this one takes an int for a float, as PEP 484 does.
    module = ModuleType(TYPECHECKER)
    module.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
    sys.modules[TYPECHECKER] = module
    install_import_hook("moeworks", f"{TYPECHECKER}.check")
