"""The record of a run as tables: on the terminal while it runs, and in Markdown for the docs."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

Record = dict[str, Any]


def case_table(operation: Record, case: Record) -> Table:
    """One case, a row per arm: medians with their quartiles, ours in bold."""
    over = f", ratio over {operation['reference']}" if operation["reference"] else ""
    table = Table(title=f"{operation['name']}: {case['name']}{over}", title_justify="left")
    table.add_column("")
    for heading in (operation["unit"], "quartiles", "ratio", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    remarks = [_remark(arm) for arm in case["arms"]]
    if any(remarks):
        table.add_column("")
    for arm, remark in zip(case["arms"], remarks, strict=True):
        ratio = _ratio(arm)
        cells = [
            arm["name"],
            _number(arm["median"]),
            _range(arm["quartiles"], _number),
            f"{ratio['median']:.2f}" if ratio else "",
            _range(ratio["quartiles"], "{:.2f}".format) if ratio else "",
        ]
        table.add_row(*cells, *([remark] if any(remarks) else []), style="bold" if arm["ours"] else None)
    return table


def markdown(record: Record) -> str:
    """Every operation as a table of cases and arms, under a line on the machine."""
    machine = record["machine"]
    versions = {"torch": machine["torch"], **machine["versions"]}
    gpu = f"{machine['gpu']}, " if machine["gpu"] and record["settings"]["device"] == "cuda" else ""
    lines = [
        f"{gpu}{machine['cpu']} ({machine['cpu_capability']}), {machine['cores']} cores,"
        f" {machine['memory_gb']} GB; {', '.join(f'{name} {version}' for name, version in versions.items())};"
        f" commit {machine['commit']}, {machine['date'][:10]}.",
        "",
    ]
    for operation in record["operations"]:
        lines += [*_operation_lines(operation), ""]
    return "\n".join(lines)


def _operation_lines(operation: Record) -> list[str]:
    cases = {case["name"]: {arm["name"]: arm for arm in case["arms"]} for case in operation["cases"]}
    arms = list(dict.fromkeys(name for case in cases.values() for name in case))
    notes: dict[str, int] = {}

    def cell(case: str, arm: str) -> str:
        return _cell(cases[case].get(arm), notes)

    # The longer of the two goes down the page.
    if len(arms) >= len(cases):
        heads, rows = list(cases), [[arm, *(cell(case, arm) for case in cases)] for arm in arms]
    else:
        heads, rows = arms, [[case, *(cell(case, arm) for arm in arms)] for case in cases]
    table = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    lines = [f"### {operation['name']}", "", _caption(operation), "", *table]
    return lines + ([""] + [f"{number}. {text}" for text, number in notes.items()] if notes else [])


def _caption(operation: Record) -> str:
    better = "higher" if operation["higher_is_better"] else "lower"
    over = f" over {operation['reference']}" if operation["reference"] else ""
    threads = operation["threads"]
    return (
        f"{operation['summary']}. Median {operation['unit']} ({better} is better); in brackets the median"
        f" ratio{over} and its quartiles. {operation['rounds']} interleaved rounds on"
        f" {threads} thread{'s' if threads > 1 else ''}."
    )


def _cell(arm: Record | None, notes: dict[str, int]) -> str:
    if arm is None:
        return ""
    remark = _remark(arm)
    mark = f" [{notes.setdefault(remark, len(notes) + 1)}]" if remark else ""
    ratio = _ratio(arm)
    if ratio is None:
        return _number(arm["median"]) + mark
    spread = _range(ratio["quartiles"], "{:.2f}".format)
    return f"{_number(arm['median'])} (**{ratio['median']:.2f}**, {spread}){mark}"


def _ratio(arm: Record) -> Record | None:
    """The ratio, unless it is over itself."""
    return arm["ratio"] if arm["over"] != arm["name"] else None


def _remark(arm: Record) -> str:
    if arm["failed"]:
        return f"failed: {arm['failed']}"
    if arm["refused"]:
        return arm["refused"]
    if arm["agrees"] is False:
        return "DIFFERS from the others in its results"
    return "slow: one sample" if arm["slow"] else ""


def _range(quartiles: list[float] | None, text: Callable[[float], str]) -> str:
    return "–".join(text(value) for value in quartiles) if quartiles else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
