"""What `moeworks trace` does: texts to sequences, through the model, to the file."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moeworks.cli.dumps import convert
from moeworks.cli.trace import TraceOptions
from moeworks.cli.trace_engines import Engine, open_engine
from moeworks.cli.trace_summary import print_trace_summary, summarise_trace
from moeworks.config import CorpusConfig
from moeworks.data.corpus import iter_documents
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.errors import check
from moeworks.trace.block import token_columns
from moeworks.trace.record import record
from moeworks.trace.write import TraceWriter

_WINDOW = 16
"""Batches whose sequences are sorted by length together, so that rows of a batch need little padding."""


@dataclass(frozen=True, eq=False)
class Sequence:
    """One context of the model."""

    tokens: np.ndarray
    number: int
    document: int
    domain: str


@dataclass
class _Progress:
    """What has been done so far."""

    tokens: int = 0
    forward_seconds: float = 0.0
    recording_seconds: float = 0.0


def run(options: TraceOptions) -> int:
    """Record or convert, validate, and print the summary."""
    if options.dump is not None:
        return convert(options)
    engine = open_engine(options)
    seq_len = options.seq_len or engine.context
    within = engine.limit is None or seq_len <= engine.limit
    check(within, "seq_len", seq_len, f"exceeds model.max_seq_len = {engine.limit}")
    start, done = time.perf_counter(), _Progress()
    with TraceWriter(options.out, engine.header) as writer, _bar(options) as bar:
        task = bar.add_task("trace", total=options.max_tokens)
        for batch in _batches(_sequences(options, engine.tokenizer, seq_len), options.batch_size):
            _record(engine, batch, writer, done, options.device)
            bar.update(task, completed=done.tokens)
            if options.max_tokens is not None and done.tokens >= options.max_tokens:
                break
    share = done.recording_seconds / max(done.forward_seconds, 1e-9)
    summary = summarise_trace(options.out, time.perf_counter() - start, share)
    print_trace_summary(summary, as_json=options.json)
    return 0


def _sequences(options: TraceOptions, tokenizer: ModelTokenizer, seq_len: int) -> Iterator[Sequence]:
    """Documents in reading order, each after what texts begin with, cut into contexts of seq_len."""
    corpus = CorpusConfig(text_field=options.text_field, domain_field=options.domain_field)
    number = 0
    for document, item in enumerate(iter_documents(options.data, corpus)):
        tokens = np.array([*tokenizer.prefix_ids, *tokenizer.encode(item.text)], dtype=np.int64)
        for start in range(0, len(tokens), seq_len):
            yield Sequence(tokens[start : start + seq_len], number, document, item.domain)
            number += 1


def _batches(sequences: Iterator[Sequence], size: int) -> Iterator[list[Sequence]]:
    window: list[Sequence] = []
    for sequence in sequences:
        window.append(sequence)
        if len(window) == size * _WINDOW:
            yield from _by_length(window, size)
            window = []
    yield from _by_length(window, size)


def _by_length(window: list[Sequence], size: int) -> Iterator[list[Sequence]]:
    ordered = sorted(window, key=lambda sequence: -len(sequence.tokens))
    yield from (ordered[i : i + size] for i in range(0, len(ordered), size))


@torch.no_grad()
def _record(engine: Engine, batch: list[Sequence], writer: TraceWriter, done: _Progress, device: str) -> None:
    began = time.perf_counter()
    rows, width = len(batch), len(batch[0].tokens)
    ids = np.zeros((rows, width), np.int64)
    valid = np.zeros((rows, width), np.bool_)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.tokens)] = sequence.tokens
        valid[row, : len(sequence.tokens)] = True
    domains = [sequence.domain for sequence in batch]
    routings = engine.route(torch.from_numpy(ids).to(device), torch.from_numpy(valid).to(device), domains)
    if device == "cuda":
        torch.cuda.synchronize()
    recorded = time.perf_counter()
    names = sorted(set(domains))
    tokens = token_columns(
        ids.size,
        token_id=ids.reshape(-1),
        position=np.tile(np.arange(width), rows),
        sequence=np.repeat([sequence.number for sequence in batch], width),
        document=np.repeat([sequence.document for sequence in batch], width),
        domain=np.repeat([names.index(domain) for domain in domains], width),
        valid=valid.reshape(-1),
        domains=names,
    )
    writer.append(record(routings, tokens, writer.header))
    done.recording_seconds += time.perf_counter() - recorded
    done.forward_seconds += recorded - began
    done.tokens += int(valid.sum())


def _bar(options: TraceOptions) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.completed:,.0f} tokens"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console,
        disable=options.json or not console.is_terminal,
    )
