"""The report of a run as JSON (docs/inspect.md): what the run logged, and the verdicts."""

import json
from typing import Any

from moeworks.config.codec import to_dict
from moeworks.report.records import as_json
from moeworks.report.run.run_data import RunData
from moeworks.report.run.verdicts import judge_run


def run_json(run: RunData) -> str:
    """One JSON object, with a line for each of its parts."""
    record: dict[str, Any] = {
        "format": "moeworks.run-report",
        "version": 1,
        "name": run.name,
        "verdicts": as_json(judge_run(run)),
        "moe_layers": list(run.moe_layers),
        "config": to_dict(run.config),
        "train": as_json(run.train),
        "routing": as_json(run.routing),
        "evals": as_json(run.evals),
        "alarms": as_json(run.alarms),
        "summary": as_json(run.summary),
    }
    lines = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
