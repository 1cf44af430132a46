"""The DALI backend: NVDEC on a GPU, FFmpeg inside DALI on a CPU; one code path, the device is a parameter.

It uses DALI's dynamic mode: the pipeline's operators called from plain Python, with ordinary exceptions, so
that a bad clip is found and left out, and order, seeds and position stay in Python (`pipelines.plan`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.cpu import read_frames
from pipelines.errors import BadClip, DataError
from pipelines.ledger import OFF, Lane, Ledger
from pipelines.picture import check_file, coded_crop, coded_size, in_order, upright, views
from pipelines.plan import ClipPlan
from pipelines.video import JPEG_FRAMES, VideoFile

Item = tuple[ClipPlan, list[np.ndarray]]  # a plan and its file, or its JPEG files
Clip = Tensor | BadClip
CPU_CODECS = frozenset({"vp8", "vp9", "libvpx", "libvpx-vp9", "mjpeg", JPEG_FRAMES})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "av1", "libdav1d", "mpeg4"}
MATRICES = frozenset({"", "BT.601"})  # it knows no other, and takes all for these


class DaliDecoder:
    """Decodes, crops, resizes and flips a batch of plans with DALI, in one call each, on the CPU or on a GPU.

    `verify` compares each file's sha256 with the scan's first. Raises DataError where DALI is not installed.
    """

    name = "dali"
    concurrent = False  # one stream of operators

    def __init__(
        self, spec: ClipSpec, device: torch.device, workers: int, verify: bool = False, ledger: Ledger = OFF
    ) -> None:
        try:
            import nvidia.dali.experimental.dynamic as ndd
        except ImportError as e:
            raise DataError(f"backend dali: {e}; pip install nvidia-dali-cuda120, or use --backend pyav") from e
        self._ndd = ndd
        self.spec, self.verify, self.ledger = spec, verify, ledger
        self.device = device
        self._where = "gpu" if device.type == "cuda" else "cpu"
        self._codecs = GPU_CODECS if device.type == "cuda" else CPU_CODECS
        ndd.set_num_threads(workers)

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
        """Return, in the plans' order, uint8 (views·T, L, H, W, C) on `device`, or why there is none."""
        lane = self.ledger.lane()
        clips: dict[int, Clip] = {}
        videos: dict[int, Item] = {}
        folders: dict[int, Item] = {}
        for i, plan in enumerate(plans):
            data = self._read(plan, lane)
            if isinstance(data, BadClip):
                clips[i] = data
            else:
                (folders if _is_folder(plan) else videos)[i] = plan, data
        for items, decode in ((videos, self._decode_videos), (folders, self._decode_jpegs)):
            found = self._decode(list(items.values()), decode, lane)
            clips |= dict(zip(items, found, strict=True))
        return [clips[i] for i in range(len(plans))]

    def _read(self, plan: ClipPlan, lane: Lane) -> list[np.ndarray] | BadClip:
        """The file's bytes, which DALI demultiplexes and decodes in one step; or those of each wanted JPEG frame."""
        video = plan.video
        if (why := why_not_dali(video.file, self._where)) is not None:
            hint = ", or DALI on a GPU" if video.file.codec not in self._codecs and self._where == "cpu" else ""
            return BadClip(video.id, video.path, f"{why}; use --backend pyav{hint}")
        try:
            check_file(plan, self.verify)
            if _is_folder(plan):
                return [np.frombuffer(data, np.uint8) for data in read_frames(plan, lane)]
            return [np.fromfile(video.path, np.uint8)]
        except BadClip as bad:
            return bad
        except OSError as e:
            return BadClip(video.id, video.path, f"cannot be read: {e.strerror}")
        finally:
            lane.lap("read")

    def _decode(self, items: list[Item], decode: Callable[[list[Item]], list[Any]], lane: Lane) -> list[Clip]:
        """Decode together; where that fails, one by one, to find the culprits and keep the rest."""
        if not items:
            return []
        try:
            pictures = decode(items)  # per clip uint8 (F, H, W, C), the distinct frames
            lane.lap("decode")  # with demultiplexing: the operator does both
            clips = self._augment([plan for plan, _ in items], pictures)
            lane.lap("augment")
            return clips
        except RuntimeError as e:
            if len(items) == 1:
                video = items[0][0].video
                return [BadClip(video.id, video.path, f"cannot be decoded: {_reason(e)}")]
            return [self._decode([item], decode, lane)[0] for item in items]

    def _decode_videos(self, items: list[Item]) -> list[Any]:
        ndd = self._ndd
        # Unique and ascending: a repeated index makes DALI seek and decode again from the key frame.
        wanted = [plan.wanted.astype(np.int32) for plan, _ in items]
        # pad_mode none: every other mode turns an index past the end into a made-up frame, silently
        video = ndd.decoders.video(
            ndd.batch([data for _, (data,) in items]), frames=ndd.batch(wanted), pad_mode="none", device=self._where
        )
        return list(video.evaluate().tensors)

    def _decode_jpegs(self, items: list[Item]) -> list[Any]:
        """Decode all frames of all clips as one batch of pictures (nvJPEG on a GPU, libjpeg-turbo on a CPU)."""
        ndd = self._ndd
        pictures = ndd.decoders.image(
            ndd.batch([data for _, frames in items for data in frames]), device=self._where
        ).evaluate()
        tensors = iter(pictures.tensors)
        return [[next(tensors) for _ in frames] for _, frames in items]

    def _augment(self, plans: list[ClipPlan], decoded: list[Any]) -> list[Clip]:
        """Crop and resize in one pass over the batch; a clip's pictures are one sample, or one each (JPEG)."""
        ndd = self._ndd
        samples: list[Any] = []
        start, end, size = [], [], []
        clips: list[Clip | None] = []
        for plan, pictures in zip(plans, decoded, strict=True):
            parts = pictures if isinstance(pictures, list) else [pictures]
            bad = self._check_sizes(plan, parts)
            clips.append(bad)
            if bad is not None:
                continue
            x, y, w, h = coded_crop(plan)
            width, height = coded_size(plan, self.spec.size)
            for part in parts:
                samples.append(part)
                start.append(np.array([y, x], np.float32))
                end.append(np.array([y + h, x + w], np.float32))
                size.append(np.array([height, width], np.float32))
        if samples:
            small = ndd.resize(
                ndd.batch(samples), roi_start=ndd.batch(start), roi_end=ndd.batch(end), size=ndd.batch(size)
            ).evaluate()
            resized = iter(small.tensors)
            for i, (plan, pictures) in enumerate(zip(plans, decoded, strict=True)):
                if clips[i] is None:
                    if isinstance(pictures, list):
                        out = torch.stack([next(resized).torch() for _ in pictures])
                    else:
                        out = next(resized).torch()
                    clip = views(in_order(upright(out, plan), plan), plan, self.spec)
                    # DALI's own memory must not be handed on; mostly it has been copied already
                    shared = clip.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
                    clips[i] = clip.clone() if shared else clip
        return [clip for clip in clips if clip is not None]

    def _check_sizes(self, plan: ClipPlan, parts: list[Any]) -> BadClip | None:
        file = plan.video.file
        expected = (file.width, file.height) if file.rotation % 180 == 0 else (file.height, file.width)
        for part in parts:
            height, width = part.shape[-3:-1]
            if max(abs(width - expected[0]), abs(height - expected[1])) > 1:  # 1: a decoder may round odd sizes
                reason = f"frames are {width}×{height}, not {expected[0]}×{expected[1]}"
                return BadClip(plan.video.id, plan.video.path, reason)
        return None

    def close(self) -> None:
        """DALI's threads and memory are the process's, shared by all decoders: nothing to give back."""


def why_not_dali(file: VideoFile, where: str) -> str | None:
    """None if DALI returns the frames of a scanned file as they are on "cpu" or "gpu", else why not."""
    if file.codec not in (GPU_CODECS if where == "gpu" else CPU_CODECS):
        return f"DALI cannot decode {file.codec} on the {where}"
    if file.oddity or file.matrix not in MATRICES:
        return f"DALI would get it wrong ({file.oddity or f'colours of {file.matrix}'})"
    return None


def _is_folder(plan: ClipPlan) -> bool:
    return plan.video.file.codec == JPEG_FRAMES


def _reason(error: BaseException) -> str:
    """DALI's own sentence, without the source position in brackets and the stack that may follow it."""
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    text = re.sub(r"^An error happened during asynchronous execution", "", str(deepest).strip())
    text = re.sub(r"\[[^\]]*\.(?:cc|h|cu):\d+\]\s*", "", text).strip()
    return text.splitlines()[0] if text else "DALI gives no reason"
