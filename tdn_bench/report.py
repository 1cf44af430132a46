"""Write an HTML page with charts from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pipelines.errors import printable
from tdn_bench.cli import parse, run_command
from tdn_bench.records import check_file
from tdn_bench.reporting import html_path, write_report

EXAMPLES = (
    "tdn-bench report runs/demo/records",
    "tdn-bench report results                       # all records below it; each machine has a section",
)
COMMON = ("folder",)


@dataclass(frozen=True)
class Report:
    """Write report.html (opens offline) and report.md from the newest record of each kind and name."""

    folder: Positional[Path]
    """Folder with records (*.json), those in folders below it too; the pages are written there."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write report.html and report.md."""
    config = parse(Report, argv, "report", examples=EXAMPLES, common=COMMON)
    if config.folder.is_dir():  # what it holds is asked first where it is none
        check_file("FOLDER", html_path(config.folder))
    path = write_report(config.folder)
    print(f"page: {printable(str(html_path(config.folder)))}")
    print(f"report: {printable(str(path))}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
