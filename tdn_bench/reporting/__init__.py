"""Pages and plots from records: a report of one folder, a figure over commits."""

from tdn_bench.reporting.report import html_path, write_report

__all__ = ["html_path", "write_report"]
