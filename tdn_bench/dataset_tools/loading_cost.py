"""What loading a data set costs on this machine, and what a GPU or re-encoding would change, measured on samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pipelines.dali import CPU_CODECS, GPU_CODECS
from pipelines.errors import BadClip, DataError
from pipelines.ledger import Lane
from pipelines.loader import Decoder, create_decoder
from pipelines.manifest import JPEG_FRAMES, OK, Manifest, Video, Videos
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.processes import cores
from pipelines.progress import tracked
from tdn_bench.dataset_tools.clip_cost import ROUNDS, SPEC, cpu_ms
from tdn_bench.dataset_tools.encoding_trials import Trial, try_encodings

GROUPS, CLIPS = 6, 8  # sampled at most
RARE = 0.05  # a smaller share of the videos is not sampled
BATCH = 16  # clips that DALI decodes at once
HEIGHTS = (120, 240, 360, 480, 720, 1080)  # names of classes: the nearest counts
SPACINGS = {1: "only key frames", 16: "key frames ≤ 16 apart", 64: "key frames ≤ 64 apart"}
STAGES = ("open", "read", "demux", "decode", "augment")


@dataclass(frozen=True)
class GroupAdvice:
    """Videos of one codec, class of height and class of key-frame spacing."""

    name: str
    codec: str
    videos: int
    cpu_ms: Sequence[float] = ()  # per sampled clip, one thread
    stages_ms: dict[str, float] = field(default_factory=dict)  # the median of cpu_ms, divided
    pyav_clips_per_s: float | None = None  # on all cores
    dali_clips_per_s: float | None = None
    dali_ratio: float | None = None  # DALI's clips/s ÷ PyAV's
    dali_note: str = ""
    trials: Sequence[Trial] = ()
    trial_note: str = ""


@dataclass(frozen=True)
class Advice:
    """Figures of this machine. `clips_per_s` is what its cores load if they do nothing else, at the sampled CPU time;
    `measured_per_s` what they loaded just now, with whatever else ran. Files were in the page cache."""

    cores: int
    gpu: str | None
    train_videos: int
    usable_videos: int  # those sampled from: of the train split, or of all
    groups: Sequence[GroupAdvice]
    damaged: dict[str, str]  # path → reason: sound to the scan, and yet not decodable

    @property
    def clips_per_s(self) -> float | None:
        return self._mean_rate(
            [(g.videos, 1000 * self.cores / statistics.mean(g.cpu_ms)) for g in self.groups if g.cpu_ms]
        )

    @property
    def measured_per_s(self) -> float | None:
        return self._mean_rate([(g.videos, g.pyav_clips_per_s) for g in self.groups if g.pyav_clips_per_s])

    @staticmethod
    def _mean_rate(parts: list[tuple[int, float]]) -> float | None:
        """Videos ÷ time of several groups of (videos, videos/s)."""
        return sum(n for n, _ in parts) / sum(n / rate for n, rate in parts) if parts else None


def advise(manifest: Manifest, device: torch.device, *, trial: bool = True, budget_s: float = 60.0) -> Advice:
    """Measure samples of the train split, or of all videos where it has none that is usable.

    Arguments:
        device: Where DALI decodes, compared with PyAV on the CPU.
        trial: Also re-encode a few samples into a temporary folder.
        budget_s: About how long this may take at most, seconds.
    """
    train = manifest.split("train")
    train_videos = int(train.where("status", OK).sum())
    videos = train if train_videos else manifest.videos
    samples = sample_groups(videos)
    start, damaged, groups = time.monotonic(), dict[str, str](), []
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's thread
    try:
        for i, (group, clips) in enumerate(tracked(samples, "Measuring", len(samples), "kinds of videos")):
            deadline = start + budget_s * (i + 1) / len(samples)
            share = (deadline - time.monotonic()) / (4 if trial else 2)
            group, sound = _measure(group, clips, time.monotonic() + share, damaged)
            group = _against_dali(group, sound, device, time.monotonic() + share)
            groups.append(_with_trials(group, sound, deadline) if trial else group)
    finally:
        torch.set_num_threads(torch_threads)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Advice(cores(), gpu, train_videos, int(videos.where("status", OK).sum()), groups, damaged)


def sample_groups(videos: Videos, seed: int = 0) -> list[tuple[GroupAdvice, list[Video]]]:
    """The most frequent kinds of usable videos, up to GROUPS, and up to CLIPS of each, drawn at random."""
    rows = np.flatnonzero(videos.where("status", OK))
    columns = (videos.values(name, rows) for name in ("codec", "width", "height", "keyframe_spacing"))
    kinds = [(codec, _height_class(min(w, h)), _spacing_class(gap)) for codec, w, h, gap in zip(*columns, strict=True)]
    members: dict[tuple[str, str, str], list[int]] = {}
    for row, kind in zip(rows.tolist(), kinds, strict=True):
        members.setdefault(kind, []).append(row)
    rng = np.random.default_rng(seed)
    chosen: list[tuple[GroupAdvice, list[Video]]] = []
    for kind, places in sorted(members.items(), key=lambda item: -len(item[1]))[:GROUPS]:
        if chosen and len(places) < RARE * len(rows):
            break
        drawn = rng.choice(places, min(CLIPS, len(places)), replace=False)
        group = GroupAdvice(f"{kind[0]} {kind[1]}, {kind[2]}", kind[0], len(places))
        chosen.append((group, [videos[int(row)] for row in drawn]))
    return chosen


def _height_class(short_side: int) -> str:
    return f"{min(HEIGHTS, key=lambda height: abs(math.log(height / short_side)))}p"


def _spacing_class(spacing: int) -> str:
    return next((name for most, name in SPACINGS.items() if spacing <= most), "key frames > 64 apart")


def _measure(
    group: GroupAdvice, clips: list[Video], deadline: float, damaged: dict[str, str]
) -> tuple[GroupAdvice, list[Video]]:
    """The group with what its clips cost, and those that could be decoded: at least one, whatever the deadline."""
    plans = {video.path: plan_evaluation(video, SPEC) for video in clips}
    times: dict[str, list[float]] = {}
    lanes: dict[str, list[Lane]] = {}
    for _ in range(ROUNDS):
        for path, plan in plans.items():
            if path in damaged or (times and time.monotonic() > deadline):
                continue
            lanes.setdefault(path, []).append(Lane())
            try:
                ms = cpu_ms(plan, lanes[path][-1])
            except BadClip as bad:
                damaged[path] = bad.reason
                times.pop(path, None)
            else:
                times.setdefault(path, []).append(ms)
    medians = [statistics.median(t) for t in times.values()]
    if not medians:
        return group, []
    # Stages are wall time: the least of the rounds is the least disturbed.
    work = {name: sum(min(lane.seconds[name] for lane in lanes[path]) for path in times) for name in STAGES}
    scale = statistics.median(medians) / sum(work.values())
    parts = {name: scale * s for name, s in work.items()}
    return replace(group, cpu_ms=medians, stages_ms=parts), [v for v in clips if v.path in times]


def _against_dali(group: GroupAdvice, clips: list[Video], device: torch.device, deadline: float) -> GroupAdvice:
    """PyAV on all cores and DALI on the GPU, or without one on the CPU, in turns on the same clips."""
    if not clips:
        return group
    codecs = GPU_CODECS if device.type == "cuda" else CPU_CODECS
    plans = [plan_evaluation(video, SPEC) for video in clips]
    plans *= max(1, min(2 * cores(), 64) // len(plans))  # work for every core
    pyav = create_decoder("pyav", SPEC, torch.device("cpu"), cores())
    pyav(plans[: len(clips)])  # starts its threads
    dali, note = None, f"DALI does not decode {group.codec} on the {'GPU' if device.type == 'cuda' else 'CPU'}"
    if group.codec in codecs:
        try:
            dali = create_decoder("dali", SPEC, device, cores())
            done = dali(plans[: len(clips)])  # starts it, too
            bad = [clip for clip in done if isinstance(clip, BadClip)]
            note = f"DALI fails on {len(bad)} of {len(done)} clips: {bad[0].reason}" if bad else ""
        except DataError as e:
            note = str(e)
    seconds: list[list[float]] = []
    try:
        while len(seconds) < ROUNDS and (not seconds or time.monotonic() < deadline):
            decoders = [pyav] if dali is None or note else [pyav, dali]
            seconds.append([_wall_s(decoder, plans) for decoder in decoders])
    finally:
        pyav.close()
    rates = [len(plans) / statistics.median(s) for s in zip(*seconds, strict=True)]
    group = replace(group, pyav_clips_per_s=rates[0], dali_note=note)
    if len(rates) == 1:
        return group
    return replace(group, dali_clips_per_s=rates[1], dali_ratio=statistics.median(a / b for a, b in seconds))


def _wall_s(decoder: Decoder, plans: list[ClipPlan]) -> float:
    clock, at_once = time.perf_counter(), BATCH if decoder.name == "dali" else len(plans)
    for i in range(0, len(plans), at_once):
        decoder(plans[i : i + at_once])
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return time.perf_counter() - clock


def _with_trials(group: GroupAdvice, clips: list[Video], deadline: float) -> GroupAdvice:
    if group.codec == JPEG_FRAMES:
        return replace(group, trial_note="only videos are re-encoded, not frames")
    trials, note = try_encodings(clips, deadline)
    return replace(group, trials=trials, trial_note=note)
