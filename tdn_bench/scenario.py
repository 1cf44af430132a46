"""Measure latency under load: MLPerf's scenarios, streams."""

from __future__ import annotations

from collections.abc import Sequence

from tdn_bench.cli import begin_run, parse_kind, run_command
from tdn_bench.loadgen.scenarios import SCENARIOS
from tdn_bench.measurement.statistics import PERCENTILES
from tdn_bench.records import Record, part_lines, record_folder, write_record

EXAMPLES = (
    "tdn-bench scenario server --checkpoint runs/demo/tdn/best.safetensors --data runs/demo/data",
    "tdn-bench scenario live-streams --engine onnx --fps 30",
    "tdn-bench scenario single-stream --seconds 5",
)
COMMON = (
    *("engine", "precision", "checkpoint", "data", "device", "samples_per_query", "latency_bound_ms"),
    *("percentile", "fps", "deadline_ms", "seconds", "max_seconds", "results"),
)


def summary(record: Record) -> str:
    """The figures a person looks for first."""
    f, s, d = record.figures, record.settings, record.details

    def ends(name: str, unit: str) -> str:
        return f"{f[f'{name}_{unit}']:.1f} [{f[f'{name}_low_{unit}']:.1f}, {f[f'{name}_high_{unit}']:.1f}]"

    if "videos_per_s" in f:
        first = f"{record.name}: {ends('videos', 'per_s')} videos/s ({f['videos']} videos in {f['wall_s']:.1f} s)"
        return "\n".join([first, *part_lines(record)])
    if "latency_bound_ms" in f:
        best, refused, unit = f["queries_per_s"], f["rejected_queries_per_s"], "queries/s"
        goal = f"p{s['percentile']:g} latency within {f['latency_bound_ms']:.1f} ms"
    elif "streams" in f:
        best, refused = f["streams"], f["rejected_streams"]
        unit = f"streams of {s['fps']:g} frames/s on this {'GPU' if s['device'].startswith('cuda') else 'machine'}"
        goal = f"{100 * s['on_time']:g} % of labels within {s['deadline_ms']:g} ms"
    else:
        best, refused, unit, goal = f["queries"], None, f"queries of {s.get('samples_per_query', 1)} videos", ""
    lines = [f"{record.name}: {best:.5g} {unit}" if best is not None else f"{record.name}: no load passed"]
    if refused is not None:
        share = f", {ends('on_time', 'percent')} %; confirmed" if best is not None else ""
        lines[0] += f" ({goal}{share}), {refused:.5g} refused, {f['trials']} trials"
    if best is not None:
        names = [f"p{q}" for q in PERCENTILES if f"p{q}_latency_ms" in f]
        lines.append("  latency: " + ", ".join(f"{q} {ends(f'{q}_latency', 'ms')} ms" for q in names))
        lines.append(
            f"  batches of {f['mean_batch_size']:.1f}, engine busy {f['engine_occupancy_percent']:.0f} %, decoders "
            f"{f['decoder_occupancy_percent']:.0f} %"
        )
    a = d["agreement_with_eager_fp32"]
    lines.append(f"  from eager fp32 {a['max_difference']:.1e} standard deviations; built in {f['build_s']:.1f} s")
    lines += [f"  refused: {refusal}" for refusal in d.get("refused", [])]
    lines += [f"  {record.status}: {reason}" for reason in record.status_reasons] + part_lines(record)
    if f["bad_clips"]:
        lines.append(f"  {f['bad_clips']} videos could not be used; {f['queries_not_decoded']} queries named one")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a scenario; print its figures and write a record."""
    kind, config = parse_kind(SCENARIOS, argv, "scenario", examples=EXAMPLES, common=COMMON)
    folder = record_folder(config.output.results, "scenario")
    begin_run(folder, f"scenario {kind}", config)
    record = config.run()
    print(summary(record))
    print(f"record: {write_record(record, folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
