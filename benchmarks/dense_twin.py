"""The table of README: MoE runs beside their dense twins, from the runs' own files.

    moeworks train laptop --name moe
    moeworks train laptop --dense-twin --name dense
    python benchmarks/dense_twin.py "default:runs/moe:runs/dense" ["30 minutes:runs/A:runs/B" ...]

Each argument is LABEL:MOE_RUN:DENSE_RUN. Seconds are training time without validation, as the runs logged it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from suite.results import write_result


def read_run(folder: str) -> dict[str, Any]:
    """The figures of one finished run, and its learning curve (step, seconds, bits per byte)."""
    summary = json.loads(Path(folder, "summary.json").read_text("utf-8"))
    lines = [json.loads(x) for x in Path(folder, "metrics.jsonl").read_text("utf-8").splitlines()]
    curve = [[x["step"], x["seconds"], x["bits_per_byte"]] for x in lines if x["kind"] == "eval"]
    return {
        "bits_per_byte": summary["eval"]["bits_per_byte"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "tokens": summary["tokens"],
        "parameters": summary["parameters"],
        "machine": summary["machine"],
        "curve": curve,
    }


def main() -> None:
    rows = {}
    print("| run | model | active / total parameters | steps | seconds | bits per byte |")
    print("|---|---|---|---|---|---|")
    for argument in sys.argv[1:]:
        label, *folders = argument.split(":")
        runs = {kind: read_run(folder) for kind, folder in zip(("MoE", "dense"), folders, strict=True)}
        for kind, run in runs.items():
            size = run["parameters"]
            sizes = f"{size['active'] / 1e6:.2f} M / {size['total'] / 1e6:.2f} M"
            print(
                f"| {label} | {kind} | {sizes} | {run['steps']} | {run['seconds']:.0f}"
                f" | {run['bits_per_byte']:.4f} |"
            )
        rows[label] = runs
    write_result("dense_twin", {"rows": rows})


if __name__ == "__main__":
    main()
