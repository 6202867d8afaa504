"""Routing traces: one format for what a model's routers chose, on disk and in memory.

docs/trace-format.md is the specification.

Recording is a function of the Routing records that a forward pass returns (record.py, which needs torch); all
else is numpy and Arrow.
"""

from moeworks.trace.block import LayerColumns, TokenColumns, TraceBlock, token_columns
from moeworks.trace.counts import ExpertCounts, count_experts, read_counts, write_counts
from moeworks.trace.header import TraceHeader
from moeworks.trace.read import RoutingTrace
from moeworks.trace.validate import Finding, validate_trace
from moeworks.trace.write import TraceWriter, write_trace

__all__ = [
    "ExpertCounts",
    "Finding",
    "LayerColumns",
    "RoutingTrace",
    "TokenColumns",
    "TraceBlock",
    "TraceHeader",
    "TraceWriter",
    "count_experts",
    "read_counts",
    "token_columns",
    "validate_trace",
    "write_counts",
    "write_trace",
]
