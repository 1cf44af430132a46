"""A Markdown page with tables and plots from a folder of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tdn_bench.cli import parse, run_command
from tdn_bench.reporting import write_report

EXAMPLES = (
    "tdn-bench report runs/demo/records",
    "tdn-bench report runs/throughput",
)
COMMON = ()


@dataclass(frozen=True)
class Report:
    """Write report.md and its plots from the newest record of each kind and name."""

    folder: Positional[Path]
    """Folder with records (*.json); the page is written there."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write report.md and its plots."""
    config = parse(Report, argv, "report", examples=EXAMPLES, common=COMMON)
    print(f"report: {write_report(config.folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
