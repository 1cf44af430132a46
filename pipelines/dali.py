"""The DALI backend: NVDEC on a GPU, FFmpeg inside DALI on a CPU; one code path, the device is a parameter.

It uses DALI's dynamic mode: the pipeline's operators called from plain Python, with ordinary exceptions, so
that a bad clip is found and left out, and order, seeds and position stay in Python (`pipelines.plan`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.clip import ClipSpec, Stages
from pipelines.errors import BadClip, DataError
from pipelines.plan import ClipPlan

CPU_CODECS = frozenset({"vp8", "vp9", "libvpx", "libvpx-vp9", "mjpeg"})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "av1", "libdav1d", "mpeg4"}


class DaliDecoder:
    """Decodes, crops, resizes and flips a batch of plans with DALI, in one call each."""

    name = "dali"

    def __init__(self, spec: ClipSpec, device: torch.device, workers: int) -> None:
        try:
            import nvidia.dali.experimental.dynamic as ndd
        except ImportError as e:
            raise DataError(f"backend dali: {e}; pip install nvidia-dali-cuda120, or use --backend pyav") from e
        self._ndd = ndd
        self.spec = spec
        self.device = device
        self._where = "gpu" if device.type == "cuda" else "cpu"
        self._codecs = GPU_CODECS if device.type == "cuda" else CPU_CODECS
        ndd.set_num_threads(workers)

    def __call__(self, plans: Sequence[ClipPlan]) -> tuple[list[Tensor | BadClip], Stages]:
        """Return, in the plans' order, uint8 (T, L, H, W, C) on `device`, or why there is none; and the work done."""
        stages = Stages()
        read = [self._read(plan, stages) for plan in plans]
        good = [(plan, data) for plan, data in zip(plans, read, strict=True) if not isinstance(data, BadClip)]
        decoded = iter(self._decode(good, stages) if good else ())
        return [data if isinstance(data, BadClip) else next(decoded) for data in read], stages

    def _read(self, plan: ClipPlan, stages: Stages) -> np.ndarray | BadClip:
        """The file's bytes; DALI demultiplexes and decodes them in one step."""
        video = plan.video
        if video.file.codec not in self._codecs:
            hint = "use --backend pyav" if self._where == "gpu" else "use --backend pyav, or DALI on a GPU"
            return BadClip(video.id, video.path, f"DALI cannot decode {video.file.codec} on the {self._where}; {hint}")
        clock = time.perf_counter()
        try:
            data = np.fromfile(video.path, np.uint8)
        except OSError as e:
            return BadClip(video.id, video.path, f"cannot be read: {e.strerror}")
        stages.read_s += time.perf_counter() - clock
        return data

    def _decode(self, items: list[tuple[ClipPlan, np.ndarray]], stages: Stages) -> list[Tensor | BadClip]:
        """Decode together; where that fails, one by one, to find the culprits and keep the rest."""
        try:
            return self._run(items, stages)
        except RuntimeError as e:
            if len(items) == 1:
                video = items[0][0].video
                return [BadClip(video.id, video.path, f"cannot be decoded: {_reason(e)}")]
            return [self._decode([item], stages)[0] for item in items]

    def _run(self, items: list[tuple[ClipPlan, np.ndarray]], stages: Stages) -> list[Tensor | BadClip]:
        ndd, where = self._ndd, self._where
        # Unique and ascending: a repeated index makes DALI seek and decode again from the key frame.
        wanted = [np.unique(plan.frames) for plan, _ in items]
        clock = time.perf_counter()
        # pad_mode none: every other mode turns an index past the end into a made-up frame, silently
        video = ndd.decoders.video(
            ndd.batch([data for _, data in items]),
            frames=ndd.batch([w.astype(np.int32) for w in wanted]),
            pad_mode="none",
            device=where,
        ).evaluate()
        now = time.perf_counter()
        stages.decode_s += now - clock
        start, end = [], []
        for plan, _ in items:
            x, y, w, h = plan.crop
            left, right = (x + w, x) if plan.flip else (x, x + w)  # swapped ends flip
            start.append(np.array([y, left], np.float32))
            end.append(np.array([y + h, right], np.float32))
        size = (self.spec.size, self.spec.size)
        small = ndd.resize(video, roi_start=ndd.batch(start), roi_end=ndd.batch(end), size=size).evaluate()
        clips: list[Tensor | BadClip] = []
        for (plan, _), unique, source, sample in zip(items, wanted, video.tensors, small.tensors, strict=True):
            file, (height, width) = plan.video.file, source.shape[1:3]
            if max(abs(width - file.width), abs(height - file.height)) > 1:  # 1: a decoder may round odd sizes
                reason = f"frames are {width}×{height}, not {file.width}×{file.height}"
                clips.append(BadClip(plan.video.id, plan.video.path, reason))
                continue
            position = torch.from_numpy(np.searchsorted(unique, plan.frames.ravel())).to(self.device)
            clips.append(sample.torch()[position].view(self.spec.shape))  # indexing copies out of DALI's memory
        stages.augment_s += time.perf_counter() - now
        return clips

    def close(self) -> None:
        """DALI's threads and memory are the process's, shared by all decoders: nothing to give back."""


def _reason(error: BaseException) -> str:
    """DALI's own sentence, without the source position in brackets and the stack that may follow it."""
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    text = re.sub(r"^An error happened during asynchronous execution", "", str(deepest).strip())
    text = re.sub(r"\[[^\]]*\.(?:cc|h|cu):\d+\]\s*", "", text).strip()
    return text.splitlines()[0] if text else "DALI gives no reason"
