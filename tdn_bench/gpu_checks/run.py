"""What every step of the suite is given, what it leaves, and how it times calls, counts operations, starts commands."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines.clip import ClipSpec
from pipelines.synthetic import make_dataset
from tdn_bench.cli import Command, DataFlags, LoaderFlags, NetworkFlags, WorkloadFlags
from tdn_bench.gpu_checks.sizes import Sizes
from tdn_bench.models import FrameClassifier

NUM_CLASSES = 174  # Something-Something V2's
MEASURED_CALLS = (5, 200)  # at least, at most
SYNTHETIC_DATA = Path("runs/gpu-suite-data")


@dataclass(frozen=True)
class Run:
    """What every step is given: how much to do, where, the folder of the records, and the videos (default: synthetic
    ones)."""

    sizes: Sizes
    device: torch.device
    folder: Path
    data: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What a record must agree in to stand for this run, as JSON gives it back."""
        found = asdict(self.sizes) | {"device": str(self.device), "data": self.data, "code": code_digest()}
        return json.loads(json.dumps(found, default=str))

    def dataset(self) -> Path:
        """The folder of the videos, which are rendered on first use where none were named."""
        if self.data is not None:
            return self.data
        return make_dataset(SYNTHETIC_DATA, train=self.sizes.train_videos, validation=self.sizes.validation_videos)

    def network_flags(self) -> NetworkFlags:
        """The network as flags name it."""
        return NetworkFlags(model=self.sizes.model, num_segments=self.sizes.num_segments, size=self.sizes.size)

    def network(self) -> FrameClassifier:
        """The network with the same fresh weights every time, in eval mode."""
        return self.network_flags().resolve().build([str(i) for i in range(NUM_CLASSES)], self.device)

    def workload(
        self,
        engine: str,
        batch_size: int,
        *,
        device: str | None = None,
        backend: Literal["auto", "pyav", "dali"] = "auto",
    ) -> WorkloadFlags:
        """The network by `engine` on this run's videos, as `tdn-bench throughput` takes it; default: on this run's
        device."""
        return WorkloadFlags(
            engine=engine,
            batch_size=batch_size,
            device=device or str(self.device),
            network=self.network_flags(),
            data=DataFlags(data=self.dataset()),
            loader=LoaderFlags(backend=backend),
        )

    def frames(self, batch: int) -> Tensor:
        """Noise: uint8 (batch, T, L, H, W, C) on the device."""
        shape = (batch, *ClipSpec(self.sizes.num_segments, size=self.sizes.size).shape)
        noise = torch.Generator(self.device).manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device, generator=noise)


@dataclass(frozen=True)
class Row:
    """A line of the table; arithmetic is also shown as a share of the ceiling."""

    figure: str
    value: str
    tflop_per_s: float | None = None


@dataclass
class Outcome:
    """What a step found. `failures` are the checks that did not hold, a line each."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note the failure `otherwise` unless the check holds."""
        if not holds:
            self.failures.append(otherwise)


def code_digest() -> str:
    """sha256 over the project's Python files: tells changed code apart where git cannot."""
    root = Path(__file__).resolve().parents[2]
    paths = sorted(
        p for package in ("engines", "pipelines", "storage", "tdn_bench") for p in (root / package).rglob("*.py")
    )
    h = hashlib.sha256()
    for path in paths:
        h.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return h.hexdigest()


def time_calls(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of each of some calls: as many as fill `seconds`, 5 to 200, after a warm-up.

    On a GPU events of the current stream time them, so that the host's launches do not count.
    """
    cuda = device.type == "cuda"

    def finish() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(2):  # the first may compile or choose algorithms
        start = finish()
        call()
        once_s = finish() - start
    least, most = MEASURED_CALLS
    count = min(most, max(least, math.ceil(seconds / once_s)))
    if not cuda:
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [1000 * (b - a) for a, b in pairwise(times)]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
    finish()
    return [a.elapsed_time(b) for a, b in pairwise(events)]


def count_flops(classifier: nn.Module, frames: Tensor, *, backward: bool) -> int:
    """Floating-point operations (two a multiply-add) of one pass over uint8 frames (B, T, L, H, W, C), with its
    gradients where `backward`; counted on a copy without data."""
    meta = copy.deepcopy(classifier).to("meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = meta(torch.empty_like(frames, device="meta"))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_quietly(module: str, flags: Sequence[str], sizes: Sizes) -> str | None:
    """Run `python -m module flags` in a process of its own and leave its output out. Returns None, or why it failed, in
    one line; stderr then gets all that it said there."""
    command = Command(module, flags, sizes.threads, quiet=True)
    error = command.wait(sizes.step_timeout_s)
    if error is not None:
        print(command.stderr, file=sys.stderr, end="", flush=True)  # the table has room for a line only
    return error
