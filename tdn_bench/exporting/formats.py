"""The formats of one file (OpenVINO: two): how each is written, and how a stranger's program loads and runs it.

To write them is the engines' work. To load them is not: the check of a written file must not pass by the code that
wrote it, so it uses each library as its own manual does.

Shapes: B clips, T segments, L frames in a segment, H height and W width in pixels, C colours.
"""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engines import PRECISIONS, Calibration, EngineSpec, copy_network, export_onnx, prepare_compiler
from engines.onnx_export import why_export_unavailable
from engines.ort import PROVIDERS, OnnxEngine
from engines.ov import OpenVinoEngine, openvino_model, precision_hint
from engines.pytorch import float32_as, place, why_no_compiler
from engines.spec import QUANTISED, device_type
from engines.torch_export import export_program, quiet_torch
from engines.trt import export_for_tensorrt
from engines.trt_build import build_engine, layer_report, load_tensorrt, refuse_precision

Run = Callable[[Tensor], Tensor]  # uint8 frames (B, T, L, H, W, C) → float32 logits (B, classes), on the CPU


@dataclass(frozen=True)
class Loaded:
    """A written file, loaded. `run` takes batches of the sizes that the file takes, None where nothing here can run it;
    `by` names what runs it. `not_run` says why the file itself is not run: its source is then, or nothing."""

    run: Run | None
    by: str
    not_run: str | None = None


class ExportFormat(abc.ABC):
    """One format. `notes` are short texts that the file itself carries, where it can."""

    name: ClassVar[str]
    suffix: ClassVar[str]  # of the file's name, with its dot
    precisions: ClassVar[tuple[str, ...]]

    def device(self, asked: torch.device) -> torch.device:
        """Where the file will run."""
        return asked

    @abc.abstractmethod
    def why_unavailable(self, device: torch.device) -> str | None:
        """None if the file can be written and checked here, else one line: what is missing, how to get it."""

    @abc.abstractmethod
    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        """Write the file, and what belongs to it beside it by the same stem. Returns what its description should add.
        Raises EngineError."""

    @abc.abstractmethod
    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        """Load the file as its library's manual says."""

    def files(self, path: Path) -> list[Path]:
        """What `write` leaves for the user."""
        return [path]

    def load_with(self, spec: EngineSpec) -> dict[str, str]:
        """Settings that a program must give to get the precision. Raises EngineError where this machine has it not."""
        return {}


def run_onnx(path: Path, device: str = "cpu") -> Loaded:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[device_type(device)]])
    provider = session.get_providers()[0]

    def run(frames: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"frames": frames.numpy()})[0])

    return Loaded(run, f"onnxruntime {onnxruntime.__version__}, {provider}")


class OnnxFormat(ExportFormat):
    name, suffix = "onnx", ".onnx"
    precisions = ("fp32", "fp16", "int8")  # ONNX Runtime has no convolution in bf16, and none in fp8

    def why_unavailable(self, device: torch.device) -> str | None:
        return OnnxEngine.what_is_missing(str(device))

    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        import onnx

        floating = "fp32" if spec.precision in QUANTISED else spec.precision
        export_onnx(network, spec, path, engine=OnnxEngine.name, floating=floating, calibration=calibration)
        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(notes))
        for node in model.graph.node:  # the exporter notes there which line of which file on this machine made it
            kept = [note for note in node.metadata_props if "stack_trace" not in note.key]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return {"opset": model.opset_import[0].version}

    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        return run_onnx(path, spec.device)


class OpenVinoFormat(ExportFormat):
    """Weights are float32, or eight bits: in what precision the rest is computed is decided when it is compiled."""

    name, suffix = "openvino", ".xml"
    precisions = ("fp32", "bf16", "int8")

    def device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")

    def why_unavailable(self, device: torch.device) -> str | None:
        return OpenVinoEngine.what_is_missing("cpu")

    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        import openvino

        model = openvino_model(network, spec, calibration)
        for key, text in notes.items():
            model.set_rt_info(text, ["tdn_bench", key])
        openvino.save_model(model, path, compress_to_fp16=False)
        return {}

    def files(self, path: Path) -> list[Path]:
        return [path, path.with_suffix(".bin")]

    def load_with(self, spec: EngineSpec) -> dict[str, str]:
        import openvino

        return {"INFERENCE_PRECISION_HINT": precision_hint(spec.precision, openvino.Core())}

    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", self.load_with(spec))

        def run(frames: Tensor) -> Tensor:
            return torch.from_numpy(compiled({"frames": frames.numpy()})["logits"].copy())

        return Loaded(run, f"openvino {version('openvino')}, CPU")


class TorchExportFormat(ExportFormat):
    """A torch.export program: any PyTorch of this version or newer loads it, and may compile it."""

    name, suffix = "torch-export", ".pt2"
    precisions = ("fp32", "bf16", "fp16")

    def why_unavailable(self, device: torch.device) -> str | None:
        return None

    def program(self, network: nn.Module, spec: EngineSpec) -> torch.export.ExportedProgram:
        """The graph, for spec.max_batch clips or from 1 to that."""
        example = torch.zeros(
            2 if spec.dynamic_batch else spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device
        )
        placed = place(copy_network(network, spec, self.name))
        return export_program(placed, example, spec.max_batch if spec.dynamic_batch else None)

    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        program = self.program(network, spec)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        with quiet_torch():
            torch.export.save(program, path, extra_files=dict(notes))
        return {}

    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        module = torch.export.load(path).module()
        return Loaded(_on(spec.device, module), f"torch {torch.__version__}")


class AotiFormat(TorchExportFormat):
    """The same program compiled ahead of time by AOTInductor: for this kind of processor, or card, alone."""

    name = "aoti"

    def why_unavailable(self, device: torch.device) -> str | None:
        return why_no_compiler(str(device))

    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        prepare_compiler()
        program = self.program(network, spec)
        with torch.no_grad(), float32_as(spec.precision), quiet_torch():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        return {}

    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        index = torch.device(spec.device).index
        module = torch._inductor.aoti_load_package(str(path), device_index=-1 if index is None else index)
        return Loaded(_on(spec.device, module), f"torch {torch.__version__}, AOTInductor")


def _on(device: str, module: Callable[[Tensor], Tensor]) -> Run:
    @torch.inference_mode()
    def run(frames: Tensor) -> Tensor:
        return module(frames.to(device)).cpu()

    return run


class TrtFormat(ExportFormat):
    """TensorRT's plan: for the card and driver it is built on."""

    name, suffix, library = "trt", ".plan", "tensorrt"
    precisions = PRECISIONS
    get_library = "pip install tensorrt, on a machine with an NVIDIA GPU"

    def device(self, asked: torch.device) -> torch.device:
        return asked if asked.type == "cuda" else torch.device("cuda")

    def why_unavailable(self, device: torch.device) -> str | None:
        if importlib.util.find_spec(self.library) is None:
            return f"{self.library} is not installed: {self.get_library}"
        if self.library == "tensorrt" and not torch.cuda.is_available():
            return "TensorRT builds on the GPU it builds for, and torch sees none: use --format trt-rtx"
        return why_export_unavailable()

    def write(
        self, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path, notes: Mapping[str, str]
    ) -> dict[str, Any]:
        refuse_precision(spec)
        export_for_tensorrt(network, spec, self.source(path), calibration)
        log: list[str] = []
        path.write_bytes(build_engine(self.source(path), spec, log, library=self.library))
        layers = layer_report(log)
        outputs = [kind for layer in layers for kind in layer.outputs]
        return {
            "runtime": f"{self.library} {load_tensorrt(self.library).__version__}",
            "layers": len(layers),
            "layer_outputs": {kind: outputs.count(kind) for kind in sorted(set(outputs))},
        }

    def source(self, path: Path) -> Path:
        """The ONNX file that the engine is built from; not for the user."""
        return path.with_name(f"{path.name}.source.onnx")

    def load(self, path: Path, spec: EngineSpec) -> Loaded:
        if torch.cuda.is_available():
            return self.load_engine(path, spec)
        not_run = f"the engine itself was not run: {self.library} needs an NVIDIA GPU for that, and torch sees none"
        if spec.precision in ("bf16", "fp8"):  # not in ONNX Runtime on a CPU
            return Loaded(None, "nothing", not_run)
        source = run_onnx(self.source(path))
        return Loaded(source.run, f"{source.by}, of the ONNX graph that the engine was built from", not_run)

    def load_engine(self, path: Path, spec: EngineSpec) -> Loaded:
        """In TensorRT, on a GPU."""
        trt = load_tensorrt(self.library)
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        context, classes = engine.create_execution_context(), engine.get_tensor_shape("logits")[1]
        stream = torch.cuda.Stream(spec.device)

        def run(frames: Tensor) -> Tensor:
            frames = frames.to(spec.device).contiguous()
            logits = torch.empty(len(frames), classes, device=spec.device)
            context.set_input_shape("frames", tuple(frames.shape))
            context.set_tensor_address("frames", frames.data_ptr())
            context.set_tensor_address("logits", logits.data_ptr())
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return logits.cpu()

        run.keeps = runtime, engine  # type: ignore[attr-defined]  # the context needs both for as long as it lives
        return Loaded(run, f"{self.library} {trt.__version__}, {torch.cuda.get_device_name(spec.device)}")


class TrtRtxFormat(TrtFormat):
    """TensorRT-RTX's plan: for every card that it names, finished when it is loaded."""

    name, library = "trt-rtx", "tensorrt_rtx"
    get_library = "pip install 'tdn_bench[trt-rtx]'"


FORMATS: tuple[ExportFormat, ...] = (
    OnnxFormat(),
    OpenVinoFormat(),
    TrtFormat(),
    TrtRtxFormat(),
    TorchExportFormat(),
    AotiFormat(),
)


def filled(run: Run, batch: int) -> Run:
    """`run`, which takes `batch` clips, for fewer: the batch is filled up."""

    def run_filled(frames: Tensor) -> Tensor:
        whole = frames.new_zeros(batch, *frames.shape[1:])
        whole[: len(frames)] = frames
        return run(whole)[: len(frames)]

    return run_filled
