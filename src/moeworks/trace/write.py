"""Traces to disk, a block at a time."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from moeworks.errors import DataError
from moeworks.files import publish, refused, remove, temporary_name
from moeworks.trace.block import TraceBlock, check_block
from moeworks.trace.header import METADATA_KEY, TraceHeader
from moeworks.trace.schema import parquet_options, to_batch, trace_schema

ROW_GROUP_BYTES = 32 << 20


class TraceWriter:
    """Writes a trace; a context manager.

    Blocks are held until they fill a row group (about 32 MB of columns, at most 131,072 tokens). A thread of
    its own then encodes and writes them while the next group fills; no more than two groups are held, so
    memory does not grow with the trace. Arrays of a block must not change after `append`. The file appears
    under its name when the `with` ends well, whole, and not at all when it does not. It replaces an older
    trace, and no file of another kind.

    Raises DataError when the disk refuses, at the latest when the `with` ends, and for a path that holds
    something else; ConfigError for a block that does not fit the header.
    """

    def __init__(self, path: str | Path, header: TraceHeader) -> None:
        self.header = header
        self.num_tokens = 0
        self.seconds = 0.0
        """Time that the thread has computed."""
        self._path = Path(path)
        self._target = Path(os.path.realpath(path))  # a link stays a link
        _check_replaceable(self._path)
        self._temporary = temporary_name(self._target)
        self._schema = trace_schema(header)
        self._held: list[TraceBlock] = []
        self._held_rows = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace")
        self._writing: Future[None] | None = None
        self._group_rows = row_group_tokens(header)
        try:
            self._writer = pq.ParquetWriter(self._temporary, self._schema, **parquet_options(header))
        except OSError as error:
            remove(self._temporary)
            raise refused(self._path, error) from error

    def append(self, block: TraceBlock) -> None:
        """Add the tokens of `block`."""
        check_block(block, self.header)
        if not len(block.tokens):
            return
        self._held.append(block)
        self._held_rows += len(block.tokens)
        self.num_tokens += len(block.tokens)
        if self._held_rows >= self._group_rows:
            self._flush()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._wait()
                self._writer.close()
                publish(self._temporary, self._target)
        except OSError as failure:
            raise refused(self._path, failure) from failure
        finally:
            self._thread.shutdown(wait=True)
            with suppress(OSError):  # there only after an error, which is the one to report
                if self._temporary.exists():
                    self._writer.close()
            with suppress(OSError):
                remove(self._temporary)

    def _flush(self) -> None:
        """Hand what is held to the thread, once it is done with what it has."""
        if not self._held:
            return
        self._wait()
        held, self._held, self._held_rows = self._held, [], 0
        self._writing = self._thread.submit(self._write, held)

    def _write(self, blocks: list[TraceBlock]) -> None:
        began = time.thread_time()
        batches = [to_batch(block, self.header, self._schema) for block in blocks]
        table = pa.Table.from_batches(batches, schema=self._schema).unify_dictionaries()
        self._writer.write_table(table, row_group_size=self._group_rows)
        self.seconds += time.thread_time() - began

    def _wait(self) -> None:
        """For the thread. Raises DataError when it could not write."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            raise refused(self._path, error) from error


def _check_replaceable(path: Path) -> None:
    """A name that is by mistake that of the texts or the weights must not cost them."""
    if not path.exists() or (path.is_file() and (path.stat().st_size == 0 or _is_trace(path))):
        return
    raise DataError(f"{path}: exists and is no trace: choose another name, or delete it first")


def _is_trace(path: Path) -> bool:
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def row_group_tokens(header: TraceHeader) -> int:
    """Tokens of a row group: ROW_GROUP_BYTES of uncompressed columns, 1,024 to 131,072."""
    widths = {"ids": 2 * header.top_k, "weights": 2 * header.top_k, "kept": header.top_k}
    widths |= {"entropy": 2, "margin": 2, "logits": 2 * header.num_experts}
    row = 32 + len(header.layers) * sum(widths[name] for name in ("ids", *header.fields))
    return min(max(ROW_GROUP_BYTES // row, 1024), 131_072)


def write_trace(path: str | Path, header: TraceHeader, *blocks: TraceBlock) -> None:
    """Write blocks that are in memory."""
    with TraceWriter(path, header) as writer:
        for block in blocks:
            writer.append(block)
