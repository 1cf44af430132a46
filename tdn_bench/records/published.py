"""What the TDN paper (CVPR 2021, arXiv 2012.10071) and the authors' release publish, row by row, for reports.

These are other people's measurements. A report shows them beside its own and never in one column with them: other
data, another machine (Table 5: one V100, batch 16, data loading included), other training. `None` is a figure that a
source does not state, or that is not transcribed: of Table 1 only multiply-adds and TDN's accuracy are, and which row
each multiply-add count belongs to is our reading. The compared networks' accuracies in Table 2 are those that their own
papers report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a published table (its number in the paper: `table`). `variant` is the network in `tdn_bench.models`
    that it belongs to, if there is one; `frames` as the source writes them; `gmacs` are 10⁹ multiply-adds of one view;
    accuracies are percent from 0 to 100."""

    table: str
    name: str
    variant: str | None
    backbone: str
    frames: str
    data: str | None = None
    gmacs: float | None = None
    top1_percent: float | None = None
    top5_percent: float | None = None
    ms_per_video: float | None = None


def _tdn(table: str, data: str, *rows: tuple[str, str, float | None, float, float]) -> tuple[Published, ...]:
    return tuple(
        Published(table, "TDN", "tdn", backbone, frames, data, gmacs, top1, top5)
        for backbone, frames, gmacs, top1, top5 in rows
    )


PUBLISHED: tuple[Published, ...] = (
    # Table 1, ResNet-50, 8 frames, Something-Something V1: multiply-adds, and the accuracy of TDN itself.
    Published("1", "TSN", "tsn", "resnet50", "8", "sthv1", gmacs=33),
    Published("1", "T-Conv", "tconv", "resnet50", "8", "sthv1", gmacs=33),
    Published("1", "L-TDM", "l_tdm", "resnet50", "8", "sthv1", gmacs=33),
    Published("1", "S-TDM", "s_tdm", "resnet50", "8 × 5", "sthv1", gmacs=35),
    Published("1", "TDN", "tdn", "resnet50", "8 × 5", "sthv1", gmacs=36, top1_percent=52.3, top5_percent=80.6),
    Published("1", "S-TDM up to Res3", "tdn_s123_l45", "resnet50", "8 × 5", "sthv1", gmacs=38),
    # Table 2, Something-Something V1 and V2, one clip, centre crop.
    *_tdn(
        "2",
        "sthv1",
        ("resnet50", "8", 36, 52.3, 80.6),
        ("resnet50", "16", 72, 53.9, 82.1),
        ("resnet50", "8 + 16", 108, 55.1, 82.9),
        ("resnet101", "8", 66, 54.1, 81.9),
        ("resnet101", "16", 132, 55.3, 83.3),
        ("resnet101", "8 + 16", 198, 56.8, 84.1),
    ),
    *_tdn(
        "2",
        "sthv2",
        ("resnet50", "8", 36, 64.0, 88.8),
        ("resnet50", "16", 72, 65.3, 89.5),
        ("resnet50", "8 + 16", 108, 67.0, 90.3),
        ("resnet101", "8", 66, 65.8, 90.2),
        ("resnet101", "16", 132, 66.9, 90.9),
        ("resnet101", "8 + 16", 198, 68.2, 91.6),
    ),
    Published("2", "TSN", None, "bninception", "8", "sthv1", 16, 19.5),
    Published("2", "I3D", "i3d", "resnet50", "32 × 3 × 2", "sthv1", 153, 41.6, 72.2),
    Published("2", "TSM", "tsm", "resnet50", "16", "sthv1", 65, 47.2, 77.1),
    Published("2", "TSM", "tsm", "resnet50", "16", "sthv2", 65, 63.4, 88.5),
    Published("2", "TEINet", "teinet", "resnet50", "8", "sthv1", 33, 47.4),
    Published("2", "TEINet", "teinet", "resnet50", "8", "sthv2", 33, 61.3),
    Published("2", "TEINet", "teinet", "resnet50", "16", "sthv1", 66, 49.9),
    Published("2", "TEINet", "teinet", "resnet50", "16", "sthv2", 66, 62.1),
    Published("2", "GST", "gst", "resnet50", "16", "sthv1", 59, 48.6, 77.9),
    Published("2", "GST", "gst", "resnet50", "16", "sthv2", 59, 62.6, 87.9),
    Published("2", "STM", "stm", "resnet50", "16 × 10 × 3", "sthv1", 67, 50.7, 80.4),
    Published("2", "STM", "stm", "resnet50", "16 × 10 × 3", "sthv2", 67, 64.2, 89.8),
    Published("2", "TEA", "tea", "resnet50", "16 × 10 × 3", "sthv1", 70, 52.3, 81.9),
    Published("2", "TEA", "tea", "resnet50", "16 × 10 × 3", "sthv2", 70, 65.1, 89.9),
    # Table 3, Kinetics-400, ten clips × three crops.
    *_tdn(
        "3",
        "kinetics400",
        ("resnet50", "8", 36, 76.6, 92.8),
        ("resnet50", "16", 72, 77.5, 93.2),
        ("resnet50", "8 + 16", 108, 78.4, 93.6),
        ("resnet101", "8", 66, 77.5, 93.6),
        ("resnet101", "16", 132, 78.5, 93.9),
        ("resnet101", "8 + 16", 198, 79.4, 94.4),
    ),
    # Table 4, mean of three splits, from Kinetics-400.
    Published("4", "TDN", "tdn", "resnet50", "16", "ucf101", top1_percent=97.4),
    Published("4", "TDN", "tdn", "resnet50", "16", "hmdb51", top1_percent=76.3),
    # Table 5, one V100, batch 16, data loading included.
    Published("5", "TSN", "tsn", "resnet50", "8", ms_per_video=7.9),
    Published("5", "TSM", "tsm", "resnet50", "16", ms_per_video=16.7),
    Published("5", "STM", "stm", "resnet50", "8", ms_per_video=11.1),
    Published("5", "S-TDM", "s_tdm", "resnet50", "8", ms_per_video=12.3),
    Published("5", "L-TDM", "l_tdm", "resnet50", "8", ms_per_video=15.8),
    Published("5", "TDN", "tdn", "resnet50", "8", ms_per_video=22.1),
    Published("5", "I3D", "i3d", "resnet50", "32 × 3 × 2", ms_per_video=2095),
)


def published_for(variant: str, table: str | None = None) -> tuple[Published, ...]:
    """The published rows of a variant, of one table ("1" to "5") or of all; none where it is not published."""
    return tuple(row for row in PUBLISHED if row.variant == variant and table in (None, row.table))
