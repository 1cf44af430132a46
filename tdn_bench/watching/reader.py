"""The frames of a source as they come: paced, or at the pace of whoever sends them; never piling up, and reconnected.

A frame arrives when its last packet has been read, before it is decoded; a frame of a file that is played at its own
rate, when it is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.container import video_packets
from tdn_bench.watching.source import Refused, Source, SourceFailed, open_source

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

MAX_BACKLOG_S = 1.0  # the decoder is that far behind, and does not catch up: packets are thrown away, to a key frame
PATIENCE_S = 0.5  # so long to see whether it does
CAUGHT_UP_S = 0.1
MISSING_S = 1.0  # from one live frame to the next: there were others between them
MAX_STEP_S = 10.0  # from frame to frame; times that jump by more say nothing
RETRY_S = 0.5, 10.0  # between attempts to reconnect: first, and at most
MAX_FPS = 1000.0
_REMEMBERED = 256  # packets whose frames are still to come
_BROKEN_READS = 20  # in a row, without a packet between: what can be read of a file is over


@dataclass(frozen=True)
class Arrived:
    """A frame, when it arrived (`time.monotonic`), and its time in the stream, from the first frame on. `doubtful`:
    something before it was damaged, and no key frame has come since: it may show what never was."""

    frame: VideoFrame
    arrived_s: float
    position_s: float
    doubtful: bool = False


@dataclass(frozen=True)
class Gap:
    """What comes next does not follow what came before."""


@dataclass(frozen=True)
class Opened:
    """What a source says of itself. `fps` is None where it says nothing believable; `recorded`: it has an end that is
    known, and so no pace of its own."""

    fps: float | None
    recorded: bool


class Reader:
    """Reads a source. `realtime`: what is recorded is played at its own rate; else as fast as it is asked for.

    `say(kind, text)` takes what happens: lost, connected, behind, gap, damaged. `read_s`: a URL from which nothing came
    for so long is opened again. One caller at a time may read `frames`.
    """

    def __init__(self, source: Source, *, realtime: bool, connect_s: float, read_s: float) -> None:
        self.source, self.realtime = source, realtime
        self.say: Callable[[str, str], None] = lambda kind, text: None
        self.connect_s, self.read_s = connect_s, read_s
        self.opened: Opened | None = None
        self.trouble = ""  # why it could not be opened, the last time
        self.damaged = self.dropped = 0  # packets
        self.stop = threading.Event()

    def frames(self) -> Generator[Arrived | Gap, None, None]:
        """Every frame until the source ends, a Gap before the first of each connection. A URL that fails once it was
        open is opened again, and again. Raises SourceFailed where a source cannot be opened at all, or a file or camera
        no longer be read."""
        give_up_s, retry_s = time.monotonic() + self.connect_s, RETRY_S[0]
        while not self.stop.is_set():
            try:
                with open_source(self.source, self.connect_s, self.read_s) as (container, stream):
                    self._connected(container, stream)
                    yield Gap()
                    for arrived in _Session(self, container, stream).frames():
                        retry_s = RETRY_S[0]
                        yield arrived
                return
            except SourceFailed as failed:
                self.trouble = str(failed)
                if self.opened is None:
                    if not isinstance(failed, Refused) or time.monotonic() > give_up_s:
                        raise
                elif self.source.kind != "url":
                    raise
                else:
                    self.say("lost", f"{failed}; opening it again in {retry_s:g} s")
                self.stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_S[1]) if self.opened else retry_s

    def _connected(self, container: InputContainer, stream: VideoStream) -> None:
        if self.opened is not None:
            self.say("connected", "it is open again")
            return
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        recorded = self.source.kind == "file" or bool(container.duration and self.source.kind == "url")
        self.opened = Opened(rate if 0 < rate <= MAX_FPS else None, recorded)


class _Session:
    """One connection: its packets, decoded in time or thrown away."""

    def __init__(self, reader: Reader, container: InputContainer, stream: VideoStream) -> None:
        assert reader.opened is not None
        self._reader, self._container, self._stream = reader, container, stream
        self._tick_s = float(stream.time_base or 0)
        self._interval_s = 1 / (reader.opened.fps or 25.0)
        self._paced = reader.realtime and reader.opened.recorded
        self._live = not reader.opened.recorded
        self._origin_s: float | None = None  # the stream's time of its first frame, moved where times jump
        self._position_s = 0.0  # of the newest frame
        self._start_s = 0.0  # by the clock: when position 0 is due (paced)
        self._least_lag_s: float | None = None  # of the last packet that we had to wait for (live)
        self._last_dts_s = 0.0
        self._doubtful = self._dropped = False  # dropped: just before the next frame
        self._over: tuple[float, float] | None = None  # since when too far behind, and how far then

    def frames(self) -> Iterator[Arrived | Gap]:
        import av

        reader, codec = self._reader, self._stream.codec_context
        arrivals: dict[int | None, float] = {}  # by packet, until its frame comes
        waits_for_key, dropping = True, False
        for packet, arrived_s, waited_s in self._packets():
            if reader.stop.is_set():
                return
            if packet is not None:
                behind_s = self._behind_s(packet, arrived_s, waited_s)
                if not dropping and self._stays_behind(behind_s):
                    reader.say("behind", f"decoding is {behind_s:.1f} s behind: going on at the newest key frame")
                    dropping = waits_for_key = True
                dropping = dropping and behind_s > CAUGHT_UP_S
                if dropping or (waits_for_key and not packet.is_keyframe):
                    reader.dropped += self._origin_s is not None  # before the first frame there is nothing to miss
                    continue
                if waits_for_key and self._origin_s is not None:
                    reader.dropped += len(arrivals)  # those that the decoder held back
                    arrivals.clear()
                    codec.flush_buffers()
                    self._dropped = True
                    yield Gap()
                waits_for_key = False
                if packet.pts is not None:
                    if len(arrivals) > _REMEMBERED:
                        arrivals.clear()
                    arrivals[packet.pts] = arrived_s
            try:
                frames = codec.decode(packet)
            except av.error.FFmpegError:
                arrivals.pop(getattr(packet, "pts", None), None)
                self._damaged()
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._damaged()
                    continue
                if self._advance(frame):
                    yield Gap()
                came_s = arrivals.pop(frame.pts, arrived_s) if frame.pts is not None else arrived_s
                if self._paced:
                    came_s = self._wait_until_due()
                    if reader.stop.is_set():
                        return
                yield Arrived(frame, came_s, self._position_s, self._doubtful)
                self._doubtful = self._doubtful and not frame.key_frame  # it is flagged itself: others are missing

    def _packets(self) -> Iterator[tuple[Packet | None, float, float]]:
        """(packet, when it was read, how long that took); last None, for the frames that the decoder holds back."""
        import av

        broken, packets = 0, video_packets(self._container, self._stream)
        while True:
            asked_s = time.monotonic()
            try:
                packet = next(packets, None)
            except av.error.InvalidDataError:
                broken += 1
                if self._live or broken > _BROKEN_READS:
                    raise
                self._damaged()
                packets = video_packets(self._container, self._stream)
                continue
            arrived_s = time.monotonic()
            yield packet, arrived_s, arrived_s - asked_s
            if packet is None:
                return
            broken = 0

    def _damaged(self) -> None:
        self._doubtful = True
        self._reader.damaged += 1
        if self._reader.damaged == 1:
            self._reader.say("damaged", "a packet cannot be decoded; such are left out, counted, and marked in labels")

    def _behind_s(self, packet: Packet, arrived_s: float, waited_s: float) -> float:
        """How far what is decoded now lags behind what has come, or is due."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return 0.0
        stamp_s = stamp * self._tick_s
        if self._paced:
            return time.monotonic() - self._start_s - (stamp_s - self._origin_s) if self._origin_s is not None else 0.0
        lag_s = arrived_s - stamp_s
        jumps = abs(stamp_s - self._last_dts_s) > MAX_STEP_S
        self._last_dts_s = stamp_s
        if self._least_lag_s is None or jumps or waited_s > self._interval_s / 4:  # nothing more was there: no backlog
            self._least_lag_s = lag_s
        return lag_s - self._least_lag_s if self._live else 0.0

    def _stays_behind(self, behind_s: float) -> bool:
        """Whether the decoder is too far behind and no longer catches up, as it does after a hiccup."""
        now_s = time.monotonic()
        if behind_s <= MAX_BACKLOG_S:
            self._over = None
        elif self._over is None:
            self._over = now_s, behind_s
        elif now_s - self._over[0] > PATIENCE_S:
            gained, self._over = behind_s < self._over[1], (now_s, behind_s)
            return not gained
        return False

    def _advance(self, frame: VideoFrame) -> bool:
        """Bring the position to that of a frame; whether live frames are missing before it, by its time."""
        if self._origin_s is None:
            self._origin_s = frame.pts * self._tick_s if frame.pts is not None else 0.0
            self._start_s = time.monotonic()
            return False
        next_s, step_s = self._position_s + self._interval_s, 0.0
        if frame.pts is not None:
            step_s = frame.pts * self._tick_s - self._origin_s - self._position_s
            if 0 < step_s <= MAX_STEP_S:
                next_s = self._position_s + step_s
            else:
                self._origin_s += self._position_s + step_s - next_s
        self._position_s = next_s
        missing = (
            self._live and not self._dropped and not -self._interval_s < step_s <= max(MISSING_S, 5 * self._interval_s)
        )
        self._dropped = False
        if missing:
            self._reader.say("gap", f"the pictures' times jump by {step_s:.1f} s: the window begins anew")
        return missing

    def _wait_until_due(self) -> float:
        """When the newest frame of a file is due; it is, or was, by the time that this returns."""
        due_s = self._start_s + self._position_s
        self._reader.stop.wait(max(0.0, due_s - time.monotonic()))
        return due_s
