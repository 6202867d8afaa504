"""Reports as files: a run's or a trace's, in any format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from moeworks.files import write_atomically
from moeworks.report.run.markdown import run_markdown
from moeworks.report.run.page import build_page
from moeworks.report.run.picture import run_png
from moeworks.report.run.records import run_json
from moeworks.report.run.run_data import RunData, read_run
from moeworks.report.trace.markdown import trace_markdown
from moeworks.report.trace.page import build_trace_page
from moeworks.report.trace.picture import trace_png
from moeworks.report.trace.records import trace_json
from moeworks.report.trace.subject import Subject

ReportFormat = Literal["html", "md", "json", "png"]

_OF_RUN: Mapping[ReportFormat, Callable[[RunData], str | bytes]] = {
    "html": build_page, "md": run_markdown, "json": run_json, "png": run_png,
}  # fmt: skip
_OF_TRACE: Mapping[ReportFormat, Callable[[Subject], str | bytes]] = {
    "html": build_trace_page, "md": trace_markdown, "json": trace_json, "png": trace_png,
}  # fmt: skip


def run_report(run_dir: Path, kind: ReportFormat = "html") -> bytes:
    """The report of what a training run left in `run_dir`.

    The run may be unfinished (no summary.json) and the model dense (no MoE layer). Raises DataError, naming
    file and line, for a missing config.json or a file that is not what it must be, and
    MissingDependencyError for a png without matplotlib.
    """
    return _encoded(_OF_RUN[kind](read_run(run_dir)))


def trace_report(subject: Subject, kind: ReportFormat = "html") -> bytes:
    """The report of a trace. Raises MissingDependencyError for a png without matplotlib."""
    return _encoded(_OF_TRACE[kind](subject))


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html, atomically, and return its path. Raises as run_report does.

    The file holds everything it needs: no network is used when it is opened.
    """
    path = run_dir / "report.html"
    write_atomically(path, run_report(run_dir))
    return path


def _encoded(content: str | bytes) -> bytes:
    # A sample may hold half a surrogate pair, which UTF-8 cannot write.
    return content if isinstance(content, bytes) else content.encode(errors="replace")
