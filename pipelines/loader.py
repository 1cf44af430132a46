"""From a manifest's split to batches on the device that uses them: backend, order, prefetch, bad clips."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.bad_clips import DEFAULT_POLICY, BadClipPolicy, BadClips
from pipelines.bad_clips import OnBadClip as OnBadClip
from pipelines.clip import ClipBatch, ClipSpec
from pipelines.errors import BadClip, DataError
from pipelines.ledger import IDLE, OFF, Ledger
from pipelines.manifest import Videos
from pipelines.plan import ClipPlan, epoch_order, plan_evaluation, plan_training, replacement, shard
from pipelines.processes import cores
from pipelines.video import OK, Video

Place = tuple[int, int]  # position in the split, draw: the epoch, or with repeats epoch · repeats + 0, 1 …
MAX_REPLACEMENTS = 32  # for one place: enough where half of the videos are bad
BACKENDS = ("auto", "pyav", "dali")


class Decoder(Protocol):
    """A backend: plans in; clips, uint8 (views·T, L, H, W, C) on `device`, or reasons out, in the plans' order."""

    name: str
    device: torch.device
    concurrent: bool  # may be called from several threads at once

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]: ...

    def close(self) -> None: ...


def create_decoder(
    backend: str, spec: ClipSpec, device: torch.device, workers: int, verify: bool = False, ledger: Ledger = OFF
) -> Decoder:
    """The decoder of one backend: the one place where it is chosen.

    Args:
        backend: One of BACKENDS; `auto` is DALI on a GPU, PyAV without one.
        spec: How a video becomes a clip.
        device: Where DALI decodes; PyAV decodes on the CPU whatever it is.
        workers: Threads that decode.
        verify: Compare each file's sha256 with the scan's before it is decoded.
        ledger: Books what each stage takes.

    Raises:
        DataError: There is no such backend, or what it needs is not installed.
    """
    if backend == "auto":
        backend = "dali" if device.type == "cuda" else "pyav"
    if backend == "pyav":
        from pipelines.cpu import PyAVDecoder

        return PyAVDecoder(spec, workers, verify, ledger)
    if backend == "dali":
        from pipelines.dali import DaliDecoder

        return DaliDecoder(spec, device, workers, verify, ledger)
    raise DataError(f"unknown loader backend {backend!r}; choose one of {', '.join(BACKENDS)}")


def decode_videos(decoder: Decoder, videos: Sequence[Video], spec: ClipSpec) -> list[Tensor | BadClip]:
    """The views that an evaluation takes of each scanned video, uint8 (views·T, L, H, W, C), or why it has none."""
    plans = [plan_evaluation(video, spec) for video in videos if video.file.status == OK]
    decoded = iter(decoder(plans) if plans else ())
    return [next(decoded) if v.file.status == OK else BadClip(v.id, v.path, v.file.status) for v in videos]


class ClipLoader:
    """Batches of some videos of a manifest, decoded ahead in background threads.

    A training loader shuffles and augments; each rank gets the same number of batches, every batch full. An evaluation
    takes every video exactly once over all ranks, in order, the views that `spec` asks for, the last batch as small as
    it comes. What happens to a bad clip is said in `BadClipPolicy`.

    Args:
        videos: The videos, as `Manifest.split` gives them; those that the scan refused are left out.
        spec: How a video becomes a clip.
        batch_size: Videos in a batch (an evaluation's batch holds `spec.num_views` clips of each).
        flipped_labels: What a flip makes of each label, from `annotations.flip_labels`; makes it a training loader.
        backend: "pyav", "dali" or "auto", see `create_decoder`.
        device: Where the batches are needed.
        workers: Threads that decode; by default one for each processor that this process may use.
        prefetch: Batches that are decoded ahead; by default what keeps all workers busy.
        repeats: How often an epoch takes each video, with other draws each time; in a row, so that a batch holds them.
        seed: Of order and augmentation; together with the epoch it determines every batch.
        rank, world_size: This process and how many share the videos.
        policy: What a bad clip does to the run.
        ledger: Books what each stage takes.

    Raises:
        DataError: There is no usable video, too many are bad, the training videos fill no batch, a number makes no
            sense, or the backend is not there.
    """

    def __init__(
        self,
        videos: Videos,
        spec: ClipSpec,
        batch_size: int,
        *,
        flipped_labels: tuple[int, ...] | None = None,
        backend: str = "auto",
        device: torch.device | str = "cpu",
        workers: int | None = None,
        prefetch: int | None = None,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        policy: BadClipPolicy = DEFAULT_POLICY,
        ledger: Ledger = OFF,
    ) -> None:
        self.workers = workers = workers or cores()
        if batch_size < 1 or (prefetch is not None and prefetch < 1):
            raise DataError(f"batch size and prefetch must be at least 1, not {batch_size} and {prefetch}")
        self.videos, self.spec, self.batch_size = videos, spec, batch_size
        self.flipped_labels, self.repeats, self.seed = flipped_labels, repeats, seed
        self.rank, self.world_size, self.ledger = rank, world_size, ledger
        self.device = torch.device(device)
        if not videos:
            raise DataError(
                "the split lists no videos: its annotation file is missing; add it, or choose another split"
            )
        self.bad_clips = BadClips(policy, len(videos))
        self.wait_s = 0.0  # time that the consumer spent waiting for a batch
        # A video known to be bad never enters a batch; the ranks agree on what is left.
        usable = videos.where("status", OK)
        self._positions = np.flatnonzero(usable)
        unusable = np.flatnonzero(~usable)
        for name, path, status in zip(*(videos.values(c, unusable) for c in ("id", "path", "status")), strict=True):
            self.bad_clips.add(BadClip(name, videos.locate(path), status))
        if not len(self._positions):
            first = videos[0]
            raise DataError(f"none of {len(videos)} videos can be used, first {first.path}: {first.file.status}")
        self.bad_clips.check_share()
        if self.training and len(self._shard(0)) < batch_size:
            raise DataError(
                f"{len(self._positions)} usable training videos over {world_size} ranks do not fill one batch "
                f"of {batch_size}; use a smaller --batch-size"
            )
        self._decoding = backend, policy.verify_checksums
        self.decoder = self._create_decoder()
        # More than one in hand and one in work is of no use to a decoder that takes one at a time, and of thirty views
        # a batch is large.
        at_once = -(-workers // batch_size) if self.decoder.concurrent else 1
        self.prefetch = 1 + at_once if prefetch is None else prefetch

    @property
    def training(self) -> bool:
        """Whether it shuffles and augments."""
        return self.flipped_labels is not None

    def change_spec(self, spec: ClipSpec) -> None:
        """Make other clips from here on; between epochs alone."""
        if spec != self.spec:
            self.decoder.close()
            self.spec = spec
            self.decoder = self._create_decoder()

    def _create_decoder(self) -> Decoder:
        backend, verify = self._decoding
        return create_decoder(backend, self.spec, self.device, self.workers, verify, self.ledger)

    def _shard(self, epoch: int) -> np.ndarray:
        """The places in `videos` that this rank visits in an epoch, in order; with `repeats` each several times."""
        return self._visits(epoch)[0]

    def _visits(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What this rank takes in an epoch, in order: places in `videos`, and numbers of draws."""
        order = epoch_order(len(self._positions), seed=self.seed, epoch=epoch, shuffle=self.training)
        every = np.arange(len(order) * self.repeats)
        mine = shard(every, rank=self.rank, world_size=self.world_size, equal=self.training)
        if self.training:
            mine = mine[: len(mine) // self.batch_size * self.batch_size]
        which, repeat = np.divmod(mine, self.repeats)
        return self._positions[order[which]], epoch * self.repeats + repeat

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._shard(0)) // self.batch_size)

    def plan(self, position: int, epoch: int) -> ClipPlan:
        """What an epoch does with the video at `position` in `videos`."""
        video = self.videos[position]
        if self.flipped_labels is None:
            return plan_evaluation(video, self.spec)
        return plan_training(
            video, self.spec, seed=self.seed, epoch=epoch, position=position, flipped_labels=self.flipped_labels
        )

    def paths(self, first: int, last: int) -> list[str]:
        """Where the videos lie that an evaluation's batches from number `first` to before `last` are made of."""
        positions = self._shard(0)[first * self.batch_size : last * self.batch_size]
        return [self.videos.locate(path) for path in self.videos.values("path", positions)]

    def epoch(self, epoch: int = 0, *, passes: int = 1, first_batch: int = 0) -> Generator[ClipBatch]:
        """Yield the batches of an epoch; of `passes` epochs, from `epoch` on, as if they were one long one. Those
        before number `first_batch` are left out, and the others are as they would be.

        Raises DataError where none of the videos can be decoded, and where the policy says that bad clips end the run.
        """
        shards = [self._visits(e) for e in range(epoch, epoch + passes)]
        every = (place for p, draws in shards for place in zip(p.tolist(), draws.tolist(), strict=True))
        visits = islice(every, first_batch * self.batch_size, None)
        pending: deque[Future[ClipBatch | None]] = deque()
        numbers = count(first_batch)
        handed = 0

        def begin_next() -> None:
            if places := list(islice(visits, self.batch_size)):
                pending.append(pool.submit(self._batch, places, next(numbers)))

        # Several batches at once, where the decoder allows it: the end of one leaves no thread idle.
        at_once = self.prefetch if self.decoder.concurrent else 1
        with ThreadPoolExecutor(at_once, thread_name_prefix="loader") as pool:
            try:
                for _ in range(self.prefetch):
                    begin_next()
                while pending:
                    clock = time.perf_counter()
                    batch = pending.popleft().result()
                    now = time.perf_counter()
                    self.wait_s += now - clock
                    self.ledger.lane().add(IDLE, clock, now)
                    begin_next()
                    if batch is None:
                        continue
                    if batch.frames.is_cuda:  # made on the loader's stream, used on the consumer's
                        batch.frames.record_stream(torch.cuda.current_stream(batch.frames.device))
                    handed += 1
                    yield batch
            finally:
                for future in pending:
                    future.cancel()
        if not handed and not first_batch and (total := sum(len(p) for p, _ in shards)):
            path, reason = next(iter(self.bad_clips.reasons.items()))
            raise DataError(f"none of {total} videos could be decoded, first {path}: {reason}")

    def _batch(self, places: list[Place], number: int) -> ClipBatch | None:
        """The batch of (position, epoch) pairs; None where an evaluation has none left of it."""
        lane = self.ledger.lane()
        lane.begin(f"batch {number}")
        try:
            with self._own_stream():
                return self._fill(places, number)
        finally:
            lane.end()

    def decode(self, positions: Sequence[int], epoch: int = 0) -> list[Tensor | None]:
        """Decode the videos at `positions` in `videos` here and now, without the background threads of `epoch`.

        May be called from several threads at once where `decoder.concurrent`. The thread's lane of the ledger must be
        within a task (`begin`); planning, decoding and augmenting are booked there, or by the decoder's own threads.

        Returns:
            For each position its clip, uint8 (views·T, L, H, W, C) on the decoder's device and finished; None for a bad
            clip, which is noted in `bad_clips` and never replaced.

        Raises:
            DataError: The policy says that bad clips end the run.
        """
        plans = [self.plan(position, epoch) for position in positions]
        self.ledger.lane().lap("plan")
        with self._own_stream():
            clips = self.decoder(plans)
        return self._noted(clips)

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """On a GPU: work on a stream beside what the consumer runs, and wait for it."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()
        self.ledger.lane().lap("augment")  # what DALI has launched

    def _noted(self, clips: list[Tensor | BadClip]) -> list[Tensor | None]:
        """Note the bad ones, and put None in their places. Raises DataError as the policy says."""
        for clip in clips:
            if isinstance(clip, BadClip):
                self.bad_clips.add(clip)
                self.bad_clips.check_share()
        return [None if isinstance(clip, BadClip) else clip for clip in clips]

    def _fill(self, places: list[Place], number: int) -> ClipBatch | None:
        """Decode a batch. In training a replacement sample takes a bad clip's place, and another one its own where it
        is bad, too."""
        lane = self.ledger.lane()
        done: dict[int, tuple[ClipPlan, Tensor]] = {}
        replacements = 0
        current = dict(enumerate(places))  # who stands in each place that is still open
        for attempt in range(1 + (MAX_REPLACEMENTS if self.training else 0)):
            plans = {i: self.plan(*place) for i, place in current.items()}
            known = {i for i, plan in plans.items() if plan.video.path in self.bad_clips.reasons}
            todo = [i for i in plans if i not in known]
            lane.lap("plan")
            decoded = self._noted(self.decoder([plans[i] for i in todo]))
            done |= {i: (plans[i], clip) for i, clip in zip(todo, decoded, strict=True) if clip is not None}
            open_places = [i for i in current if i not in done]
            if not open_places or not self.training:
                break
            replacements += len(open_places)
            self.bad_clips.add_replacements(len(open_places))
            current = {i: self._replacement(*places[i], attempt) for i in open_places}
        else:
            raise DataError(
                f"{MAX_REPLACEMENTS} replacement samples in a row for one bad clip are bad, too; "
                "run `tdn-bench prepare` again"
            )
        return self._collate([done[i] for i in sorted(done)], number, replacements) if done else None

    def _replacement(self, position: int, epoch: int, attempt: int) -> Place:
        drawn = replacement(len(self._positions), seed=self.seed, epoch=epoch, position=position, attempt=attempt)
        return int(self._positions[drawn]), epoch

    def _collate(self, clips: list[tuple[ClipPlan, Tensor]], number: int, replacements: int) -> ClipBatch:
        views = self.spec.num_views
        frames = torch.cat([clip for _, clip in clips]).unflatten(0, (-1, self.spec.num_segments))
        if frames.device.type != self.device.type:
            frames = frames.pin_memory()
            with self.ledger.on_device("copy"):
                frames = frames.to(self.device, non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        labels = torch.tensor([plan.label for plan, _ in clips for _ in range(views)], device=self.device)
        ids = tuple(plan.video.id for plan, _ in clips for _ in range(views))
        self.ledger.lane().lap("copy")
        return ClipBatch(frames, labels, ids, number, replacements)

    def close(self) -> None:
        """End the decoder's threads; `with` does it too."""
        self.decoder.close()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
