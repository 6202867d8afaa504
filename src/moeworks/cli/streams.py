"""Standard streams that never stop the work that prints on them.

`protected` puts `SafeStream`s in the place of sys.stdout and sys.stderr while a verb runs, so that everything
that prints is covered: this package, tyro, rich, warnings, loggers and progress bars of other libraries.

- A reader that goes away, a terminal that is closed, a full device: the stream is lost, and what follows is
  dropped in silence. Only a verb that does nothing but print (`SafeStream.ends`) is ended by it, with
  OutputLost.
- A stream that was closed before the start is /dev/null. Its descriptor is taken, or else the next file that
  is opened would get it, and whatever a C library prints would end in a checkpoint.
- Characters that the stream's encoding lacks are written as escapes.
- With --json whatever prints goes to standard error, and standard output holds the JSON alone
  (`result_stream`).
"""

import errno
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

_READER_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET, errno.ESHUTDOWN}
"""What a pipe, a socket or a terminal without its other end answers."""


class OutputLost(Exception):  # noqa: N818 - an event, and no error of the input
    """Standard output cannot be written any more, and the verb has nothing to do but print."""


class SafeStream:
    """A text stream whose `write` and `flush` raise nothing but OutputLost, and that only when `ends` is
    set."""

    def __init__(self, stream: Any) -> None:
        """Wrap `stream`, a text file or what stands in the place of one."""
        self._stream = stream
        self.ends = False
        """The verb ends when this stream is lost."""
        self.lost: OSError | ValueError | None = None
        """Why the stream can no longer be written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or drop it when the stream is lost."""
        self._try(self._write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write `lines` one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether a terminal shows the stream."""
        return self.lost is None and not self._stream.closed and self._stream.isatty()

    @property
    def reader_gone(self) -> bool:
        """Whether the stream was lost because nobody is at its other end."""
        return isinstance(self.lost, ValueError) or getattr(self.lost, "errno", None) in _READER_GONE

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _try(self, operation: Callable[..., object], *arguments: object) -> None:
        if self.lost is None:
            try:
                operation(*arguments)
            except (OSError, ValueError) as error:  # ValueError: a stream that somebody has closed
                self.lost = error
                self._detach()
        if self.lost is not None and self.ends:
            raise OutputLost

    def _detach(self) -> None:
        """Turn the descriptor to /dev/null: what is buffered must not fail again when the interpreter
        exits."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@dataclass(frozen=True)
class Streams:
    """Both output streams of a verb."""

    stdout: SafeStream
    stderr: SafeStream


@contextmanager
def protected(*, quiet: bool = False, json: bool = False) -> Generator[Streams]:
    """Safe streams in the place of sys.stdout and sys.stderr.

    Args:
        quiet: silence notes and progress.
        json: keep standard output for what is written to `result_stream`.
    """
    global _quiet, _result
    _reserve_descriptors()
    before = sys.stdout, sys.stderr, _quiet, _result
    streams = Streams(*(SafeStream(stream or _null()) for stream in before[:2]))
    for stream in before[:2]:
        # A slow reader is waited for, even where another program has made the pipe non-blocking.
        with suppress(OSError, ValueError, AttributeError):
            os.set_blocking(stream.fileno(), True)
    sys.stdout = streams.stderr if json else streams.stdout  # pyrefly: ignore[bad-assignment]
    sys.stderr = streams.stderr  # pyrefly: ignore[bad-assignment]
    _quiet, _result = quiet, streams.stdout
    try:
        yield streams
    finally:
        for safe in (streams.stdout, streams.stderr):
            safe.ends = False
            safe.flush()
        sys.stdout, sys.stderr, _quiet, _result = before


_quiet = False
_result: SafeStream | None = None


def is_quiet() -> bool:
    """Whether --quiet was given: results and errors, and nothing else."""
    return _quiet


def result_stream() -> Any:
    """The stream of a verb's result: standard output."""
    return sys.stdout if _result is None else _result


def note(text: str) -> None:
    """A line on standard error beside the result of a verb, but with --quiet."""
    if not _quiet:
        print(f"moeworks: note: {text}", file=sys.stderr, flush=True)


def _null() -> TextIOWrapper:
    return open(os.devnull, "w")


def _reserve_descriptors() -> None:
    """Open /dev/null in the place of closed standard descriptors."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
