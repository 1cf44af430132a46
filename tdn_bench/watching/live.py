"""The watch itself: a thread reads the newest frames into a ring, the caller labels the newest window as it is free.

Nothing queues up. What the engine has no time for is passed over, and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from pipelines.clip import ClipSpec
from pipelines.container import UnreadableVideo
from pipelines.errors import printable
from tdn_bench.errors import UserError
from tdn_bench.watching.labeller import Labeller
from tdn_bench.watching.output import Label
from tdn_bench.watching.overlay import Overlay
from tdn_bench.watching.reader import Arrived, Gap, Opened, Reader
from tdn_bench.watching.source import SourceFailed
from tdn_bench.watching.window import Pictures, Ring, Window, WindowPlan

POLL_S = 0.1
MAX_SAMPLES = 100_000  # labels whose times are kept: the newest
MAX_EVENTS = 1000
JOIN_S = 1.0  # for a reader that waits for a silent network, at the end
MAX_SKIPPED = 0.01  # a share of the due windows: more is not real time


@dataclass
class Tally:
    """What happened, from the first label on. Series hold the newest `MAX_SAMPLES`."""

    windows: int = 0
    windows_skipped: int = 0  # due, and passed over because the engine was busy
    frames_unseen: int = 0  # in no window, for that reason
    windows_doubtful: int = 0  # with frames that may be wrong, since others were damaged
    segments_kept: int = 0
    stalls: int = 0
    size_changes: int = 0
    first: tuple[float, int] = (0.0, 0)  # seconds since the watch began and frames that had come, at the first label
    newest: tuple[float, int] = (0.0, 0)
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    engine_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    label_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))  # since the watch began

    @property
    def skipped_share(self) -> float:
        return self.windows_skipped / max(1, self.windows + self.windows_skipped)


class Watch:
    """Frames of `reader` to labels. `plan_of` says which windows, once the source has said what it is; `overlay_of` may
    make a video of it. What happens is in `happened`, (seconds since the start, kind, text), until somebody takes it.
    """

    def __init__(
        self,
        reader: Reader,
        spec: ClipSpec,
        classes: tuple[str, ...],
        plan_of: Callable[[Opened], WindowPlan],
        overlay_of: Callable[[Opened], Overlay | None] = lambda opened: None,
        *,
        top: int = 5,
        stall_s: float = 5.0,
    ) -> None:
        self.reader, self.classes, self.tally = reader, classes, Tally()
        self.happened: deque[tuple[float, str, str]] = deque(maxlen=MAX_EVENTS)
        self.ring: Ring | None = None
        self.overlay: Overlay | None = None
        self.pictures = Pictures(spec)
        self.begun_s = time.monotonic()
        reader.say = self.say
        self._plan_of, self._overlay_of, self._top, self._stall_s = plan_of, overlay_of, min(top, len(classes)), stall_s
        self._stalled = False
        self._failure: Exception | None = None
        self._seen: tuple[int, int] = (-1, -1)  # run and newest frame of the newest window
        self._over = threading.Event()  # the source has no more frames
        self._first = threading.Event()  # it has had one, or never will
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)

    def say(self, kind: str, text: str) -> None:
        """Note that something happened, in whatever thread."""
        self.happened.append((time.monotonic() - self.begun_s, kind, text))

    def start(self, timeout_s: float) -> None:
        """Begin to read, and wait for the first frame. Raises UserError where none comes in time."""
        self._thread.start()
        came = self._first.wait(timeout_s)
        if self.ring is None or not self.ring.count:
            why = (
                self._failure
                or self.reader.trouble
                or ("it ended before the first picture" if came else "no picture came")
            )
            if isinstance(why, UserError):
                raise why
            late = "" if came else f" within {timeout_s:g} s (--connect-s)"
            raise UserError(f"{self.reader.source.shown}: cannot be watched: {why}{late}")

    def newest_only(self) -> None:
        """Pass over what was due so far, but for the newest window: for when nobody was there to label it."""
        if self.ring is not None:
            self.ring.pass_over()

    def counts(self) -> dict[str, int]:
        """What was lost so far."""
        return {"damaged_packets": self.reader.damaged, "frames_dropped_by_decoder": self.reader.dropped}

    def labels(self, labeller: Labeller, seconds: float | None = None) -> Iterator[Label | None]:
        """A label for every window that there is time for, until the source ends, or for so many seconds; None where
        there is none for a while. `start` comes first."""
        assert self.ring is not None
        until_s = time.monotonic() + (seconds or float("inf"))
        while True:
            over = self._over.is_set()
            with self.ring.changed:
                window = self.ring.take(last=over)
                if window is not None:
                    labeller.read(window.frames, self.ring.read)
                elif not over:
                    self.ring.changed.wait(POLL_S)
            self._look_for_stall()
            if window is not None:
                yield self._label(labeller, window)
            elif over:
                break
            else:
                yield None
            if time.monotonic() >= until_s:
                self.say("end", f"{seconds:g} s are over")
                return
        self._end()

    def every_label(self, labeller: Labeller, seconds: float | None = None) -> Iterator[Label]:
        """A label for every window of a file, as fast as that goes: the file waits for the labels."""
        until_s = time.monotonic() + (seconds or float("inf"))
        try:
            with closing(self.reader.frames()) as frames:
                for item in frames:
                    self._take_in(item)
                    if (window := self._take(labeller)) is not None:
                        yield self._label(labeller, window)
                    if time.monotonic() >= until_s:
                        self.say("end", f"{seconds:g} s are over")
                        return
        except (SourceFailed, UnreadableVideo) as e:
            self._failure = e
        if (window := self._take(labeller, last=True)) is not None:
            yield self._label(labeller, window)
        self._end()

    def close(self) -> None:
        """End the reader, and the overlay's file. Raises OSError or UserError where that could not be written."""
        self.reader.stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        if self.overlay is not None:
            self.overlay.close()

    def _end(self) -> None:
        """The source is over. Raises UserError where it failed."""
        if self._failure is None:
            self.say("end", "the source has ended")
        elif isinstance(self._failure, SourceFailed | UnreadableVideo):
            why = printable(str(self._failure))
            raise UserError(f"{self.reader.source.shown}: cannot be read any further: {why}")
        else:
            raise self._failure

    def _read(self) -> None:
        """The reader's thread."""
        try:
            for item in self.reader.frames():
                self._take_in(item)
        except Exception as e:  # noqa: BLE001  # it is raised in the caller's thread
            self._failure = e
        finally:
            self._over.set()
            self._first.set()

    def _take_in(self, item: Arrived | Gap) -> None:
        if self.ring is None:
            assert self.reader.opened is not None
            self.ring = Ring(self._plan_of(self.reader.opened))
            self.overlay = self._overlay_of(self.reader.opened)
        if isinstance(item, Gap):
            self.ring.restart()
            return
        before = self.pictures.size
        if self.pictures.changes(item.frame):
            (w, h), (now_w, now_h) = before, self.pictures.size
            self.say("size", f"pictures are {now_w}×{now_h} now, {w}×{h} before: the window begins anew")
            self.tally.size_changes += 1
            self.ring.restart()
        picture = self.pictures(item.frame) if self.ring.reads_next() else None
        self.ring.push(picture, item.arrived_s, item.position_s, item.doubtful)
        if self.overlay is not None and not self.reader.stop.is_set():
            recorded = self.reader.opened is not None and self.reader.opened.recorded
            time_s = item.position_s if recorded else item.arrived_s - self.begun_s
            self.overlay.put(item.frame, self.pictures.rotation, self.pictures.mirrored, time_s)
        self._first.set()

    def _take(self, labeller: Labeller, last: bool = False) -> Window | None:
        if self.ring is None:
            return None
        with self.ring.changed:
            window = self.ring.take(last=last)
            if window is not None:
                labeller.read(window.frames, self.ring.read)
            return window

    def _label(self, labeller: Labeller, window: Window) -> Label:
        start_s = time.monotonic()
        values, places = labeller.label().topk(self._top)
        end_s = time.monotonic()
        tally, first = self.tally, window.end + 1 - window.length
        tally.windows += 1
        tally.windows_skipped += window.skipped
        tally.windows_doubtful += window.doubtful > 0
        if window.run == self._seen[0]:
            by_design = max(0, self.plan.hop - self.plan.length) * (window.skipped + 1)
            tally.frames_unseen += max(0, first - self._seen[1] - 1 - by_design)
        self._seen = window.run, window.end
        tally.segments_kept += labeller.kept_segments
        tally.latency_ms.append(1000 * (end_s - window.arrived_s))
        tally.engine_ms.append(1000 * (end_s - start_s))
        tally.label_s.append(end_s - self.begun_s)
        tally.newest = end_s - self.begun_s, self.ring.count if self.ring else 0
        tally.first = tally.newest if tally.windows == 1 else tally.first
        top = [(self.classes[i], p) for i, p in zip(places.tolist(), values.tolist(), strict=True)]
        if self.overlay is not None:
            self.overlay.text = "\n".join(f"{100 * p:.0f} % {printable(name)}" for name, p in top[:3])
        return Label(
            top=top,
            frames=(first, window.end),
            segments=window.frames[:, 0].tolist(),
            position_s=window.position_s,
            elapsed_s=end_s - self.begun_s,
            latency_ms=tally.latency_ms[-1],
            engine_ms=tally.engine_ms[-1],
            kept_segments=labeller.kept_segments,
            windows_skipped=window.skipped,
            doubtful_frames=window.doubtful,
            whole=window.length == self.plan.length,
        )

    @property
    def plan(self) -> WindowPlan:
        assert self.ring is not None
        return self.ring.plan

    def _look_for_stall(self) -> None:
        assert self.ring is not None
        silent_s = time.monotonic() - self.ring.arrived_s
        if not self._stalled and silent_s > self._stall_s and not self._over.is_set():
            self._stalled = True
            self.tally.stalls += 1
            self.say("stall", f"no picture for {silent_s:.1f} s; waiting")
        elif self._stalled and silent_s <= self._stall_s:
            self._stalled = False
            self.say("resumed", "pictures come again")
