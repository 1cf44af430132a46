"""Where a file's frames are, found out once by the scan: so that a clip reads and decodes what it needs, and no more.

A frame is known by its time. Where a container keeps none (AVI), or keeps false ones, it is known by its place in the
order in which the decoder returns frames, and decoding starts at the first frame unless that order is the file's.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from pipelines.errors import DataError

MAX_NUMBERS = 50_000_000  # in one index: what a damaged manifest may make us unpack
_DAMAGED = "the manifest's index of its frames is damaged; make the manifest again with `tdn-bench prepare`"


class Restart(NamedTuple):
    """A key frame from which decoding may start.

    `frame` is its number (of a hidden one, that of the first frame behind it), `leading` how many frames are shown
    before it though they are stored behind it, `packet` its place in the file, `stamp` the time by which it is
    recognised, `seek` the time to ask the demuxer for.
    """

    frame: int
    leading: int
    packet: int
    stamp: int
    seek: int


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames of one file in the order in which they are shown.

    times: int64 (N,), ascending, in ticks of the stream; None where frames are known by the decoder's order alone.
    restarts: int64 (K, 5), the fields of Restart; the first is where decoding the whole starts.
    one_each: Whether every packet holds one frame, so that a decoder needs no packet behind the last wanted frame's.
    """

    times: np.ndarray | None
    restarts: np.ndarray
    one_each: bool

    @cached_property
    def _numbers(self) -> dict[int, int] | None:
        """Frame numbers by time; None of a long file, where making the table would cost more than a clip."""
        if self.times is None or len(self.times) > 4096:
            return None
        return {time: number for number, time in enumerate(self.times.tolist())}

    def number_at(self, time: int | None) -> int:
        """The number of the frame that is shown at `time`; −1 where there is none."""
        if time is None or self.times is None:
            return -1
        if self._numbers is not None:
            return self._numbers.get(time, -1)
        number = int(np.searchsorted(self.times, time))
        return number if number < len(self.times) and self.times[number] == time else -1

    def restart(self, row: int) -> Restart:
        """One of `restarts`."""
        return Restart(*self.restarts[row].tolist())

    def from_start(self) -> FrameIndex:
        """The same frames, to be decoded from the first key frame on, whatever is wanted."""
        return FrameIndex(self.times, self.restarts[:1], self.one_each)

    def runs(self, wanted: np.ndarray) -> list[tuple[Restart, list[int]]]:
        """Split `wanted`, ascending frame numbers, into runs, each decoded from a restart of its own.

        A frame needs the last key frame that is shown no later. Where a run needs the leading frames of the next key
        frame, it has passed that key frame: the next run goes on from it without a restart.
        """
        runs: list[tuple[Restart, list[int]]] = []
        starts = self.restarts[:, 0]
        rows = np.maximum(np.searchsorted(starts, wanted, "right") - 1, 0)
        for row in np.unique(rows).tolist():
            numbers = wanted[rows == row].tolist()
            restart = self.restart(row)
            if runs and row and runs[-1][1][-1] >= restart.frame - restart.leading:
                runs[-1][1].extend(numbers)
            else:
                runs.append((restart, numbers))
        return runs

    def pack(self) -> str:
        """As text for a manifest: even steps take next to no room."""
        times = np.array([], np.int64) if self.times is None else self.times
        header = [int(self.one_each), -1 if self.times is None else len(times), len(self.restarts)]
        steps = np.diff(np.diff(times, prepend=0), prepend=0)
        columns = np.diff(self.restarts, axis=0, prepend=0).T
        numbers = np.concatenate([header, steps, columns.ravel()]).astype("<i8")
        return base64.b85encode(zlib.compress(numbers.tobytes(), 6)).decode()

    @classmethod
    def unpack(cls, text: str) -> Self:
        """What `pack` made. Raises DataError for anything else."""
        try:
            inflate = zlib.decompressobj()
            data = inflate.decompress(base64.b85decode(text), 8 * MAX_NUMBERS)
            numbers = np.frombuffer(data, "<i8").astype(np.int64)
            one_each, count, rows = numbers[:3].tolist()
            split = 3 + max(count, 0)
            times = None if count < 0 else numbers[3:split].cumsum().cumsum()
            restarts = numbers[split:].reshape(5, rows).T.cumsum(axis=0)
        except (ValueError, zlib.error) as e:
            raise DataError(f"{_DAMAGED} ({e})") from e
        if not inflate.eof or rows < 1:
            raise DataError(_DAMAGED)
        return cls(times, restarts, bool(one_each))
