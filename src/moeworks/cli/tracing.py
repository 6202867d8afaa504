"""The work of `moeworks trace`: texts to sequences, through the model, to the file."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from moeworks.cli.dumps import convert
from moeworks.cli.output import progress_bar, usual_columns
from moeworks.cli.trace import TraceOptions
from moeworks.cli.trace_engines import Engine, open_engine
from moeworks.cli.trace_summary import print_trace_summary, summarise_trace
from moeworks.config import CorpusConfig
from moeworks.data.corpus import iter_documents
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.errors import check
from moeworks.trace.block import LayerColumns, TokenColumns, TraceBlock, token_columns
from moeworks.trace.record import record
from moeworks.trace.write import TraceWriter, row_group_tokens


@dataclass(frozen=True, eq=False)
class Context:
    """One sequence of tokens that the model reads."""

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
    context = options.context or engine.context
    within = engine.limit is None or context <= engine.limit
    check(within, "context", context, f"exceeds model.max_seq_len = {engine.limit}")
    start, done = time.perf_counter(), _Progress()
    columns = usual_columns("{task.completed:,.0f} tokens")
    with TraceWriter(options.out, engine.header) as writer, progress_bar(*columns, transient=False) as bar:
        task = bar.add_task("trace", total=options.max_tokens)
        sequences = _first_tokens(_contexts(options, engine.tokenizer, context), options.max_tokens)
        for window in _windows(sequences, options.batch_size, row_group_tokens(engine.header)):
            domains = sorted({sequence.domain for sequence in window})
            blocks = []
            for batch in _by_length(window, options.batch_size):
                blocks.append(_record(engine, batch, domains, done, options.device))
                bar.update(task, completed=done.tokens)
            writer.append(_in_reading_order(blocks))
    share = done.recording_seconds / max(done.forward_seconds, 1e-9)
    summary = summarise_trace(options.out, time.perf_counter() - start, share)
    print_trace_summary(summary, as_json=options.json)
    return 0


def _contexts(options: TraceOptions, tokenizer: ModelTokenizer, context: int) -> Iterator[Context]:
    """Documents in reading order, each after what texts begin with, cut into pieces of `context` tokens."""
    corpus = CorpusConfig(text_field=options.text_field, domain_field=options.domain_field)
    number = 0
    for document, item in enumerate(iter_documents(options.data, corpus)):
        tokens = np.array([*tokenizer.prefix_ids, *tokenizer.encode(item.text)], dtype=np.int64)
        for start in range(0, len(tokens), context):
            yield Context(tokens[start : start + context], number, document, item.domain)
            number += 1


def _first_tokens(sequences: Iterator[Context], limit: int | None) -> Iterator[Context]:
    """The first `limit` tokens, the last sequence cut where they end; None takes all."""
    left = limit
    for sequence in sequences:
        if left is None:
            yield sequence
            continue
        yield replace(sequence, tokens=sequence.tokens[:left])
        left -= len(sequence.tokens)
        if left <= 0:
            return


def _windows(sequences: Iterator[Context], rows: int, tokens: int) -> Iterator[list[Context]]:
    """Runs of at least `rows` sequences and `tokens` tokens.

    They are sorted by length within a run, so that rows of a batch need little padding; its routing is in
    memory until it is written in reading order.
    """
    window: list[Context] = []
    held = 0
    for sequence in sequences:
        window.append(sequence)
        held += len(sequence.tokens)
        if held >= tokens and len(window) >= rows:
            yield window
            window, held = [], 0
    if window:
        yield window


def _by_length(window: list[Context], size: int) -> Iterator[list[Context]]:
    ordered = sorted(window, key=lambda sequence: -len(sequence.tokens))
    yield from (ordered[i : i + size] for i in range(0, len(ordered), size))


def _in_reading_order(blocks: Sequence[TraceBlock]) -> TraceBlock:
    """The tokens of blocks that name the same domains as one block, in the order of their sequences."""
    columns = (f.name for f in fields(TokenColumns) if f.name != "domains")
    joined = {name: np.concatenate([getattr(b.tokens, name) for b in blocks]) for name in columns}
    order = np.argsort(joined["sequence"], kind="stable")
    tokens = TokenColumns(**joined, domains=blocks[0].tokens.domains).take(order)
    layers = []
    for parts in zip(*(block.layers for block in blocks), strict=True):
        present = (f.name for f in fields(LayerColumns) if getattr(parts[0], f.name) is not None)
        columns_of_layer = {name: np.concatenate([getattr(p, name) for p in parts]) for name in present}
        layers.append(LayerColumns(**columns_of_layer).take(order))
    return TraceBlock(tokens, tuple(layers))


@torch.no_grad()
def _record(
    engine: Engine, batch: list[Context], names: list[str], done: _Progress, device: str
) -> TraceBlock:
    """The routing of one batch; `names` are the domains of its window."""
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
    block = record(routings, tokens, engine.header)
    done.recording_seconds += time.perf_counter() - recorded
    done.forward_seconds += recorded - began
    done.tokens += int(valid.sum())
    return block
