"""The loader: every video once, frames with their own labels, the same batches always, and no bad clip in any."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.videos import flat_frames, write_video
from torch import Tensor

from pipelines import loader as module
from pipelines.bad_clips import BadClipPolicy
from pipelines.clip import ClipBatch, ClipSpec
from pipelines.errors import BadClip, DataError
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader, create_decoder
from pipelines.manifest import Videos
from pipelines.plan import ClipPlan, epoch_order
from pipelines.scan import as_video, scan_file
from pipelines.video import Sample, Video, VideoFile

SPEC = ClipSpec(num_segments=2, size=16)
COUNT = 10
FLIPPED = (0, 2, 1)
ANY_SHARE = BadClipPolicy(max_share=1)


def level(number: int) -> int:
    """The grey of all frames of video `number`."""
    return 20 + 24 * number


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    """Ten videos v0 … v9, each of its own grey, 6 to 15 frames, labels 0, 1, 2, 0, …"""
    folder = tmp_path_factory.mktemp("grey")
    paths = [write_video(folder / f"v{i}.webm", flat_frames(6 + i, level(i))) for i in range(COUNT)]
    return [as_video(path, label=i % 3) for i, path in enumerate(paths)]


@pytest.fixture
def own_videos(tmp_path: Path) -> list[Video]:
    """Six such videos that a test may spoil."""
    paths = [write_video(tmp_path / f"v{i}.webm", flat_frames(12, level(i))) for i in range(6)]
    return [as_video(path, label=i % 3) for i, path in enumerate(paths)]


def number_of(name: str) -> int:
    return int(name.removeprefix("v"))


def assert_belongs_together(batch: ClipBatch, training: bool = False) -> None:
    assert batch.frames.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert batch.frames.shape == (len(batch), *SPEC.shape)
    assert batch.labels.shape == (len(batch),)
    for frames, label, name in zip(batch.frames.int(), batch.labels.tolist(), batch.ids, strict=True):
        number = number_of(name)
        assert (frames - level(number)).abs().max() <= 6
        assert label in ({number % 3, FLIPPED[number % 3]} if training else {number % 3})


def ids(batches: Sequence[ClipBatch]) -> list[tuple[str, ...]]:
    return [batch.ids for batch in batches]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_evaluation_yields_every_video_in_order(videos: list[Video], backend: str, batch_size: int) -> None:
    with ClipLoader(Videos.of(videos), SPEC, batch_size, backend=backend, workers=2) as loader:
        batches = list(loader.epoch())
    assert len(batches) == len(loader) == -(-COUNT // batch_size)
    assert [name for batch in batches for name in batch.ids] == [f"v{i}" for i in range(COUNT)]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        assert_belongs_together(batch)


class Painter:
    """A backend that reads no file: a clip is filled with its video's number, or bad, or an error."""

    name, device, concurrent = "painter", torch.device("cpu"), True

    def __init__(self, bad: Sequence[str] = (), fatal: str = "") -> None:
        self.bad, self.fatal = bad, fatal
        self.plans: list[ClipPlan] = []

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
        self.plans += plans
        clips: list[Tensor | BadClip] = []
        for plan in plans:
            if plan.video.id == self.fatal:
                raise RuntimeError("the decoder broke")
            bad = BadClip(plan.video.id, plan.video.path, "is bad")
            clip = torch.full(SPEC.shape, number_of(plan.video.id), dtype=torch.uint8)
            clips.append(bad if plan.video.id in self.bad else clip)
        return clips

    def close(self) -> None:
        pass


def painted(count: int, batch_size: int, painter: Painter | None = None, **options: object) -> ClipLoader:
    file = VideoFile(width=32, height=32, num_frames=20)
    rows = [Video(Sample(f"v{i}", f"/v{i}", i % 3, "train"), file) for i in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "create_decoder", lambda *_: painter or Painter())
        return ClipLoader(Videos.of(rows), SPEC, batch_size, **options)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_evaluation_visits_every_video_once_over_all_ranks(
    count: int, batch_size: int, world_size: int, prefetch: int
) -> None:
    seen: list[str] = []
    for rank in range(world_size):
        loader = painted(count, batch_size, rank=rank, world_size=world_size, prefetch=prefetch)
        batches = list(loader.epoch())
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.frames.flatten(1)[:, 0].tolist() == [number_of(name) for name in batch.ids]
            seen += batch.ids
    assert sorted(seen, key=number_of) == [f"v{i}" for i in range(count)]


@settings(max_examples=60)
@given(st.integers(4, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_training_gives_each_rank_the_same_number_of_full_batches(
    count: int, batch_size: int, world_size: int, epoch: int
) -> None:
    seen: list[str] = []
    for rank in range(world_size):
        options = {"flipped_labels": FLIPPED, "rank": rank, "world_size": world_size}
        if count // world_size < batch_size:
            with pytest.raises(DataError, match="do not fill one batch"):
                painted(count, batch_size, **options)
            return
        loader = painted(count, batch_size, **options)
        batches = list(loader.epoch(epoch))
        assert len(batches) == len(loader) == count // world_size // batch_size
        assert {len(batch) for batch in batches} == {batch_size}
        seen += [name for batch in batches for name in batch.ids]
    assert len(set(seen)) == len(seen)


def test_a_videos_plan_does_not_depend_on_its_rank() -> None:
    def plans(world_size: int) -> dict[str, tuple[object, ...]]:
        painter = Painter()
        for rank in range(world_size):
            list(painted(12, 2, painter, flipped_labels=FLIPPED, rank=rank, world_size=world_size).epoch(1))
        return {p.video.id: (p.frames.tolist(), p.crop, p.flip, p.label) for p in painter.plans}

    assert plans(1) == plans(2) == plans(3)


def test_training_batches_belong_together_and_change_with_the_epoch(videos: list[Video], backend: str) -> None:
    with ClipLoader(Videos.of(videos), SPEC, 4, flipped_labels=FLIPPED, backend=backend, workers=2) as loader:
        epochs = [list(loader.epoch(number)) for number in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4]
        for batch in batches:
            assert_belongs_together(batch, training=True)
    assert len({str(ids(batches)) for batches in epochs}) == 3


def test_same_seed_same_batches_whatever_the_workers_and_prefetch(own_videos: list[Video], backend: str) -> None:
    runs = []
    for workers, prefetch, seed in ((1, 1, 5), (3, 4, 5), (2, 2, 6)):
        with ClipLoader(
            Videos.of(own_videos),
            SPEC,
            2,
            flipped_labels=FLIPPED,
            backend=backend,
            workers=workers,
            prefetch=prefetch,
            seed=seed,
        ) as loader:
            runs.append(list(loader.epoch(1)))
    for one, other in zip(runs[0], runs[1], strict=True):
        assert one.ids == other.ids
        assert one.labels.tolist() == other.labels.tolist()
        assert torch.equal(one.frames, other.frames)
    assert ids(runs[0]) != ids(runs[2])


def test_several_passes_are_one_long_epoch() -> None:
    batches = list(painted(5, 2).epoch(passes=3))
    assert [name for batch in batches for name in batch.ids] == [f"v{i}" for i in range(5)] * 3
    assert [len(batch) for batch in batches] == [2] * 7 + [1]


@pytest.mark.parametrize(("concurrent", "batch_size", "prefetch"), [(True, 1, 17), (True, 16, 2), (False, 1, 2)])
def test_no_more_is_decoded_ahead_than_keeps_the_workers_busy(concurrent: bool, batch_size: int, prefetch: int) -> None:
    painter = Painter()
    painter.concurrent = concurrent
    assert painted(40, batch_size, painter, workers=16).prefetch == prefetch


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_early_exit_leaves_no_thread() -> None:
    batches = painted(40, 1, prefetch=1).epoch()
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()  # what leaving a for loop does
    assert not loader_threads()
    for _ in painted(40, 1).epoch():
        break
    with pytest.raises(KeyError):
        stop_with_an_error(painted(40, 1))
    assert not loader_threads()


def stop_with_an_error(loader: ClipLoader) -> None:
    for _ in loader.epoch():
        raise KeyError


def test_the_decoders_exception_reaches_the_consumer() -> None:
    batches = painted(6, 2, Painter(fatal="v4")).epoch()
    assert ids([next(batches), next(batches)]) == [("v0", "v1"), ("v2", "v3")]
    with pytest.raises(RuntimeError, match="the decoder broke"):
        next(batches)
    assert not loader_threads()


def test_evaluation_leaves_bad_clips_out_and_never_substitutes(tmp_path: Path) -> None:
    policy = BadClipPolicy(max_share=0.5, log=tmp_path / "sub" / "bad.jsonl")
    loader = painted(7, 2, Painter(bad=["v1", "v2", "v3"]), policy=policy)
    assert ids(list(loader.epoch())) == [("v0",), ("v4", "v5"), ("v6",)]
    assert ids(list(loader.epoch())) == [("v0",), ("v4", "v5"), ("v6",)]
    lines = [json.loads(line) for line in (tmp_path / "sub" / "bad.jsonl").read_text().splitlines()]
    by_id = sorted(lines, key=lambda line: line["id"])  # batches are decoded side by side: listed as they are found
    assert by_id == [{"id": f"v{i}", "path": f"/v{i}", "reason": "is bad"} for i in (1, 2, 3)]
    assert (len(loader.bad_clips), loader.bad_clips.replacements) == (3, 0)


@settings(max_examples=60)
@given(st.integers(6, 30), st.sets(st.integers(0, 29), max_size=8), st.integers(1, 3), st.integers(0, 3))
def test_training_puts_the_same_replacements_for_bad_clips_on_any_number_of_ranks(
    count: int, bad: set[int], world_size: int, epoch: int
) -> None:
    """Every batch is full, no bad clip in any, and a place's replacement does not depend on rank, batch or history."""
    names = [f"v{i}" for i in sorted(bad) if i < count // 2]

    def places(world_size: int, batch_size: int, first_epoch: int) -> list[tuple[str, ...]]:
        rows: list[list[str]] = []
        for rank in range(world_size):
            painter = Painter(bad=names)
            options = {"flipped_labels": FLIPPED, "rank": rank, "world_size": world_size, "policy": ANY_SHARE}
            loader = painted(count, batch_size, painter, **options)
            for earlier in range(first_epoch, epoch):
                list(loader.epoch(earlier))
            before = loader.bad_clips.replacements
            batches = list(loader.epoch(epoch))
            assert {len(batch) for batch in batches} == {batch_size}
            rows.append([name for batch in batches for name in batch.ids])
            assert not set(names) & set(rows[-1])
            visited = [loader.videos[int(p)].id for p in loader._shard(epoch)]
            replaced = [name for name, seen in zip(visited, rows[-1], strict=True) if name != seen]
            assert replaced == [name for name in visited if name in names]
            assert loader.bad_clips.replacements - before >= len(replaced)
        return [tuple(column) for column in zip(*rows, strict=True)]

    one = places(1, 1, epoch)
    assert one == places(1, 1, 0)
    flat = [name for column in places(world_size, 1, 0) for name in column]
    assert flat == [name for (name,) in one][: len(flat)]


def test_videos_decoded_on_demand_are_those_of_the_batches(videos: list[Video], backend: str) -> None:
    with ClipLoader(Videos.of(videos), SPEC, COUNT, backend=backend, workers=2) as loader:
        (batch,) = loader.epoch()
        clips = loader.decode([3, 0, 3])
    for clip, position in zip(clips, (3, 0, 3), strict=True):
        assert clip is not None
        assert torch.equal(clip.view(SPEC.shape), batch.frames[position])


def test_videos_decoded_on_demand_obey_the_policy_and_the_epoch(tmp_path: Path) -> None:
    policy = BadClipPolicy(max_share=0.4, log=tmp_path / "bad.jsonl")
    painter = Painter(bad=["v1", "v2", "v3"])
    loader = painted(6, 2, painter, policy=policy, flipped_labels=FLIPPED)
    assert [clip is None for clip in loader.decode([0, 1, 5, 1, 2])] == [False, True, False, True, True]
    assert (loader.bad_clips.reasons, loader.bad_clips.replacements) == ({"/v1": "is bad", "/v2": "is bad"}, 0)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2
    with pytest.raises(DataError, match="3 of 6 videos"):
        loader.decode([3])
    loader.decode([4, 5], epoch=7)
    wanted = [loader.plan(position, 7) for position in (4, 5)]
    assert [plan.frames.tolist() for plan in painter.plans[-2:]] == [plan.frames.tolist() for plan in wanted]
    strict = painted(3, 2, Painter(bad=["v1"]), policy=BadClipPolicy(on_bad_clip="error", max_share=1))
    with pytest.raises(DataError, match=r"^/v1: is bad; .*--on-bad-clip skip"):
        strict.decode([0, 1])


@pytest.mark.parametrize("use", ["decode", "epoch"])
def test_a_gpus_clips_are_finished_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    said: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            said.append(f"new on {device.type}")

        def synchronize(self) -> None:
            said.append("waited")

    @contextmanager
    def current(stream: Stream) -> Iterator[None]:
        said.append("begun")
        yield
        said.append("ended")

    class Noting(Painter):
        def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
            said.append("decoded")
            return super().__call__(plans)

    ledger = Ledger()
    loader = painted(2, 2, Noting(), ledger=ledger)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(
        loader, "_collate", lambda clips, number, replacements: ClipBatch(torch.empty(2), torch.empty(2), ("v0", "v1"))
    )
    loader.device = torch.device("cuda")
    if use == "epoch":
        assert len(list(loader.epoch())) == 1
    else:
        ledger.lane().begin()
        assert all(clip is not None for clip in loader.decode([0, 1]))
    assert said == ["new on cuda", "begun", "decoded", "waited", "ended"]
    busy = [lane for lane in ledger.lanes if lane.busy_s]
    assert [[stage for stage, s in lane.seconds.items() if s] for lane in busy] == [["plan", "augment"]]


def test_a_bad_clip_ends_the_run_where_the_policy_says_so(tmp_path: Path) -> None:
    strict = BadClipPolicy(on_bad_clip="error", max_share=1)
    batches = painted(7, 2, Painter(bad=["v3"]), policy=strict).epoch()
    assert next(batches).ids == ("v0", "v1")
    with pytest.raises(DataError, match=r"^/v3: is bad; .*--on-bad-clip skip"):
        next(batches)
    rows = [as_video(tmp_path / "none.webm")]
    with pytest.raises(DataError, match="no such file"):
        ClipLoader(Videos.of(rows), SPEC, 1, policy=strict)


@pytest.mark.parametrize("training", [False, True])
def test_more_than_the_share_of_bad_clips_ends_the_run(training: bool) -> None:
    options = {"flipped_labels": FLIPPED} if training else {}
    for bad, share in ((2, 0.02), (3, 0.03), (1, 0.01)):
        loader = painted(
            100, 2, Painter(bad=[f"v{i}" for i in range(bad)]), policy=BadClipPolicy(max_share=share), **options
        )
        assert sum(map(len, loader.epoch())) == (100 if training else 100 - bad)
    loader = painted(100, 2, Painter(bad=["v4", "v5", "v7"]), policy=BadClipPolicy(max_share=0.02), **options)
    with pytest.raises(DataError, match=r"3 of 100 videos \(3.0%\) cannot be used, more than --max-bad-share 0.02"):
        list(loader.epoch())


def test_all_clips_bad_is_an_error() -> None:
    # two batches are decoded at once: either may be first
    with pytest.raises(DataError, match=r"^none of 3 videos could be decoded, first /v[02]: is bad$"):
        list(painted(3, 2, Painter(bad=["v0", "v1", "v2"]), policy=ANY_SHARE).epoch())
    with pytest.raises(DataError, match="replacement samples in a row"):
        list(painted(3, 2, Painter(bad=["v0", "v1", "v2"]), policy=ANY_SHARE, flipped_labels=FLIPPED).epoch())
    few = painted(3, 2, rank=3, world_size=4)  # a rank may have nothing to do
    assert (list(few.epoch()), len(few)) == ([], 0)


def test_no_usable_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.webm").touch()
    rows = [as_video(tmp_path / "a.webm"), as_video(tmp_path / "b.webm")]
    with pytest.raises(DataError) as caught:
        ClipLoader(Videos.of(rows), SPEC, 2, backend="pyav")
    assert str(caught.value) == f"none of 2 videos can be used, first {tmp_path}/a.webm: empty file"
    with pytest.raises(DataError, match="the split lists no videos"):
        ClipLoader(Videos.of([]), SPEC, 2, backend="pyav")


SPOIL: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "emptied": lambda path: path.write_bytes(b""),
    "other size": lambda path: write_video(path, flat_frames(12, 99, size=80)),
}


@pytest.mark.parametrize(
    ("what", "before_the_scan"),
    [(what, False) for what in SPOIL] + [(what, True) for what in SPOIL if what != "other size"],
)
def test_bad_clips_are_left_out_counted_once_and_listed(
    own_videos: list[Video], backend: str, tmp_path: Path, what: str, before_the_scan: bool
) -> None:
    """Whether the manifest knows that a file is bad, or the file was spoilt after the scan."""
    SPOIL[what](Path(own_videos[1].path))
    if before_the_scan:
        own_videos[1] = Video(own_videos[1].sample, scan_file(own_videos[1].path))
    policy = BadClipPolicy(max_share=0.2, log=tmp_path / "bad.jsonl")
    with ClipLoader(Videos.of(own_videos), SPEC, 3, backend=backend, workers=2, policy=policy) as loader:
        for _ in range(2):
            batches = list(loader.epoch())
            assert sorted(name for batch in batches for name in batch.ids) == ["v0", "v2", "v3", "v4", "v5"]
            for batch in batches:
                assert_belongs_together(batch)
    assert len(loader.bad_clips) == 1
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["id"], row["path"]) == ("v1", own_videos[1].path)
    assert row["reason"]
    assert "\n" not in row["reason"]


def test_several_kinds_of_bad_clips_in_one_batch(own_videos: list[Video], backend: str) -> None:
    for video, spoil in zip(own_videos, SPOIL.values(), strict=False):
        spoil(Path(video.path))
    with ClipLoader(Videos.of(own_videos), SPEC, 6, backend=backend, workers=2, policy=ANY_SHARE) as loader:
        (batch,) = loader.epoch()
    assert batch.ids == ("v5",)
    assert_belongs_together(batch)
    assert len(loader.bad_clips) == 5


@pytest.mark.parametrize(("batch_size", "prefetch"), [(0, 2), (-1, 2), (2, 0)])
def test_wrong_sizes_are_refused(videos: list[Video], batch_size: int, prefetch: int) -> None:
    with pytest.raises(DataError, match="batch size and prefetch must be at least 1"):
        ClipLoader(Videos.of(videos), SPEC, batch_size, prefetch=prefetch)


def test_choice_of_backend() -> None:
    assert create_decoder("auto", SPEC, torch.device("cpu"), 1).name == "pyav"
    with pytest.raises(DataError, match=r"unknown loader backend 'opencv'; choose one of auto, pyav, dali"):
        create_decoder("opencv", SPEC, torch.device("cpu"), 1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not loader_threads()


@given(st.integers(4, 20), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_repeats_take_each_video_several_times_with_other_draws_on_any_number_of_ranks(
    count: int, repeats: int, world_size: int, epoch: int
) -> None:
    def places(world_size: int) -> list[tuple[int, int]]:
        ranks = []
        for rank in range(world_size):
            options = {"flipped_labels": FLIPPED, "rank": rank, "world_size": world_size, "repeats": repeats}
            positions, draws = painted(count, 1, Painter(), **options)._visits(epoch)
            ranks.append(list(zip(positions.tolist(), draws.tolist(), strict=True)))
        return [place for column in zip(*ranks, strict=True) for place in column]

    one, several = places(1), places(world_size)
    assert several == one[: len(several)]
    assert len(one) == len(set(one)) == count * repeats
    draws = range(epoch * repeats, (epoch + 1) * repeats)  # no other epoch's
    assert sorted(one) == [(position, draw) for position in range(count) for draw in draws]
    assert [p for p, _ in one[::repeats]] == epoch_order(count, seed=0, epoch=epoch, shuffle=True).tolist()


def test_clips_change_their_size_between_epochs_and_nothing_else(videos: list[Video]) -> None:
    options = {"flipped_labels": tuple(range(100)), "backend": "pyav", "workers": 1}
    larger = replace(SPEC, size=2 * SPEC.size)
    with ClipLoader(Videos.of(videos), SPEC, 2, **options) as loader:
        list(loader.epoch(0))
        loader.change_spec(larger)
        grown = list(loader.epoch(1))
    with ClipLoader(Videos.of(videos), larger, 2, **options) as loader:
        wanted = list(loader.epoch(1))
    for batch, other in zip(grown, wanted, strict=True):
        assert batch.frames.shape[2:] == (SPEC.frames_per_segment, *other.frames.shape[3:])
        assert torch.equal(batch.frames, other.frames)
        assert (batch.ids, batch.labels.tolist()) == (other.ids, other.labels.tolist())
