"""Reports that anybody can open: one offline HTML page of a training run or of a routing trace.

Also as Markdown, JSON and a picture. The page of a run is in run/, that of a trace in trace/; what they share
(colours, fragments of HTML, heat maps, verdicts, tables, the frame of the page) is here. What they draw is
computed in moeworks.analyse.
"""

from moeworks.report.trace.subject import Subject
from moeworks.report.write import ReportFormat, run_report, trace_report, write_report

__all__ = ["ReportFormat", "Subject", "run_report", "trace_report", "write_report"]
