"""A window that slides over the newest frames: which frames it samples, when it is due; and the ring that holds them.

A window of N frames samples what an evaluation samples of a video of N frames (`center_frame_indices`). On the grid,
N = T·g + L − 1 for a whole g: then segment k begins at frame g·k + ⌊g/2⌋ of the window, and a window that comes m·g
frames later has all segments of the one before but its first m.

Shapes: T segments, L frames in a segment, S pixels. Frames are numbered over the whole watch, from 0.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.clip import COLOURS, ClipSpec
from pipelines.picture import coded_crop, coded_size, upright
from pipelines.plan import ClipPlan, center_crop
from pipelines.sampling import center_frame_indices
from pipelines.scaling import Scaler
from pipelines.scan import look
from pipelines.video import Sample, Video, VideoFile
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame

MAX_MEMORY_SHARE = 0.25  # of the machine's, for the frames of a window
MIN_CELL = 2  # frames: of a shorter video an evaluation samples the first frames only


@dataclass(frozen=True)
class WindowPlan:
    """Windows of `length` frames, one due every `hop` frames. `cell`: g, the frames from segment to segment; None where
    the window is on no grid."""

    spec: ClipSpec
    length: int
    hop: int
    cell: int | None

    def frames(self, end: int, length: int | None = None) -> np.ndarray:
        """int64 (T, L): the frames that the window samples whose newest frame is `end`; of another `length` where the
        stream had no more."""
        length = length or self.length
        indices = center_frame_indices(length, self.spec.num_segments, self.spec.frames_per_segment)
        return indices + (end + 1 - length)

    def due(self, frames: int) -> int:
        """How many windows are due after so many frames in a row."""
        return 0 if frames < self.length else 1 + (frames - self.length) // self.hop

    def reads(self, index: int) -> bool:
        """Whether any window may sample the frame `index` of those in a row."""
        if self.cell is None or index < self.length:  # the first ones may be all that there is
            return True
        return (index - self.cell // 2) % self.cell < self.spec.frames_per_segment

    def check_memory(self) -> None:
        """Raise UserError for a window that this machine's memory does not hold."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (needed := (self.length + self.hop) * self.spec.size**2 * COLOURS) > MAX_MEMORY_SHARE * memory:
            raise UserError(
                f"--window-frames {self.length}: {self.length + self.hop} frames of {self.spec.size}² pixels take "
                f"{needed / 1e9:.3g} GB of {memory / 1e9:.3g}; use a shorter window, or a shorter --every-ms"
            )


def plan_windows(spec: ClipSpec, length: int, every: int | None, *, grid: bool) -> WindowPlan:
    """Windows of about `length` frames, one about `every` frames (default: a T-th of the window). `grid`: both are
    rounded so that segments fall on a grid, at least `MIN_CELL` frames apart; else they are taken as they are."""
    segments, extra = spec.num_segments, spec.frames_per_segment - 1
    if not grid:
        return WindowPlan(spec, length, every or max(1, length // segments), None)
    cell = max(MIN_CELL, round((length - extra) / segments))
    return WindowPlan(spec, segments * cell + extra, cell * max(1, round((every or cell) / cell)), cell)


class Pictures:
    """Frames as the network reads them: the centre crop of an evaluation, resized. `size` is that of the upright
    picture, (width, height); `rotation` and `mirrored` set it upright, as in `pipelines.video.VideoFile`."""

    def __init__(self, spec: ClipSpec) -> None:
        self._spec = spec
        self._coded: tuple[int, int] | None = None
        self.size, self.rotation, self.mirrored = (0, 0), 0, False

    def changes(self, frame: VideoFrame) -> bool:
        """Get ready for a frame's size; whether it is another than that of the frame before. Raises UnreadableVideo for
        colours that cannot be made RGB."""
        coded = frame.width, frame.height
        if coded == self._coded:
            return False
        first, facts = self._coded is None, look(frame)
        if first or facts["rotation"] or facts["mirrored"]:  # later frames need not say how the camera was held
            self.rotation, self.mirrored = facts["rotation"], facts["mirrored"]
        width, height = coded[::-1] if self.rotation % 180 else coded
        file = VideoFile(width=width, height=height, rotation=self.rotation, mirrored=self.mirrored)
        crop = center_crop(width, height, self._spec.crop_ratio)
        plan = ClipPlan(Video(Sample("", "", 0, ""), file), np.zeros((1, 1), np.int64), crop, False, 0)
        self._turned = plan if self.rotation else None
        size, mirror = coded_size(plan, self._spec.size), self.mirrored and not self.rotation
        self._scaler = Scaler(coded_crop(plan), size, coded, mirror=mirror)
        self._coded, self.size = coded, (width, height)
        return not first

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (S, S, C) of a frame of the size that `changes` has seen last; good until the next call."""
        picture = self._scaler(frame)
        return picture if self._turned is None else upright(torch.from_numpy(picture)[None], self._turned)[0].numpy()


@dataclass(frozen=True)
class Window:
    """A due window: the frames that it samples (T, L); its newest frame and that one's times; how many frames it spans,
    and how many of them are `doubtful`; how many windows that were due before were passed over. `run` counts the
    restarts."""

    frames: np.ndarray
    end: int
    arrived_s: float
    position_s: float
    length: int
    skipped: int
    doubtful: int
    run: int


class Ring:
    """The newest frames, written by one thread and read by another: what is not read in time is overwritten."""

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan
        self.changed = threading.Condition()  # guards all below
        self.count = 0  # frames so far
        self.arrived_s = self.position_s = 0.0  # of the newest
        self.run = 0
        self._capacity = plan.length + plan.hop
        self._start = 0  # first frame of those in a row
        self._labelled = 0  # windows of theirs that are behind us
        self._lost = 0  # windows that were due as the frames were restarted
        self._pictures = np.empty((self._capacity, plan.spec.size, plan.spec.size, COLOURS), np.uint8)
        self._times = np.empty((self._capacity, 2))
        self._doubtful = np.zeros(self._capacity, bool)

    def reads_next(self) -> bool:
        """Whether the next frame's picture is needed."""
        return self.plan.reads(self.count - self._start)

    def push(self, picture: np.ndarray | None, arrived_s: float, position_s: float, doubtful: bool = False) -> None:
        """Add a frame; None for a picture that no window samples."""
        with self.changed:
            slot = self.count % self._capacity
            if picture is not None:
                self._pictures[slot] = picture
            self._doubtful[slot] = doubtful
            self._times[slot] = self.arrived_s, self.position_s = arrived_s, position_s
            self.count += 1
            if self.plan.due(self.count - self._start) > self._labelled:
                self.changed.notify_all()

    def restart(self) -> None:
        """No window spans what came before and what comes next."""
        with self.changed:
            self.run += self.count > self._start
            self._lost += self.plan.due(self.count - self._start) - self._labelled
            self._start, self._labelled = self.count, 0

    def pass_over(self) -> None:
        """Make nothing of what is due but its newest window: for when nobody was there to read it."""
        with self.changed:
            self._lost, self._labelled = 0, max(0, self.plan.due(self.count - self._start) - 1)

    def take(self, last: bool = False) -> Window | None:
        """The newest window that is due and was not taken; none where there is none. `last`: the stream is over, and
        frames in a row of which no window was taken are one. The caller holds `changed`, until it has read."""
        due = self.plan.due(self.count - self._start)
        if due > self._labelled:
            end = self._start + self.plan.length - 1 + (due - 1) * self.plan.hop
            skipped, length = self._lost + due - 1 - self._labelled, self.plan.length
            self._lost, self._labelled = 0, due
        elif last and not due and self.count > self._start:
            end, skipped, length = self.count - 1, 0, self.count - self._start
            self._start = self.count
        else:
            return None
        arrived_s, position_s = self._times[end % self._capacity].tolist()
        doubtful = int(self._doubtful[np.arange(end + 1 - length, end + 1) % self._capacity].sum())
        return Window(self.plan.frames(end, length), end, arrived_s, position_s, length, skipped, doubtful, self.run)

    def read(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 (*frames.shape, S, S, C): copies of frames of the window just taken."""
        return torch.from_numpy(self._pictures[frames % self._capacity])
