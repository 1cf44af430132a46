"""What a watch came to: figures, a summary in words, a record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from tdn_bench.measurement.statistics import PERCENTILES, TooFewSamples, percentile, samples_for_percentile
from tdn_bench.records import Record, make_record
from tdn_bench.watching.live import MAX_SKIPPED, Watch


def why_not_real_time(watch: Watch) -> list[str]:
    """Why labels did not keep up with the pictures; nothing where they did."""
    tally, dropped = watch.tally, watch.reader.dropped
    reasons = []
    if tally.skipped_share > MAX_SKIPPED:
        due = tally.windows + tally.windows_skipped
        reasons.append(f"the engine had no time for {tally.windows_skipped} of {due} windows that were due")
    if dropped:
        reasons.append(f"the decoder had no time for {dropped} frames")
    return reasons


def state_of(watch: Watch) -> str:
    """How it is doing, in a few words; nothing where all is well."""
    parts = ["not real time"] if watch.reader.realtime and why_not_real_time(watch) else []
    if watch.tally.windows_skipped:
        parts.append(f"{watch.tally.windows_skipped} windows passed over")
    if watch.reader.dropped:
        parts.append(f"{watch.reader.dropped} frames dropped")
    if watch.reader.damaged:
        parts.append(f"{watch.reader.damaged} packets damaged")
    return ", ".join(parts)


def figures_of(watch: Watch) -> dict[str, Any]:
    """The figures of a watch that has ended. Rates are from the first label to the last."""
    tally, reader = watch.tally, watch.reader
    wall_s, frames = (tally.newest[i] - tally.first[i] for i in (0, 1))
    latencies = list(tally.latency_ms)
    quantiles: dict[str, float] = {}
    for q in PERCENTILES:
        with suppress(TooFewSamples):
            found = percentile(latencies, q)
            quantiles |= {
                f"p{q}_latency_ms": found.value,
                f"p{q}_latency_low_ms": found.low,
                f"p{q}_latency_high_ms": found.high,
            }
    opened = reader.opened
    return {
        **quantiles,
        "max_latency_ms": max(latencies, default=None),
        "windows": tally.windows,
        "windows_skipped": tally.windows_skipped,
        "windows_per_s": (tally.windows - 1) / wall_s if wall_s else None,
        "asked_windows_per_s": opened.fps / watch.plan.hop if opened and opened.fps else None,
        "frames": watch.ring.count if watch.ring else 0,
        "frames_per_s": frames / wall_s if wall_s else None,
        "frames_unseen": tally.frames_unseen,
        "frames_dropped_by_decoder": reader.dropped,
        "damaged_packets": reader.damaged,
        "windows_doubtful": tally.windows_doubtful,
        "segments_kept_percent": 100 * tally.segments_kept / max(1, tally.windows * watch.plan.spec.num_segments),
        "stalls": tally.stalls,
        "size_changes": tally.size_changes,
        "wall_s": time.monotonic() - watch.begun_s,
        "real_time": not why_not_real_time(watch) if reader.realtime else None,
    }


def summary(watch: Watch, figures: Mapping[str, Any]) -> list[str]:
    """The figures in words."""
    f = figures
    if not f["windows"]:
        return [f"no label: {f['frames']} frames, a window has {watch.plan.length}"]
    rate = (
        "" if f["windows_per_s"] is None else f", {f['windows_per_s']:.2f} windows/s, {f['frames_per_s']:.1f} frames/s"
    )
    windows = "1 window" if f["windows"] == 1 else f"{f['windows']} windows"
    lines = [f"{windows} of {watch.plan.length} frames, {f['frames']} frames{rate}"]
    quantiles = [
        f"p{q} {f[f'p{q}_latency_ms']:.0f} ms [{f[f'p{q}_latency_low_ms']:.0f}, {f[f'p{q}_latency_high_ms']:.0f}]"
        if f"p{q}_latency_ms" in f
        else f"p{q} needs {samples_for_percentile(q)} windows"
        for q in (50, 99)
    ]
    lines.append(f"latency from frame to label: {', '.join(quantiles)}, at most {f['max_latency_ms']:.0f} ms")
    if f["segments_kept_percent"]:
        lines.append(f"features kept from the window before: {f['segments_kept_percent']:.0f} % of segments")
    if f["damaged_packets"]:
        lines.append(
            f"{f['damaged_packets']} packets could not be decoded and were left out; {f['windows_doubtful']} labels "
            "are of windows in which pictures may be wrong for it"
        )
    if watch.reader.realtime:
        reasons = why_not_real_time(watch)
        lines.append(f"not real time: {'; '.join(reasons)}" if reasons else "real time")
        if f["windows_skipped"] or f["frames_unseen"]:
            lines.append(f"passed over: {f['windows_skipped']} windows; {f['frames_unseen']} frames are in no window")
    return lines


def record_of(
    watch: Watch,
    figures: Mapping[str, Any],
    settings: Mapping[str, Any],
    events: Iterable[tuple[float, str, str]],
    details: Mapping[str, Any],
    name: str,
    device: torch.device,
) -> Record:
    """A record with the times of every window (the newest 100,000). The source stands in it without its password."""
    tally, source = watch.tally, watch.reader.source
    record = make_record(
        "watch",
        name,
        figures=figures,
        samples={
            "latency_ms": list(tally.latency_ms),
            "engine_ms": list(tally.engine_ms),
            "label_s": list(tally.label_s),
        },
        settings=dict(settings) | {"source": source.shown},
        device=device,
        details={
            **details,
            "window_frames": watch.plan.length,
            "hop_frames": watch.plan.hop,
            "cell_frames": watch.plan.cell,
            "fps": watch.reader.opened.fps if watch.reader.opened else None,
            "picture_size": list(watch.pictures.size),
            "events": [{"elapsed_s": s, "event": kind, "text": text} for s, kind, text in events],
        },
    )
    return replace(record, command=[source.shown if word == source.target else word for word in record.command])
