"""Small videos whose frames can be read back."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.odd_clips import numbered_frames, read_numbers, stretched_frames

__all__ = [
    "flat_frames",
    "has_encoder",
    "numbered_frames",
    "read_numbers",
    "stretched_frames",
    "whole_decode",
    "write_video",
]


def has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


def whole_decode(path: Path) -> list[av.VideoFrame]:
    """All frames of FFmpeg's best video, from the first key frame on, as a plain decode by its default flags gives
    them."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_type = "NONE"
        packets = list(container.demux(stream))
        first = next(i for i, packet in enumerate(packets) if packet.is_keyframe)
        return [frame for packet in packets[first:] for frame in packet.decode()]


def write_video(path: Path, frames: np.ndarray, encoder: str = "libvpx-vp9", **muxer_options: str) -> Path:
    """Encode uint8 (N, H, W, 3) RGB; the container follows from the file's suffix. Skips without the encoder."""
    if not has_encoder(encoder):
        pytest.skip(f"this FFmpeg has no encoder {encoder}")
    options = {
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "12"},
        "libx264": {"bf": "2", "g": "12", "crf": "16", "preset": "veryfast"},
        "mpeg4": {"bf": "2", "g": "12", "q": "2", "qmin": "2", "qmax": "2"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer_options) as container:
        stream = container.add_stream(encoder, rate=12, options=options.get(encoder, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(encoder, "yuv420p")
        stream.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def flat_frames(count: int, level: int, size: int = 48) -> np.ndarray:
    """One grey level in all pictures: it survives any crop and flip."""
    return np.full((count, size, size, 3), level, np.uint8)
