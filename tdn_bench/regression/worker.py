"""The process of a measured workload: it gets ready on fixed videos, and takes a turn whenever its parent asks.

`tdn_bench.regression.interleaving` starts it as a file, with another checkout first on the path where another commit is
measured. Then all that it imports is that commit's, so it asks little of it: `tdn_bench.regression.subject`, or of
commits before there was one, what `EarlierSubject` names.
"""

from __future__ import annotations

import gc
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
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

        network = nn.Sequential(
            conv(3, 32, 7, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            Block(32, 32, 1),
            Block(128, 32, 2),
            Block(128, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        self.network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.frames = torch.randint(0, 256, (16, 96, 96, 3), dtype=torch.uint8).to(device)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.CALLS):
            x = self.frames.permute(0, 3, 1, 2).float().div_(255)
            self.network(x).cpu()


class EarlierSubject:
    """`tdn_bench.regression.subject.Subject` of commits whose modules still lay in one folder."""

    def __init__(self, flags: list[str], videos: int) -> None:
        import tyro

        throughput = import_module("tdn_bench.throughput")
        loader_class = import_module("pipelines.loader").ClipLoader
        config = self._config = throughput.resolve(tyro.cli(throughput.Throughput, args=flags))
        self.device, self.has_engine = torch.device(config.device), config.engine != "none"
        self._manifest, self._spec = config.open(progress=False), config.clip_spec()
        split = self._manifest.split(config.subset)
        shared: dict[str, Any] = {
            "backend": config.backend,
            "device": self.device,
            "workers": config.workers,
            "policy": config.bad_clip_policy(),
        }
        self.whole = lambda: loader_class(split, self._spec, config.batch_size, **shared)
        self.ledger: Any = None
        if "ledger" in inspect.signature(loader_class).parameters:
            self.ledger = shared["ledger"] = import_module("pipelines.ledger").Ledger(self.device)
        chosen = split[:: max(1, len(split) // videos)][:videos]
        self.loader = loader_class(chosen, self._spec, config.batch_size, **shared)
        self.data_digest = self._manifest.digest()

    def engine(self, clips: list[Tensor]) -> tuple[Any, dict[str, Any]]:
        config, parity = self._config, import_module("tdn_bench.parity")
        create_engine = import_module("engines").create_engine
        network = config.build(len(self._manifest.classes), self.device)
        spec = config.engine_spec(self._spec.shape, config.batch_size, config.precision, str(self.device))
        calibration = config.calibration(config.precision, self._manifest, self._spec, config)
        engine = create_engine(config.engine, network, spec, calibration=calibration, cache=config.kept_in())
        with create_engine("eager", network, parity.plain(spec)) as eager:
            return engine, asdict(parity.check_engine(engine, eager, clips, config.precision))

    def train_step(self) -> Callable[[Tensor, Tensor], object]:
        train = import_module("tdn_bench.train")
        recipe = import_module("tdn_bench.recipes").Recipe(lr=1e-6)
        classifier = self._config.build(len(self._manifest.classes), self.device).train()
        step = train.TrainStep(classifier, recipe, train.resolve_precision("auto", self.device), self.device)
        return lambda frames, labels: step(frames, labels, 0.0)


def open_subject(flags: list[str], videos: int) -> Any:
    """The subject of the checkout that is first on the path."""
    import tdn_bench

    # asked of its files: an installed newer commit would lend an older one the modules that it lacks
    if (Path(tdn_bench.__file__).parent / "regression" / "subject.py").is_file():
        return import_module("tdn_bench.regression.subject").Subject(flags, videos)
    return EarlierSubject(flags, videos)


class Worker:
    """The parts of one workload, each ready to run."""

    def __init__(self, flags: list[str], parts: list[str], videos: int, device: str) -> None:
        self.device = torch.device(device)
        torch.backends.cudnn.allow_tf32 = False  # as `engines.exact_float32`, which older checkouts lack
        self.facts: dict[str, Any] = {}
        self._parts: dict[str, Callable[[], dict[str, float]]] = {}
        if "reference" in parts:
            reference = Reference(self.device)
            self._parts["reference"] = lambda: {"reference_ms": 1000 * self._timed(reference)}
        if not {"loader", "engine", "path", "train"} & set(parts):
            return
        self._subject = subject = open_subject(flags, videos)
        self.device = subject.device
        self.batches = list(subject.loader.epoch())
        self.videos = sum(map(len, self.batches))
        self.facts |= {"videos": self.videos, "data_digest": subject.data_digest}
        self.facts |= getattr(subject, "facts", {})  # older checkouts have none
        self._parts["loader"] = self._load
        if {"engine", "path"} & set(parts) and subject.has_engine:
            self._open_engine()
        if "train" in parts:
            self._open_train_step()

    def _open_engine(self) -> None:
        engine, comparison = self._subject.engine([batch.frames for batch in self.batches[:2]])
        self.facts["agreement_with_eager_fp32"] = comparison
        self.facts |= {"build_s": engine.build_s, "engine": engine.details()}

        def infer() -> dict[str, float]:
            seconds = self._timed(lambda: [engine(b.frames).cpu() for b in self.batches])
            return {"infer_ms": 1000 * seconds / self.videos}

        def path() -> dict[str, float]:
            seconds = self._timed(lambda: [engine(b.frames).cpu() for b in self._subject.loader.epoch()])
            return {"path_ms": 1000 * seconds / self.videos}

        self._parts |= {"engine": infer, "path": path}
        self._engine = engine

    def _open_train_step(self) -> None:
        step, batch = self._subject.train_step(), self.batches[0]
        labels = batch.labels.clamp(min=0)
        self._parts["train"] = lambda: {"train_ms": 1000 * self._timed(lambda: step(batch.frames, labels)) / len(batch)}

    def _load(self) -> dict[str, float]:
        """The loader alone, and its stages' thread time."""
        if self._subject.ledger is not None:
            self._subject.ledger.start()
        seconds = self._timed(lambda: list(self._subject.loader.epoch()))
        found = {"loader_ms": 1000 * seconds / self.videos}
        if self._subject.ledger is not None:
            self._subject.ledger.stop()
            for lane in self._subject.ledger.lanes:
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
        with self._subject.whole() as loader:
            said = [
                (batch.ids, self._engine(batch.frames).float().cpu(), batch.labels.cpu()) for batch in loader.epoch()
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
        worker = Worker(**setup)
        gc.freeze()  # what is there will stay, and need not be looked at before each turn
        pipe.send(worker.facts)
        while True:
            request, argument = pipe.recv()
            assert request in ("turn", "scores", "peak_memory"), request
            pipe.send(getattr(worker, request)(*argument))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent says it in one line
        # plain: the parent may lack the class of another checkout's error
        name = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        pipe.send(RuntimeError(f"{name}{error}"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
