"""The tables of a report: one function for each kind of record, the same for Markdown and HTML.

Records were read from files that anybody may have written: what a row needs is looked at when it is taken
(`number`, `setting`), and a record that lacks it is named instead of shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.errors import printable
from pipelines.ledger import WORK
from tdn_bench.measurement.statistics import PERCENTILES
from tdn_bench.records import Record
from tdn_bench.records.published import PUBLISHED
from tdn_bench.records.reading import is_number
from tdn_bench.records.tables import markdown_table

LOADING = WORK[: WORK.index("infer")]  # what the loader does; in older records "read" covers open and demux
MAX_TEXT = 120  # of a cell


class Cell(str):
    """The text of a table's cell that stands for a number, and that number, by which a page sorts; None where it stands
    for none. `measured` sets it apart from what it stands beside."""

    value: float | None
    measured: bool

    def __new__(cls, text: str, value: float | None = None, measured: bool = False) -> Cell:
        cell = super().__new__(cls, text)
        cell.value, cell.measured = value, measured
        return cell


class Unfit(Exception):
    """A record that lacks what its kind's table shows, in a few words."""


def number(figures: Mapping[str, Any], key: str) -> float | None:
    """A figure; None where it could not be said. Raises Unfit where it is no number."""
    value = figures.get(key)
    if value is not None and not is_number(value):
        raise Unfit(f"{key} is no number")
    return value


def needed(figures: Mapping[str, Any], key: str) -> float:
    """A figure without which a row says nothing. Raises Unfit where there is none."""
    if (value := number(figures, key)) is None:
        raise Unfit(f"has no {key}")
    return value


def cell(figures: Mapping[str, Any], key: str, form: str, unit: str = "") -> str:
    """A figure as text, a dash where there is none."""
    value = number(figures, key)
    return "–" if value is None else Cell(format(value, form) + unit, value)


def setting(record: Record, key: str) -> str:
    """A setting as text, a dash where there is none."""
    value = record.settings.get(key)
    if is_number(value):
        return Cell(f"{value:g}", value)
    return "–" if value is None else shortened(str(value))


def shortened(text: str) -> str:
    """Text from data as a cell takes it."""
    text = printable(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def number_setting(record: Record, key: str, default: float | None = None) -> float:
    """A setting that is a number. Raises Unfit where it is none."""
    value = record.settings.get(key, default)
    if not is_number(value):
        raise Unfit(f"setting {key} is no number")
    return value  # type: ignore[no-any-return]


def network_of(record: Record) -> str:
    """The network of a record and its clips."""
    return f"{setting(record, 'model')}, T = {setting(record, 'num_segments')}, {setting(record, 'size')} px"


def stages_of(records: Sequence[Record], stages: Sequence[str]) -> list[str]:
    """Those of the ledger's `stages` that any of the records has."""
    return [stage for stage in stages if any(f"ledger_{stage}_ms" in r.figures for r in records)]


def pace(record: Record) -> float:
    """Milliseconds a video."""
    return needed(record.figures, "ms_per_video")


def pace_cell(record: Record) -> Cell:
    """Milliseconds a video, and half the width of the mean's 95 % interval where the record has it."""
    ms, percent = pace(record), number(record.figures, "ms_per_video_half_width_percent")
    return Cell(f"{ms:.2f}" + ("" if percent is None else f" ± {ms * percent / 100:.2f}"), ms)


Row = Callable[[Record], Sequence[str]]
Columns = tuple[Sequence[str], Row]  # the header, and a record's cells


def training_columns(_: Sequence[Record]) -> Columns:
    """Accuracy and pace of training runs (`tdn-bench train`)."""

    def row(r: Record) -> list[str]:
        return [
            shortened(r.name),
            network_of(r),
            cell(r.figures, "top1_percent", ".2f"),
            cell(r.figures, "top5_percent", ".2f"),
            setting(r, "epochs"),
            cell(r.figures, "train_s", ".0f"),
            cell(r.figures, "clips_per_s", ".1f"),
            cell(r.figures, "wait_share", ".0%"),
            r.status,
        ]

    header = ["run", "network", "top-1 %", "top-5 %", "epochs", "training s", "clips/s", "waiting for data", "status"]
    return header, row


def evaluation_columns(_: Sequence[Record]) -> Columns:
    """Accuracy of checkpoints and ensembles (`tdn-bench evaluate`, `tdn-bench scores ensemble`)."""

    def row(r: Record) -> list[str]:
        return [
            shortened(r.name),
            network_of(r) if "model" in r.settings else "ensemble",
            shortened(r.data["name"]) if r.data is not None else "–",
            setting(r, "subset"),
            cell(r.figures, "videos", ".0f"),
            cell(r.figures, "bad_clips", ".0f"),
            cell(r.figures, "views", ".0f"),
            cell(r.figures, "top1_percent", ".2f"),
            cell(r.figures, "top5_percent", ".2f"),
            cell(r.figures, "mean_class_percent", ".2f"),
            r.status,
        ]

    counts = ["videos", "left out", "views"]
    accuracies = ["top-1 %", "top-5 %", "mean class %"]
    return ["evaluation", "network", "data", "subset", *counts, *accuracies, "status"], row


def throughput_columns(_: Sequence[Record]) -> Columns:
    """Engines from video file to label (`tdn-bench throughput`)."""
    header = [
        "engine, precision, loader",
        "network",
        "batch",
        "ms/video",
        " / ".join(f"p{q}" for q in PERCENTILES),
        "batches",
        "of it infer ms",
        "clips/s",
        "frames/s",
        "top-1 %",
        "difference to eager fp32 (σ)",
        "build s",
        "peak host GiB",
        "status",
    ]

    def row(r: Record) -> list[str]:
        f, compared = r.figures, r.details.get("agreement_with_eager_fp32")
        memory = number(f, "peak_host_memory_bytes")
        return [
            shortened(r.name),
            network_of(r),
            setting(r, "batch_size"),
            pace_cell(r),
            " / ".join(cell(f, f"p{q}_ms_per_video", ".2f") for q in PERCENTILES),
            cell(f, "batches", ".0f"),
            cell(f, "ledger_infer_ms", ".2f"),
            cell(f, "clips_per_s", ".1f"),
            cell(f, "frames_per_s", ".0f", "" if f.get("real_time", True) else " (below real time)"),
            cell(f, "top1_percent", ".2f"),
            cell(compared if isinstance(compared, Mapping) else {}, "max_difference", ".1e"),
            cell(f, "build_s", ".1f"),
            "–" if memory is None else Cell(f"{memory / 2**30:.2f}", memory),
            r.status,
        ]

    return header, row


def loader_columns(records: Sequence[Record]) -> Columns:
    """Loaders alone (`tdn-bench throughput --engine none`), with the ledger's stages."""
    stages = stages_of(records, LOADING)

    def row(r: Record) -> list[str]:
        return [
            shortened(r.name),
            cell(r.figures, "clips_per_s", ".1f"),
            pace_cell(r),
            *(cell(r.figures, f"ledger_{stage}_ms", ".2f") for stage in stages),
            r.status,
        ]

    return ["loader", "clips/s", "ms/video", *(f"{stage} ms" for stage in stages), "status"], row


def scenario_columns(_: Sequence[Record]) -> Columns:
    """Latencies and the highest load in time (`tdn-bench scenario`)."""

    def row(r: Record) -> list[str]:
        return [
            shortened(r.name),
            _load(r),
            *(cell(r.figures, f"p{q}_latency_ms", ".1f") for q in PERCENTILES),
            r.status,
        ]

    return ["scenario, engine, precision, loader", "result", *(f"p{q} ms" for q in PERCENTILES), "status"], row


def _load(record: Record) -> str:
    """What a scenario came to, in a few words."""
    figures = record.figures
    if "videos_per_s" in figures:
        return f"{needed(figures, 'videos_per_s'):.1f} videos/s"
    if "latency_bound_ms" in figures:
        best, q = _highest(figures, "queries_per_s", "queries/s"), number_setting(record, "percentile")
        return f"{best}, p{q:g} within {needed(figures, 'latency_bound_ms'):.0f} ms"
    if "streams" in figures:
        best = _highest(figures, "streams", f"streams of {number_setting(record, 'fps'):g} frames/s")
        on_time, deadline_ms = (number_setting(record, key) for key in ("on_time", "deadline_ms"))
        return f"{best}, {100 * on_time:g} % of labels within {deadline_ms:g} ms"
    return f"{needed(figures, 'queries'):.0f} queries of {number_setting(record, 'samples_per_query', 1):g}"


def _highest(figures: Mapping[str, Any], name: str, unit: str) -> str:
    """The highest load that passed, and the lowest that was refused."""
    best, refused = (number(figures, key) for key in (name, f"rejected_{name}"))
    text = f"{best:.4g} {unit}" if best is not None else f"no {unit}"
    return text + (f" ({refused:.4g} refused)" if refused is not None else "")


Tables = list[tuple[Sequence[str], list[list[str]]]]  # a header and its rows, each


def engine_parity_tables(record: Record) -> Tables:
    """Engines and precisions beside eager float32 (`tdn-bench parity engines`). Raises Unfit."""
    header = ["engine, precision", "largest difference (σ)", "same class %", "rank correlation", "top-1 %", "top-5 %"]
    rows = []
    for name, found in record.figures.items():
        if not isinstance(found, Mapping):
            raise Unfit(f"{name} is no object of figures")
        error = found.get("error")
        keys = {"max_difference": ".1e", "top1_percent": ".1f", "rank_correlation": ".4f"}
        keys |= {"accuracy_top1_percent": ".2f", "accuracy_top5_percent": ".2f", "build_s": ".1f"}
        values = [cell(found, key, form) for key, form in keys.items()]
        rows.append([shortened(name), *values, "–" if error is None else shortened(str(error))])
    return [([*header, "build s", "not built"], rows)]


def decoder_parity_tables(record: Record) -> Tables:
    """Decoders beside a whole decode, and the pixels of each two (`tdn-bench parity decoders`). Raises Unfit."""
    found = {shortened(name): value for name, value in record.figures.items() if isinstance(value, Mapping)}
    verdicts = ("exact", "refused", "wrong", "false_pictures")
    pixels = {"psnr_median_db": ".1f", "psnr_min_db": ".1f", "videos": ".0f"}
    pixels |= {"top1_change_percent": ".2f", "same_class_percent": ".1f", "max_score_difference": ".1e"}
    decoders = [[name, *(cell(f, v, ".0f") for v in verdicts)] for name, f in found.items() if "exact" in f]
    pairs = [[name, *(cell(f, k, form) for k, form in pixels.items())] for name, f in found.items() if "exact" not in f]
    header = ["two decoders", "PSNR median dB", "lowest dB", "videos", "top-1 change", "same class %", "largest score"]
    tables: Tables = [(["decoder", "exact", "refused", "wrong", "false pictures"], decoders)]
    return [*tables, *([(header, pairs)] if pairs else [])]


def comparison_tables(record: Record) -> Tables:
    """Ratios with their intervals (`tdn-bench throughput --compare A B`, below 1: B is faster). Raises Unfit."""
    rows = []
    for name in (key.removesuffix("_ratio_low") for key in record.figures if key.endswith("_ratio_low")):
        ratio, low, high = (number(record.figures, f"{name}_ratio{end}") for end in ("", "_low", "_high"))
        said = "–"
        if low is not None and high is not None:
            said = "slower" if low > 1 else "faster" if high < 1 else "no difference shown"
        ends = [cell(record.figures, f"{name}_ratio{end}", ".4f") for end in ("_low", "_high")]
        detectable = cell(record.figures, f"{name}_detectable_ratio", ".3f")
        rows.append([shortened(name), "–" if ratio is None else Cell(f"{ratio:.4f}", ratio), *ends, said, detectable])
    if not rows:
        raise Unfit("has no ratio with an interval")
    return [(["time", "B ÷ A", "interval from", "to", "B is", "detectable ratio"], rows)]


def gate_tables(record: Record) -> Tables:
    """The verdicts of the regression gate (`tdn-bench regress --json FILE`). Raises Unfit."""
    checks = record.details.get("checks")
    if not isinstance(checks, list) or not all(isinstance(check, Mapping) for check in checks):
        raise Unfit("has no list of checks")
    keys = {"ratio": ".4f", "low": ".4f", "high": ".4f", "detectable": ".3f"}
    rows = [
        [
            shortened(str(c.get("name"))),
            shortened(str(c.get("verdict"))),
            *(cell(c, key, form) for key, form in keys.items()),
            shortened(str(c.get("text"))),
        ]
        for c in checks
    ]
    return [(["figure", "verdict", "now ÷ before", "interval from", "to", "detectable ratio", "what it says"], rows)]


COMPARED = ("parity", "compare", "regress")  # kinds of records that set sides beside each other


def compared_tables(record: Record) -> tuple[str, Callable[[Record], Tables]]:
    """What a record of a kind in COMPARED shows: a title, and what makes its tables."""
    if record.kind == "compare":
        return "Two sides, measured in turns", comparison_tables
    if record.kind == "regress":
        return "The regression gate", gate_tables
    if "false_scans" in record.figures:
        return "Decoders beside a whole decode", decoder_parity_tables
    return "Engines beside eager fp32", engine_parity_tables


def published_table(records: Sequence[Record]) -> str:
    """The published accuracies of the records' networks on their data set, and Table 5's times where a record is of
    throughput; empty where nothing was published."""
    shown = {(str(r.settings.get("model")).rpartition("_resnet")[0], str(r.settings.get("dataset"))) for r in records}
    timed = any(r.kind == "throughput" for r in records)
    rows = [
        [
            f"Table {r.table}",
            f"{r.name} {r.backbone}",
            r.frames,
            r.data or "",
            *("–" if v is None else f"{v:g}" for v in (r.gmacs, r.top1_percent, r.top5_percent, r.ms_per_video)),
        ]
        for r in PUBLISHED
        if ((r.variant, r.data) in shown and r.table != "1") or (timed and r.table == "5")
    ]
    header = ["source", "network", "frames", "data", "G mult-adds", "top-1 %", "top-5 %", "ms/video"]
    return markdown_table(header, rows) if rows else ""
