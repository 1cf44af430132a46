"""What re-encoding would gain: a few videos are re-encoded in several ways; decoding is measured before and after."""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError
from pipelines.ledger import Lane
from pipelines.manifest import Video, as_video
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.processes import cores
from tdn_bench.dataset_tools.clip_cost import ROUNDS, SPEC, cpu_ms
from tdn_bench.dataset_tools.encoding import Encoding
from tdn_bench.dataset_tools.transcoding import Transcoded, transcode_file
from tdn_bench.errors import UserError

ENCODINGS = (Encoding(256, 16), Encoding(320, 16), Encoding(None, 16))
CLIPS = 3  # tried at most
MAX_PIXELS = 6e8  # in a video that is tried: 10 s of 1080p

Key = tuple[Encoding | None, str]  # how a video is encoded (None: as it is), and its path


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


def try_encodings(videos: list[Video], deadline: float) -> tuple[list[Trial], str]:
    """Re-encode some videos in several ways into a temporary folder, and measure what decoding costs then.

    Arguments:
        deadline: When to end, by `time.monotonic()`; one video is tried in any case.

    Returns the trials, or none of them and why.
    """
    short = [v for v in videos if v.file.num_frames * v.file.width * v.file.height <= MAX_PIXELS][:CLIPS]
    if not short:
        return [], "its videos are too long to try" if videos else ""
    by_sizes: dict[tuple[tuple[int, int], ...], Encoding] = {}  # ways that come to the same sizes are one
    for encoding in ENCODINGS:
        by_sizes.setdefault(tuple(encoding.size(v.file.width, v.file.height) for v in short), encoding)
    ways = list(by_sizes.values())
    with tempfile.TemporaryDirectory(prefix="tdn-bench-") as folder:
        # Video by video: when time is up, the first have been through all ways.
        targets = {(e, v.path): Path(folder, f"{i}-{j}") for j, v in enumerate(short) for i, e in enumerate(ways)}
        results, errors = _encode_all(targets, deadline)
        done = [v for v in short if all((e, v.path) in results for e in ways)]
        if not done:
            return [], str(errors[0])
        cost = _costs(done, ways, targets, deadline)
    return [_trial(e, done, [results[e, v.path] for v in done], cost) for e in ways], ""


def _encode_all(
    targets: dict[tuple[Encoding, str], Path], deadline: float
) -> tuple[dict[tuple[Encoding, str], Transcoded], list[BaseException]]:
    """Re-encode on all cores; after the deadline only what has begun, and the first video. Returns what succeeded, and
    the errors of what did not."""
    with ThreadPoolExecutor(cores()) as pool:  # FFmpeg releases the GIL
        jobs: dict[tuple[Encoding, str], Future[Transcoded]] = {
            (encoding, path): pool.submit(transcode_file, path, target, encoding)
            for (encoding, path), target in targets.items()
        }
        wait(jobs.values(), max(0.0, deadline - time.monotonic()))
        (_, first), *_ = targets
        for (_, path), job in jobs.items():
            if path != first:
                job.cancel()
    ended = {key: job for key, job in jobs.items() if not job.cancelled()}
    errors = [error for job in ended.values() if (error := job.exception()) is not None]
    for error in errors:
        if not isinstance(error, (DataError, UserError)):
            raise error
    return {key: job.result() for key, job in ended.items() if job.exception() is None}, errors


def _costs(
    videos: list[Video], ways: list[Encoding], targets: dict[tuple[Encoding, str], Path], deadline: float
) -> dict[Key, float]:
    """CPU ms of every video as it is and re-encoded, in turns."""
    plans: dict[Key, ClipPlan] = {}
    for video in videos:
        plans[None, video.path] = plan_evaluation(video, SPEC)
        for encoding in ways:
            plans[encoding, video.path] = plan_evaluation(as_video(targets[encoding, video.path]), SPEC)
    times: dict[Key, list[float]] = {key: [] for key in plans}
    for i in range(ROUNDS):
        if i and time.monotonic() > deadline:
            break
        for key, plan in plans.items():
            times[key].append(cpu_ms(plan, Lane()))
    return {key: statistics.median(t) for key, t in times.items()}


def _trial(encoding: Encoding, videos: list[Video], results: list[Transcoded], cost: dict[Key, float]) -> Trial:
    return Trial(
        _name(encoding, videos[0]),
        encoding,
        len(videos),
        speedup=statistics.median(cost[None, v.path] / cost[encoding, v.path] for v in videos),
        disk_ratio=sum(r.output_bytes for r in results) / sum(r.input_bytes for r in results),
        psnr_db=statistics.mean(r.psnr_db for r in results),
        encode_s=statistics.mean(r.encode_s for r in results),
    )


def _name(encoding: Encoding, video: Video) -> str:
    short = min(video.file.width, video.file.height)
    kept = min(encoding.size(video.file.width, video.file.height)) >= short - 1  # odd sizes become even
    size = "same size" if kept else f"short side {encoding.short_side}"
    return f"{encoding.codec}, {size}, key frames {encoding.keyframe_spacing} apart"
