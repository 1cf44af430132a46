"""From a manifest's split to batches on the device that uses them: backend, order, prefetch, bad clips."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from pipelines.clip import ClipBatch, ClipSpec, Stages
from pipelines.errors import BadClip, DataError
from pipelines.manifest import OK, Video
from pipelines.plan import ClipPlan, epoch_order, plan_evaluation, plan_training, shard

BACKENDS = ("auto", "pyav", "dali")


class Decoder(Protocol):
    """A backend: plans in; clips uint8 (T, L, H, W, C) or reasons out, in order, on `device`."""

    name: str
    device: torch.device

    def __call__(self, plans: Sequence[ClipPlan]) -> tuple[list[Tensor | BadClip], Stages]: ...

    def close(self) -> None: ...


def create_decoder(backend: str, spec: ClipSpec, device: torch.device, workers: int) -> Decoder:
    """The one place where a backend is chosen. `auto` is DALI on a GPU, PyAV without one."""
    if backend == "auto":
        backend = "dali" if device.type == "cuda" else "pyav"
    if backend == "pyav":
        from pipelines.cpu import PyAVDecoder

        return PyAVDecoder(spec, workers)
    if backend == "dali":
        from pipelines.dali import DaliDecoder

        return DaliDecoder(spec, device, workers)
    raise DataError(f"unknown loader backend {backend!r}; choose one of {', '.join(BACKENDS)}")


@dataclass
class BadClips:
    """The videos that could not be used: counted once each, and listed in a JSON-lines file as they are met."""

    log: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, bad: BadClip) -> None:
        if bad.path in self.reasons:
            return
        self.reasons[bad.path] = bad.reason
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"id": bad.video_id, "path": bad.path, "reason": bad.reason}, ensure_ascii=False)
            with self.log.open("a", encoding="utf-8") as f:
                f.write(line + "\n")

    def __len__(self) -> int:
        return len(self.reasons)


class ClipLoader:
    """Batches of one split of a manifest, decoded ahead in a background thread.

    `flipped_labels` (see `annotations.flip_labels`) makes it a training loader: shuffled, augmented, each rank
    the same number of batches, no partial batch. Without it, it evaluates: every video exactly once over all
    ranks, centre clip and crop, the last batch as small as it comes. Bad clips are left out of their batch.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        spec: ClipSpec,
        batch_size: int,
        *,
        flipped_labels: tuple[int, ...] | None = None,
        backend: str = "auto",
        device: torch.device | str = "cpu",
        workers: int | None = None,
        prefetch: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        bad_clips: BadClips | None = None,
    ) -> None:
        if min(batch_size, prefetch) < 1:
            raise DataError(f"batch size and prefetch must be at least 1, not {batch_size} and {prefetch}")
        self.videos, self.spec, self.batch_size = videos, spec, batch_size
        self.flipped_labels, self.seed = flipped_labels, seed
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.device = torch.device(device)
        self.bad_clips = bad_clips if bad_clips is not None else BadClips()
        self.wait_s = 0.0  # time that the consumer spent waiting for a batch
        self.decoder = create_decoder(backend, spec, self.device, workers or os.cpu_count() or 1)
        # A video known to be bad never enters a batch; the ranks agree on what is left.
        self._positions = [i for i, v in enumerate(videos) if v.file.status == OK]
        for v in videos:
            if v.file.status != OK:
                self.bad_clips.add(BadClip(v.id, v.path, v.file.status))
        if not self._positions:
            example = f", first {videos[0].path}: {videos[0].file.status}" if videos else ""
            raise DataError(f"none of {len(videos)} videos can be used{example}")
        if self.training and len(self._shard(0)) < batch_size:
            raise DataError(
                f"{len(self._positions)} usable training videos over {world_size} ranks do not fill one batch "
                f"of {batch_size}; use a smaller --batch-size"
            )

    @property
    def training(self) -> bool:
        return self.flipped_labels is not None

    def _shard(self, epoch: int) -> list[int]:
        order = epoch_order(len(self._positions), seed=self.seed, epoch=epoch, shuffle=self.training)
        mine = shard(order, rank=self.rank, world_size=self.world_size, equal=self.training)
        if self.training:
            mine = mine[: len(mine) // self.batch_size * self.batch_size]
        return [self._positions[i] for i in mine]

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
        visits = [(p, e) for e in range(epoch, epoch + passes) for p in self._shard(e)]
        ready: queue.Queue[ClipBatch | BaseException | None] = queue.Queue(self.prefetch)
        stop = threading.Event()

        def hand_over(item: ClipBatch | BaseException | None) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def produce() -> None:
            handed = 0
            try:
                for at in range(0, len(visits), self.batch_size):
                    plans = [self.plan(p, e) for p, e in visits[at : at + self.batch_size]]
                    batch = self._batch(plans)
                    if batch is not None:
                        handed += 1
                        if not hand_over(batch):
                            return
                if visits and not handed:
                    path, reason = next(iter(self.bad_clips.reasons.items()))
                    raise DataError(f"none of {len(visits)} videos could be decoded, first {path}: {reason}")
                hand_over(None)
            except BaseException as e:  # noqa: BLE001 -- not hidden: raised again in the consumer's thread
                hand_over(e)

        thread = threading.Thread(target=produce, name="loader", daemon=True)
        thread.start()
        try:
            while True:
                clock = perf_counter()
                item = ready.get()
                self.wait_s += perf_counter() - clock
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                if item.frames.is_cuda:  # made on the loader's stream, used on the consumer's
                    item.frames.record_stream(torch.cuda.current_stream(item.frames.device))
                yield item
        finally:
            stop.set()
            thread.join()

    def _batch(self, plans: list[ClipPlan]) -> ClipBatch | None:
        if self.device.type != "cuda":
            return self._decode(plans)
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            batch = self._decode(plans)
            stream.synchronize()
        return batch

    def _decode(self, plans: list[ClipPlan]) -> ClipBatch | None:
        decoded, stages = self.decoder(plans)
        clips, kept = [], []
        for plan, clip in zip(plans, decoded, strict=True):
            if isinstance(clip, BadClip):
                self.bad_clips.add(clip)
            else:
                clips.append(clip)
                kept.append(plan)
        if not clips:
            return None
        clock = perf_counter()
        frames = torch.stack(clips)
        if frames.device.type != self.device.type:
            frames = frames.pin_memory().to(self.device, non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        labels = torch.tensor([p.label for p in kept], device=self.device)
        stages.copy_s += perf_counter() - clock
        return ClipBatch(frames, labels, tuple(p.video.id for p in kept), stages)

    def close(self) -> None:
        self.decoder.close()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
