"""Signals that mean "leave": everything is cleaned up behind them, and the exit code names them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType

import pytest

from moeworks.cli.main import VERBS, Verb, main
from moeworks.cli.signals import Stopped, stoppable

CLEANED: list[str] = []


@pytest.fixture
def leaving(monkeypatch) -> Callable[[int], int]:
    """Runs a verb that is sent a signal while it works, and returns the exit code."""
    CLEANED.clear()
    monkeypatch.setitem(VERBS, "fake", Verb("fake_verb", "fake_verb", "a fake"))

    def leave(number: int) -> int:
        def run(argv: list[str]) -> None:
            try:
                os.kill(os.getpid(), number)
                time.sleep(0.01)  # the interpreter runs handlers between two of its instructions
                CLEANED.append("went on")
            finally:
                CLEANED.append("cleaned")

        module = ModuleType("fake_verb")
        vars(module).update(parse=lambda argv: argv, run=run)
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        return main(["fake"])

    return leave


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_verb_cleans_up_and_the_code_names_the_signal(number, leaving, capsys):
    before = signal.getsignal(number)
    assert leaving(number) == 128 + number
    assert CLEANED == ["cleaned"]
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(leaving):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert leaving(signal.SIGHUP) == 0
        assert CLEANED == ["went on", "cleaned"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_is_handled_wherever_an_interrupt_is():
    with pytest.raises(KeyboardInterrupt), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert issubclass(Stopped, KeyboardInterrupt)


def test_a_handler_of_the_program_around_is_kept():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
