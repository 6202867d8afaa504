"""The report of a run as Markdown: the verdicts and the tables."""

from moeworks.report.run import tables
from moeworks.report.run.alarms import alarm_table, no_alarms
from moeworks.report.run.heat_maps import load_windows
from moeworks.report.run.run_data import RunData
from moeworks.report.run.verdicts import judge_run
from moeworks.report.table import plain_markdown
from moeworks.report.verdict import verdict_lines


def run_markdown(run: RunData) -> str:
    """Everything that can be said without a figure."""
    windows = load_windows(run)
    found = [
        alarm_table(run),
        tables.domain_table(run),
        tables.load_table(run, windows[-1]) if windows else None,
    ]
    quiet = no_alarms(run)
    parts = [
        f"# Training report: {plain_markdown(run.name)}\n",
        f"{tables.setting_line(run)}\n",
        verdict_lines(judge_run(run)),
        f"{quiet}\n" if quiet else "",
        *(table.markdown() for table in found if table is not None),
    ]
    return "\n".join(part for part in parts if part)
