"""The summary of a trace that `moeworks trace` has written."""

from pathlib import Path
from typing import Any

import numpy as np

from moeworks.cli.output import console, print_json
from moeworks.trace import RoutingTrace, validate_trace
from moeworks.trace.block import filled_slots
from moeworks.trace.sizes import bytes_per_assignment


def summarise_trace(path: Path, seconds: float, recording_share: float | None) -> dict[str, Any]:
    """Counts, sizes and findings; `recording_share` is None where no model ran."""
    trace = RoutingTrace.open(path)
    header, tokens = trace.header, trace.tokens
    number = np.bincount(tokens.domain, minlength=len(tokens.domains))
    return {
        "trace": str(path),
        "engine": header.engine,
        "tokens": trace.num_tokens,
        "documents": len(np.unique(tokens.document)),
        "sequences": len(np.unique(tokens.sequence)),
        "domains": {tokens.domains[code]: int(number[code]) for code in np.argsort(-number, kind="stable")},
        "layers": list(header.layers),
        "num_experts": header.num_experts,
        "top_k": header.top_k,
        "fields": list(header.fields),
        "assignments": _assignments(trace),
        "bytes": path.stat().st_size,
        "id_bytes_per_assignment": bytes_per_assignment(path, "ids"),
        "seconds": seconds,
        "recording_share": recording_share,
        "findings": [
            {"kind": f.kind, "layer": f.layer, "tokens": f.count, "message": f.message}
            for f in validate_trace(trace)
        ],
    }


def _assignments(trace: RoutingTrace) -> int:
    header = trace.header
    if not header.empty_slots:
        return trace.num_tokens * header.top_k * len(header.layers)
    return sum(int(filled_slots(trace.ids(layer), header.num_experts).sum()) for layer in header.layers)


def print_trace_summary(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print a few lines, or one JSON object."""
    if as_json:
        print_json(summary)
        return
    counts = "  ".join(f"{name or '(none)'} {count:,}" for name, count in summary["domains"].items())
    size = f"{summary['bytes'] / 1e6:,.2f} MB, {summary['id_bytes_per_assignment']:.2f} bytes an expert id"
    share = summary["recording_share"]
    lines = [
        f"{summary['tokens']:,} tokens of {summary['documents']:,} documents,"
        f" {len(summary['layers'])} MoE layers of {summary['num_experts']} experts, top {summary['top_k']}",
        f"domains: {counts}",
        f"computed by {summary['engine']}",
        f"{summary['trace']}: {size}",
    ]
    if share is not None:
        lines.append(f"recording took {share:.1%} of the forward passes")
    for finding in summary["findings"]:
        where = "" if finding["layer"] is None else f"layer {finding['layer']}, "
        lines.append(
            f"warning: {finding['kind']} ({where}{finding['tokens']:,} tokens): {finding['message']}"
        )
    console().print("\n".join(lines))
