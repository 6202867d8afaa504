"""What `moeworks trace` does: texts to sequences, through the model, to the file."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moeworks.checkpoint import read_checkpoint
from moeworks.cli.generation import run_tokenizer
from moeworks.cli.trace import TraceOptions
from moeworks.config import CorpusConfig, RunConfig
from moeworks.config.codec import from_dict
from moeworks.data.corpus import iter_documents
from moeworks.data.tokenizer import Tokenizer
from moeworks.errors import DataError, check
from moeworks.models.decoder import Decoder
from moeworks.pretrained import find_checkpoint, load
from moeworks.trace.block import token_columns
from moeworks.trace.header import LAYER_FIELDS
from moeworks.trace.read import RoutingTrace
from moeworks.trace.record import model_header, record
from moeworks.trace.sizes import bytes_per_assignment
from moeworks.trace.validate import validate_trace
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
    domains: Counter[str] = field(default_factory=Counter)
    documents: set[int] = field(default_factory=set)
    sequences: int = 0


def run(options: TraceOptions) -> int:
    """Record, validate, and print the summary."""
    has_device = options.device == "cpu" or torch.cuda.is_available()
    check(has_device, "device", options.device, "torch finds no GPU here")
    directory = find_checkpoint(options.model)
    model = load(directory, device=options.device)
    tokenizer = run_tokenizer(directory)
    state = read_checkpoint(directory, verify=False).state
    header = model_header(
        model.config,
        options.fields,
        model=str(options.model),
        model_fingerprint=_fingerprint(directory),
        engine=f"moeworks {metadata.version('moeworks')}",
        tokenizer_fingerprint=tokenizer.fingerprint,
        step=state["progress"]["step"],
    )
    seq_len = options.seq_len or from_dict(RunConfig, state["config"]).train.seq_len
    limit = model.config.max_seq_len
    check(seq_len <= limit, "seq_len", seq_len, f"exceeds model.max_seq_len = {limit}")
    start, done = time.perf_counter(), _Progress()
    with TraceWriter(options.out, header) as writer, _bar(options) as bar:
        task = bar.add_task("trace", total=options.max_tokens)
        for batch in _batches(_sequences(options, tokenizer, seq_len), options.batch_size):
            _record(model, batch, writer, done)
            bar.update(task, completed=done.tokens)
            if options.max_tokens is not None and done.tokens >= options.max_tokens:
                break
    _print(options, _summary(options.out, done, time.perf_counter() - start))
    return 0


def _fingerprint(directory: Path) -> str:
    """The sha256 of the checkpoint's file of checksums: it names the weights."""
    return hashlib.sha256((directory / "checkpoint.json").read_bytes()).hexdigest()


def _sequences(options: TraceOptions, tokenizer: Tokenizer, seq_len: int) -> Iterator[Sequence]:
    """Documents in reading order, <|endoftext|> in front, cut into contexts of seq_len."""
    corpus = CorpusConfig(text_field=options.text_field, domain_field=options.domain_field)
    number = 0
    for document, item in enumerate(iter_documents(options.data, corpus)):
        tokens = np.r_[tokenizer.end_of_text_id, tokenizer.encode(item.text)]
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
def _record(model: Decoder, batch: list[Sequence], writer: TraceWriter, done: _Progress) -> None:
    began = time.perf_counter()
    device = next(model.parameters()).device
    rows, width = len(batch), len(batch[0].tokens)
    ids = np.zeros((rows, width), np.int64)
    valid = np.zeros((rows, width), np.bool_)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.tokens)] = sequence.tokens
        valid[row, : len(sequence.tokens)] = True
    output = model(torch.from_numpy(ids).to(device), valid_BL=torch.from_numpy(valid).to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    recorded = time.perf_counter()
    names = sorted({sequence.domain for sequence in batch})
    tokens = token_columns(
        ids.size,
        token_id=ids.reshape(-1),
        position=np.tile(np.arange(width), rows),
        sequence=np.repeat([sequence.number for sequence in batch], width),
        document=np.repeat([sequence.document for sequence in batch], width),
        domain=np.repeat([names.index(sequence.domain) for sequence in batch], width),
        valid=valid.reshape(-1),
        domains=names,
    )
    writer.append(record(output.routings, tokens, writer.header))
    done.recording_seconds += time.perf_counter() - recorded
    done.forward_seconds += recorded - began
    done.tokens += int(valid.sum())
    done.sequences += rows
    done.documents |= {sequence.document for sequence in batch}
    for sequence in batch:
        done.domains[sequence.domain] += len(sequence.tokens)


def _bar(options: TraceOptions) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.completed:,.0f} tokens"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console,
        disable=options.json or not console.is_terminal,
    )


def _summary(path: Path, done: _Progress, seconds: float) -> dict[str, Any]:
    if not done.tokens:
        raise DataError(f"{path}: nothing was recorded")
    trace = RoutingTrace.open(path)
    header = trace.header
    return {
        "trace": str(path),
        "tokens": done.tokens,
        "documents": len(done.documents),
        "sequences": done.sequences,
        "domains": dict(done.domains.most_common()),
        "layers": list(header.layers),
        "num_experts": header.num_experts,
        "top_k": header.top_k,
        "fields": [name for name in LAYER_FIELDS if name in header.fields],
        "assignments": done.tokens * header.top_k * len(header.layers),
        "bytes": path.stat().st_size,
        "id_bytes_per_assignment": bytes_per_assignment(path, "ids"),
        "seconds": seconds,
        "recording_share": done.recording_seconds / max(done.forward_seconds, 1e-9),
        "findings": [finding.message for finding in validate_trace(trace)],
    }


def _print(options: TraceOptions, summary: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    counts = "  ".join(f"{name or '(none)'} {count:,}" for name, count in summary["domains"].items())
    console.print(
        f"{summary['tokens']:,} tokens of {summary['documents']:,} documents,"
        f" {len(summary['layers'])} MoE layers of {summary['num_experts']} experts, top {summary['top_k']}\n"
        f"domains: {counts}",
        markup=False,
    )
    console.print(
        f"{summary['trace']}: {summary['bytes'] / 1e6:,.2f} MB,"
        f" {summary['id_bytes_per_assignment']:.2f} bytes for each expert id; recording took"
        f" {summary['recording_share']:.1%} of the forward passes",
        markup=False,
    )
    for message in summary["findings"]:
        console.print(f"warning: {message}", markup=False)
