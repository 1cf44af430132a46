"""Every network against TSN on the same backbone: forward, and forward + backward; `python benchmarks/networks.py`.

What is timed is what is trained and exported: the network with its normalisation, uint8 frames in. A network and TSN
take turns (A B A B …), so that a busy machine slows both, and the ratio is of medians. Beside it stand the ratios that
would hold if multiply-adds, or the numbers moved to and from memory, were all that costs time.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from temporal_conv import interleave
from torch import Tensor, nn

from engines import prepare_compiler
from tdn_bench.cli import known_variant, pick_device, run_command
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.complexity import measure
from tdn_bench.models.variants import VARIANTS
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.training.ablation import TABLES

NUM_CLASSES, BASELINE = 174, "tsn"
Mode = Literal["eager_forward", "eager_train", "compiled_forward", "compiled_train"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Benchmark:
    """Time networks against TSN, and write a record."""

    networks: tuple[str, ...] = tuple(v for v in TABLES["networks"].variants if v != BASELINE)
    """Variants (`tdn-bench list`)."""
    modes: tuple[Mode, ...] = ("eager_forward", "eager_train", "compiled_forward", "compiled_train")
    """forward: eval mode, batch norm folded where compiled; train: forward and backward in training mode."""
    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    batch_size: int = 1
    """Clips."""
    size: int = 224
    """Height and width, pixels."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast to this."""
    rounds: int = 6
    """Timed calls of each."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    threads: int | None = None
    """Threads of torch on the CPU; default: one a core."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class TimedNetwork:
    """A network in one mode, ready to be called; the frames are the same for all calls."""

    def __init__(self, variant: str, mode: Mode, config: Benchmark, device: torch.device) -> None:
        torch.manual_seed(0)
        model, spec = f"{variant}_{config.backbone}", VARIANTS[variant]
        network = create_model(model, num_classes=NUM_CLASSES, num_segments=spec.num_segments, dropout=0)
        for module in network.modules():  # running statistics that are not 0 and 1, as after training
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
        classifier = FrameClassifier(network).to(device)
        shape = (config.batch_size, spec.num_segments, spec.frames_per_segment, config.size, config.size, 3)
        self.frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        self.training = mode.endswith("train")
        self.dtype, self.device = DTYPES[config.precision], device
        classifier.train(self.training)
        self.module: Callable[[Tensor], Tensor] = classifier
        self.parameters = list(classifier.parameters())
        if mode.startswith("compiled"):
            prepare_compiler()
            if not self.training:
                classifier.fold_batch_norm()
            self.module = torch.compile(classifier, dynamic=False, fullgraph=True)

    def __call__(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if not self.training:
                with torch.inference_mode():
                    return self.module(self.frames)
            loss = F.cross_entropy(self.module(self.frames), self.labels)
        loss.backward()
        for parameter in self.parameters:
            parameter.grad = None
        return loss.detach()


def compare(variant: str, mode: Mode, config: Benchmark, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and samples of one network in one mode."""
    own, baseline = (TimedNetwork(v, mode, config, device) for v in (variant, BASELINE))
    start = time.perf_counter()
    for network in (own, baseline):
        assert network().isfinite().all()  # compiles
    build_s = time.perf_counter() - start
    own_ms, tsn_ms = interleave(own, baseline, config.rounds, device)
    name = f"{variant}_{mode}"
    ratios = sorted(a / b for a, b in zip(own_ms, tsn_ms, strict=True))
    figures = {
        f"{name}_ms": statistics.median(own_ms),
        f"{name}_tsn_ms": statistics.median(tsn_ms),
        f"{name}_ratio": statistics.median(own_ms) / statistics.median(tsn_ms),
        f"{name}_ratio_of_pairs": [ratios[0], statistics.median(ratios), ratios[-1]],
        f"{name}_first_calls_s": build_s,
    }
    return figures, {f"{name}_ms": own_ms, f"{name}_tsn_ms": tsn_ms}


def bounds(variant: str, config: Benchmark) -> tuple[float, float]:
    """What the time would be to TSN's if multiply-adds alone, or the numbers moved alone, cost any."""
    count = partial(measure, num_classes=NUM_CLASSES, size=config.size)
    own, tsn = (count(f"{v}_{config.backbone}").total for v in (variant, BASELINE))
    return own.macs / tsn.macs, own.values / tsn.values


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/networks.py")
    results = record_folder(config.results, "benchmarks")
    if min(config.batch_size, config.rounds, config.threads or 1) < 1:
        raise UserError("batch size, rounds and threads must be at least 1")
    for variant in config.networks:
        known_variant(f"{variant}_{config.backbone}")
    device = pick_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    figures: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    print(f"time ÷ TSN's, {config.backbone}, batch {config.batch_size}, {config.precision}, on the {device}")
    print(f"{'':10s}{'mult-adds':>11s}{'moved':>8s}" + "".join(f"{mode:>20s}" for mode in config.modes), flush=True)
    for variant in config.networks:
        by_macs, by_values = bounds(variant, config)
        figures |= {f"{variant}_macs_ratio": by_macs, f"{variant}_values_ratio": by_values}
        print(f"{variant:10s}{by_macs:11.3f}{by_values:8.2f}", end="", flush=True)
        for mode in config.modes:
            found, raw = compare(variant, mode, config, device)
            figures |= found
            samples |= raw
            print(f"{found[f'{variant}_{mode}_ratio']:20.3f}", end="", flush=True)
            torch._dynamo.reset()  # the compiled code of the pair before is of no more use
            gc.collect()
        print(flush=True)
    record = make_record(
        "benchmark",
        f"networks-{config.backbone}-{config.precision}",
        figures=figures,
        samples=samples,
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads()},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
