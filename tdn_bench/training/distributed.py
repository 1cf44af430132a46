"""This process among those that torchrun started (alone without it): what they share, agree on, and tell each other
when one of them is lost."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from engines import prepare_compiler
from pipelines.errors import BadClip, DataError
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.cli import DataFlags
from tdn_bench.errors import UserError

T = TypeVar("T")
SCAN_LIMIT = timedelta(days=7)
BEAT_S, PULSE_S = 1.0, 0.5  # between two words of where a process is, and that it lives
ANSWER_S = 3.0  # how long the others have to say that they, too, lost somebody
NCCL_LATER_S = 60.0  # its watchdog ends a process without a word: that waits until gloo's groups have had their say


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that torchrun started (alone without it)."""

    rank: int
    world_size: int
    beats: Beats | None = field(default=None, compare=False)
    timeout_s: float = field(default=600, compare=False)  # of what the processes wait for

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Beats:
    """Signs of life of all processes, in the store by which they found each other: it outlives each of them."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = dist.PrefixStore("tdn_bench", store), rank, world_size
        self._next = 0.0
        self._name = f"rank {rank} on {socket.gethostname()}"
        self.beat("before the first step")
        self._ended = threading.Event()
        threading.Thread(target=self._pulse, daemon=True).start()

    def _pulse(self) -> None:
        """Show that this process lives, also while it waits for others."""
        with suppress(RuntimeError):
            for number in count():
                self._store.set(f"pulse {self._rank}", str(number))
                if self._ended.wait(PULSE_S):
                    return

    def close(self) -> None:
        """Show it no more."""
        self._ended.set()

    def beat(self, where: str) -> None:
        """Say where this process is, at most once a second."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + BEAT_S
            self._store.set(f"beat {self._rank}", f"{self._name} (process {os.getpid()}), last seen {where}")

    def fail(self, error: BaseException) -> None:
        """Say why this process ends."""
        with suppress(RuntimeError):  # the store may be gone with the one that kept it
            self._store.set(f"failed {self._rank}", f"{self._name}: {error or type(error).__name__}")

    def explain(self) -> str:
        """Who was lost, as far as the others left word. Waits for the answers of those that live."""
        try:
            self._store.set(f"lost {self._rank}", "")
            others = [r for r in range(self._world_size) if r != self._rank]
            pulses = {r: self._read(f"pulse {r}") for r in others}
            time.sleep(ANSWER_S)
            if failed := [self._read(f"failed {r}") for r in others if self._store.check([f"failed {r}"])]:
                return f"ended because of {'; '.join(failed)}"
            silent = [r for r in others if not self._store.check([f"lost {r}"])]
            # those without a pulse; where all have one, those that wait for nobody
            silent = [r for r in silent if self._read(f"pulse {r}") == pulses[r]] or silent
            told = "; ".join(self._read(f"beat {r}") for r in silent)
            return f"lost {told}" if silent else "lost the connection to the other processes"
        except RuntimeError:
            return "lost the connection to the other processes"

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else key

    @property
    def name(self) -> str:
        return self._name


@contextmanager
def distributed(device: torch.device, timeout_s: float = 600) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that torchrun's environment names; yield (ranks, this process's device).

    Raises UserError, with this process's rank, where another one ended, or did not answer for `timeout_s`; the user's
    errors of this process get its rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(0, 1), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    found, rank, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    store = meet(found, rank, world_size, timeout_s)
    beats = Beats(store, rank, world_size)
    try:
        with closing(beats), explained(beats):
            backend, later_s = ("nccl", NCCL_LATER_S) if device.type == "cuda" else ("gloo", 0)
            timeout = timedelta(seconds=timeout_s + later_s)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
            yield Ranks(rank, world_size, beats, timeout_s), device
    except BaseException as e:
        get_error_handler().record_exception(e)  # for torchrun's summary
        raise
    dist.destroy_process_group()


@contextmanager
def explained(beats: Beats) -> Iterator[None]:
    """Give errors this process's name; where it lost another one, say which, and leave word for the others else."""
    try:
        yield
    except BaseException as e:
        abandon_groups()
        if isinstance(e, RuntimeError) and is_lost(e):
            raise UserError(f"{beats.name}: {beats.explain()}; go on with --resume") from e
        beats.fail(e)
        if isinstance(e, UserError | DataError):
            raise UserError(f"{beats.name}: {e}") from e
        raise


def abandon_groups() -> None:
    """Let the process groups end with this process. As objects they would end by waiting for all that is under way,
    which those that are gone never finish."""
    for group in dist.distributed_c10d._world.pg_map:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def meet(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """A part of the store that only the processes of this start know.

    torchrun keeps one store over restarts, with the addresses of processes that are gone: PyTorch 2.13 connects to them
    and fails. Here every process says a word of its own, the first tells all which words it heard, and nobody goes on
    before each has found its own among them. Raises UserError where one does not come in time.
    """
    word, end = secrets.token_hex(8), time.monotonic() + timeout_s
    store.set(f"word {rank}", word)
    heard: list[str] = []
    while time.monotonic() < end:
        keys = [f"word {r}" for r in range(world_size)]
        if rank == 0 and store.check(keys) and heard != (now := [store.get(key).decode() for key in keys]):
            heard = now
            store.set("heard", json.dumps(heard))
        if store.check(["heard"]):
            words = json.loads(store.get("heard"))
            if words[rank : rank + 1] == [word] and len(words) == world_size:
                start = hashlib.sha256(" ".join(words).encode()).hexdigest()
                store.set(f"{start} {rank}", "")
                if store.check([f"{start} {r}" for r in range(world_size)]):
                    return dist.PrefixStore(start, store)
        time.sleep(0.02)
    raise UserError(f"rank {rank}: not all of {world_size} processes came within {timeout_s:g} s")


def is_lost(error: RuntimeError) -> bool:
    """Whether a collective call failed for the sake of another process; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def spread(
    classifier: nn.Module,
    ranks: Ranks,
    device: torch.device,
    *,
    sync_norm: bool,
    compiled: bool,
    accumulates: bool,
) -> nn.Module:
    """What the optimisation step calls: the network, compiled, over all processes.

    The graph is the same in every step, so DistributedDataParallel orders its buckets by the first one; gradients are
    views of them. With steps of several passes (`accumulates`) the graph is not said to be static: in the first of them
    DDP then cannot leave the exchange out (an internal assertion of PyTorch 2.13 fails). The compiler finds out by
    itself that it is within (`torch._dynamo.config.optimize_ddp`), and cuts the graph where buckets end: they are
    reduced while the rest is computed.
    """
    if sync_norm and ranks.world_size > 1:
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    if compiled:
        prepare_compiler()
        classifier = torch.compile(classifier)  # type: ignore[assignment]
    if ranks.world_size == 1:
        return classifier
    # of the (C, 1, 3) weights of temporal convolutions alone, three numbers a channel
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    ids = [device] if device.type == "cuda" else None
    spread_over = nn.parallel.DistributedDataParallel(
        classifier, device_ids=ids, static_graph=not accumulates, gradient_as_bucket_view=True
    )
    spread_over.broadcast_buffers = False  # in every step: they are shared before they are used (`share_buffers`)
    return spread_over


class Agreement:
    """Flags that any process raises and all see after the same step."""

    def __init__(self, ranks: Ranks) -> None:
        timeout = timedelta(seconds=ranks.timeout_s)  # gloo's own is half an hour
        self._group = dist.new_group(backend="gloo", timeout=timeout) if ranks.world_size > 1 else None
        self._told, self._work = torch.zeros(2, dtype=torch.int64), None

    def agree(self, flags: int) -> int:
        """The flags, of two bits, that any process has handed in. Of several processes those of the call before: what
        they tell each other travels during a step, and nobody waits for it."""
        if self._group is None:
            return flags
        told = 0
        if self._work is not None:
            self._work.wait()
            told = int(self._told[0] + 2 * self._told[1])
        self._told = torch.tensor([flags & 1, flags >> 1])
        self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, self._group, async_op=True)
        return told


def open_data(data: DataFlags, ranks: Ranks, progress: bool, limit: int | None = None) -> Manifest:
    """The data set; one process of each machine scans its files, the others find them in its cache."""
    if ranks.world_size == 1:
        return data.open(progress, limit)
    # A group of its own: others give up after minutes, and reading all of Kinetics may take hours.
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


def share_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's buffers. Each kept the batch norm statistics of its own clips, but only the
    first one's are saved: what is validated must be what is saved."""
    if ranks.world_size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def bad_clips_of_all(loader: ClipLoader, ranks: Ranks) -> list[BadClip]:
    """The bad clips of all processes' parts of a split."""
    mine = [(bad.video_id, bad.path, bad.reason) for bad in loader.bad_clips.found()]
    return [BadClip(*bad) for part in gather(mine, ranks) for bad in part]
