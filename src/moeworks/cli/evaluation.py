"""What `moeworks eval` does."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from moeworks.cli.eval import EvalOptions
from moeworks.cli.models import load_model
from moeworks.config import CorpusConfig
from moeworks.data.corpus import iter_documents
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import check
from moeworks.evaluate.harness import evaluate_tasks
from moeworks.evaluate.replay import TraceReplay
from moeworks.evaluate.texts import Totals, evaluate_texts, total
from moeworks.models.decoder import Decoder
from moeworks.trace import RoutingTrace

_CONTEXT = 2048


def run(options: EvalOptions) -> int:
    """Load the model, evaluate it, print what came out."""
    model = load_model(options.model, options.device, options.dtype, options.domain)
    tokenizer = tokenizer_of(options.model, model.config.vocab_size)
    record: dict[str, Any] = {"model": str(options.model)}
    console = Console()
    if options.data:
        record |= _on_texts(model, tokenizer, options, console)
    if options.tasks:
        record["tasks"] = evaluate_tasks(
            model, tokenizer, options.tasks,
            num_fewshot=options.num_fewshot, limit=options.limit, batch_tokens=options.batch_tokens,
        )  # fmt: skip
        if not options.json:
            console.print(_task_table(record["tasks"]))
    if options.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    return 0


def _on_texts(
    model: Decoder, tokenizer: ModelTokenizer, options: EvalOptions, console: Console
) -> dict[str, Any]:
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
    documents = iter_documents(options.data, corpus, skipped)
    with _progress() as advance:
        domains = evaluate_texts(
            model, tokenizer, documents, context=context, stride=stride,
            batch_tokens=options.batch_tokens, max_bytes=options.max_bytes, replay=replay, progress=advance,
        )  # fmt: skip
    for reason, count in sorted(skipped.items()):
        print(f"skipped {count} files {reason}", file=sys.stderr)
    if not options.json:
        console.print(_table(domains))
        if replay is not None:
            console.print(
                f"routed by {options.replay}, in contexts of {context:,} tokens;"
                f" its own routing: eval --context {context}",
                highlight=False,
            )
    figures = {name: totals.record() for name, totals in domains.items()}
    record = {"context": context, "stride": stride, **total(domains).record(), "domains": figures}
    return record if options.replay is None else {"replay": str(options.replay), **record}


@contextmanager
def _progress() -> Generator[Callable[[int], None]]:
    """Counts bytes on a terminal's error stream; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda size: None
        return
    columns = (TextColumn("evaluated"), BarColumn(bar_width=20), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as live:
        task = live.add_task("eval", total=None)
        yield lambda size: live.advance(task, size)


def _table(domains: dict[str, Totals]) -> Table:
    table = Table("domain", box=None, pad_edge=False)
    for name in ("bits per byte", "perplexity", "documents", "bytes", "tokens"):
        table.add_column(name, justify="right")
    rows = list(domains.items())
    if len(rows) > 1:
        rows.append(("all", total(domains)))
    for name, totals in rows:
        table.add_row(
            name, f"{totals.bits_per_byte:.4f}", f"{totals.perplexity:,.2f}", f"{totals.documents:,}",
            f"{totals.bytes:,}", f"{totals.tokens:,}",
        )  # fmt: skip
    return table


def _task_table(tasks: dict[str, dict[str, float]]) -> Table:
    table = Table("task", "metric", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    for task, metrics in tasks.items():
        for name, value in metrics.items():
            table.add_row(task, name, f"{value:.4f}")
    return table
