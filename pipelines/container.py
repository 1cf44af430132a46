"""One way to open a video file, for the scan, the loader, the transcoder and the checks alike.

Only the containers that a data set may have are opened, and only the file itself: FFmpeg also reads playlists, and
would open every file that a playlist names, whatever the suffix.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

# FFmpeg's names of demuxers that read one file and follow no reference out of it.
CONTAINERS = (
    "wav,mp3,flac,aac,mov,matroska,avi,flv,asf,mpegts,mpeg,ogg,mxf,nut,rm,ivf,dv,gif,swf,wtv,nsv,yuv4mpegpipe,"
    "h261,h263,h264,hevc,vvc,av1,obu,m4v,mpegvideo,mjpeg,mjpeg_2000,vc1,vc1test,cavsvideo,dirac"
)
# Those that cut a stream of bytes into packets: a packet may be a field, and the first may be in the middle of a group.
CUT_FROM_BYTES = frozenset(
    "mpegts mpeg mpegvideo h261 h263 h264 hevc vvc av1 obu m4v mjpeg vc1 cavsvideo dirac".split()  # noqa: SIM905
)
_DEFAULT, _ATTACHED_PICTURE = 1, 1024  # FFmpeg's AV_DISPOSITION_*: PyAV's enumeration takes a millisecond


class UnreadableVideo(Exception):
    """A file in which there is no video to be read; the message says why, in a few words without the path."""


def check_regular(path: str) -> None:
    """Raise UnreadableVideo for a pipe, a socket or a device, which would be waited for or read for ever; OSError where
    there is nothing."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UnreadableVideo("not a regular file")


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container at `path` and its video stream: FFmpeg's best one that is no cover picture.

    It is decoded in the caller's thread alone, and strictly: what FFmpeg else patches is raised, since it marks the
    patched picture, but not those that refer to it. Raises UnreadableVideo, OSError and av.error.FFmpegError.
    """
    import av

    check_regular(path)
    av.logging.set_libav_level(av.logging.FATAL)  # what is wrong is raised; a thousand lines on stderr help nobody
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # A relative name may read like a protocol's; some HMDB51 files hold tags that are not UTF-8
        container = av.open(os.path.abspath(path), options=options, metadata_errors="replace")
    except av.error.ArgumentError as e:  # how FFmpeg answers for a demuxer that is not on the list
        raise UnreadableVideo("not a video container (a playlist, a picture or a text is not opened)") from e
    with container:
        stream = best_video(container)
        stream.codec_context.thread_type = "NONE"  # clips run in parallel, frames of one do not
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def best_video(container: InputContainer) -> VideoStream:
    """FFmpeg's choice (av_find_best_stream) among the streams that are no attached pictures."""
    import av

    videos = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED_PICTURE]
    if not videos:
        kinds = {stream.type for stream in container.streams}
        if container.streams.video:
            raise UnreadableVideo("holds a cover picture, but no video")
        raise UnreadableVideo("audio only" if "audio" in kinds else "holds no video stream")
    best: Any = videos[0] if len(videos) == 1 else container.streams.best("video")
    if best not in videos:  # the order in which FFmpeg asks: default, then bit rate, then number of frames
        best = max(videos, key=lambda stream: (stream.disposition & _DEFAULT, stream.bit_rate or 0, stream.frames))
    assert isinstance(best, av.VideoStream)
    if best.codec_context is None:
        raise UnreadableVideo("not a readable video: unknown codec")
    return best


def video_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of `stream` that hold a frame, in the file's order: not the single bytes by which DivX marks a
    dropped one (HMDB51). Those marked is_discard are decoded, but an edit list keeps their frames from being shown."""
    filler = 1 if stream.codec_context.name == "mpeg4" else 0
    return (p for p in container.demux(stream) if p.size > filler)


def reason(error: BaseException) -> str:
    """FFmpeg's or the system's own words, without the file name that PyAV adds."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
