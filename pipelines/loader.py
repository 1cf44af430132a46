"""From a manifest's split to batches on the device that uses them: backend, order, prefetch, bad clips."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.clip import ClipBatch, ClipSpec
from pipelines.errors import BadClip, DataError
from pipelines.ledger import IDLE, OFF, Ledger
from pipelines.manifest import OK, Videos
from pipelines.plan import ClipPlan, epoch_order, plan_evaluation, plan_training, shard, stand_in
from pipelines.processes import cores

Place = tuple[int, int]  # position in the split, epoch
MAX_STAND_INS = 32  # for one place: enough where half of the videos are bad
BACKENDS = ("auto", "pyav", "dali")


class Decoder(Protocol):
    """A backend: plans in; clips uint8 (views·T, L, H, W, C) or reasons out, in order, on `device`."""

    name: str
    device: torch.device
    concurrent: bool  # may be called from several threads at once

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]: ...

    def close(self) -> None: ...


def create_decoder(
    backend: str, spec: ClipSpec, device: torch.device, workers: int, verify: bool = False, ledger: Ledger = OFF
) -> Decoder:
    """The one place where a backend is chosen. `auto` is DALI on a GPU, PyAV without one."""
    if backend == "auto":
        backend = "dali" if device.type == "cuda" else "pyav"
    if backend == "pyav":
        from pipelines.cpu import PyAVDecoder

        return PyAVDecoder(spec, workers, verify, ledger)
    if backend == "dali":
        from pipelines.dali import DaliDecoder

        return DaliDecoder(spec, device, workers, verify, ledger)
    raise DataError(f"unknown loader backend {backend!r}; choose one of {', '.join(BACKENDS)}")


OnBadClip = Literal["error", "skip"]


@dataclass(frozen=True)
class BadClipPolicy:
    """What a video that cannot be used does to a run; the same for every command and backend.

    `error`: it ends the run. `skip`: an evaluation leaves it out and never puts another in its place; training takes
    a stand-in drawn by seed, epoch and place. Either way it is counted and listed in `log` (JSON lines), and when
    more than `max_share` of the videos are bad the run ends.
    """

    on_bad_clip: OnBadClip = "skip"
    max_share: float = 0.01
    verify_checksums: bool = False  # read the whole file and compare its sha256 with the scan's
    log: Path | None = None


class BadClips:
    """The videos that one loader could not use, each counted once, and how often a stand-in took their place."""

    def __init__(self, policy: BadClipPolicy, total: int) -> None:
        self.policy, self.total = policy, total
        self.reasons: dict[str, str] = {}
        self.stand_ins = 0
        self._lock = threading.Lock()

    def add(self, bad: BadClip) -> None:
        """Note a bad clip. Raises DataError where the policy says that it ends the run."""
        with self._lock:
            if bad.path in self.reasons:
                return
            self.reasons[bad.path] = bad.reason
            if self.policy.log is not None:
                self.policy.log.parent.mkdir(parents=True, exist_ok=True)
                line = json.dumps({"id": bad.video_id, "path": bad.path, "reason": bad.reason}, ensure_ascii=False)
                with self.policy.log.open("a", encoding="utf-8") as f:
                    f.write(line + "\n")
        if self.policy.on_bad_clip == "error":
            raise DataError(f"{bad}; repair it, or leave bad clips out by --on-bad-clip skip")

    def replace(self, count: int) -> None:
        """Note that stand-ins were drawn."""
        with self._lock:
            self.stand_ins += count

    def join(self, others: Mapping[str, str]) -> None:
        """Count what other processes found (path → reason) in their parts of the split. Raises as `check_share`."""
        with self._lock:
            self.reasons.update((path, reason) for path, reason in others.items() if path not in self.reasons)
        self.check_share()

    def check_share(self) -> None:
        """Raise DataError where too many videos are bad."""
        if len(self) > self.policy.max_share * self.total:
            path, reason = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self)} of {self.total} videos ({len(self) / self.total:.1%}) cannot be used, more than "
                f"--max-bad-share {self.policy.max_share:g} allows; first {path}: {reason}"
            )

    def __len__(self) -> int:
        return len(self.reasons)


class ClipLoader:
    """Batches of some videos of a manifest, decoded ahead in background threads: `prefetch` of them, or what keeps
    all workers busy.

    `flipped_labels` (see `annotations.flip_labels`) makes it a training loader: shuffled, augmented, each rank
    the same number of batches, every batch full. Without it, it evaluates: every video exactly once over all
    ranks, the views that `spec` asks for, the last batch as small as it comes. `batch_size` counts videos.
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
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        policy: BadClipPolicy = BadClipPolicy(),
        ledger: Ledger = OFF,
    ) -> None:
        self.workers = workers = workers or cores()
        if batch_size < 1 or (prefetch is not None and prefetch < 1):
            raise DataError(f"batch size and prefetch must be at least 1, not {batch_size} and {prefetch}")
        self.videos, self.spec, self.batch_size = videos, spec, batch_size
        self.flipped_labels, self.seed = flipped_labels, seed
        self.rank, self.world_size, self.ledger = rank, world_size, ledger
        self.device = torch.device(device)
        if not videos:
            raise DataError("the split lists no video: its annotation file is missing; name another split or file")
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
        self.decoder = create_decoder(backend, spec, self.device, workers, policy.verify_checksums, ledger)
        # More than one in hand and one in work is of no use to a decoder that takes one at a time, and of thirty views
        # a batch is large.
        at_once = -(-workers // batch_size) if self.decoder.concurrent else 1
        self.prefetch = 1 + at_once if prefetch is None else prefetch

    @property
    def training(self) -> bool:
        return self.flipped_labels is not None

    def _shard(self, epoch: int) -> np.ndarray:
        """The places in `videos` that this rank visits in an epoch, in order."""
        order = epoch_order(len(self._positions), seed=self.seed, epoch=epoch, shuffle=self.training)
        mine = shard(order, rank=self.rank, world_size=self.world_size, equal=self.training)
        if self.training:
            mine = mine[: len(mine) // self.batch_size * self.batch_size]
        return self._positions[mine]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._shard(0)) // self.batch_size)

    def plan(self, position: int, epoch: int) -> ClipPlan:
        video = self.videos[position]
        if self.flipped_labels is None:
            return plan_evaluation(video, self.spec)
        return plan_training(
            video, self.spec, seed=self.seed, epoch=epoch, position=position, flipped_labels=self.flipped_labels
        )

    def epoch(self, epoch: int = 0, *, passes: int = 1) -> Iterator[ClipBatch]:
        """Yield the batches of an epoch; of `passes` epochs as if they were one long one."""
        shards = {e: self._shard(e) for e in range(epoch, epoch + passes)}
        visits = ((p, e) for e, positions in shards.items() for p in positions.tolist())
        pending: deque[Future[ClipBatch | None]] = deque()
        numbers = count()
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
        if not handed and (total := sum(map(len, shards.values()))):
            path, reason = next(iter(self.bad_clips.reasons.items()))
            raise DataError(f"none of {total} videos could be decoded, first {path}: {reason}")

    def _batch(self, places: list[Place], number: int) -> ClipBatch | None:
        """The batch of (position, epoch) pairs; None where an evaluation has none left of it."""
        lane = self.ledger.lane()
        lane.begin(f"batch {number}")
        try:
            if self.device.type != "cuda":
                return self._decode(places)
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.stream(stream):
                batch = self._decode(places)
                stream.synchronize()
            lane.lap("augment")  # what DALI has launched
            return batch
        finally:
            lane.end()

    def _decode(self, places: list[Place]) -> ClipBatch | None:
        lane = self.ledger.lane()
        done: list[tuple[ClipPlan, Tensor] | None] = [None] * len(places)
        current = dict(enumerate(places))  # who stands in each place that is still open
        for attempt in range(1 + (MAX_STAND_INS if self.training else 0)):
            plans = {i: self.plan(*place) for i, place in current.items()}
            known = {i for i, plan in plans.items() if plan.video.path in self.bad_clips.reasons}
            todo = [i for i in plans if i not in known]
            lane.lap("plan")
            decoded = self.decoder([plans[i] for i in todo])
            for i, clip in zip(todo, decoded, strict=True):
                if isinstance(clip, BadClip):
                    self.bad_clips.add(clip)
                    self.bad_clips.check_share()
                else:
                    done[i] = plans[i], clip
            open_places = [i for i in current if done[i] is None]
            if not open_places or not self.training:
                break
            self.bad_clips.replace(len(open_places))
            for i in open_places:
                position, epoch = places[i]
                drawn = stand_in(len(self._positions), seed=self.seed, epoch=epoch, position=position, attempt=attempt)
                current[i] = int(self._positions[drawn]), epoch
            current = {i: current[i] for i in open_places}
        else:
            raise DataError(f"{MAX_STAND_INS} stand-ins in a row for one bad clip are bad too; scan the data anew")
        kept = [d for d in done if d is not None]
        return self._collate(kept) if kept else None

    def _collate(self, clips: list[tuple[ClipPlan, Tensor]]) -> ClipBatch:
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
        return ClipBatch(frames, labels, ids)

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
