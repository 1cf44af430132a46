"""A model repository for NVIDIA's Triton Inference Server: the network, and with it what decodes the videos.

With preprocessing, an ensemble takes a video file and the numbers of its frames. DALI decodes, crops and resizes them,
the network reads them. Without, the network is the only model and takes frames.

Sources: Triton's model_config.proto, and the documents of its DALI, ONNX Runtime, OpenVINO and TensorRT backends. What
is written here has been parsed and its parts have been run, but no Triton server has loaded it yet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engines import Calibration, EngineSpec
from pipelines.clip import ClipSpec
from pipelines.dali_graph import FRAMES, INDICES, VIDEO, serialized_pipeline, why_not_served
from pipelines.errors import printable
from pipelines.plan import plan_evaluation
from pipelines.video import Video
from tdn_bench.exporting.clips import Clips, decode
from tdn_bench.exporting.formats import ExportFormat, OnnxFormat, OpenVinoFormat, TrtFormat
from tdn_bench.exporting.job import CheckFailed
from tdn_bench.exporting.pbtxt import Symbol, to_pbtxt
from tdn_bench.recognizer import Trained

Backend = Literal["onnxruntime", "openvino", "tensorrt"]
Preprocessing = Literal["dali", "none"]
BACKENDS: dict[str, ExportFormat] = {"onnxruntime": OnnxFormat(), "openvino": OpenVinoFormat(), "tensorrt": TrtFormat()}
LABELS = "labels.txt"
CPU, GPU = Symbol("KIND_CPU"), Symbol("KIND_GPU")
UINT8, INT32, FP32 = Symbol("TYPE_UINT8"), Symbol("TYPE_INT32"), Symbol("TYPE_FP32")


@dataclass(frozen=True)
class Repository:
    """What is written: its models' names follow from `name`, the one that clients call."""

    name: str
    backend: Backend
    preprocessing: Preprocessing
    device: torch.device  # where the server will run it

    @property
    def is_ensemble(self) -> bool:
        return self.preprocessing == "dali"

    @property
    def network(self) -> str:
        """The model that holds the network."""
        return f"{self.name}_network" if self.is_ensemble else self.name

    @property
    def preprocess(self) -> str:
        """The model that decodes."""
        return f"{self.name}_preprocess"

    @property
    def models(self) -> list[str]:
        """The folders of the repository."""
        return [self.name, self.preprocess, self.network] if self.is_ensemble else [self.name]

    @property
    def where(self) -> str:
        """Where DALI decodes."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def format(self) -> ExportFormat:
        """Of the network's file."""
        return BACKENDS[self.backend]

    def described(self, clip: ClipSpec, network_inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What a description says of it, beside what it says of the network."""
        about: dict[str, Any] = {"models": self.models, "backend": self.backend, "preprocessing_by": self.preprocessing}
        if not self.is_ensemble:
            return about
        indices = ["batch", clip.num_segments, clip.frames_per_segment]
        video = {"name": VIDEO, "dtype": "uint8", "shape": ["batch", "bytes"], "holds": "a video file"}
        numbers = {"name": INDICES, "dtype": "int32", "shape": indices, "holds": "zero-based numbers of its frames"}
        return about | {"inputs": [video, numbers], "network_inputs": network_inputs}

    def network_file(self, folder: Path) -> Path:
        """The network's file in the repository `folder`, by the name that its backend looks for."""
        return folder / self.network / "1" / f"model{self.format.suffix}"

    def pipeline_file(self, folder: Path) -> Path:
        """DALI's pipeline in the repository `folder`."""
        return folder / self.preprocess / "1" / "model.dali"


def write_repository(
    repository: Repository,
    trained: Trained,
    spec: EngineSpec,
    calibration: Calibration,
    notes: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Write the models to `folder`. Returns what the description should add. Raises EngineError, DataError."""
    clip, classes = trained.clip_spec(), trained.classes
    file = repository.network_file(folder)
    file.parent.mkdir(parents=True)
    added = repository.format.write(trained.classifier, spec, calibration, file, notes)
    config = network_config(repository, clip, classes, spec)
    _write_model(folder / repository.network, config, classes)
    if repository.is_ensemble:
        pipeline = repository.pipeline_file(folder)
        pipeline.parent.mkdir(parents=True)
        pipeline.write_bytes(serialized_pipeline(clip, spec.max_batch, repository.device))
        _write_model(folder / repository.preprocess, preprocess_config(repository, clip, spec))
        (folder / repository.name / "1").mkdir(parents=True)  # a version that holds nothing, as an ensemble's must
        _write_model(folder / repository.name, ensemble_config(repository, clip, classes, spec), classes)
    return added


def _write_model(folder: Path, config: dict[str, Any], classes: Sequence[str] | None = None) -> None:
    (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="ascii")
    if classes is not None:
        lines = [printable(name) for name in classes]  # a class a line, whatever its name holds
        (folder / LABELS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="replace")


def network_config(repository: Repository, clip: ClipSpec, classes: Sequence[str], spec: EngineSpec) -> dict[str, Any]:
    """The network's configuration. Its first dimension, the batch, is not among Triton's `dims`."""
    parameters = {"crop_ratio": repr(clip.crop_ratio)}  # for clients that send frames
    if repository.backend == "openvino":
        parameters["ENABLE_BATCH_PADDING"] = "YES"  # the backend fixes the batch at the largest
        if spec.precision == "bf16":
            parameters["HINT_BF16"] = "YES"
    return {
        "name": repository.network,
        "backend": repository.backend,
        "max_batch_size": spec.max_batch,
        "input": [{"name": "frames", "data_type": UINT8, "dims": list(clip.shape)}],
        "output": [{"name": "logits", "data_type": FP32, "dims": [len(classes)], "label_filename": LABELS}],
        "instance_group": [_instances(repository.device)],
        "dynamic_batching": {},
        "parameters": _parameters(parameters),
    }


def preprocess_config(repository: Repository, clip: ClipSpec, spec: EngineSpec) -> dict[str, Any]:
    """The DALI pipeline's configuration. Files differ in length: without ragged batches, equally long ones alone would
    be decoded together."""
    return {
        "name": repository.preprocess,
        "backend": "dali",
        "max_batch_size": spec.max_batch,
        "input": _video_inputs(clip, ragged=True),
        "output": [{"name": FRAMES, "data_type": UINT8, "dims": list(clip.shape)}],
        "instance_group": [_instances(repository.device)],
        "dynamic_batching": {},
        "parameters": _parameters({"num_threads": "4"}),
    }


def ensemble_config(repository: Repository, clip: ClipSpec, classes: Sequence[str], spec: EngineSpec) -> dict[str, Any]:
    """The ensemble's configuration: a video's bytes and frame numbers in, logits out. Its steps batch, it does not.
    `decodes_on` tells clients which codecs DALI knows there."""
    return {
        "name": repository.name,
        "platform": "ensemble",
        "max_batch_size": spec.max_batch,
        "input": _video_inputs(clip, ragged=False),
        "output": [{"name": "logits", "data_type": FP32, "dims": [len(classes)], "label_filename": LABELS}],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": repository.preprocess,
                    "model_version": -1,
                    "input_map": [{"key": name, "value": name} for name in (VIDEO, INDICES)],
                    "output_map": [{"key": FRAMES, "value": "frames"}],
                },
                {
                    "model_name": repository.network,
                    "model_version": -1,
                    "input_map": [{"key": "frames", "value": "frames"}],
                    "output_map": [{"key": "logits", "value": "logits"}],
                },
            ]
        },
        "parameters": _parameters({"decodes_on": repository.where}),
    }


def _video_inputs(clip: ClipSpec, ragged: bool) -> list[dict[str, Any]]:
    video: dict[str, Any] = {"name": VIDEO, "data_type": UINT8, "dims": [-1]}
    if ragged:
        video["allow_ragged_batch"] = True
    return [video, {"name": INDICES, "data_type": INT32, "dims": [clip.num_segments, clip.frames_per_segment]}]


def _parameters(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def _instances(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"kind": CPU, "count": 1}
    return {"kind": GPU, "count": 1, "gpus": [device.index or 0]}


def why_not_there(repository: Repository, precision: str) -> str | None:
    """None if Triton's backend gives what is asked for and this machine can write it, else one line: why not."""
    if repository.is_ensemble and importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed: pip install nvidia-dali-cuda120, or use --preprocessing none"
    if repository.backend == "openvino" and repository.device.type != "cpu":
        return "OpenVINO runs on the CPU: use --device cpu"
    if repository.backend == "openvino" and precision == "fp32":
        return (
            "Triton's OpenVINO backend cannot be told to compute in fp32, it takes bf16 where the processor has it: "
            "use --precision bf16, or --backend onnxruntime"
        )
    return None


def clips_that_fit(repository: Repository, clips: Clips) -> Clips | None:
    """Those of `clips` whose files the pipeline gives as they are; None where there is none."""
    fit = [i for i, video in enumerate(clips.videos) if why_not_served(video, repository.where) is None]
    return Clips(clips.frames[fit], tuple(clips.videos[i] for i in fit), clips.source) if fit else None


def check_pipeline(repository: Repository, folder: Path, clips: Clips, clip: ClipSpec) -> str:
    """Load the written pipeline anew and run it on the videos of `clips`: its frames must be the project's own DALI
    decoder's, every one. Returns what was found, for people. Raises CheckFailed."""
    wanted = decode(clips.videos, clip, "dali")
    if not wanted:
        raise CheckFailed("DALI decodes none of the clips, so its pipeline was not checked; name others by --check-on")
    found = run_pipeline(repository.pipeline_file(folder).read_bytes(), [video for _, video in wanted], clip)
    for (frames, video), got in zip(wanted, found, strict=True):
        if not torch.equal(frames, got):
            raise CheckFailed(f"the DALI pipeline returns other frames than the project's decoder for {video.path}")
    return f"DALI pipeline: the frames of {len(wanted)} {clips.source} clips are those of the project's DALI decoder"


def run_pipeline(serialized: bytes, videos: Sequence[Video], clip: ClipSpec) -> list[Tensor]:
    """The clips, uint8 (T, L, H, W, C), that a serialized pipeline makes of videos, one by one."""
    from nvidia.dali import Pipeline

    pipeline = Pipeline.deserialize(serialized, batch_size=1, num_threads=1)
    pipeline.build()
    found = []
    for video in videos:
        pipeline.feed_input(VIDEO, [np.fromfile(video.path, np.uint8)])
        pipeline.feed_input(INDICES, [plan_evaluation(video, clip).frames.astype(np.int32)])
        (output,) = pipeline.run()
        found.append(torch.from_numpy(np.array(output.as_cpu()[0])))
    return found
