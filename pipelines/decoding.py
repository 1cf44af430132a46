"""From a file's index to its frames: seek, decode what is needed, and check that it is what the index promised.

A clip is cheap because of what is left out: packets before the key frame that the next wanted frame needs, frames that
no other refers to, and everything behind the last wanted frame. Memory holds a packet at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from pipelines.container import UnreadableVideo, open_video, video_packets
from pipelines.frame_index import FrameIndex, Restart

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

# Decoders that, told to skip a frame that no other refers to, return all others bit for bit.
SKIPS_EXACTLY = frozenset({"h264", "hevc"})
NEAR = 64  # packets: reading past so many costs less than seeking

Numbered = tuple[int, "VideoFrame"]


class Missed(Exception):
    """Decoding from a restart did not begin with the key frame that the index names."""


class Disordered(UnreadableVideo):
    """The decoder returns frames in another order than their times, which say what is which no longer."""


def decode_frames(
    path: str, index: FrameIndex, wanted: np.ndarray, lap: Callable[[str], None] = lambda stage: None
) -> Iterator[Numbered]:
    """Each of `wanted` (ascending numbers) once, with its number, mostly in order. `lap` is told what has just been
    done: "open", "demux" or "decode".

    Where seeking does not give what the index promised, the file is decoded from its start, without a short cut.
    Raises UnreadableVideo, OSError and av.error.FFmpegError.
    """
    import av

    left = set(wanted.tolist())
    with open_video(path) as (container, stream):
        lap("open")
        reader = FrameReader(container, stream, index, lap)
        with suppress(Missed, *((av.error.FFmpegError,) if reader.takes_short_cuts else ())):  # the whole tells
            for number, frame in reader.frames(wanted):
                left.discard(number)
                yield number, frame
    if left and reader.takes_short_cuts:
        with open_video(path) as (container, stream), suppress(Missed):
            for number, frame in FrameReader(container, stream, index.from_start(), lap).frames(wanted, skip=False):
                if number in left:
                    left.discard(number)
                    yield number, frame
    if left:
        raise UnreadableVideo(f"frame {min(left)} cannot be decoded")


class FrameReader:
    """Decodes frames of one open stream, which nobody else reads meanwhile. `rewound`: nobody has read it before."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        index: FrameIndex,
        lap: Callable[[str], None] = lambda stage: None,
        rewound: bool = True,
    ) -> None:
        self._container, self._stream, self._index, self._lap = container, stream, index, lap
        self._packets = video_packets(container, stream)
        self._position = 0 if rewound else None  # packets before the next one; None: not known

    @property
    def takes_short_cuts(self) -> bool:
        """Whether another way to decode the same frames is left."""
        skips = self._index.times is not None and self._stream.codec_context.name in SKIPS_EXACTLY
        return len(self._index.restarts) > 1 or skips

    def frames(self, wanted: np.ndarray, *, skip: bool = True) -> Iterator[Numbered]:
        """As `decode_frames`, from this container alone. Raises Missed where a restart is not what it should be, and
        Disordered. `skip`: leave out frames that are not wanted, where that changes no other."""
        for restart, numbers in self._index.runs(wanted):
            yield from self._run(restart, numbers, skip)

    def _run(self, restart: Restart, numbers: list[int], skip: bool) -> Iterator[Numbered]:
        """Decode from a fresh start at `restart` until all `numbers` are out."""
        index, codec = self._index, self._stream.codec_context
        timed, from_middle = index.times is not None, restart.packet > 0
        skip = skip and timed and index.one_each and codec.name in SKIPS_EXACTLY
        wanted = set(numbers)
        waiting = len(wanted)  # for their packets
        fed = out = 0
        last = -1

        def numbered(frames: list[VideoFrame]) -> Iterator[Numbered]:
            nonlocal out, last
            for frame in frames:
                number = index.number_at(frame.pts) if timed else restart.frame + out
                if from_middle and not out and number == restart.frame and not _is_key(frame):
                    raise Missed
                if 0 <= number < last:
                    raise Disordered(f"frames {number} and {last} come in another order than their times")
                last = max(last, number)
                out += 1
                if number in wanted:
                    yield number, frame

        codec.flush_buffers()
        codec.skip_frame = "DEFAULT"
        for packet in chain([self._find(restart)], self._read()):
            self._lap("demux")
            if packet.is_corrupt:  # MJPEG passes on half a picture unmarked
                raise UnreadableVideo("a packet is damaged")
            if from_middle and timed and packet.pts is not None and packet.pts < restart.stamp:
                continue  # a leading frame: it refers to frames of the group before
            is_wanted = timed and index.number_at(packet.pts) in wanted
            if skip:
                codec.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            frames = codec.decode(packet)
            self._lap("decode")
            fed += not packet.is_discard
            waiting -= is_wanted
            yield from numbered(frames)
            if not waiting if timed and index.one_each else out > numbers[-1] - restart.frame:
                break
        codec.skip_frame = "DEFAULT"
        yield from numbered(codec.decode(None))  # those that waited for their turn to be shown
        self._lap("decode")
        if not timed and index.one_each and out != fed:  # those behind a swallowed frame carry a wrong number
            raise UnreadableVideo(f"{out} of its first {fed} frames can be decoded")

    def _find(self, restart: Restart) -> Packet:
        """The packet of a restart; reading goes on behind it. Raises Missed where the demuxer does not get there."""
        timed = self._index.times is not None
        if self._position is None or not 0 <= restart.packet - self._position <= NEAR:
            self._container.seek(restart.seek, stream=self._stream, backward=True)
            self._packets, self._position = video_packets(self._container, self._stream), None
        for packet in self._read():
            stamp = packet.pts if timed else packet.dts
            if stamp == restart.stamp if self._position is None else self._position == restart.packet + 1:
                self._position = restart.packet + 1
                return packet
            passed = stamp is not None and stamp > restart.stamp and self._position is None
            if passed or (self._position or 0) > restart.packet:
                break
        raise Missed

    def _read(self) -> Iterator[Packet]:
        for packet in self._packets:
            if self._position is not None:
                self._position += 1
            yield packet


def _is_key(frame: VideoFrame) -> bool:
    """Whether the decoder itself, not the container, says that a frame needs no other."""
    return bool(frame.key_frame)
