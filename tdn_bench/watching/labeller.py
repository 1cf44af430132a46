"""Probabilities of a window, from whole clips by any engine, or from features that are kept from window to window.

Shapes: T segments, L frames in a segment, S pixels, C colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engines import EngineSpec, copy_network, create_engine, prepare_compiler
from engines.pytorch import float32_as, keep_freed_memory, place
from tdn_bench.cli import BuildFlags
from tdn_bench.errors import UserError
from tdn_bench.models.split import Features, join_segments, split
from tdn_bench.recognizer import Trained

KEEPING = ("eager", "compile")  # engines that can run a part of a network: others are built for whole clips

Read = Callable[[np.ndarray], Tensor]  # frame numbers → uint8 (*numbers.shape, S, S, C)


class Labeller(Protocol):
    """Called with the frames (T, L) of a window in two steps: `read` copies what is needed of them, while the frames
    are sure to be there; `label` computes."""

    kept_segments: int  # of the last window, those that were not computed again

    def read(self, frames: np.ndarray, read: Read) -> None: ...
    def label(self) -> Tensor:
        """float64 (classes,) probabilities, on the CPU and so computed when it returns. Raises UserError where they
        are no numbers."""
        ...

    def close(self) -> None: ...


class WholeClips:
    """Every window anew, by an engine for whole clips."""

    kept_segments = 0

    def __init__(self, trained: Trained, engine: str, spec: EngineSpec, build: BuildFlags) -> None:
        self._engine = create_engine(engine, trained.classifier, spec, cache=build.engine_cache)

    def read(self, frames: np.ndarray, read: Read) -> None:
        self._clip = read(frames)[None]

    def label(self) -> Tensor:
        with torch.inference_mode():
            return probabilities(self._engine(self._clip.to(self._engine.spec.device)))

    def close(self) -> None:
        self._engine.close()


class KeptFeatures:
    """Segments that the window before had, too, are not computed again up to the network's first module that looks
    across segments. The same logits as `WholeClips` to rounding."""

    def __init__(self, trained: Trained, engine: str, spec: EngineSpec) -> None:
        parts = split(place(copy_network(trained.classifier, spec, engine)))
        assert parts is not None
        self._spec, self.kept_segments = spec, 0
        self._head: Callable[[Tensor], Features]
        self._tail: Callable[..., Tensor]
        self._head, self._tail = parts
        if spec.device == "cpu":
            keep_freed_memory()
        if engine == "compile":
            prepare_compiler()
            self._head, self._tail = (torch.compile(part, fullgraph=True, dynamic=False) for part in parts)
        self._kept: dict[bytes, Features] = {}

    def read(self, frames: np.ndarray, read: Read) -> None:
        self._keys = [segment.tobytes() for segment in frames]
        self._kept = {key: self._kept[key] for key in self._keys if key in self._kept}
        self._new = {
            key: read(segment) for key, segment in zip(self._keys, frames, strict=True) if key not in self._kept
        }
        self.kept_segments = sum(key in self._kept for key in self._keys)

    def label(self) -> Tensor:
        with torch.inference_mode(), float32_as(self._spec.precision):
            for key, pictures in self._new.items():  # one by one: compiled once, for one
                self._kept[key] = self._head(pictures[None].to(self._spec.device))
            return probabilities(self._tail(*join_segments([self._kept[key] for key in self._keys])))

    def close(self) -> None:
        self._kept.clear()


def probabilities(logits: Tensor) -> Tensor:
    """float64 (classes,) on the CPU, of the logits of one clip (1, classes)."""
    values = logits[0].cpu().double().softmax(0)
    if not torch.isfinite(values).all():
        raise UserError("the network's logits are no numbers: the checkpoint is damaged, or needs another --precision")
    return values


def why_nothing_is_kept(trained: Trained, engine: str) -> str | None:
    """None where features can be kept from window to window, else why not."""
    if engine not in KEEPING:
        return f"the engine {engine} takes whole clips"
    if split(trained.classifier) is None:
        return f"{trained.network.model} keeps no segments apart"
    return None


def create_labeller(
    trained: Trained, engine: str, precision: str, device: torch.device, build: BuildFlags, *, keep: bool
) -> Labeller:
    """A labeller, warm: two windows of black frames have been labelled, and forgotten. Raises EngineError."""
    spec = build.spec(trained.clip_spec(), 1, precision, device)
    labeller: Labeller = KeptFeatures(trained, engine, spec) if keep else WholeClips(trained, engine, spec, build)
    segments, length, *picture = spec.frames_shape
    clip = segments * length

    def black(frames: np.ndarray) -> Tensor:
        return torch.zeros(*frames.shape, *picture, dtype=torch.uint8)

    for start in (-2 * clip, -2 * clip - length):  # numbers that no frame has
        labeller.read(start + np.arange(clip).reshape(segments, length), black)
        labeller.label()
    return labeller
