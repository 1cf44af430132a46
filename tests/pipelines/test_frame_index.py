"""The index of a file's frames, and the reader that seeks by it, on streams that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decoding import FrameReader
from pipelines.errors import DataError
from pipelines.frame_index import FrameIndex
from pipelines.reading import Packets, claimed_index


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, bool, set[int]]]:
    """Packets in a file's order: when its frame is shown, whether it is a key frame, which packets it refers to."""
    packets: list[tuple[int, bool, set[int]]] = []
    time, anchor = 0, None
    for _ in range(draw(st.integers(1, 5))):
        leading = 0 if anchor is None else draw(st.integers(0, 3))
        before, anchor = anchor, len(packets)
        packets.append((time + leading, True, set()))
        for i in range(leading):  # shown before their key frame, refer to it and to the group before
            packets.append((time + i, False, {before, anchor}))
        time += leading + 1
        for _ in range(draw(st.integers(0, 4))):
            between, pyramid = draw(st.integers(0, 3)), draw(st.booleans())
            before, anchor = anchor, len(packets)
            packets.append((time + between, False, {before}))
            for i in range(between):
                packets.append((time + i, False, {before, anchor, *([anchor + 1] if pyramid and i else [])}))
            time += between + 1
    return packets


@dataclass
class Codec:
    """Decodes a packet where it holds all that the packet refers to, and fails as a strict decoder does elsewhere.
    Frames come out at the end, in the order of their times."""

    refers: list[set[int]]
    held: set[int] = field(default_factory=set)
    waiting: list[Any] = field(default_factory=list)
    fed: int = 0
    name: str = "made up"
    has_b_frames: bool = True
    skip_frame: str = "DEFAULT"

    def flush_buffers(self) -> None:
        self.held, self.waiting = set(), []

    def decode(self, packet: Any) -> list[Any]:
        if packet is None:
            return sorted(self.waiting, key=lambda frame: frame.pts)
        self.fed += 1
        assert self.refers[packet.place] <= self.held, "a packet is decoded without one that it refers to"
        self.held.add(packet.place)
        self.waiting.append(SimpleNamespace(pts=packet.pts, key_frame=packet.is_keyframe))
        return []


@dataclass
class Container:
    """Demultiplexes from the last key frame that is shown no later than the time that was sought."""

    packets: list[Any]
    at: int = 0
    format: Any = field(default_factory=lambda: SimpleNamespace(name="mov"))

    def demux(self, stream: Any) -> Iterator[Any]:
        while self.at < len(self.packets):
            self.at += 1
            yield self.packets[self.at - 1]

    def seek(self, time: int, *, stream: Any, backward: bool) -> None:
        self.at = max(p.place for p in self.packets if p.is_keyframe and p.pts <= time)


@given(streams(), st.data())
def test_what_is_decoded_holds_all_that_wanted_frames_refer_to(
    packets: list[tuple[int, bool, set[int]]], data: st.DataObject
) -> None:
    times, is_key, refers = (list(column) for column in zip(*packets, strict=True))
    made = [
        SimpleNamespace(place=i, pts=t, dts=i, size=2, is_keyframe=k, is_discard=False, is_corrupt=False)
        for i, (t, k) in enumerate(zip(times, is_key, strict=True))
    ]
    codec = Codec(refers)
    container, stream = Container(made), SimpleNamespace(codec_context=codec)
    count = len(packets)
    keys = [i for i, k in enumerate(is_key) if k]
    listed = Packets(pts=times, dts=list(range(count)), hidden=[False] * count, keys=keys)
    index = claimed_index(listed, container, stream)  # type: ignore[arg-type]
    if index.times is None:  # shown in the file's order, though the decoder reorders: an AVI's times, copied
        index = FrameIndex(np.sort(times), np.array([[0, 0, 0, times[0], times[0]]]), one_each=True)
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    returned = list(FrameReader(container, stream, index).frames(wanted))  # type: ignore[arg-type]
    assert sorted(number for number, _ in returned) == wanted.tolist()
    assert all(frame.pts == sorted(times)[number] for number, frame in returned)
    # No more than from the key frame of each wanted frame to the frame itself; leading frames are left out.
    keys_of = {n: max(k for k in keys if times[k] <= sorted(times)[n]) for n in wanted.tolist()}
    place = {t: i for i, t in enumerate(times)}
    needed = {i for n, k in keys_of.items() for i in range(k, place[sorted(times)[n]] + 1) if times[i] >= times[k]}
    if len(index.restarts) == len(keys):
        assert codec.fed <= len(needed | {i for n in wanted.tolist() for i in [place[sorted(times)[n]]]}) or any(
            times[i] < times[k] for k in keys for i in range(k, count)
        )


@given(
    st.one_of(st.none(), st.lists(st.integers(-(2**40), 2**40), unique=True, max_size=50)),
    st.lists(st.tuples(*[st.integers(0, 2**40)] * 5), min_size=1, max_size=20),
    st.booleans(),
)
def test_a_packed_index_is_unpacked_as_it_was(
    times: list[int] | None, rows: list[tuple[int, ...]], one_each: bool
) -> None:
    known = None if times is None else np.array(sorted(times), np.int64)
    index = FrameIndex.unpack(FrameIndex(known, np.array(rows, np.int64), one_each).pack())
    assert index.one_each is one_each
    assert index.restarts.tolist() == [list(row) for row in rows]
    assert (index.times is None) == (times is None)
    assert times is None or index.times.tolist() == sorted(times)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "no index", "c$", FrameIndex(None, np.zeros((1, 5), int), True).pack()[:-3]])
def test_a_damaged_index_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="damaged; make the manifest again"):
        FrameIndex.unpack(text)
