"""The backend for machines without a GPU: PyAV decodes, FFmpeg's scaler resizes, one clip per thread.

A clip is cheap because of what is left out: packets before the key frame that the next wanted frame needs, frames
that no other refers to, everything after the last wanted frame, and the colours of pixels that the crop drops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.jpeg import frame_files, read_jpeg
from pipelines.ledger import IDLE, OFF, Lane, Ledger
from pipelines.picture import arrange, check_file, coded_crop, coded_size
from pipelines.plan import ClipPlan
from pipelines.scan import video_packets
from pipelines.video import JPEG_FRAMES, Video

if TYPE_CHECKING:
    from av import Packet, VideoFrame


# Decoders that, told to skip a frame that no other refers to, return all others bit for bit.
SKIPS_EXACTLY = frozenset({"h264", "hevc"})


_reading = threading.local()  # each thread's buffer


def read_ahead(path: str) -> None:
    """Bring a file into the page cache, so that demultiplexing waits for no disk. Raises OSError."""
    if not hasattr(_reading, "buffer"):
        _reading.buffer = bytearray(2**18)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(_reading.buffer):
            pass


def decode_video(plan: ClipPlan, take: Callable[[int, VideoFrame], None], lane: Lane) -> None:
    """Call `take(number, frame)` once for each distinct frame of the plan, as it is decoded; book the stages in `lane`.

    Raises BadClip where the file does not hold what the manifest promised, or cannot be decoded.
    """
    import av

    video = plan.video
    wanted = plan.wanted
    left = set(wanted.tolist())

    def pass_on(index: int | None, frame: VideoFrame) -> None:
        if index in left:
            assert index is not None
            lane.lap("decode")
            if frame.is_corrupt:
                raise BadClip(video.id, video.path, f"frame {index} is damaged")
            take(index, frame)
            left.discard(index)
            lane.lap("augment")

    try:
        read_ahead(video.path)
        lane.lap("read")
        with av.open(video.path, metadata_errors="replace") as container:
            lane.lap("open")
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise BadClip(video.id, video.path, "holds no video that can be decoded")
            stream = container.streams.video[0]
            decode_strictly(stream)
            packets = video_packets(container, stream)
            times = [p.pts for p in packets if not p.is_discard]
            lane.lap("demux")
            _check_packets(packets, len(times), plan)
            codec = stream.codec_context
            # In AVI times are guessed, and wrong with B-frames: there the order of decoding counts. A file copied from
            # an AVI shows it by times that ascend in the file's order, though its decoder reorders frames.
            guessed = container.format.name == "avi" or None in times or len(set(times)) < len(times)
            if guessed or (codec.has_b_frames and len(times) == len(packets) and times == sorted(times)):
                for number, frame in enumerate(_decode_all(packets, codec, wanted, video)):
                    pass_on(number, frame)
            else:
                index: dict[Any, int] = {pts: i for i, pts in enumerate(sorted(times))}
                is_wanted = [not p.is_discard and index[p.pts] in left for p in packets]
                runs = needed_packets([p.pts for p in packets], [p.is_keyframe for p in packets], is_wanted)
                with suppress(av.error.FFmpegError):  # what counts is the error of decoding the whole
                    for frame in _decode_runs(packets, codec, runs, is_wanted):
                        pass_on(index.get(frame.pts), frame)
                if left:  # a key frame that is none, or damage: the whole tells
                    for frame in _decode_runs(packets, codec, [list(range(len(packets)))], None):
                        pass_on(index.get(frame.pts), frame)
            lane.lap("decode")
    except (av.error.FFmpegError, OSError) as e:
        reason = str(getattr(e, "strerror", None) or e).splitlines()[0]
        raise BadClip(video.id, video.path, f"cannot be decoded: {reason}") from e
    if left:
        raise BadClip(video.id, video.path, f"frame {min(left)} of {video.file.num_frames} cannot be decoded")


def _check_packets(packets: Sequence[Packet], num_frames: int, plan: ClipPlan) -> None:
    """Raise BadClip where the file holds another number of frames than at the scan, or a damaged packet."""
    video = plan.video
    if num_frames != video.file.num_frames:
        raise BadClip(video.id, video.path, f"holds {num_frames} frames, {video.file.num_frames} at the scan")
    if plan.wanted[-1] >= num_frames:
        raise BadClip(video.id, video.path, f"holds no frame {plan.wanted[-1]}, only {num_frames}")
    damaged = next((i for i, p in enumerate(packets) if p.is_corrupt), None)
    if damaged is not None:  # MJPEG passes on half a picture unmarked
        raise BadClip(video.id, video.path, f"packet {damaged} is damaged")


def decode_strictly(stream: Any) -> None:
    """Set a stream to be decoded in this thread alone, and to raise what FFmpeg else patches: it marks the patched
    picture, but not those that refer to it."""
    stream.codec_context.thread_type = "NONE"  # clips run in parallel, frames of one do not
    stream.codec_context.options = {"err_detect": "explode"}


def _decode_runs(
    packets: Sequence[Packet], codec: Any, runs: list[list[int]], is_wanted: Sequence[bool] | None
) -> Iterator[VideoFrame]:
    """Decode each run from a fresh start; with `is_wanted`, without other frames that none refers to."""
    can_skip = is_wanted is not None and codec.name in SKIPS_EXACTLY
    for run in runs:
        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"
        for i in run:
            if can_skip:
                codec.skip_frame = "DEFAULT" if is_wanted[i] else "NONREF"  # type: ignore[index]
            yield from codec.decode(packets[i])
        yield from codec.decode(None)


def needed_packets(times: Sequence[Any], is_key: Sequence[bool], is_wanted: Sequence[bool]) -> list[list[int]]:
    """Runs of packets to decode, each with a decoder that knows nothing of the run before; positions ascend.

    `times[i]` is when packet i's frame is shown. A wanted frame needs the packets from the last key frame that stands
    before it in the file and is shown no later; of these, not the frames that are shown before that key frame: they
    lead it, and refer to frames of the group before (open groups of pictures).
    """
    last: dict[int | None, int] = {}  # of each key frame that is needed, the last packet that needs it
    keys: list[int] = []
    for i, wanted in enumerate(is_wanted):
        if is_key[i]:
            keys.append(i)
        if wanted:
            last[next((k for k in reversed(keys) if times[k] <= times[i]), None)] = i
    runs: list[tuple[int, list[int]]] = []  # last packet, packets
    for start, i in sorted(last.items(), key=lambda item: item[1]):
        first = start if start is not None else 0
        need = [j for j in range(first, i + 1) if start is None or times[j] >= times[start]]
        while runs and first <= runs[-1][0]:
            need = sorted({*runs.pop()[1], *need})
        runs.append((i, need))
    return [packets for _, packets in runs]


def _decode_all(packets: Sequence[Packet], codec: Any, wanted: np.ndarray, video: Video) -> Iterator[VideoFrame]:
    """Decode from the start until the last wanted frame is out. Raises BadClip where the decoder swallowed a frame:
    those after it would carry a wrong number."""
    fed = decoded = 0
    while decoded <= wanted[-1] and fed < len(packets):
        frames = codec.decode(packets[fed])
        fed, decoded = fed + 1, decoded + len(frames)
        yield from frames
    frames = codec.decode(None)  # those that waited for their turn to be shown
    decoded += len(frames)
    if decoded != fed:
        raise BadClip(video.id, video.path, f"{decoded} of its first {fed} frames can be decoded")
    yield from frames


class Scaler:
    """Crops, resizes (bilinear, antialiased) and converts to RGB in one pass of FFmpeg's scaler.

    Colours are converted after resizing: fewer pixels, and chroma is interpolated once, not twice.
    """

    def __init__(self, plan: ClipPlan, size: int, frame: VideoFrame) -> None:
        import av

        self._kind = (frame.width, frame.height, frame.format.name)
        x, y, w, h = coded_crop(plan)
        width, height = coded_size(plan, size)
        whole = []
        if any(at % 2 for at in (x, y, w, h)) and frame.format.chroma_width(2) < 2:
            # Chroma of half the width or height can be cut at even places only; elsewhere it would be moved by a pixel.
            left, top = x - x % 2, y - y % 2
            even_w, even_h = (
                min(size + size % 2, most)
                for size, most in ((x + w - left, frame.width - left), (y + h - top, frame.height - top))
            )
            whole = [
                ("crop", f"{even_w}:{even_h}:{left}:{top}:exact=1"),
                ("scale", "flags=bilinear"),
                ("format", "yuv444p"),
            ]
            x, y = x - left, y - top
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # clips run in parallel
        nodes = [
            *whole,
            ("crop", f"{w}:{h}:{x}:{y}:exact=1"),
            ("scale", f"{width}:{height}:flags=bilinear+full_chroma_int"),  # without it 1 to 3 levels too dark
            ("format", "rgb24"),
            ("buffersink", None),
        ]
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        self._graph.link_nodes(source, *(self._graph.add(name, options) for name, options in nodes)).configure()

    def __call__(self, frame: VideoFrame) -> np.ndarray | None:
        """uint8 (H, W, C); None for a picture of another size or format than the first."""
        if (frame.width, frame.height, frame.format.name) != self._kind:
            return None
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()


def decode_clip(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    """uint8 (views·T, L, size, size, C), see `pipelines.picture.arrange`. Raises BadClip."""
    pictures = (_jpeg_pictures if plan.video.file.codec == JPEG_FRAMES else _video_pictures)(plan, spec, lane)
    clip = arrange(pictures, plan, spec)
    lane.lap("augment")
    return clip


def _video_pictures(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    video = plan.video
    wanted = plan.wanted
    place = {number: i for i, number in enumerate(wanted.tolist())}
    width, height = coded_size(plan, spec.size)
    out = np.empty((len(wanted), height, width, 3), np.uint8)
    scaler: Scaler | None = None

    def take(number: int, frame: VideoFrame) -> None:
        nonlocal scaler
        upright = (frame.width, frame.height)[:: -1 if video.file.rotation % 180 else 1]
        if upright != (video.file.width, video.file.height):
            sizes = f"{upright[0]}×{upright[1]}, not {video.file.width}×{video.file.height}"
            raise BadClip(video.id, video.path, f"frame {number} is {sizes}")
        if scaler is None:
            scaler = Scaler(plan, spec.size, frame)
        picture = scaler(frame)
        if picture is None:
            raise BadClip(video.id, video.path, f"frame {number} is of another pixel format, {frame.format.name}")
        out[place[number]] = picture

    decode_video(plan, take, lane)
    return torch.from_numpy(out)


def _jpeg_pictures(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    import simplejpeg

    video = plan.video
    wanted = plan.wanted
    rgb = torch.empty(len(wanted), video.file.height, video.file.width, 3, dtype=torch.uint8)
    for i, data in enumerate(read_frames(plan, lane)):
        try:
            picture = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=False, strict=True)
        except ValueError as e:
            raise BadClip(video.id, video.path, f"frame {wanted[i]} cannot be decoded: {e}") from e
        if picture.shape != rgb.shape[1:]:
            h, w, _ = picture.shape
            reason = f"frame {wanted[i]} is {w}×{h}, not {video.file.width}×{video.file.height}"
            raise BadClip(video.id, video.path, reason)
        rgb[i] = torch.from_numpy(picture)
        lane.lap("decode")
    x, y, w, h = coded_crop(plan)
    width, height = coded_size(plan, spec.size)
    region = rgb[:, y : y + h, x : x + w].permute(0, 3, 1, 2)  # channels-last as it lies in memory
    out = F.interpolate(region, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    lane.lap("augment")
    return out


def read_frames(plan: ClipPlan, lane: Lane) -> Iterator[bytes]:
    """The JPEG files of the plan's distinct frames, ascending. Raises BadClip."""
    video = plan.video
    try:
        files = frame_files(video.path)
        if len(files) != video.file.num_frames:
            reason = f"holds {len(files)} frames, {video.file.num_frames} at the scan"
            raise BadClip(video.id, video.path, reason)
        lane.lap("open")
        for number in plan.wanted:
            data = read_jpeg(files[number])
            lane.lap("read")
            yield data
    except ValueError as e:
        raise BadClip(video.id, video.path, str(e)) from e
    except OSError as e:
        raise BadClip(video.id, video.path, f"cannot be read: {e.strerror}") from e


class PyAVDecoder:
    """Decodes a batch of plans on the CPU with `workers` threads (FFmpeg, libjpeg-turbo and torch release the GIL).

    `verify` compares each file's sha256 with the scan's first.
    """

    name = "pyav"
    concurrent = True

    def __init__(self, spec: ClipSpec, workers: int, verify: bool = False, ledger: Ledger = OFF) -> None:
        self.spec, self.verify, self.ledger = spec, verify, ledger
        self.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
        """Return, in the plans' order, uint8 (views·T, L, H, W, C) or why there is none."""
        clips = list(self._pool.map(self._decode_one, plans))
        self.ledger.lane().lap(IDLE)
        return clips

    def _decode_one(self, plan: ClipPlan) -> Tensor | BadClip:
        lane = self.ledger.lane()
        lane.begin(plan.video.id)
        try:
            check_file(plan, self.verify)
            # Not reading, unless it verifies: where cores are short, a thread that has just passed on a clip waits here
            lane.lap("read" if self.verify else "open")
            return decode_clip(plan, self.spec, lane)
        except BadClip as bad:
            return bad
        finally:
            lane.end()

    def close(self) -> None:
        """End the threads; what has not begun is not decoded."""
        self._pool.shutdown(cancel_futures=True)
