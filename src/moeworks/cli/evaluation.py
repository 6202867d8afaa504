"""The work of `moeworks eval`."""

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.progress import BarColumn, DownloadColumn, TimeElapsedColumn
from rich.table import Table

from moeworks.cli.eval import EvalOptions
from moeworks.cli.models import load_model
from moeworks.cli.output import console, grid, print_json, progress_bar, text_column
from moeworks.cli.streams import note
from moeworks.config import CorpusConfig
from moeworks.data.corpus import iter_documents
from moeworks.data.documents import Document
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import check
from moeworks.evaluate.harness import evaluate_tasks
from moeworks.evaluate.replay import TraceReplay
from moeworks.evaluate.texts import Totals, evaluate_texts, total
from moeworks.models.decoder import Decoder
from moeworks.trace import RoutingTrace

_CONTEXT = 2048


def run(options: EvalOptions) -> int:
    """Load the model, evaluate it, print the figures."""
    model = load_model(options.model, options.device, options.dtype, options.domain)
    tokenizer = tokenizer_of(options.model, model.config.vocab_size)
    record: dict[str, Any] = {"model": str(options.model)}
    if options.data:
        record |= _on_texts(model, tokenizer, options)
    if options.tasks:
        # Other libraries announce things on standard output, which is for the result.
        with redirect_stdout(sys.stderr):
            record["tasks"] = evaluate_tasks(
                model, tokenizer, options.tasks,
                num_fewshot=options.num_fewshot, limit=options.limit, batch_tokens=options.batch_tokens,
            )  # fmt: skip
        if not options.json:
            console().print(_task_table(record["tasks"]))
    if options.json:
        print_json(record)
    return 0


def _on_texts(model: Decoder, tokenizer: ModelTokenizer, options: EvalOptions) -> dict[str, Any]:
    limit = model.config.max_seq_len
    replay, usual = None, _CONTEXT
    if options.replay is not None:
        trace = RoutingTrace.open(options.replay)
        replay = TraceReplay(trace, model.config, tokenizer, str(options.replay))
        usual = replay.context
    context = options.context or min(usual, limit)
    check(context <= limit, "context", context, f"exceeds the model's, {limit}")
    stride = options.stride or context
    check(stride <= context, "stride", stride, f"exceeds the context, {context}")
    corpus = CorpusConfig(text_field=options.text_field, domain_field=options.domain_field)
    skipped: Counter[str] = Counter()
    documents: Iterable[Document] = iter_documents(options.data, corpus, skipped)
    if options.max_tokens is not None:
        documents = _first_tokens(documents, tokenizer, options.max_tokens)
    with _progress() as advance:
        domains = evaluate_texts(
            model, tokenizer, documents, context=context, stride=stride,
            batch_tokens=options.batch_tokens, max_bytes=options.max_bytes, replay=replay, progress=advance,
        )  # fmt: skip
    for reason, count in sorted(skipped.items()):
        note(f"skipped {count} files {reason}")
    if not options.json:
        screen = console()
        screen.print(_table(domains))
        if replay is not None:
            screen.print(
                f"routed by {options.replay}, in contexts of {context:,} tokens;"
                f" its own routing: eval --context {context}"
            )
    figures = {name: totals.record() for name, totals in domains.items()}
    record = {"context": context, "stride": stride, **total(domains).record(), "domains": figures}
    return record if options.replay is None else {"replay": str(options.replay), **record}


def _first_tokens(documents: Iterable[Document], tokenizer: ModelTokenizer, limit: int) -> Iterator[Document]:
    """Documents from the first on, until together they have at least `limit` tokens."""
    taken = 0
    for document in documents:
        yield document
        taken += len(tokenizer.encode(document.text))
        if taken >= limit:
            return


@contextmanager
def _progress() -> Generator[Callable[[int], None]]:
    """A count of bytes on a terminal's standard error."""
    columns = (text_column("evaluated"), BarColumn(bar_width=20), DownloadColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as live:
        task = live.add_task("eval", total=None)
        yield lambda size: live.advance(task, size)


def _table(domains: dict[str, Totals]) -> Table:
    rows = list(domains.items())
    if len(rows) > 1:
        rows.append(("all", total(domains)))
    cells = (
        (
            name, f"{totals.bits_per_byte:.4f}", f"{totals.perplexity:,.2f}", f"{totals.documents:,}",
            f"{totals.bytes:,}", f"{totals.tokens:,}",
        )
        for name, totals in rows
    )  # fmt: skip
    return grid("", ("domain", "bits per byte", "perplexity", "documents", "bytes", "tokens"), cells)


def _task_table(tasks: dict[str, dict[str, float]]) -> Table:
    rows = (
        (task, name, f"{value:.4f}") for task, metrics in tasks.items() for name, value in metrics.items()
    )
    return grid("", ("task", "metric", "value"), rows, names=2)
