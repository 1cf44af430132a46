"""What the TDN paper (CVPR 2021, arXiv 2012.10071) publishes in its Tables 1 to 5, row by row, for reports.

The rows are data (`published.tsv`, beside this file). These are other people's measurements: a report shows them beside
its own and never in one column with them: other data, another machine (Table 5: one V100, batch 16, data loading
included), other training. The compared networks' accuracies are those that their own papers report. Which network of
`tdn_bench.models` a row of Table 1 is, is our reading.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = ("gmacs", "counted_gmacs", "top1_percent", "top5_percent", "ms_per_video")
TSV = Path(__file__).with_name("published.tsv")


@dataclass(frozen=True)
class Published:
    """One row of a published table: its number in the paper (`table`, "1" to "5") and the part of it ("a" to "f" in
    Table 1). `variant` is the network in `tdn_bench.models` that it belongs to, if there is one; `frames` as the source
    writes them. `gmacs` are 10⁹ multiply-adds of one of `views`, where the source counts those apart (`views` is text:
    one source does not say how many); `counted_gmacs` what this project counts of one view of its network at 224
    pixels (`tdn-bench complexity`), of an ensemble all members. Accuracies are percent from 0 to 100. None is what a
    source does not state."""

    table: str
    name: str
    variant: str | None
    backbone: str
    frames: str
    data: str
    gmacs: float | None = None
    top1_percent: float | None = None
    top5_percent: float | None = None
    ms_per_video: float | None = None
    part: str = ""
    counted_gmacs: float | None = None
    views: str | None = None
    note: str = ""

    @property
    def source(self) -> str:
        """The table with its part, such as 1a."""
        return self.table + self.part

    @property
    def total_gmacs(self) -> float | None:
        """10⁹ multiply-adds of a video, all views; None where the source leaves one of the two open."""
        if self.gmacs is None or self.views is None:
            return self.gmacs
        return self.gmacs * int(self.views) if self.views.isdigit() else None


def _read(path: Path) -> tuple[Published, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(
        Published(
            row["table"][0],
            row["name"],
            row["variant"] or None,
            row["backbone"],
            row["frames"],
            row["data"],
            **{key: float(row[key]) if row[key] else None for key in _NUMBERS},
            part=row["table"][1:],
            views=row["views"] or None,
            note=row["note"],
        )
        for row in rows
    )


PUBLISHED = _read(TSV)


def published_for(variant: str, table: str | None = None) -> tuple[Published, ...]:
    """The published rows of a variant, of one table ("1" to "5") or of all; none where it is not published."""
    return tuple(row for row in PUBLISHED if row.variant == variant and table in (None, row.table))
