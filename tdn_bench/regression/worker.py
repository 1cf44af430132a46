"""What a measured process does: one configuration of `throughput`, on fixed videos, a turn whenever its parent asks.

`tdn_bench.interleave` starts it as a file, with another checkout first on the path where another commit is measured:
then all that it imports is that commit's, so it asks little of it.
"""

from __future__ import annotations

import gc
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARTS = ("loader", "engine", "path", "train", "reference")


class Reference:
    """A fixed network of stock operators, with the shape of TDN's work: frames in a batch through convolutions 7 × 7,
    3 × 3 and 1 × 1 with batch norms, ReLUs and sums. Nothing of this project's takes part, so that no commit changes
    its time; a slower machine does. Changed, it would make every baseline void: `VERSION` is stored with them."""

    VERSION = 1
    CALLS = 10  # in a turn, which would else be much shorter than the others'

    def __init__(self, device: torch.device) -> None:
        from torch import nn

        torch.manual_seed(0)

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs))

        class Block(nn.Module):
            def __init__(self, inputs: int, width: int, stride: int) -> None:
                super().__init__()
                self.main = nn.Sequential(
                    conv(inputs, width, 1),
                    nn.ReLU(),
                    conv(width, width, 3, stride),
                    nn.ReLU(),
                    conv(width, 4 * width, 1),
                )
                self.skip = conv(inputs, 4 * width, 1, stride)

            def forward(self, x: Tensor) -> Tensor:
                return torch.relu(self.main(x) + self.skip(x))

        self.network = nn.Sequential(
            conv(3, 32, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block(32, 32, 1), Block(128, 32, 2), Block(128, 64, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
        ).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # fmt: skip
        self.frames = torch.randint(0, 256, (16, 96, 96, 3), dtype=torch.uint8).to(device)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.CALLS):
            x = self.frames.permute(0, 3, 1, 2).float().div_(255)
            self.network(x).cpu()


class Contestant:
    """The parts of one configuration, each ready to run."""

    def __init__(self, flags: list[str], parts: list[str], videos: int) -> None:
        import tyro

        from pipelines.loader import ClipLoader
        from tdn_bench.measurement.throughput import Throughput, resolve

        config = resolve(tyro.cli(Throughput, args=flags))
        self.device = torch.device(config.device)
        torch.backends.cudnn.allow_tf32 = False
        self.facts: dict[str, Any] = {}
        self._parts: dict[str, Callable[[], dict[str, float]]] = {}
        if "reference" in parts:
            reference = Reference(self.device)
            self._parts["reference"] = lambda: {"reference_ms": 1000 * self._timed(reference)}
        if not {"loader", "engine", "path", "train"} & set(parts):
            return
        manifest, spec = config.open(progress=False), config.clip_spec()
        split = manifest.split(config.subset)
        chosen = split[:: max(1, len(split) // videos)][:videos]
        shared: dict[str, Any] = {
            "backend": config.backend, "device": self.device, "workers": config.workers,
            "policy": config.bad_clip_policy(),
        }  # fmt: skip
        self._whole = lambda: ClipLoader(split, spec, config.batch_size, **shared)
        self.ledger: Any = None
        # asked of the loader: an installed newer commit would lend an older one the modules that it lacks
        if "ledger" in inspect.signature(ClipLoader).parameters:
            from pipelines.ledger import Ledger

            self.ledger = shared["ledger"] = Ledger(self.device)
        self.loader = ClipLoader(chosen, spec, config.batch_size, **shared)
        self.batches = list(self.loader.epoch())
        self.videos = sum(map(len, self.batches))
        self.facts |= {"videos": self.videos, "data_digest": manifest.digest()}
        self._parts["loader"] = self._load
        if {"engine", "path"} & set(parts) and config.engine != "none":
            self._engine(config, manifest, spec)
        if "train" in parts:
            self._train(config, len(manifest.classes))

    def _engine(self, config: Any, manifest: Any, spec: Any) -> None:
        from engines import create_engine
        from tdn_bench.correctness.logits import check_engine, plain

        classifier = config.build(len(manifest.classes), self.device)
        engine_spec = config.engine_spec(spec.shape, config.batch_size, config.precision, str(self.device))
        calibration = config.calibration(config.precision, manifest, spec, config)
        engine = create_engine(config.engine, classifier, engine_spec, calibration=calibration, cache=config.kept_in())
        with create_engine("eager", classifier, plain(engine_spec)) as eager:
            clips = [batch.frames for batch in self.batches[:2]]
            self.facts["agreement_with_eager_fp32"] = asdict(check_engine(engine, eager, clips, config.precision))
        self.facts |= {"build_s": engine.build_s, "engine": engine.details()}

        def infer() -> dict[str, float]:
            return {
                "infer_ms": 1000 * self._timed(lambda: [engine(b.frames).cpu() for b in self.batches]) / self.videos
            }

        def path() -> dict[str, float]:
            seconds = self._timed(lambda: [engine(b.frames).cpu() for b in self.loader.epoch()])
            return {"path_ms": 1000 * seconds / self.videos}

        self._parts |= {"engine": infer, "path": path}
        self._network = engine

    def _train(self, config: Any, num_classes: int) -> None:
        from tdn_bench.recipes import Recipe
        from tdn_bench.training.loop import TrainStep, resolve_precision

        classifier = config.build(num_classes, self.device).train()
        step = TrainStep(classifier, Recipe(lr=1e-6), resolve_precision("auto", self.device), self.device)
        batch = self.batches[0]
        labels = batch.labels.clamp(min=0)
        self._parts["train"] = lambda: {
            "train_ms": 1000 * self._timed(lambda: step(batch.frames, labels, 0.0)) / len(batch)
        }

    def _load(self) -> dict[str, float]:
        """The loader alone, and its stages' thread time."""
        if self.ledger is not None:
            self.ledger.start()
        seconds = self._timed(lambda: list(self.loader.epoch()))
        found = {"loader_ms": 1000 * seconds / self.videos}
        if self.ledger is not None:
            self.ledger.stop()
            for lane in self.ledger.lanes:
                for stage, busy_s in lane.seconds.items():
                    found[f"{stage}_ms"] = found.get(f"{stage}_ms", 0.0) + 1000 * busy_s / self.videos
        return found

    def _timed(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def turn(self, parts: list[str]) -> dict[str, float]:
        """Milliseconds a video (reference: all its calls), by part and by stage of the loader."""
        gc.collect()
        gc.disable()  # a collection in the midst of a turn is another's garbage
        try:
            return {name: value for part in parts for name, value in self._parts[part]().items()}
        finally:
            gc.enable()

    def scores(self) -> dict[str, Any]:
        """What the engine says of every video of the split: ids, float32 logits (N, classes), labels."""
        with self._whole() as loader:
            said = [
                (batch.ids, self._network(batch.frames).float().cpu(), batch.labels.cpu()) for batch in loader.epoch()
            ]
        return {
            "ids": [i for ids, _, _ in said for i in ids],
            "logits": torch.cat([logits for _, logits, _ in said]).numpy(),
            "labels": torch.cat([labels for _, _, labels in said]).numpy(),
        }

    def peak_memory(self) -> dict[str, float]:
        """Bytes: the most that this process has held since the last call, and on a GPU the most that torch has."""
        status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        peaks = {}
        if clear.exists():
            peaks["host_bytes"] = 1024.0 * int(status.read_text().split("VmHWM:")[1].split()[0])
            clear.write_text("5")
        if self.device.type == "cuda":
            peaks["torch_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        return peaks


def serve(pipe: Connection) -> None:
    """Get ready as the parent says, then answer its requests until it closes the pipe. Errors go to the parent."""
    try:
        setup = pipe.recv()
        contestant = Contestant(**setup)
        gc.freeze()  # what is there will stay, and need not be looked at before each turn
        pipe.send(contestant.facts)
        while True:
            request, argument = pipe.recv()
            assert request in ("turn", "scores", "peak_memory"), request
            pipe.send(getattr(contestant, request)(*argument))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent says it in one line
        pipe.send(error if isinstance(error, RuntimeError) else RuntimeError(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
