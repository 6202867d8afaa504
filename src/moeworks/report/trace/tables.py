"""The tables of a trace: what stands behind the figures, in the page, in Markdown and for screen readers."""

from collections.abc import Iterable, Sequence

import numpy as np

from moeworks.analyse.verdicts.words import percent
from moeworks.report.table import Table, number
from moeworks.report.trace.subject import Subject


def _by_layer(subject: Subject, label: str, columns: dict[str, np.ndarray | None], digits: int = 2) -> Table:
    """A row for each layer; columns that the trace does not give are left out."""
    present = {name: values for name, values in columns.items() if values is not None}
    rows = [
        (name, *(_cell(values[place], digits) for values in present.values()))
        for place, name in enumerate(subject.layers)
    ]
    return Table(label, ("layer", *present), rows)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, (int, np.integer)) else number(value, digits)


def _names(experts: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Numbers of experts as words; a dash for layers without an assignment."""
    return np.array(
        [f"{e}" if np.isfinite(row).any() else "–" for e, row in zip(experts, relative, strict=True)]
    )


def load_table(subject: Subject) -> Table:
    """Balance of each layer."""
    analysis = subject.inspection.analysis
    load, relative = analysis.load, subject.inspection.experts.load
    columns: dict[str, np.ndarray | None] = {
        "MaxVio": load.max_vio,
        "from": analysis.max_vio.low,
        "to": analysis.max_vio.high,
        "MaxVio of batches": analysis.batch_load.max_vio,
        "dead": load.dead,
        "effective experts": load.effective_experts,
        "entropy": load.entropy,
        "Gini": load.gini,
        "busiest": _names(np.where(np.isnan(relative), -1, relative).argmax(axis=1), relative),
        "quietest": _names(np.where(np.isnan(relative), -1, relative).argmin(axis=1), relative),
    }
    return _by_layer(subject, "Load by layer", columns)


def information_table(subject: Subject) -> Table | None:
    """Bits about domains and words, and cells outside the null band."""
    analysis = subject.inspection.analysis
    table, domains = analysis.information, analysis.domains
    if table is None or domains is None:
        return None
    columns = {
        "cells outside the null band": domains.outside() / domains.specialisation[0].size,
        "domain, bits": table.domain,
        "null": table.domain_null,
        "domain given token": table.domain_given_token,
        "its null": table.domain_given_token_null,
        "token": table.token,
        "entropy of the choice": table.expert_entropy,
    }
    return _by_layer(subject, "What the choice of an expert says", columns, 4)


def preference_table(subject: Subject, limit: int = 20) -> Table | None:
    """The strongest preferences beyond what chance gives any of all cells."""
    table = subject.inspection.analysis.domains
    if table is None:
        return None
    preference = np.where(table.preferred(), table.preference(), 0)
    order = np.argsort(-preference, axis=None)[:limit]
    places = list(zip(*np.unravel_index(order, preference.shape), strict=True))
    rows = [
        (
            subject.layers[layer], str(expert), subject.domains[domain],
            percent(table.specialisation[layer, expert, domain]),
            f"{percent(table.null_low[layer, expert, domain])} to"
            f" {percent(table.null_high[layer, expert, domain])}",
            number(preference[layer, expert, domain]),
        )
        for layer, expert, domain in places
        if preference[layer, expert, domain] > 1
    ]  # fmt: skip
    header = ("layer", "expert", "domain", "of its tokens", "by chance", "times its share of all")
    return Table("Strongest domain preferences beyond chance", header, rows, words=3)


def pair_table(subject: Subject, limit: int = 20) -> Table:
    """The strongest pairs of all layers."""
    table = subject.inspection.neighbours
    pairs = [
        (float(bound), place, int(i), int(j), int(count), float(expected), float(lift))
        for place, (edges, bounds, counts, by_load, lifts) in enumerate(
            zip(table.edges, table.bounds, table.counts, table.expected, table.lifts, strict=True)
        )
        for (i, j), bound, count, expected, lift in zip(edges, bounds, counts, by_load, lifts, strict=True)
    ]
    rows = [
        (
            subject.layers[place],
            f"{i} and {j}",
            f"{count:,}",
            number(expected, 1),
            number(lift),
            number(bound),
        )
        for bound, place, i, j, count, expected, lift in sorted(pairs, reverse=True)[:limit]
    ]
    header = ("layer", "experts", "tokens", "by the loads alone", "lift", "surely")
    return Table("Pairs that meet more often than their loads say", header, rows, words=2)


def consistency_table(subject: Subject) -> Table:
    """Repeats and runs."""
    analysis = subject.inspection.analysis
    table = analysis.repeats
    last = _last(analysis.working_sets.mean)
    columns: dict[str, np.ndarray | None] = {}
    if table is not None:
        columns = {
            "repeat rate": table.repeat_rate.estimate,
            "from": table.repeat_rate.low,
            "to": table.repeat_rate.high,
            "chance": table.chance,
            "chance in a document": table.document_chance,
            "mean run": table.mean_run,
            "run by chance": table.run_chance,
        }
    if last is not None:
        columns[f"experts in {analysis.working_sets.windows[last]} tokens"] = (
            analysis.working_sets.mean[:, last]
        )  # fmt: skip
    return _by_layer(subject, "Consistency along the text", columns, 3)


def _last(values: np.ndarray) -> int | None:
    """The last column without NaN."""
    whole = np.flatnonzero(~np.isnan(values).any(axis=0))
    return int(whole[-1]) if len(whole) else None


def curve_tables(subject: Subject) -> dict[str, Table]:
    """Tables of the figures over distance, window and position."""
    analysis = subject.inspection.analysis
    lags, sets, drift = analysis.lags, analysis.working_sets, analysis.drift
    positions = [f"{a}–{b - 1}" for a, b in zip(drift.edges[:-1], drift.edges[1:], strict=True)]
    return {
        "lags": _matrix(subject, "Overlap by distance in tokens", lags.lags, lags.overlap, 3),
        "sets": _matrix(subject, "Distinct experts by tokens in a row", sets.windows, sets.mean, 1),
        "drift": _matrix(subject, "Divergence in bits by position", positions, drift.divergence, 4),
    }


def _matrix(subject: Subject, label: str, header: Iterable[object], values: np.ndarray, digits: int) -> Table:
    rows = [
        (name, *(number(v, digits) for v in row)) for name, row in zip(subject.layers, values, strict=True)
    ]
    return Table(label, ("layer", *(str(name) for name in header)), rows)


def confidence_table(subject: Subject) -> Table | None:
    """Weights, entropy and margins, as far as they are recorded."""
    table = subject.inspection.analysis.confidence
    ranks = table.weight_by_rank
    columns = {
        "weight of the first choice": None if ranks is None else ranks[:, 0],
        "weight of the last": None if ranks is None else ranks[:, -1],
        "choices in effect": table.effective_choices,
        "mean entropy": None if table.entropy is None else table.entropy.estimate,
        "median margin": None if table.margin_quantiles is None else table.margin_quantiles[:, 2],
        "overruled": None if table.overruled is None else table.overruled.estimate,
    }
    if all(values is None for values in columns.values()):
        return None
    return _by_layer(subject, "The router's confidence", columns, 3)


def comparison_tables(subject: Subject) -> list[Table]:
    """Both traces layer by layer, and overlap where texts agree."""
    compared = subject.inspection.comparison
    if compared is None:
        return []
    tables = [
        _one_side(name, load)
        for name, load in ((subject.name, compared.left_load), (subject.other_name, compared.right_load))
    ]
    layers = [f"layer {number}" for number in compared.layers]
    columns: dict[str, Sequence[float] | None] = {
        "work that moved": _listed(compared.moved),
        "divergence, bits": _listed(compared.divergence),
        "overlap": None if compared.overlap is None else _listed(compared.overlap.estimate),
        "by chance": _listed(compared.chance),
        "same first choice": _listed(compared.same_first),
    }
    present = {name: values for name, values in columns.items() if values is not None}
    if present and layers:
        rows = [
            (name, *(number(values[i], 3) for values in present.values())) for i, name in enumerate(layers)
        ]
        tables.insert(0, Table("Difference by layer", ("layer", *present), rows))
    return tables


def domain_comparison_table(subject: Subject, limit: int = 30) -> Table | None:
    """Where the domain specialisation of two traces differs most."""
    compared = subject.inspection.comparison
    if compared is None or compared.left_domains is None or compared.right_domains is None:
        return None
    gap = np.abs(compared.left_domains - compared.right_domains)
    order = np.argsort(-gap, axis=None, kind="stable")[:limit]
    rows = [
        (
            f"layer {compared.layers[layer]}", str(expert), compared.domains[domain] or "(none)",
            percent(float(compared.left_domains[layer, expert, domain])),
            percent(float(compared.right_domains[layer, expert, domain])),
        )
        for layer, expert, domain in zip(*np.unravel_index(order, gap.shape), strict=True)
        if gap[layer, expert, domain] > 0
    ]  # fmt: skip
    header = ("layer", "expert", "domain", subject.name, subject.other_name)
    return Table("Domain specialisation side by side: the largest differences", header, rows, words=3)


def _listed(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _one_side(name: str, load: object) -> Table:
    fields = {"MaxVio": "max_vio", "dead": "dead", "effective experts": "effective_experts", "Gini": "gini"}
    columns = {title: getattr(load, field) for title, field in fields.items()}
    rows = [
        (f"layer {layer}", *(_cell(values[place], 2) for values in columns.values()))
        for place, layer in enumerate(load.layers)  # pyrefly: ignore[missing-attribute]
    ]
    return Table(f"Load in {name}", ("layer", *columns), rows)


def expert_token_table(subject: Subject, limit: int = 20) -> Table | None:
    """The experts that are most of words, with their tokens."""
    table = subject.inspection.vocabulary
    if table is None:
        return None
    above = np.nan_to_num(table.knowing - table.knowing_null, nan=-1)
    order = np.argsort(-above, axis=None)[:limit]
    rows = []
    for layer, expert in zip(*np.unravel_index(order, above.shape), strict=True):
        ids = [int(i) for i in table.token_ids[layer, expert] if i >= 0]
        words = " ".join(subject.tokens(ids)) or "–"
        rows.append(
            (subject.layers[layer], str(expert), words, number(table.knowing[layer, expert], 3),
             number(table.knowing_null[layer, expert], 3))
        )  # fmt: skip
    header = ("layer", "expert", "tokens that stand out", "word by word", "by chance")
    return Table("Experts that know words best", header, rows, words=3)


def finding_table(subject: Subject) -> Table | None:
    """What the validator found."""
    findings = subject.inspection.findings
    if not findings:
        return None
    rows = [
        (f.kind, "–" if f.layer is None else f"layer {f.layer}", f.message, f"{f.count:,}") for f in findings
    ]
    return Table("Findings of the validator", ("finding", "where", "what", "tokens"), rows, words=3)


def identity_table(subject: Subject) -> Table:
    """What the trace says about itself."""
    header = subject.inspection.header
    rows = [
        ("model", header.model),
        ("weights", header.model_fingerprint or "not known"),
        ("engine", header.engine),
        ("training step", "not known" if header.step is None else f"{header.step:,}"),
        ("tokenizer", header.tokenizer_fingerprint or "not known"),
        ("columns", ", ".join(("ids", *header.fields))),
        ("note", header.note or "–"),
    ]
    return Table("What the trace says about itself", ("what", "is"), rows, words=2)
