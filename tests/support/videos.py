"""Small videos whose frames can be read back."""

from pathlib import Path

import av
import numpy as np
import pytest


def has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


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


def numbered_frames(count: int, width: int, height: int, first: int = 0) -> np.ndarray:
    """Pictures that carry their number (0 … 255): 4 × 2 blocks, white for a one, the highest bit at the top left."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    bits = np.unpackbits(numbers[:, None], axis=1).reshape(count, 2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return np.repeat(255 * bits[:, rows][:, :, columns, None], 3, axis=3).astype(np.uint8)


def read_numbers(pictures: np.ndarray) -> list[int]:
    """The numbers that (…, H, W, 3) pictures of `numbered_frames` carry, read in the middle of each block."""
    *_, height, width, _ = pictures.shape
    rows, columns = np.arange(1, 4, 2) * height // 4, np.arange(1, 8, 2) * width // 8
    bits = pictures.reshape(-1, height, width, 3)[:, rows][:, :, columns].mean(3) > 127
    return np.packbits(bits.reshape(-1, 8), axis=1)[:, 0].tolist()


def flat_frames(count: int, level: int, size: int = 48) -> np.ndarray:
    """One grey level in all pictures: it survives any crop and flip."""
    return np.full((count, size, size, 3), level, np.uint8)
