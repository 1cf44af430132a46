"""The files of pictures: their names, and their formats."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from pipelines.files import whole_file, write_whole
from tdn_bench.errors import UserError
from tdn_bench.visualizing.drawing import animation, strip
from tdn_bench.visualizing.looking import Looked
from tdn_bench.visualizing.panels import Panel

Format = Literal["png", "mp4", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
SECONDS_PER_SEGMENT = Fraction(1, 2)
ENDING = "-visualized"  # of the names of all files that are written
MOST_BYTES = 100  # of a name's part that comes from the video's


def check_formats(formats: Sequence[Format]) -> None:
    """Raise UserError for a format that cannot be written here."""
    if "mp4" in formats:
        import av

        try:
            av.Codec("libx264", "w")
        except ValueError as e:
            raise UserError("--format mp4: this FFmpeg cannot write H.264; use --format webp") from e
    if "webp" in formats:
        from PIL import features

        if not features.check("webp"):
            raise UserError("--format webp: this Pillow cannot write WebP; use --format mp4")


def not_written(videos: Iterable[str], folder: Path) -> list[Path]:
    """The videos but for the animations that `write` may have put into `folder`: a folder of videos may hold it."""
    output = folder.resolve()
    return [v for v in map(Path, videos) if not (v.stem.endswith(ENDING) and v.parent.resolve() == output)]


def stems(videos: Sequence[Path]) -> list[str]:
    """A name for the pictures of each video, that any file system takes: the video's, with a number where another video
    has the same (or differs by case alone). None is one of the videos' own."""
    taken = {video.stem.casefold() for video in videos}
    found = []
    for video in videos:
        plain = (
            re.sub(r"[^\w.-]+", "-", video.stem).strip("-.").encode()[:MOST_BYTES].decode(errors="ignore") or "video"
        )
        names = (f"{plain}{number}{ENDING}" for number in chain([""], (f"-{n}" for n in count(2))))
        name = next(n for n in names if n.casefold() not in taken)
        taken.add(name.casefold())
        found.append(name)
    return found


def write(looked: Looked, folder: Path, stem: str, formats: Sequence[Format]) -> list[Path]:
    """Write a file of each format, whole or not at all; what had its name before is replaced. Raises OSError."""
    what, first = (looked.title, looked.subtitles, looked.panels), looked.panels[0]
    assert isinstance(first, Panel)
    per_second = first.pictures.shape[1] / SECONDS_PER_SEGMENT
    pictures = list(animation(*what)) if set(formats) - {"png"} else []
    paths = {kind: folder / f"{stem}.{kind}" for kind in formats}
    for kind, path in paths.items():
        if kind == "png":
            write_whole(path, strip(*what))
        else:
            (write_mp4 if kind == "mp4" else write_webp)(path, pictures, per_second)
    return list(paths.values())


def write_mp4(path: Path, pictures: Iterable[np.ndarray], per_second: Fraction) -> None:
    """H.264 that browsers play, of uint8 pictures (H, W, 3) with even sides."""
    import av

    with (
        whole_file(Path(os.path.realpath(path))) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=per_second, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def write_webp(path: Path, pictures: Iterable[np.ndarray], per_second: Fraction) -> None:
    """An animation without end."""
    import io

    from PIL import Image

    first, *others = map(Image.fromarray, pictures)
    content = io.BytesIO()
    each_ms = round(1000 / per_second)
    first.save(content, "webp", save_all=True, append_images=others, duration=each_ms, loop=0, quality=85, method=3)
    write_whole(path, content.getvalue())
