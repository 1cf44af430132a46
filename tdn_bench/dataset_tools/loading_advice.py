"""What the figures of `loading_cost` say to do: as text and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from tdn_bench.dataset_tools.clip_cost import SPEC
from tdn_bench.dataset_tools.loading_cost import Advice, GroupAdvice
from tdn_bench.dataset_tools.summary import counted

WORTH = 1.25  # faster by less than this is not worth a second copy of the data


def print_advice(advice: Advice) -> None:
    """The figures as small tables, and what follows from them."""
    print(f"loading on this machine ({advice.cores} cores; CPU time of one clip of {SPEC.num_segments} segments)")
    for group in advice.groups:
        _print_group(group, advice.gpu)
    others = advice.usable_videos - sum(g.videos for g in advice.groups)
    if others:
        print(f"  {others} × other kinds, not sampled")
    if advice.clips_per_s and advice.measured_per_s and advice.train_videos:
        idle, now = (_duration(advice.train_videos / rate) for rate in (advice.clips_per_s, advice.measured_per_s))
        print(
            f"  an epoch of {advice.train_videos} training videos, files in memory: "
            f"{idle} at {advice.clips_per_s:.1f} clips/s (cores ÷ CPU time, nothing else running), "
            f"{now} at {advice.measured_per_s:.1f} (measured now)"
        )
    for path, reason in advice.damaged.items():
        print(f"  damaged: {path}: {reason}")
    print("advice")
    for sentence in conclusions(advice):
        print(f"  {sentence}")


def _print_group(group: GroupAdvice, gpu: str | None) -> None:
    print(f"  {group.videos} × {group.name}")
    if not group.cpu_ms:
        print("    none of its sampled clips can be decoded")
        return
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in group.stages_ms.items())
    low, high = min(group.cpu_ms), max(group.cpu_ms)
    print(f"    {statistics.median(group.cpu_ms):.1f} ms ({low:.1f}–{high:.1f}, {len(group.cpu_ms)} clips): {parts}")
    print(f"    all cores, PyAV: {group.pyav_clips_per_s:.1f} clips/s; {_about_dali(group, gpu)}")
    for trial in group.trials:
        print(
            f"    {trial.name}: {trial.speedup:.2f}× as fast, {trial.disk_ratio:.2f}× the disk space, "
            f"{trial.psnr_db:.1f} dB ({counted(trial.clips, 'video')}, {trial.encode_s:.1f} s each)"
        )
    if group.trial_note:
        print(f"    re-encoding not tried: {group.trial_note}")


def _about_dali(group: GroupAdvice, gpu: str | None) -> str:
    if group.dali_ratio is None:
        return group.dali_note
    return f"DALI on the {gpu or 'CPU'}: {group.dali_clips_per_s:.1f} clips/s, {group.dali_ratio:.2f}× as many"


def conclusions(advice: Advice) -> list[str]:
    """What the figures say to do, a sentence each."""
    said = [] if advice.gpu else ["there is no GPU here to decode on: load with PyAV (--backend auto picks it)"]
    for group in advice.groups:
        if group.dali_ratio is not None and (advice.gpu or group.dali_ratio > 1):
            backend, where = "dali" if group.dali_ratio > 1 else "pyav", "GPU" if advice.gpu else "CPU"
            compared = f"loads {group.dali_ratio:.2f}× as many clips/s as PyAV on all {advice.cores} cores"
            said.append(f"{group.name}: DALI on the {where} {compared}: --backend {backend}")
        if not group.trials:
            continue
        best = max(group.trials, key=lambda t: t.speedup)
        if best.speedup < WORTH:
            said.append(f"{group.name}: nothing to gain by re-encoding ({best.speedup:.2f}× as fast at best)")
            continue
        work = _duration(best.encode_s * group.videos / advice.cores)
        said.append(
            f"{group.name}: re-encode as {best.name}: {best.speedup:.1f}× as fast to load for {best.disk_ratio:.1f}× "
            f"the disk space at {best.psnr_db:.0f} dB, and {work} of work once: tdn-bench transcode --short-side "
            f"{best.encoding.short_side} --keyframe-spacing {best.encoding.keyframe_spacing} --data-root DIR --out DIR"
        )
    return said


def advice_page(advice: Advice) -> dict[str, Any]:
    """The figures and what follows from them, for JSON."""
    rates = {"clips_per_s": advice.clips_per_s, "measured_per_s": advice.measured_per_s}
    return asdict(advice) | rates | {"conclusions": conclusions(advice)}


def _duration(seconds: float) -> str:
    units = ((3600, "h"), (60, "min"))
    return next((f"{seconds / size:.1f} {unit}" for size, unit in units if seconds >= size), f"{seconds:.1f} s")
