"""The report of a training run: one offline HTML page, drawn from what the run left on disk."""

from moeworks.report.run.page import write_report

__all__ = ["write_report"]
