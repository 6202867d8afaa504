"""Signals that mean "leave", as an exception that lets everything be cleaned up behind it."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

_LEAVE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP: handled wherever Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell says it."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextmanager
def stoppable() -> Generator[None]:
    """SIGTERM and SIGHUP raise Stopped in here.

    A signal that is ignored (nohup) or handled by the program around stays as it is.
    """
    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [number for number in _LEAVE if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: object) -> None:
    raise Stopped(number)
