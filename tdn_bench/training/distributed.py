"""This process among those that torchrun started (alone without it)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.cli import DataFlags

T = TypeVar("T")
SCAN_LIMIT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that torchrun started (alone without it)."""

    rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that torchrun's environment names; yield (ranks, this process's device)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(0, 1), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world_size), device
    finally:
        dist.destroy_process_group()


def open_data(data: DataFlags, ranks: Ranks, progress: bool, limit: int | None = None) -> Manifest:
    """The data set; one process of each machine scans its files, the others find them in its cache."""
    if ranks.world_size == 1:
        return data.open(progress, limit)
    # A group of its own: others give up after ten minutes (NCCL), and reading all of Kinetics may take hours.
    waiting = dist.new_group(backend="gloo", timeout=SCAN_LIMIT)
    scans = os.environ.get("LOCAL_RANK", "0") == "0"
    if not scans:
        dist.barrier(waiting)
    manifest = data.open(progress, limit)
    if scans:
        dist.barrier(waiting)
    return manifest


def gather(value: T, ranks: Ranks) -> list[T]:
    """The value of every process, in every process."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def from_first(value: T, ranks: Ranks) -> T:
    """The first process's value, in every process."""
    if ranks.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def mean_over(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of every process's tensor."""
    if ranks.world_size > 1:
        values = values / ranks.world_size
        dist.all_reduce(values)
    return values


class Agreement:
    """Flags that any process raises and all see at the same step."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def agree(self, flags: int) -> int:
        """The flags that any process has."""
        return max(gather(flags, self._ranks))


def share_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's buffers. Each kept the batch norm statistics of its own clips, but only the
    first one's are saved: what is validated must be what is saved."""
    if ranks.world_size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def bad_clip_reasons(loader: ClipLoader, ranks: Ranks) -> dict[str, str]:
    """The bad clips of all processes' parts of a split: path → reason."""
    return {path: reason for part in gather(loader.bad_clips.by_path(), ranks) for path, reason in part.items()}
