"""Re-encode one video so that clip sampling decodes it faster: small pictures, near key frames.

Frame i of an output is frame i of its input, at its input's time, so labels and frame counts stay valid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.container import UnreadableVideo, open_video, reason, video_packets
from pipelines.decoding import decode_frames
from pipelines.errors import DataError
from pipelines.files import whole_file
from pipelines.frame_index import FrameIndex
from pipelines.manifest import OK, VideoFile, scan_file
from tdn_bench.dataset_tools.encoding import CODECS, Encoding
from tdn_bench.dataset_tools.quality import Quality
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import OutputContainer


@dataclass(frozen=True)
class Transcoded:
    """What became of one video."""

    num_frames: int
    input_bytes: int
    output_bytes: int
    psnr_db: float
    """Luma of all frames against the input scaled to the output's size: inf if equal, nan if not measured."""
    width: int
    height: int
    encode_s: float
    """All of the work: reading, decoding, scaling, encoding, measuring, writing."""


def transcode_file(source: str, target: Path, encoding: Encoding, *, psnr: bool = True) -> Transcoded:
    """Re-encode one video; `target` appears complete or not at all.

    Arguments:
        target: File to write; missing folders are made. Its suffix says nothing of what is inside.
        psnr: Also measure how close the result is to the source.

    Raises DataError for a source that cannot be decoded to its end, UserError where `target` cannot be written.
    """
    import av

    clock = time.perf_counter()
    file = scan_file(source)
    if file.status != OK:
        raise DataError(f"{source}: {file.status}")
    codec = CODECS[encoding.codec]
    if codec.encoder not in av.codecs_available:
        raise UserError(f"--codec {encoding.codec}: this FFmpeg has no encoder {codec.encoder}; choose another codec")
    ticks, time_base = _frame_ticks(source, file)
    options = {"fflags": "+bitexact"}  # else the muxer writes random identifiers
    if codec.muxer == "mp4":  # it counts the time before the first frame in these units
        options["movie_timescale"] = str(time_base.denominator)
    quality = Quality(encoding.codec) if psnr else None
    try:
        with whole_file(target) as part:
            with av.open(str(part), "w", format=codec.muxer, options=options) as output:
                rate = Fraction(file.fps or 25).limit_denominator(100_000)
                stream = output.add_stream(codec.encoder, rate=rate, options=encoding.options())
                assert isinstance(stream, av.VideoStream)
                stream.codec_context.time_base, stream.codec_context.thread_count = time_base, 1
                _encode(zip(ticks, _frames(source, file), strict=True), output, stream, encoding, quality)
                width, height = stream.width, stream.height
            _verify(source, part, [tick * time_base for tick in ticks])
            output_bytes = part.stat().st_size
    except OSError as e:
        raise UserError(f"{target}: cannot be written ({e.strerror})") from e
    except av.error.FFmpegError as e:
        raise DataError(f"{source}: cannot be encoded: {e.strerror}") from e
    psnr_db = quality.psnr_db() if quality is not None else math.nan
    seconds = time.perf_counter() - clock
    return Transcoded(file.num_frames, file.bytes, output_bytes, psnr_db, width, height, seconds)


def _encode(
    frames: Iterable[tuple[int, VideoFrame]],
    output: OutputContainer,
    stream: VideoStream,
    encoding: Encoding,
    quality: Quality | None,
) -> None:
    """Scale, turn and encode frames, given with their ticks, into a stream of `output`."""
    from av.video.frame import PictureType
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    codec, scaler = stream.codec_context, VideoReformatter()
    width = height = 0
    for tick, frame in frames:
        if not width:  # later frames of another size are scaled to the first one's, as players do
            width, height = encoding.size(frame.width, frame.height)
        scaled = scaler.reformat(
            frame,
            width,
            height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC,
            dst_colorspace=Colorspace.ITU601 if frame.format.is_rgb else None,  # None: the source's
            dst_color_range=ColorRange.MPEG,  # what readers take for granted that ignore the tag
            threads=1,
        )
        picture = _upright(scaled, frame)
        if not codec.is_open:
            codec.width, codec.height, codec.pix_fmt = picture.width, picture.height, "yuv420p"
            codec.color_range, codec.colorspace = ColorRange.MPEG, scaled.colorspace
            codec.color_primaries, codec.color_trc = scaled.color_primaries, scaled.color_trc
        picture.pts, picture.time_base = tick, codec.time_base
        picture.pict_type = PictureType.NONE  # else the source's key frames become key frames here
        if quality is not None:
            quality.sent(picture)
        _write(output, stream, picture, quality)
    _write(output, stream, None, quality)


def _write(output: OutputContainer, stream: VideoStream, picture: VideoFrame | None, quality: Quality | None) -> None:
    """Encode a picture, or with None what the encoder still holds."""
    for packet in stream.encode(picture):
        if quality is not None:
            quality.received(packet)
        output.mux(packet)
    if picture is None and quality is not None:
        quality.received(None)


def _frame_ticks(source: str, file: VideoFile) -> tuple[list[int], Fraction]:
    """The times of the frames in the order shown, rising, from 0 or later, and the seconds of their unit.

    Where frames have none of their own (AVI), they are the packets' times in order.
    """
    times = FrameIndex.unpack(file.index).times
    with open_video(source) as (container, stream):
        time_base = stream.time_base
        if times is None:
            packets = (p for p in video_packets(container, stream) if not p.is_discard)
            stamps = [p.dts if p.pts is None else p.pts for p in packets]
            times = np.array(sorted(stamp for stamp in stamps if stamp is not None))
    if len(times) != file.num_frames or time_base is None:
        raise DataError(f"{source}: has frames without a time")
    ticks: list[int] = []
    for stamp in times.tolist():
        ticks.append(max(stamp - min(int(times[0]), 0), ticks[-1] + 1 if ticks else 0))
    return ticks, time_base


def _frames(source: str, file: VideoFile) -> Iterator[VideoFrame]:
    """All frames in the order shown. Raises DataError unless they are sound, and as many as scanned."""
    import av

    index, count = FrameIndex.unpack(file.index).from_start(), 0
    try:
        for number, frame in decode_frames(source, index, np.arange(file.num_frames)):
            if frame.is_corrupt or number != count:
                raise DataError(f"{source}: frame {count} is damaged")
            yield frame
            count += 1
    except UnreadableVideo as e:
        raise DataError(f"{source}: {e}") from e
    except (av.error.FFmpegError, OSError) as e:
        raise DataError(f"{source}: cannot be decoded after {count} frames: {reason(e)}") from e


def _upright(picture: VideoFrame, frame: VideoFrame) -> VideoFrame:
    """Turn and mirror a yuv420p picture as the display matrix of the frame that it was made from says."""
    import av

    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = ax + cy, y' = bx + dy
    transposed = abs(b) > abs(a)
    x, y = (c, b) if transposed else (a, d)
    if not transposed and x > 0 and y > 0:
        return picture
    packed, height, planes = picture.to_ndarray(), picture.height, []
    for plane in (packed[:height], *packed[height:].reshape(2, height // 2, -1)):
        plane = plane.T if transposed else plane
        planes.append(plane[:: 1 if y > 0 else -1, :: 1 if x > 0 else -1])
    turned = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1])
    return av.VideoFrame.from_ndarray(turned, format="yuv420p")


def _verify(source: str, written: Path, times_s: list[Fraction]) -> None:
    """Raise DataError unless a file holds exactly the frames written to it, at their times."""
    with open_video(str(written)) as (container, stream):
        found = sorted((p.pts or 0) * p.time_base for p in video_packets(container, stream))
    if len(found) != len(times_s):
        raise DataError(f"{source}: {len(found)} of {len(times_s)} frames survive in the output")
    # WebM counts milliseconds, MP4 keeps times exactly.
    if any(abs(one - other) * 1000 > 1 for one, other in zip(found, times_s, strict=True)):
        raise DataError(f"{source}: its frames' times do not survive in the output")
