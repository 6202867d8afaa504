"""The report of a trace as Markdown: the verdicts and the tables."""

from moeworks.analyse.verdicts import judge_trace
from moeworks.analyse.verdicts.words import plural
from moeworks.report.table import plain_markdown
from moeworks.report.trace import tables
from moeworks.report.trace.absent import why_absent
from moeworks.report.trace.subject import Subject
from moeworks.report.verdict import verdict_lines


def trace_markdown(subject: Subject) -> str:
    """Everything that can be said without a figure."""
    inspection = subject.inspection
    header = inspection.header
    compared = f", compared with {plain_markdown(subject.other_name)}" if inspection.comparison else ""
    intro = (
        f"{plural(inspection.tokens, 'token')} of {plural(inspection.documents, 'document')},"
        f" {plural(len(header.layers), 'MoE layer')} of {plural(header.num_experts, 'expert')},"
        f" {subject.choices} for a token{compared}."
    )
    found = [
        tables.load_table(subject), tables.information_table(subject), tables.preference_table(subject),
        tables.expert_token_table(subject), tables.pair_table(subject), tables.consistency_table(subject),
        *tables.curve_tables(subject).values(), tables.confidence_table(subject),
        *tables.comparison_tables(subject), tables.domain_comparison_table(subject),
        tables.finding_table(subject), tables.identity_table(subject),
    ]  # fmt: skip
    missing = "".join(f"- {sentence}\n" for sentence in why_absent(subject).values())
    parts = [
        f"# Routing report: {plain_markdown(subject.name)}\n",
        intro + "\n",
        verdict_lines(judge_trace(subject.inspection)),
        *(table.markdown() for table in found if table is not None and table.rows),
        f"What is not here, and what it needs:\n\n{missing}" if missing else "",
    ]
    return "\n".join(part for part in parts if part)
