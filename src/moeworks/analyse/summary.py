"""All tables of one trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from moeworks.analyse.coactivation import CoactivationTable, coactivation
from moeworks.analyse.confidence import ConfidenceTable, confidence
from moeworks.analyse.consistency import (
    DriftTable,
    LagTable,
    RepeatTable,
    drift,
    following,
    overlap_by_lag,
    repeats,
)
from moeworks.analyse.information import InformationTable, mutual_information
from moeworks.analyse.intervals import Interval
from moeworks.analyse.load import (
    BatchLoadTable,
    LoadTable,
    batch_load_table,
    load_table,
    max_vio_interval,
)
from moeworks.analyse.specialisation import DomainTable, domain_specialisation
from moeworks.analyse.working_set import WorkingSetTable, working_sets
from moeworks.trace import ExpertCounts, RoutingTrace, count_experts

STEPS = 11
"""How often analyse_trace reports progress."""
BATCH_TOKENS = 4096
"""Tokens of the batches of MaxVio_batch; a shorter trace is one batch."""


Table = TypeVar("Table")


@dataclass(frozen=True, eq=False)
class Analysis:
    """All tables of one trace; neither its tokenizer nor other traces are needed."""

    counts: ExpertCounts
    """Assignments by domain."""
    load: LoadTable
    max_vio: Interval
    """[l]: MaxVio with its interval over documents, for all layers together."""
    batch_load: BatchLoadTable
    coactivation: CoactivationTable
    domains: DomainTable | None
    """None where there is one domain."""
    information: InformationTable | None
    """None where there is one domain."""
    repeats: RepeatTable | None
    """None where no token follows another: sequences of one token, as concurrent decoding records them."""
    lags: LagTable
    drift: DriftTable
    confidence: ConfidenceTable
    working_sets: WorkingSetTable


def analyse_trace(trace: RoutingTrace, progress: Callable[[str], None] | None = None) -> Analysis:
    """Every metric of a trace on disk or in memory, layer by layer.

    `progress` is called before each table, STEPS times, with what comes next.
    """
    tell = progress or (lambda _: None)

    def step(name: str, table: Callable[[], Table]) -> Table:
        tell(name)
        return table()

    counts = step("load", lambda: count_experts(trace, "domain"))
    several = int((counts.counts.sum(axis=(1, 2)) > 0).sum()) > 1
    batch = min(BATCH_TOKENS, trace.num_tokens)
    return Analysis(
        counts=counts,
        load=load_table(counts),
        max_vio=step("intervals of load", lambda: max_vio_interval(trace)),
        batch_load=step("load of batches", lambda: batch_load_table(trace, batch)),
        coactivation=step("co-activation", lambda: coactivation(trace)),
        domains=step("domains", lambda: domain_specialisation(trace) if several else None),
        information=step("information", lambda: mutual_information(trace) if several else None),
        repeats=step("repeats", lambda: repeats(trace) if following(trace).any() else None),
        lags=step("lags", lambda: overlap_by_lag(trace)),
        drift=step("drift", lambda: drift(trace)),
        confidence=step("confidence", lambda: confidence(trace)),
        working_sets=step("working sets", lambda: working_sets(trace)),
    )
