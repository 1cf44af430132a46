"""The steps `decoder` and `odd-clips`: does every decoder return the frames that it is asked for, and refuse what it
cannot decode?"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.loader import create_decoder
from pipelines.manifest import OK, Video, as_video
from pipelines.odd_clips import make_odd_clips, read_numbers, stretched_frames
from pipelines.plan import ClipPlan
from pipelines.processes import cores
from pipelines.sampling import random_frame_indices
from tdn_bench.correctness.decoder_checks import SPEC, check_video
from tdn_bench.correctness.decoder_parity import open_decoders
from tdn_bench.gpu_checks.run import Outcome, Row, Run

CODECS = {  # codec: (encoder, file ending, options); key frames every 12, so that decoders must seek
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    "h264": ("libx264", "mp4", {"preset": "veryfast", "bf": "2", "g": "12"}),
    "mpeg4": ("mpeg4", "mp4", {"bf": "2", "g": "12", "b": "2000000"}),
}
CPU_DALI_CODECS = ("vp9",)  # of these; a GPU decodes them all
SIZE = 64  # height and width of the decoded pictures, pixels


def decoder(run: Run) -> Outcome:
    """DALI on the device gives the frames asked for, as PyAV does, and refuses broken files and wrong indices."""
    found = Outcome()
    if run.device.type == "cuda":
        try:
            ctypes.CDLL("libnvcuvid.so.1")
        except OSError as e:
            found.failures.append(f"no video decoder ({e}); a container needs NVIDIA_DRIVER_CAPABILITIES with video")
    differences: list[float] = []
    checked = 0
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            for size in run.sizes.clip_sizes:
                video = _numbered_video(Path(folder), codec, run.sizes.clip_frames, size, found)
                if video is None:
                    continue
                checked += 1
                if run.device.type == "cpu" and codec not in CPU_DALI_CODECS:
                    _expect_refused_codec(run, video, found)
                else:
                    differences += _compare_decoders(run, video, found)
                    _expect_broken_left_out(run, video, Path(folder), found)
    found.samples["rgb_difference"] = differences
    found.figures["files_checked"] = checked
    found.rows = [Row("files checked", f"{checked}, {len(found.details)} not made")]
    if differences:
        found.figures["rgb_difference_mean"] = statistics.fmean(differences)
        found.rows.append(Row("mean RGB difference from PyAV", f"{found.figures['rgb_difference_mean']:.2f} of 255"))
    return found


def odd_clips(run: Run) -> Outcome:
    """Awkward clips whose frames carry their number, by every decoder: one may refuse a clip, none may return a wrong
    frame."""

    found = Outcome()
    verdicts: dict[str, Counter[str]] = {}
    decoders = open_decoders(SPEC, run.device, cores())
    with tempfile.TemporaryDirectory() as folder:
        for clip in make_odd_clips(Path(folder)):
            case = check_video(as_video(clip.path, clip.name), decoders, 0, clip)
            found.details[clip.name] = {backend: str(returned) for backend, returned in case.returned.items()}
            for backend, returned in case.returned.items():
                verdicts.setdefault(backend, Counter())[returned.verdict] += 1
                found.expect(returned.verdict != "wrong", f"{clip.name} by {backend}: {returned}")
    for backend, counts in verdicts.items():
        name = backend.replace("-", "_")
        found.figures |= {f"{name}_{verdict}": counts[verdict] for verdict in ("exact", "refused", "wrong")}
        found.rows.append(Row(f"odd clips by {backend}", f"{counts['exact']} exact, {counts['refused']} refused"))
    return found


def write_numbered(path: Path, codec: str, count: int, width: int, height: int) -> None:
    """Encode numbered pictures. Raises av.error.FFmpegError or ValueError where the encoder is missing or refuses the
    size."""
    import av

    encoder, _, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in stretched_frames(count, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _numbered_video(folder: Path, codec: str, count: int, size: tuple[int, int], found: Outcome) -> Video | None:
    """A video of `count` numbered frames; None, and a note in `found`, where it could not be made or was scanned as
    something else."""
    import av

    width, height = size
    label = f"{codec} {width}×{height}"
    path = folder / f"{codec}-{width}x{height}.{CODECS[codec][1]}"
    try:
        write_numbered(path, codec, count, width, height)
    except (av.error.FFmpegError, ValueError) as e:  # ValueError: no such encoder
        found.details[label] = f"not made: {getattr(e, 'strerror', None) or e}"
        return None
    video = as_video(path, label)
    sound = video.file.status == OK and video.file.num_frames == count
    found.expect(sound, f"{label}: scanned as {video.file}")
    return video if sound else None


def _plan(video: Video, frames: np.ndarray, flip: bool = False) -> ClipPlan:
    return ClipPlan(video, frames, (0, 0, video.file.width, video.file.height), flip, 0)


def _decode(run: Run, plans: list[ClipPlan], backend: Literal["dali", "pyav"] = "dali") -> list[np.ndarray | BadClip]:
    """The clip of each plan, uint8 (T, L, SIZE, SIZE, 3), or why there is none."""
    decoder = create_decoder(backend, ClipSpec(run.sizes.num_segments, size=SIZE), run.device, cores())
    clips = decoder(plans)
    decoder.close()
    return [clip if isinstance(clip, BadClip) else clip.cpu().numpy() for clip in clips]


def wrong_frames(clip: np.ndarray, plan: ClipPlan) -> int:
    """How many pictures of a clip, uint8 (T, L, H, W, 3), do not carry the number that the plan asks for."""
    numbers = read_numbers(clip[..., ::-1, :] if plan.flip else clip)
    return int((np.array(numbers) != plan.frames.ravel()).sum())


def _compare_decoders(run: Run, video: Video, found: Outcome) -> list[float]:
    """Both backends read the frames that random plans ask for; returns their mean RGB differences."""
    rng, count, segments = np.random.default_rng(0), video.file.num_frames, run.sizes.num_segments
    plans = []
    for i in range(run.sizes.plans_per_clip):
        plans.append(_plan(video, random_frame_indices(count, segments, rng), flip=bool(i % 2)))
        plans.append(_plan(video, rng.integers(count, size=(segments, 5))))  # in any order, some repeated
    dali, pyav = _decode(run, plans, "dali"), _decode(run, plans, "pyav")
    for backend, clips in (("dali", dali), ("pyav", pyav)):
        for plan, clip in zip(plans, clips, strict=True):
            if isinstance(clip, BadClip):
                found.failures.append(f"{video.id}: {backend}: {clip.reason}")
            elif wrong := wrong_frames(clip, plan):
                found.failures.append(f"{video.id}: {backend} returned {wrong} of {plan.frames.size} frames wrong")
    return [
        float(np.abs(a.astype(np.int16) - b).mean())
        for a, b in zip(dali, pyav, strict=True)
        if not isinstance(a, BadClip) and not isinstance(b, BadClip)
    ]


def _expect_refused_codec(run: Run, video: Video, found: Outcome) -> None:
    [clip] = _decode(run, [_plan(video, np.arange(5)[None].repeat(run.sizes.num_segments, 0))])
    named = isinstance(clip, BadClip) and f"cannot decode {video.file.codec}" in clip.reason
    found.expect(named, f"{video.id}: DALI on the CPU did not refuse {video.file.codec} by name")


def _expect_broken_left_out(run: Run, video: Video, folder: Path, found: Outcome) -> None:
    """A cut file, a file of garbage and an index past the end are bad clips; the others of the batch are intact."""
    whole = Path(video.path)
    cut, garbage = folder / f"cut-{whole.name}", folder / "garbage"
    cut.write_bytes(whole.read_bytes()[: video.file.bytes // 2])
    garbage.write_bytes(np.random.default_rng(0).bytes(20_000))
    frames = np.linspace(0, video.file.num_frames - 1, run.sizes.num_segments * 5).astype(np.int64)
    frames = frames.reshape(run.sizes.num_segments, 5)
    good, past = _plan(video, frames), _plan(video, frames + 1)
    broken = {
        name: replace(good, video=replace(video, sample=replace(video.sample, path=str(path))))
        for name, path in (("a cut file", cut), ("a file of garbage", garbage))
    } | {"an index past the end": past}
    clips = _decode(run, [good, *broken.values(), good])
    for name, clip in zip(broken, clips[1:-1], strict=True):
        found.expect(isinstance(clip, BadClip), f"{video.id}: {name} was not refused")
    for clip in (clips[0], clips[-1]):
        intact = not isinstance(clip, BadClip) and not wrong_frames(clip, good)
        found.expect(intact, f"{video.id}: a sound clip beside broken ones was lost or changed")
