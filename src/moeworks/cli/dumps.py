"""`moeworks trace FILE --dump ENGINE`: another engine's dump to a trace."""

import time

from moeworks.cli.trace import TraceOptions
from moeworks.cli.trace_summary import print_trace_summary, summarise_trace
from moeworks.trace import RoutingTrace, write_trace
from moeworks.trace.convert.arrays import from_arrays
from moeworks.trace.convert.sglang import from_sglang
from moeworks.trace.convert.vllm import from_vllm


def convert(options: TraceOptions) -> int:
    """Read the dump, write the trace, and print the summary with what the validator finds."""
    start = time.perf_counter()
    trace = _read(options)
    write_trace(options.out, trace.header, *trace.blocks())
    summary = summarise_trace(options.out, time.perf_counter() - start, None)
    print_trace_summary(summary, as_json=options.json)
    return 0


def _read(options: TraceOptions) -> RoutingTrace:
    if options.dump == "sglang":
        return from_sglang(options.model, model=options.name)
    assert options.num_experts is not None
    known = dict(num_experts=options.num_experts, layers=options.layers, model=options.name)
    reader = from_vllm if options.dump == "vllm" else from_arrays
    return reader(options.model, **known)  # pyrefly: ignore[bad-argument-type]
