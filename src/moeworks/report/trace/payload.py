"""What the page's scripts draw from: matrices, cards, texts and the graph, packed."""

from typing import Any

import numpy as np

from moeworks.data.pieces import texts_in_a_row
from moeworks.report.packed import pack_counts, pack_numbers
from moeworks.report.trace.metrics import map_metrics
from moeworks.report.trace.subject import Subject, drawn_domains, visible_in_text


def trace_payload(subject: Subject) -> dict[str, Any]:
    """All of it, for JSON."""
    header = subject.inspection.header
    return {
        "layers": list(header.layers),
        "experts": header.num_experts,
        "topK": header.top_k,
        "metrics": [
            {
                "key": metric.key, "scale": metric.scale, "name": metric.name, "hover": metric.hover,
                "about": metric.about, "values": pack_numbers(metric.values),
            }
            for metric in map_metrics(subject)
        ],
        "facts": _facts(subject),
        "tokens": _tokens(subject),
        "domains": _domains(subject),
        "graph": _graph(subject),
        "similarity": _similarity(subject),
        "sample": _sample(subject),
    }  # fmt: skip


def _facts(subject: Subject) -> dict[str, Any]:
    return {"assignments": pack_counts(subject.inspection.experts.assignments)}


def _tokens(subject: Subject) -> dict[str, Any] | None:
    """Top tokens of all experts; the texts once each."""
    table = subject.inspection.vocabulary
    if table is None:
        return None
    used, place = np.unique(table.token_ids, return_inverse=True)
    known = subject.tokens(int(i) for i in used if i >= 0)
    return {
        "minCount": table.min_count,
        "texts": ([""] if len(used) and used[0] < 0 else []) + known,
        "ids": used.tolist(),
        "place": pack_counts(place.reshape(table.token_ids.shape)),
        "counts": pack_counts(table.counts),
        "shares": pack_numbers(table.shares),
    }


def _domains(subject: Subject) -> dict[str, Any] | None:
    table = subject.inspection.analysis.domains
    if table is None:
        return None
    drawn = drawn_domains(subject)
    only = table.token_only
    return {
        "names": [subject.domains[place] for place in drawn],
        "left": len(table.domains) - len(drawn),
        "share": pack_numbers(table.specialisation[:, :, drawn]),
        "low": pack_numbers(table.null_low[:, :, drawn]),
        "high": pack_numbers(table.null_high[:, :, drawn]),
        "wordsOnly": None if only is None else pack_numbers(only[:, :, drawn]),
        "preference": pack_numbers(table.preference()[:, :, drawn]),
    }


def _graph(subject: Subject) -> dict[str, Any]:
    table = subject.inspection.neighbours
    columns = (table.edges, table.lifts, table.bounds, table.counts, table.expected)
    return {
        "order": pack_counts(table.order),
        "edges": [
            [
                [
                    int(i),
                    int(j),
                    round(float(lift), 2),
                    round(float(bound), 2),
                    int(count),
                    round(float(loads), 1),
                ]
                for (i, j), lift, bound, count, loads in zip(*layer, strict=True)
            ]
            for layer in zip(*columns, strict=True)
        ],
        "nearest": pack_counts(table.nearest),
        "lift": pack_numbers(table.nearest_lift),
    }


def _similarity(subject: Subject) -> dict[str, Any] | None:
    """Of every expert the most alike by their weights."""
    matrix = subject.inspection.similarity
    if matrix is None:
        return None
    others = np.where(np.eye(matrix.shape[1], dtype=bool), -np.inf, matrix)
    best = np.argsort(-others, axis=2, kind="stable")[:, :, : min(3, matrix.shape[1] - 1)]
    cosine = np.take_along_axis(matrix, best, 2)
    return {"nearest": pack_counts(np.where(np.isnan(cosine), -1, best)), "cosine": pack_numbers(cosine)}


def _sample(subject: Subject) -> dict[str, Any]:
    sample, experts = subject.inspection.sample, subject.inspection.header.num_experts
    known = bool((sample.token_ids >= 0).all())
    ends = [*sample.starts[1:].tolist(), len(sample.token_ids)]
    texts = []
    for start, end in zip(sample.starts, ends, strict=True):
        ids = sample.token_ids[start:end].tolist()
        if subject.pieces is not None and known:
            texts.append([visible_in_text(piece) for piece in texts_in_a_row(subject.pieces.of(ids))])
        else:
            texts.append([f"#{i}" if i >= 0 else "▢" for i in ids])
    return {
        "starts": sample.starts.tolist(),
        "texts": texts,
        "tokenIds": sample.token_ids.tolist() if known else None,
        "positions": sample.positions.tolist(),
        "ids": pack_counts(np.where(sample.ids < experts, sample.ids.astype(np.int64), -1)),
        "weights": None if sample.weights is None else pack_numbers(sample.weights),
        "entropy": None if sample.entropy is None else pack_numbers(sample.entropy),
        "margin": None if sample.margin is None else pack_numbers(sample.margin),
        "runnersUp": None if sample.runners_up is None else pack_counts(sample.runners_up),
        "behind": None if sample.behind is None else pack_numbers(sample.behind),
    }
