"""What loading a data set costs on this machine, and what a GPU or re-encoding would change, measured on samples."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from pipelines.clip import ClipSpec
from pipelines.cpu import decode_clip
from pipelines.dali import CPU_CODECS, GPU_CODECS
from pipelines.errors import BadClip, DataError
from pipelines.ledger import Lane
from pipelines.loader import Decoder, create_decoder
from pipelines.manifest import JPEG_FRAMES, OK, Manifest, Video, Videos, as_video
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.processes import cores
from tdn_bench.dataset_tools.transcoding import Encoding, Transcoded, transcode_file
from tdn_bench.errors import UserError

SPEC = ClipSpec()
GROUPS, CLIPS, TRIAL_CLIPS, ROUNDS = 6, 8, 3, 3  # sampled at most; every clip is measured in each round
RARE = 0.05  # a smaller share of the videos is not sampled
BATCH = 16  # clips that DALI decodes at once
HEIGHTS = (120, 240, 360, 480, 720, 1080)  # names of classes: the nearest counts
SPACINGS = {1: "only key frames", 16: "key frames ≤ 16 apart", 64: "key frames ≤ 64 apart"}
ENCODINGS = (Encoding(256, 16), Encoding(320, 16), Encoding(None, 16))
TRIAL_PIXELS = 6e8  # in a video that is re-encoded on trial: 10 s of 1080p
WORTH = 1.25  # faster by less than this is not worth a second copy of the data


@dataclass(frozen=True)
class Trial:
    """One way to re-encode, tried on `clips` videos: decoding before ÷ after, bytes after ÷ before."""

    name: str
    encoding: Encoding
    clips: int
    speedup: float
    disk_ratio: float
    psnr_db: float
    encode_s: float  # per video, one core


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
    """Measure samples of the train split (of all, where it has none that is usable) for about `budget_s` at most."""
    train = manifest.split("train")
    train_videos = int(train.where("status", OK).sum())
    videos = train if train_videos else manifest.videos
    samples = sample_groups(videos)
    start, damaged, groups = time.monotonic(), dict[str, str](), []
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's thread
    try:
        for i, (group, clips) in enumerate(samples):
            deadline = start + budget_s * (i + 1) / len(samples)
            share = (deadline - time.monotonic()) / (4 if trial else 2)
            group, sound = _measure(group, clips, time.monotonic() + share, damaged)
            group = _against_dali(group, sound, device, time.monotonic() + share)
            groups.append(_try_encodings(group, sound, deadline) if trial else group)
    finally:
        torch.set_num_threads(torch_threads)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Advice(cores(), gpu, train_videos, int(videos.where("status", OK).sum()), groups, damaged)


def sample_groups(videos: Videos, seed: int = 0) -> list[tuple[GroupAdvice, list[Video]]]:
    """The most frequent kinds of usable videos, and some of each, drawn at random."""
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


def _cpu_ms(plan: ClipPlan, lane: Lane) -> float:
    """CPU time of the clip, in this thread and in those that its decoder may start. Raises BadClip."""
    clock = time.process_time()
    lane.begin()
    decode_clip(plan, SPEC, lane)
    return 1000 * (time.process_time() - clock)


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
                ms = _cpu_ms(plan, lanes[path][-1])
            except BadClip as bad:
                damaged[path] = bad.reason
                times.pop(path, None)
            else:
                times.setdefault(path, []).append(ms)
    cpu_ms = [statistics.median(t) for t in times.values()]
    if not cpu_ms:
        return group, []
    # Stages are wall time: the least of the rounds is the least disturbed.
    names = ("open", "read", "demux", "decode", "augment")
    work = {name: sum(min(lane.seconds[name] for lane in lanes[path]) for path in times) for name in names}
    scale = statistics.median(cpu_ms) / sum(work.values())
    parts = {name: scale * s for name, s in work.items()}
    return replace(group, cpu_ms=cpu_ms, stages_ms=parts), [v for v in clips if v.path in times]


def _against_dali(group: GroupAdvice, clips: list[Video], device: torch.device, deadline: float) -> GroupAdvice:
    """PyAV on all cores and DALI on the GPU, or without one on the CPU, in turns on the same clips."""
    if not clips:
        return group
    codecs = GPU_CODECS if device.type == "cuda" else CPU_CODECS
    plans = [plan_evaluation(video, SPEC) for video in clips]
    plans *= max(1, min(2 * cores(), 64) // len(plans))  # work for every core
    pyav = create_decoder("pyav", SPEC, torch.device("cpu"), cores())
    pyav(plans[: len(clips)])  # starts its threads
    dali, note = None, f"DALI does not decode {group.codec} on the {device.type}"
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
    clock = time.perf_counter()
    for i in range(0, len(plans), BATCH if decoder.name == "dali" else len(plans)):
        decoder(plans[i : i + (BATCH if decoder.name == "dali" else len(plans))])
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return time.perf_counter() - clock


def _try_encodings(group: GroupAdvice, clips: list[Video], deadline: float) -> GroupAdvice:
    """Re-encode some clips in several ways into a temporary folder, and measure what decoding costs then."""
    if group.codec == JPEG_FRAMES:
        return replace(group, trial_note="frames are not re-encoded")
    short = [v for v in clips if v.file.num_frames * v.file.width * v.file.height <= TRIAL_PIXELS][:TRIAL_CLIPS]
    if not short:
        return replace(group, trial_note="its videos are too long to re-encode some on trial" if clips else "")
    ways: dict[tuple[tuple[int, int], ...], Encoding] = {}  # those that come to the same sizes are one
    for encoding in ENCODINGS:
        ways.setdefault(tuple(encoding.size(v.file.width, v.file.height) for v in short), encoding)
    with tempfile.TemporaryDirectory(prefix="tdn-bench-") as folder:
        targets = {
            (e, v.path): Path(folder, f"{i}-{j}") for i, e in enumerate(ways.values()) for j, v in enumerate(short)
        }
        with ThreadPoolExecutor(cores()) as pool:  # FFmpeg releases the GIL
            # Video by video: when time is up, the first have been through all ways.
            jobs: dict[tuple[Encoding, str], Future[Transcoded]] = {
                (e, v.path): pool.submit(transcode_file, v.path, targets[e, v.path], e)
                for v in short
                for e in ways.values()
            }
            wait(jobs.values(), max(0.0, deadline - time.monotonic()))
            first = [job for (_, path), job in jobs.items() if path == short[0].path]
            for job in jobs.values():
                if job not in first:
                    job.cancel()
        errors = [e for job in jobs.values() if not job.cancelled() and (e := job.exception()) is not None]
        for error in errors:
            if not isinstance(error, (DataError, UserError)):
                raise error
        done = [v for v in short if all(_succeeded(jobs[e, v.path]) for e in ways.values())]
        if not done:
            return replace(group, trial_note=str(errors[0]))
        cost = _costs(done, list(ways.values()), targets, deadline)
    trials = []
    for encoding in ways.values():
        results = [jobs[encoding, v.path].result() for v in done]
        trials.append(
            Trial(
                _name(encoding, done[0]), encoding, len(done),
                speedup=statistics.median(cost[None, v.path] / cost[encoding, v.path] for v in done),
                disk_ratio=sum(r.output_bytes for r in results) / sum(r.input_bytes for r in results),
                psnr_db=statistics.mean(r.psnr_db for r in results),
                encode_s=statistics.mean(r.encode_s for r in results),
            )
        )  # fmt: skip
    return replace(group, trials=trials)


def _succeeded(job: Future[Transcoded]) -> bool:
    return not job.cancelled() and job.exception() is None


def _costs(
    videos: list[Video], ways: list[Encoding], targets: dict[tuple[Encoding, str], Path], deadline: float
) -> dict[tuple[Encoding | None, str], float]:
    """CPU ms of every video as it is (None) and re-encoded, in turns."""
    plans: dict[tuple[Encoding | None, str], ClipPlan] = {}
    for video in videos:
        plans[None, video.path] = plan_evaluation(video, SPEC)
        for encoding in ways:
            path = str(targets[encoding, video.path])
            plans[encoding, video.path] = plan_evaluation(as_video(Path(path)), SPEC)
    times: dict[tuple[Encoding | None, str], list[float]] = {}
    for i in range(ROUNDS):
        if i and time.monotonic() > deadline:
            break
        for key, plan in plans.items():
            times.setdefault(key, []).append(_cpu_ms(plan, Lane()))
    return {key: statistics.median(t) for key, t in times.items()}


def _name(encoding: Encoding, video: Video) -> str:
    short = min(video.file.width, video.file.height)
    kept = min(encoding.size(video.file.width, video.file.height)) >= short - 1  # odd sizes become even
    size = "same size" if kept else f"short side {encoding.short_side}"
    return f"{encoding.codec}, {size}, key frames {encoding.keyframe_spacing} apart"


def print_advice(advice: Advice) -> None:
    """The figures as small tables, and what follows from them."""
    print(f"loading on this machine ({advice.cores} cores; CPU time of one clip of {SPEC.num_segments} segments)")
    for group in advice.groups:
        print(f"  {group.videos} × {group.name}")
        if not group.cpu_ms:
            print("    none of its sampled clips can be decoded")
            continue
        parts = ", ".join(f"{name} {ms:.1f}" for name, ms in group.stages_ms.items())
        low, high = min(group.cpu_ms), max(group.cpu_ms)
        print(
            f"    {statistics.median(group.cpu_ms):.1f} ms ({low:.1f}–{high:.1f}, {len(group.cpu_ms)} clips): {parts}"
        )
        print(f"    all cores, PyAV: {group.pyav_clips_per_s:.1f} clips/s; {_about_dali(group, advice.gpu)}")
        for trial in group.trials:
            print(
                f"    {trial.name}: {trial.speedup:.2f}× as fast, {trial.disk_ratio:.2f}× the disk, "
                f"{trial.psnr_db:.1f} dB ({trial.clips} videos, {trial.encode_s:.1f} s each)"
            )
        if group.trial_note:
            print(f"    not re-encoded: {group.trial_note}")
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
        print(f"  bad: {path}: {reason}")
    print("advice")
    for sentence in conclusions(advice):
        print(f"  {sentence}")


def _about_dali(group: GroupAdvice, gpu: str | None) -> str:
    if group.dali_ratio is None:
        return group.dali_note
    return f"DALI on the {gpu or 'CPU'}: {group.dali_clips_per_s:.1f} clips/s, {group.dali_ratio:.2f}× as many"


def conclusions(advice: Advice) -> list[str]:
    """What the figures say to do, a sentence each."""
    said = [] if advice.gpu else ["there is no GPU here to decode on: PyAV on the CPU loads (--backend auto does so)"]
    for group in advice.groups:
        if group.dali_ratio is not None and (advice.gpu or group.dali_ratio > 1):
            backend, where = "dali" if group.dali_ratio > 1 else "pyav", "GPU" if advice.gpu else "CPU"
            compared = f"loads {group.dali_ratio:.2f}× as many clips/s as PyAV on all {advice.cores} cores"
            said.append(f"{group.name}: DALI on the {where} {compared}: --backend {backend}")
        if not group.trials:
            continue
        best = max(group.trials, key=lambda t: t.speedup)
        if best.speedup < WORTH:
            said.append(f"{group.name}: nothing to gain by re-encoding ({best.speedup:.2f}× at best)")
            continue
        work = _duration(best.encode_s * group.videos / advice.cores)
        said.append(
            f"{group.name}: re-encode as {best.name}: {best.speedup:.1f}× as fast to load for {best.disk_ratio:.1f}× "
            f"the disk at {best.psnr_db:.0f} dB, and {work} of work once: tdn-bench transcode --short-side "
            f"{best.encoding.short_side} --keyframe-spacing {best.encoding.keyframe_spacing} --data-root DIR --out DIR"
        )
    return said


def _duration(seconds: float) -> str:
    units = ((3600, "h"), (60, "min"))
    return next((f"{seconds / size:.1f} {unit}" for size, unit in units if seconds >= size), f"{seconds:.1f} s")
