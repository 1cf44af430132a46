"""Where frames come from: a file, a camera or a URL; opened by FFmpeg, and never named with its password."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.container import CONTAINERS, UnreadableVideo, best_video, open_video, reason
from pipelines.errors import printable
from pipelines.files import fault_of_file
from tdn_bench.errors import UserError, without_credentials

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

# What a URL may begin with. Others of FFmpeg's open local files or run programs (file, concat, subfile, pipe, …).
PROTOCOLS = ("http", "https", "tcp", "udp", "rtp", "rtsp", "rtsps", "rtmp", "rtmps", "srt")
_BENEATH = "tls,crypto,data"  # that those are made of; a playlist that names a file is refused
_LIVE_CONTAINERS = f"{CONTAINERS},hls,mpjpeg,rtsp,rtp,sdp"
PROBE_US = 2_000_000  # of a stream's first packets, to find out its rate

LIVE_OPTIONS = {
    "format_whitelist": _LIVE_CONTAINERS,
    "protocol_whitelist": ",".join((*PROTOCOLS, _BENEATH)),
    "analyzeduration": str(PROBE_US),
    "rtsp_flags": "prefer_tcp",  # over UDP a lost packet damages pictures until the next key frame
}


class SourceFailed(Exception):
    """A source that could not be opened or read any longer; the message says why, without its name."""


class Refused(SourceFailed):
    """Nobody listens there, yet."""


@dataclass(frozen=True)
class Source:
    """`shown` is what may be printed and recorded: a URL without user, password and query."""

    kind: Literal["file", "camera", "url"]
    target: str
    shown: str


def find_source(text: str) -> Source:
    """What a user means by SOURCE: a number or /dev/video… is a camera, what begins with a protocol a URL, all else a
    file. Raises UserError for what cannot be watched, files and cameras that are not there among them."""
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        shown = without_credentials(text)
        if match[1].lower() not in PROTOCOLS:
            raise UserError(f"{shown}: a URL begins with {', '.join(PROTOCOLS)}; give a file by its path alone")
        return Source("url", text, shown)
    shown = printable(text)
    path = f"/dev/video{int(text)}" if re.fullmatch("[0-9]{1,3}", text) and not os.path.exists(text) else text
    with suppress(OSError, ValueError):  # what is wrong with a path, `fault_of_file` says
        if stat.S_ISCHR(os.stat(path).st_mode):
            return Source("camera", path, printable(path))
    if path != text or re.fullmatch("/dev/video[0-9]+", path):
        raise UserError(f"{shown}: there is no camera {path}; `ls /dev/video*` shows those that are there")
    if os.path.isdir(path or "."):
        raise UserError(f"{shown}: is a folder; watch takes a video file, a camera or a URL")
    if (fault := fault_of_file(Path(path))) is not None:
        raise UserError(f"{shown}: {fault}; give a video file, a camera (0 or /dev/video0) or a URL")
    return Source("file", path, shown)


@contextmanager
def open_source(
    source: Source, open_timeout_s: float, read_timeout_s: float
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the video stream of a source. While it is open, reading raises what `as_failure` explains; a
    read of a URL gives up after `read_timeout_s`. Raises SourceFailed where it cannot be opened."""
    import av

    try:
        if source.kind == "file":
            with open_video(source.target) as (container, stream):
                yield container, stream
            return
        av.logging.set_libav_level(av.logging.PANIC)  # its lines would show the whole URL
        camera = source.kind == "camera"
        container = av.open(
            source.target,
            format="v4l2" if camera else None,
            options={} if camera else LIVE_OPTIONS,
            metadata_errors="replace",
            timeout=(open_timeout_s, read_timeout_s),
        )
        with container:
            stream = best_video(container)
            stream.codec_context.thread_type = "SLICE"  # frame by frame would hold frames back
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except (av.error.FFmpegError, OSError, UnreadableVideo) as e:
        raise as_failure(e) from None  # the error itself holds the URL


def as_failure(error: Exception) -> SourceFailed:
    """Why a source fails, without its name."""
    import av

    if isinstance(error, ConnectionRefusedError):
        return Refused("connection refused")
    if isinstance(error, av.error.ExitError | TimeoutError):
        return SourceFailed("no answer in time")
    if isinstance(error, av.error.ArgumentError):
        return SourceFailed("not a video that may be opened (a playlist of files, a picture, a text?)")
    return SourceFailed(printable(reason(error)))
