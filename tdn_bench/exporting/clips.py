"""The clips that a written file is checked on, and that int8 is calibrated on: the user's own, or synthetic ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip, printable
from pipelines.loader import create_decoder, decode_videos
from pipelines.processes import cores
from pipelines.sampling import evenly_spaced
from pipelines.scan import as_video
from pipelines.synthetic import VALIDATION_START, draw_scene, encode, render
from pipelines.video import Video
from tdn_bench.cli.videos import named_videos
from tdn_bench.errors import UserError


@dataclass(frozen=True)
class Clips:
    """`frames`: uint8 (N, T, L, H, W, C), on the CPU; `videos` are their files; `source` says where they are from."""

    frames: Tensor
    videos: tuple[Video, ...]
    source: str


def read_clips(flag: str, names: Sequence[str], spec: ClipSpec, most: int) -> Clips:
    """One centred clip of each of `most` videos at most, spread over those that are found. What cannot be used is named
    on stderr and left out; raises UserError where nothing is left."""
    found = evenly_spaced(named_videos(flag, names), most)
    clips = decode([as_video(Path(video)) for video in found], spec)
    if not clips:
        raise UserError(f"{flag}: none of its {len(found)} videos can be used")
    frames, videos = zip(*clips, strict=True)
    return Clips(torch.stack(frames), tuple(videos), "given")


def decode(videos: Sequence[Video], spec: ClipSpec, backend: str = "auto") -> list[tuple[Tensor, Video]]:
    """The clip, uint8 (T, L, H, W, C), and row of each video that can be used; a line on stderr for each other."""
    with closing(create_decoder(backend, spec, torch.device("cpu"), cores())) as decoder:
        decoded = decode_videos(decoder, videos, spec)
    for clip in decoded:
        if isinstance(clip, BadClip):
            print(f"not used: {printable(str(clip))}", file=sys.stderr)
    return [
        (clip.unflatten(0, (-1, spec.num_segments))[0], video)
        for video, clip in zip(videos, decoded, strict=True)
        if not isinstance(clip, BadClip)
    ]


def synthetic_clips(spec: ClipSpec, count: int, folder: Path) -> Clips:
    """Clips of the motion data set (`pipelines.synthetic`), written to `folder` as VP9 and decoded like any other."""
    paths = [folder / f"{VALIDATION_START + i}.webm" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(render(draw_scene(0, VALIDATION_START + i))))
    frames, videos = zip(*decode([as_video(path) for path in paths], spec), strict=True)
    return Clips(torch.stack(frames), tuple(videos), "synthetic")
