"""The work of `moeworks inspect`."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, TimeElapsedColumn

from moeworks.analyse.inspection import STEPS, inspect_trace
from moeworks.analyse.similarity import expert_similarity
from moeworks.cli.inspect import InspectOptions
from moeworks.cli.output import console, print_json, progress_bar, text_column
from moeworks.cli.trace_tokenizer import find_pieces
from moeworks.errors import check
from moeworks.files import write_atomically
from moeworks.models.decoder import moe_modules
from moeworks.pretrained import load
from moeworks.report import Subject, run_report, trace_report
from moeworks.trace import RoutingTrace, TraceHeader


def run(options: InspectOptions) -> int:
    """Compute, draw, write, and say where it lies."""
    kind = options.kind
    if options.source.is_dir():
        out = options.out or options.source / f"report.{kind}"
        write_atomically(out, run_report(options.source, kind))
    else:
        out = options.out or options.source.with_suffix(f".{kind}")
        for path in (options.source, options.compare, options.tokenizer):
            is_input = path is not None and out.exists() and path.exists() and out.samefile(path)
            check(not is_input, "out", str(out), f"is the file {path}, which is read")
        write_atomically(out, trace_report(_subject(options), kind))
    size = out.stat().st_size
    if options.json:
        print_json({"report": str(out), "format": kind, "bytes": size})
    else:
        console().print(f"{out}: {size / 1e6:,.2f} MB")
    return 0


def _subject(options: InspectOptions) -> Subject:
    trace = _open(options.source, options.max_tokens)
    other = None if options.compare is None else _open(options.compare, None)
    pieces, why = find_pieces(trace.header, options.tokenizer, options.model)
    similarity = None if options.model is None else _similarity(options.model, trace.header)
    with _progress() as tell:
        inspection = inspect_trace(
            trace, other=other, similarity=similarity, min_count=options.min_count, progress=tell
        )
    names = [path.stem for path in (options.source, options.compare) if path is not None]
    if len(set(names)) < len(names):  # two folders with traces of one name
        names = [str(options.source), str(options.compare)]
    return Subject(inspection, names[0], pieces, names[1] if len(names) > 1 else "", why)


def _open(path: Path, limit: int | None) -> RoutingTrace:
    trace = RoutingTrace.open(path)
    check(trace.num_tokens >= 2, "trace", str(path), "must hold two tokens at least")
    return trace if limit is None else trace.where(np.arange(trace.num_tokens) < limit)


def _similarity(path: Path, header: TraceHeader) -> list[np.ndarray]:
    """Of the experts of each traced layer; experts without weights are like none (NaN)."""
    model = load(path)
    config, modules = model.config, moe_modules(model)
    missing = [number for number in header.layers if number not in config.moe_layers]
    check(not missing, "model", str(path), f"has no MoE in layers {missing} of the trace")
    same = config.router.num_routes == header.num_experts
    check(same, "model", str(path), f"must have the trace's {header.num_experts} experts a layer")
    found = []
    for number in header.layers:
        weights = expert_similarity(modules[config.moe_layers.index(number)].experts).weights
        assert weights is not None
        matrix = np.full((header.num_experts, header.num_experts), np.nan)
        matrix[: len(weights), : len(weights)] = weights
        found.append(matrix)
    return found


@contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """A bar on a terminal's standard error, a step for each table."""
    columns = (BarColumn(bar_width=20), text_column("{task.description}"), TimeElapsedColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task("reading", total=STEPS)
        yield lambda name: bar.update(task, advance=1, description=name)
