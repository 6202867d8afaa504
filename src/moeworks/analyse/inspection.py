"""Everything that the report of a trace shows, computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moeworks.analyse import summary
from moeworks.analyse.compare import Comparison, compare_traces
from moeworks.analyse.experts import ExpertTable, expert_table
from moeworks.analyse.neighbours import NeighbourTable, neighbours
from moeworks.analyse.sample import TextSample, sample_texts
from moeworks.analyse.summary import Analysis, analyse_trace
from moeworks.analyse.vocabulary import TopTokenTable, top_tokens
from moeworks.trace import Finding, RoutingTrace, TraceHeader, count_experts, validate_trace

STEPS = summary.STEPS + 5
"""How often inspect_trace reports progress."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """A trace, looked at from all sides."""

    header: TraceHeader
    tokens: int
    documents: int
    sequences: int
    findings: tuple[Finding, ...]
    """Findings of the validator; a good trace has none."""
    analysis: Analysis
    experts: ExpertTable
    neighbours: NeighbourTable
    vocabulary: TopTokenTable | None
    """None where token ids are not known."""
    sample: TextSample
    similarity: np.ndarray | None
    """float [l, E, E]: cosine of the experts' weights; None where no model was given."""
    other: TraceHeader | None
    """Header of the trace that it is compared with."""
    comparison: Comparison | None


def inspect_trace(
    trace: RoutingTrace,
    *,
    other: RoutingTrace | None = None,
    similarity: Sequence[np.ndarray] | None = None,
    min_count: int = 10,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Compute all tables.

    Args:
        trace: the trace to look at.
        other: a trace to compare it with.
        similarity: a matrix [E, E] for each layer of the trace (analyse.similarity), which a trace alone does
            not hold.
        min_count: occurrences that a token needs to stand out for an expert.
        progress: called before each table, STEPS times, with what comes next.
    """
    tell = progress or (lambda _: None)
    tell("validation")
    findings = tuple(validate_trace(trace))
    analysis = analyse_trace(trace, progress)
    tell("experts")
    experts = expert_table(trace)
    tell("words")
    known = bool((trace.tokens.token_id >= 0).all())
    vocabulary = top_tokens(trace, min_count=min_count) if known else None
    tell("texts")
    sample = sample_texts(trace)
    tell("comparison")
    comparison = None
    if other is not None:
        comparison = compare_traces(trace, other, analysis.counts, count_experts(other, "domain"))
    return Inspection(
        header=trace.header,
        tokens=trace.num_tokens,
        documents=len(np.unique(trace.tokens.document)),
        sequences=len(np.unique(trace.tokens.sequence)),
        findings=findings,
        analysis=analysis,
        experts=experts,
        neighbours=neighbours(analysis.coactivation),
        vocabulary=vocabulary,
        sample=sample,
        similarity=None if similarity is None else np.stack(similarity),
        other=None if other is None else other.header,
        comparison=comparison,
    )
