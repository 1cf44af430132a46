"""Pages and plots from records: a report of one folder, a figure over commits."""

from tdn_bench.reporting.report import write_report

__all__ = ["write_report"]
