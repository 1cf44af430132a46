"""Engines and precisions against the authors' formulation, and TDN against TSN: `make benchmark NAME=engine_speed`.

Each candidate is a process of its own, with its own threads, memory and allocator. They take turns, one at a time
(A B C … A B C …), so that a busy machine slows all of them, and the ratio is of medians. Engines that are files are
built by another process before, so that what is measured is a second start, and memory is what running takes. Before
anything is timed, every candidate's logits are compared with the authors' formulation in float32.

"authors" is TDN as released: eager, NCHW, Conv1d over permuted tensors, one direction after the other
(`temporal_conv.PlainNetwork`). It gets normalised float clips; the engines get uint8 frames and normalise them.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from temporal_conv import PlainNetwork
from torch import Tensor, nn

from engines import (
    ENGINES,
    QUANTISED,
    EngineSpec,
    FileEngine,
    create_engine,
    engine_class,
    exact_float32,
    supported_precisions,
    why_unavailable,
)
from tdn_bench.cli import pick_device, run_command
from tdn_bench.correctness.logits import TOLERANCE, compare_logits
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.complexity import measure
from tdn_bench.models.temporal_difference import TemporalConv
from tdn_bench.models.variants import VARIANTS
from tdn_bench.records import make_record, record_folder, write_record

NUM_CLASSES, AUTHORS = 174, "authors"


@dataclass(frozen=True)
class Benchmark:
    """Time engines in turn, and write a record."""

    engines: tuple[str, ...] = ()
    """Which; default: all that are ready here."""
    precisions: tuple[str, ...] = ()
    """Which; default: all that the engine has."""
    batches: tuple[int, ...] = (1, 4)
    """Batch sizes; each is a round of its own."""
    against_tsn: bool = True
    """Also time every engine's TDN against its TSN, at the first batch size."""
    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    size: int = 224
    """Height and width, pixels."""
    rounds: int = 7
    """Timed calls of each."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    threads: int | None = None
    """Threads on the CPU; default: one a core."""
    rewrite: bool = True
    """Let the networks rewrite themselves for inference."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


@dataclass(frozen=True)
class Candidate:
    """One network in one engine and precision."""

    variant: str
    engine: str
    precision: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.variant}_{self.engine}_{self.precision}_batch{self.batch}"


def make_network(variant: str, backbone: str) -> FrameClassifier:
    """A network whose weights do something everywhere; the same in every process."""
    torch.manual_seed(0)
    spec = VARIANTS[variant]
    network = create_model(f"{variant}_{backbone}", num_classes=NUM_CLASSES, num_segments=spec.num_segments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(module, TemporalConv):
            nn.init.normal_(module.weight, std=3**-0.5)
    return FrameClassifier(network).eval()


def make_frames(variant: str, batch: int, size: int) -> Tensor:
    """Smooth pictures that drift; the same in every process. The clips are uint8 (B, T, L, H, W, C)."""
    spec, generator = VARIANTS[variant], torch.Generator().manual_seed(1)
    count = spec.num_segments * spec.frames_per_segment
    coarse = torch.rand(batch, 3, 2 + count // 8, 8, 8, generator=generator) * 255
    clip = F.interpolate(coarse, size=(count, size, size), mode="trilinear")
    frames = clip.permute(0, 2, 3, 4, 1).unflatten(1, (spec.num_segments, -1)).to(torch.uint8)
    return frames.contiguous()


def prepare(candidate: Candidate, config: Benchmark, cache: Path) -> Callable[[], Tensor]:
    """The candidate, ready to be called."""
    device = str(pick_device(config.device))
    network = make_network(candidate.variant, config.backbone)
    frames = make_frames(candidate.variant, candidate.batch, config.size).to(device)
    if candidate.engine == AUTHORS:
        clip = (frames.permute(0, 1, 2, 5, 3, 4).float() - network.mean.to(device)).div_(network.std.to(device))
        plain, clip = PlainNetwork(network.network).eval().to(device), clip.contiguous()
        return torch.inference_mode()(lambda: plain(clip))  # type: ignore[no-any-return]
    shape = tuple(frames.shape[1:])
    spec = EngineSpec(shape, candidate.batch, candidate.precision, device, rewrite=config.rewrite)  # type: ignore[arg-type]
    calibration = [frames[:1]] if candidate.precision in QUANTISED else None
    engine = create_engine(candidate.engine, network, spec, calibration=calibration, cache=cache)
    return lambda: engine(frames)


def serve(candidate: Candidate, config: Benchmark, cache: Path, pipe: Connection) -> None:
    """A candidate's process: ready, then a timed call whenever the parent asks; last, the peak of its memory."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    exact_float32()
    start = time.perf_counter()
    call = prepare(candidate, config, cache)
    logits = call().float().cpu()
    ready_s = time.perf_counter() - start
    call()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak counts from now: without export and compilation
    cuda = pick_device(config.device).type == "cuda"
    pipe.send((ready_s, logits))
    while pipe.recv():
        call()  # the processor's caches were the others' meanwhile
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        pipe.send(1000 * (time.perf_counter() - start))
    status = Path("/proc/self/status").read_text() if clear.exists() else ""
    peaks = {"host": 1024 * int(status.split("VmHWM:")[1].split()[0])} if status else {}
    if cuda:
        free, total = torch.cuda.mem_get_info()
        peaks |= {"torch": torch.cuda.max_memory_allocated(), "card_in_use": total - free}
    pipe.send(peaks)


def build(candidates: Sequence[Candidate], config: Benchmark, cache: Path, pipe: Connection) -> None:
    """Fill the cache, and say how long each took."""
    for candidate in candidates:
        start = time.perf_counter()
        prepare(candidate, config, cache)
        pipe.send(time.perf_counter() - start)


def in_turn(candidates: Sequence[Candidate], config: Benchmark, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the candidates in turn: figures and samples."""
    spawn = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {}
    files = [c for c in candidates if c.engine != AUTHORS and issubclass(engine_class(c.engine), FileEngine)]
    for candidate in files:
        here, there = spawn.Pipe()
        process = spawn.Process(target=build, args=([candidate], config, cache, there))
        process.start()
        there.close()
        figures[f"{candidate.name}_build_s"] = here.recv()
        process.join()
    pipes, processes, logits = [], [], []
    for candidate in candidates:
        here, there = spawn.Pipe()
        process = spawn.Process(target=serve, args=(candidate, config, cache, there), daemon=True)
        process.start()
        there.close()
        ready_s, result = here.recv()
        figures[f"{candidate.name}_ready_s"] = ready_s
        pipes.append(here)
        processes.append(process)
        logits.append(result)
    for candidate, result in zip(candidates, logits, strict=True):
        reference = next(r for c, r in zip(candidates, logits, strict=True) if c.variant == candidate.variant)
        difference = compare_logits(result, reference).max_difference
        figures[f"{candidate.name}_difference"] = difference
        if not difference <= TOLERANCE[candidate.precision]:
            raise UserError(f"{candidate.name} differs by {difference:.1e} of the logits' deviation; nothing was timed")
    samples: dict[str, list[float]] = {c.name: [] for c in candidates}
    for _ in range(config.rounds):
        for candidate, pipe in zip(candidates, pipes, strict=True):
            pipe.send(True)
            samples[candidate.name].append(pipe.recv())
    for candidate, pipe, process in zip(candidates, pipes, processes, strict=True):
        pipe.send(False)
        figures |= {f"{candidate.name}_peak_{kind}_bytes": n for kind, n in pipe.recv().items()}
        process.join()
        figures[f"{candidate.name}_ms"] = statistics.median(samples[candidate.name])
    return figures, {f"{name}_ms": times for name, times in samples.items()}


def ceiling_gflop_per_s(dtype: torch.dtype, device: torch.device, side: int = 2048) -> float:
    """The best of ten matrix products: what the arithmetic of convolutions can hope for."""
    a, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
    return best


def against_authors(
    pairs: Sequence[tuple[str, str]], batch: int, config: Benchmark, cache: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and samples of TDN by every engine and precision, beside the authors' formulation; printed."""
    candidates = [Candidate("tdn", AUTHORS, "fp32", batch)]
    candidates += [Candidate("tdn", name, precision, batch) for name, precision in pairs]
    figures, samples = in_turn(candidates, config, cache)
    print(f"batch {batch}: {'':16s}  ms/video speed-up difference peak MB ready s")
    for c in candidates:
        ms, first = figures[f"{c.name}_ms"], figures[f"{candidates[0].name}_ms"]
        figures[f"{c.name}_speedup"] = first / ms
        line = f"  {c.engine:12s}{c.precision:10s}{ms / batch:12.1f}{first / ms:8.2f}×"
        line += f"{figures[f'{c.name}_difference']:11.1e}{figures.get(f'{c.name}_peak_host_bytes', 0) / 1e6:8.0f}"
        print(f"{line}{figures[f'{c.name}_ready_s']:8.1f}", flush=True)
    return figures, samples


def against_tsn(name: str, precision: str, config: Benchmark, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and samples of TDN and TSN by one engine, at the first batch size; printed."""
    batch = config.batches[0]
    tdn, tsn = (Candidate(variant, name, precision, batch) for variant in ("tdn", "tsn"))
    found, raw = in_turn([tdn, tsn], config, cache)
    tdn_ms, tsn_ms = found[f"{tdn.name}_ms"], found[f"{tsn.name}_ms"]
    print(f"TDN ÷ TSN, batch {batch}: {name:12s}{precision:6s}{tdn_ms / tsn_ms:7.3f}", flush=True)
    figures = {
        f"{name}_{precision}_tdn_ms": tdn_ms,
        f"{name}_{precision}_tsn_ms": tsn_ms,
        f"{name}_{precision}_tdn_to_tsn": tdn_ms / tsn_ms,
    }
    return figures, {f"against_tsn_{key}": times for key, times in raw.items()}


def chosen(config: Benchmark, device: torch.device) -> list[tuple[str, str]]:
    """The engines and precisions to time. Raises UserError for an engine that is not ready here."""
    for name in config.engines:
        if (reason := why_unavailable(name, str(device))) is not None:
            raise UserError(f"--engines {name}: {reason}")
    names = config.engines or tuple(n for n in ENGINES if why_unavailable(n, str(device)) is None)
    pairs = [(n, p) for n in names for p in supported_precisions(n, str(device))]
    return [(n, p) for n, p in pairs if (p in config.precisions if config.precisions else (p != "fp16" or n == "trt"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/engine_speed.py")
    results = record_folder(config.results, "benchmarks")
    if min(config.rounds, config.threads or 1, *config.batches) < 1:
        raise UserError("batch sizes, rounds and threads must be at least 1")
    device = pick_device(config.device)
    pairs = chosen(config, device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    figures: dict[str, Any] = {
        f"matrix_product_{name}_gflop_per_s": ceiling_gflop_per_s(dtype, device)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    count = measure(f"tdn_{config.backbone}", num_classes=NUM_CLASSES, size=config.size).total
    figures["tdn_gflop_per_video"] = 2 * count.macs / 1e9
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for batch in config.batches:
            found, raw = against_authors(pairs, batch, config, Path(cache))
            figures |= found
            samples |= raw
        for name, precision in pairs if config.against_tsn else ():
            found, raw = against_tsn(name, precision, config, Path(cache))
            figures |= found
            samples |= raw
    record = make_record(
        "benchmark",
        f"engines-{config.backbone}",
        figures=figures,
        samples=samples,
        settings=asdict(config),
        device=device,
        details={"threads": config.threads or torch.get_num_threads(), "classes": NUM_CLASSES},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
