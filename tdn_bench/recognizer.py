"""A trained network on videos: files in, class names with probabilities out. The checkpoint alone is enough.

recognize = load_recognizer("best.safetensors")
recognize("clip.mp4").top(5)  # [("Pushing something from left to right", 0.91), …]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor

from engines import Engine, create_engine, default_cache_dir, default_precision
from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.loader import Decoder, create_decoder
from pipelines.plan import plan_evaluation
from pipelines.processes import cores
from pipelines.scan import as_video
from pipelines.video import OK, Video
from tdn_bench.checkpoint import CheckpointError, known_classes, read_metadata
from tdn_bench.cli import BuildFlags, Network, NetworkFlags, pick_device
from tdn_bench.hub import local_checkpoint
from tdn_bench.models import FrameClassifier

# Clips, crops, size in pixels (None: the network's): the paper's protocols, Sec. 4.1.
VIEWS: dict[int, tuple[int, Literal[1, 3], int | None]] = {1: (1, 1, None), 30: (10, 3, 256)}


@dataclass(frozen=True)
class Trained:
    """A trained network and what its checkpoint says of it; `classifier` takes uint8 frames (B, T, L, H, W, C) and
    returns float32 logits (B, classes)."""

    network: Network
    classes: tuple[str, ...]
    classifier: FrameClassifier

    def clip_spec(self, views: int = 1) -> ClipSpec:
        """The clips of one video: `views` is a key of VIEWS."""
        clips, crops, size = VIEWS[views]
        spec = self.network.clip_spec()
        return replace(spec, num_clips=clips, num_crops=crops, size=size or spec.size)


def load_trained(
    checkpoint: str | Path, flags: NetworkFlags | None = None, *, device: torch.device | str = "cpu"
) -> Trained:
    """The network of a checkpoint, on `device`, in eval mode; `flags` overrule what the checkpoint notes.

    Raises CheckpointError for a file that is not whole or names no classes, UserError for flags that cannot be.
    """
    path = local_checkpoint(checkpoint)
    classes = known_classes(read_metadata(path), path)
    if classes is None:
        raise CheckpointError(f"{path}: names no classes; only a checkpoint that `tdn-bench train` wrote does")
    network = replace(flags or NetworkFlags(), checkpoint=path).resolve()
    return Trained(network, tuple(classes), network.build(classes, torch.device(device)))


@dataclass(frozen=True)
class Prediction:
    """What the network says of one video. `probabilities`: float64 (classes,), the softmax averaged over the views."""

    path: str
    classes: tuple[str, ...]
    probabilities: Tensor

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities, likeliest first; all of them where there are fewer."""
        values, places = self.probabilities.topk(min(k, len(self.classes)))
        return [(self.classes[i], p) for i, p in zip(places.tolist(), values.tolist(), strict=True)]


class Recognizer:
    """Calls a trained network's engine on video files. Made by `load_recognizer`; one caller at a time."""

    def __init__(self, trained: Trained, engine: Engine, decoder: Decoder, spec: ClipSpec) -> None:
        self.trained, self.engine, self.decoder, self.spec = trained, engine, decoder, spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.trained.classes

    def __call__(self, video: str | Path | Video) -> Prediction:
        """What the network says of a video file or a folder of JPEG frames; of a scanned `Video`, without scanning it
        again. Raises BadClip, which names the file and the reason."""
        row = video if isinstance(video, Video) else as_video(Path(video))
        if row.file.status != OK:
            raise BadClip(row.id, row.path, row.file.status)
        [frames] = self.decoder([plan_evaluation(row, self.spec)])
        if isinstance(frames, BadClip):
            raise frames
        return Prediction(row.path, self.classes, self.probabilities(frames.unflatten(0, (-1, self.spec.num_segments))))

    def probabilities(self, views: Tensor) -> Tensor:
        """float64 (classes,): the mean softmax of one video's views, uint8 (V, T, L, H, W, C)."""
        device = torch.device(self.engine.spec.device)
        with torch.inference_mode():
            logits = [self.engine(some.to(device)).cpu() for some in views.split(self.engine.spec.max_batch)]
        return torch.cat(logits).double().softmax(1).mean(0)

    def close(self) -> None:
        """Free the engine and the decoder."""
        self.engine.close()
        self.decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_recognizer(
    checkpoint: str | Path,
    *,
    engine: str = "eager",
    precision: str = "auto",
    views: int = 1,
    device: str = "auto",
    network: NetworkFlags | None = None,
    calibration: Sequence[Tensor] | None = None,
) -> Recognizer:
    """A recognizer from a checkpoint: network, T, size, crop and class names come from the file's own notes.

    Args:
        checkpoint: what `tdn-bench train` wrote (.safetensors); or hf-hub:user/repo, local-dir:PATH (`tdn-bench push`).
        engine: one of `engines.ENGINES`.
        precision: of the engine's arithmetic; auto is fp32 on a CPU, fp16 on a GPU.
        views: 1, a centred clip; or 30, ten clips × three crops of 256 pixels, averaged (the paper's Kinetics).
        device: auto, cpu, cuda or cuda:N.
        network: overrules the checkpoint's notes.
        calibration: for int8 and fp8, batches of uint8 frames (B, T, L, H, W, C).

    Raises CheckpointError, UserError and EngineError for what cannot be loaded or built.
    """
    where = pick_device(device)
    trained = load_trained(checkpoint, network, device=where)
    spec = trained.clip_spec(views)
    if precision == "auto":
        precision = default_precision(engine, str(where))
    build = BuildFlags().spec(spec, 1 if views == 1 else spec.num_crops, precision, where)
    ready = create_engine(engine, trained.classifier, build, calibration=calibration, cache=default_cache_dir())
    return Recognizer(trained, ready, create_decoder("auto", spec, where, cores()), spec)
