"""What videos are re-encoded to: codec, size, key frames, quality."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipelines.errors import DataError


@dataclass(frozen=True)
class Codec:
    """How FFmpeg writes a codec; `crf` is the lowest, the default and the highest."""

    encoder: str
    muxer: str
    suffix: str
    crf: tuple[int, int, int]
    options: dict[str, str]


MAX_SIDE, MAX_SPACING = 8192, 100_000  # pixels, frames

CODECS = {
    # On five real clips fastdecode (no CABAC, no deblocking) halved decoding for 9 % more bytes. B-frames saved 8 %
    # of the bytes and no time; without them frames are decoded in the order shown.
    "h264": Codec(
        "libx264",
        "mp4",
        ".mp4",
        (1, 19, 51),
        {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0"},
    ),
    # No look-ahead: it adds hidden frames, which take time to decode and show nothing.
    "vp9": Codec(
        "libvpx-vp9",
        "webm",
        ".webm",
        (1, 24, 63),
        {"deadline": "good", "cpu-used": "4", "lag-in-frames": "0", "auto-alt-ref": "0", "b": "0"},
    ),
}


@dataclass(frozen=True)
class Encoding:
    """What videos are re-encoded to."""

    short_side: int | None = 256
    """Height or width, the smaller of both, in pixels; even. Smaller videos keep their size (odd sizes become even);
    with None all do."""
    keyframe_spacing: int = 16
    """Frames from one key frame to the next. After a seek, at most these are decoded."""
    codec: Literal["h264", "vp9"] = "h264"
    """H.264 decodes on every GPU and CPU."""
    crf: int | None = None
    """Quality, lower is better; default: 19 for h264, 24 for vp9."""

    def __post_init__(self) -> None:
        """Raises DataError for a value that cannot be."""
        if self.short_side is not None and (not 16 <= self.short_side <= MAX_SIDE or self.short_side % 2):
            raise DataError(f"--short-side {self.short_side}: must be even and from 16 to {MAX_SIDE}, or None")
        if not 1 <= self.keyframe_spacing <= MAX_SPACING:
            raise DataError(f"--keyframe-spacing {self.keyframe_spacing}: must be from 1 to {MAX_SPACING}")
        if self.codec not in CODECS:
            raise DataError(f"--codec {self.codec}: choose one of {', '.join(CODECS)}")
        lowest, _, highest = CODECS[self.codec].crf
        if self.crf is not None and not lowest <= self.crf <= highest:
            raise DataError(f"--crf {self.crf}: {self.codec} takes {lowest} to {highest}")

    def options(self) -> dict[str, str]:
        """FFmpeg's options of the encoder: key frames at the spacing asked for and nowhere else."""
        codec, spacing = CODECS[self.codec], str(self.keyframe_spacing)
        crf = codec.crf[1] if self.crf is None else self.crf
        return {**codec.options, "crf": str(crf), "g": spacing, "keyint_min": spacing}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the output for those of the input, pixels: even, and never larger."""
        short = min(width, height)
        scale = Fraction(min(self.short_side or short, short), short)
        width, height = (max(2, 2 * min(round(side * scale / 2), side // 2)) for side in (width, height))
        return width, height
