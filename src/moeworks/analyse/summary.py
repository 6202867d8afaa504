"""All tables of one trace."""

from dataclasses import dataclass

from moeworks.analyse.bootstrap import Interval, bootstrap_load
from moeworks.analyse.coactivation import CoactivationTable, coactivation
from moeworks.analyse.confidence import ConfidenceTable, confidence
from moeworks.analyse.consistency import DriftTable, LagTable, RepeatTable, drift, overlap_by_lag, repeats
from moeworks.analyse.information import InformationTable, mutual_information
from moeworks.analyse.load import BatchLoadTable, LoadTable, batch_load_table, load_table, max_vio
from moeworks.analyse.specialisation import DomainTable, domain_specialisation
from moeworks.analyse.working_set import WorkingSetTable, working_sets
from moeworks.trace import ExpertCounts, RoutingTrace, count_experts

BATCH_TOKENS = 4096
"""Tokens of the batches of MaxVio_batch; a shorter trace is one batch."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """What one trace says; the words of its tokenizer and other traces are not needed."""

    counts: ExpertCounts
    """By domain."""
    load: LoadTable
    max_vio: Interval
    """[l], over documents."""
    batch_load: BatchLoadTable
    coactivation: CoactivationTable
    domains: DomainTable | None
    """None where there is one domain."""
    information: InformationTable | None
    """None where there is one domain."""
    repeats: RepeatTable
    lags: LagTable
    drift: DriftTable
    confidence: ConfidenceTable
    working_sets: WorkingSetTable


def analyse_trace(trace: RoutingTrace) -> Analysis:
    """Every metric of a trace on disk or in memory, layer by layer.

    Raises ConfigError for a trace without two tokens that follow each other.
    """
    counts = count_experts(trace, "domain")
    several = int((counts.counts.sum(axis=(1, 2)) > 0).sum()) > 1
    return Analysis(
        counts=counts,
        load=load_table(counts),
        max_vio=bootstrap_load(trace, max_vio),
        batch_load=batch_load_table(trace, min(BATCH_TOKENS, trace.num_tokens)),
        coactivation=coactivation(trace),
        domains=domain_specialisation(trace) if several else None,
        information=mutual_information(trace) if several else None,
        repeats=repeats(trace),
        lags=overlap_by_lag(trace),
        drift=drift(trace),
        confidence=confidence(trace),
        working_sets=working_sets(trace),
    )
