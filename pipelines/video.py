"""What is known of one video: how it is annotated, and what the scan found in its file."""

from __future__ import annotations

import os
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
NEEDED_SPLITS = SPLITS[:2]
UNKNOWN_LABEL = -1  # of a test video whose class the release keeps to itself
OK = "ok"
JPEG_FRAMES = "jpeg"  # the codec of a folder of frames
# What a file in a folder is taken for a video by. One that is named itself is tried whatever its suffix.
VIDEO_SUFFIXES = (
    *(
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
    ),
    *(".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


def clip_name(path: str) -> str:
    """The name of a video, by its path or its id: the last part, without a video file's suffix. "a/b.mp4" is "b"."""
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


@dataclass(frozen=True)
class Sample:
    """One annotated video: `path` is absolute, a video file or a folder of JPEG frames.

    `label` is an index into the data set's classes; −1 (unknown) occurs in the split "test" only.
    """

    id: str
    path: str
    label: int
    split: str


@dataclass(frozen=True)
class VideoFile:
    """What the scan found in one file, or folder of frames.

    `width` and `height` are those of the upright picture. The coded one becomes upright when its left and right are
    swapped (`mirrored`), and then by a turn of `rotation` degrees counter-clockwise. `num_frames` are those that a
    decoder returns; `index` says where they are, see `pipelines.frame_index`. `keyframe_spacing` is the longest run of
    frames from one key frame to the next. `matrix` is the one from YUV to RGB, "" where the file names none. `oddity`
    says, in a few words, what would mislead a decoder that takes a file at its word. `decoded` is how much of it the
    scan decoded: "sample", "all", or "" for nothing. `status` is "ok" or, in a few words, why the file cannot be used.
    """

    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    rotation: int = 0
    mirrored: bool = False
    matrix: str = ""
    fps: float = 0.0
    num_frames: int = 0
    keyframe_spacing: int = 0
    variable_rate: bool = False
    index: str = ""
    oddity: str = ""
    decoded: str = ""
    status: str = OK


@dataclass(frozen=True)
class Video:
    """One row of a manifest: an annotated video and its file."""

    sample: Sample
    file: VideoFile

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def path(self) -> str:
        return self.sample.path
