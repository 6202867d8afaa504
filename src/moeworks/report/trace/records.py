"""The report of a trace as JSON (docs/inspect.md): every table, and the verdicts."""

import json
from typing import Any

from moeworks.analyse.verdicts import judge_trace
from moeworks.report.records import as_json
from moeworks.report.trace.absent import why_absent
from moeworks.report.trace.subject import Subject

FORMAT, VERSION = "moeworks.inspection", 1


def trace_json(subject: Subject) -> str:
    """One JSON object, with a line for each of its tables."""
    record = trace_record(subject)
    lines = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def trace_record(subject: Subject) -> dict[str, Any]:
    """The object: the fields of Inspection and of its Analysis side by side."""
    inspection = subject.inspection
    own = {name: value for name, value in vars(inspection).items() if name != "analysis"}
    tables = as_json({**vars(inspection.analysis), **own})
    # Both follow from `pairs` and the loads, and are as large.
    for name in ("rate", "baseline"):
        del tables["coactivation"][name]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": subject.name,
        "other_name": subject.other_name,
        "verdicts": as_json(judge_trace(subject.inspection)),
        "missing": why_absent(subject),
        **tables,
        "token_texts": _token_texts(subject),
    }


def _token_texts(subject: Subject) -> dict[str, str] | None:
    """What the tokens that stand out for an expert look like; None without a tokenizer."""
    table = subject.inspection.vocabulary
    if table is None or subject.pieces is None:
        return None
    ids = sorted({int(number) for number in table.token_ids.reshape(-1) if number >= 0})
    return dict(zip(map(str, ids), subject.tokens(ids), strict=True))
