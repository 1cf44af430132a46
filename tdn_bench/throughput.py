"""Measure ms/video from file to label, or compare two."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.ledger import IDLE, WORK
from tdn_bench.cli import begin_run, parse, run_command
from tdn_bench.measurement.statistics import PERCENTILES, samples_for_percentile
from tdn_bench.measurement.throughput import Throughput, measure
from tdn_bench.records import Record, part_lines, record_folder, write_record
from tdn_bench.regression.comparison import compare

EXAMPLES = (
    "tdn-bench throughput --checkpoint runs/demo/tdn/best.safetensors --data runs/demo/data --engine onnx",
    "tdn-bench throughput --seconds 0  # fresh weights, synthetic videos",
    "tdn-bench throughput --compare engine=eager engine=onnx",
)
COMMON = (
    *("engine", "precision", "checkpoint", "data", "dataset", "batch_size"),
    *("device", "seconds", "interval", "compare", "results"),
)


def summary(record: Record) -> str:
    """The figures a person looks for first."""
    f = record.figures
    stages = {stage: f[f"ledger_{stage}_ms"] for stage in (*WORK, IDLE)}
    lines = [
        _headline(record),
        "  work per video: " + ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in stages.items() if ms),
        f"  bottleneck {f['bottleneck']}: its threads are busy {f['overlap_efficiency']:.0%} of the time; at most "
        f"{f['ledger_unexplained_percent']:.1f} % of any thread's time is unexplained",
        *(f"  {record.status}: {reason}" for reason in record.status_reasons),
        *part_lines(record),
    ]
    if "agreement_with_eager_fp32" in record.details:
        a = record.details["agreement_with_eager_fp32"]
        lines.append(
            f"  against eager fp32 on {a['clips']} clips: largest difference {a['max_difference']:.1e} standard "
            f"deviations, same class on {a['top1_percent']:.1f} %, rank correlation "
            f"{a['rank_correlation']:.4f}; built in {f['build_s']:.1f} s"
        )
    if "top1_percent" in f:
        lines.append(f"  accuracy: top-1 {f['top1_percent']:.2f} %, top-5 {f['top5_percent']:.2f} %")
    if f["bad_clips"]:
        lines.append(f"  {f['bad_clips']} videos could not be used; the record lists them")
    return "\n".join(lines)


def _headline(record: Record) -> str:
    f = record.figures
    quantiles = [
        f"p{q} {f[f'p{q}_ms_per_video']:.2f} [{f[f'p{q}_low_ms_per_video']:.2f}, {f[f'p{q}_high_ms_per_video']:.2f}]"
        if f"p{q}_ms_per_video" in f
        else f"p{q} needs {samples_for_percentile(q)} batches"
        for q in PERCENTILES
    ]
    half = f["ms_per_video_half_width_percent"]
    return (
        f"{record.name}: {f['ms_per_video']:.2f} ms/video{'' if half is None else f' ± {half:.1f} %'} "
        f"({', '.join(quantiles)}; {f['videos']} videos in {f['batches']} batches of up to "
        f"{record.settings['batch_size']}), {f['clips_per_s']:.1f} clips/s, {f['frames_per_s']:.0f} frames/s "
        f"({'real time' if f['real_time'] else 'not real time'})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or compare; print the figures and write a record."""
    config = parse(Throughput, argv, "throughput", examples=EXAMPLES, common=COMMON)
    folder = record_folder(config.output.results, "throughput")
    begin_run(folder, "throughput", config)
    if config.compare is not None:
        comparison = compare(config, config.compare)
        print("\n".join(comparison.lines))
        record = comparison.record
    else:
        record = measure(config)
        print(summary(record))
    print(f"record: {write_record(record, folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
