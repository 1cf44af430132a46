"""An evaluation's clip as a DALI pipeline of its own, to be kept in a file and run elsewhere: what a Triton server
decodes with. It returns what `pipelines.dali` returns, to the bit.

It holds a file's whole way but for two things that need the scan: which frames (the caller gives their numbers, by
`pipelines.sampling.center_frame_indices`), and whether DALI gets the file right (`why_not_served`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pipelines.clip import COLOURS, ClipSpec
from pipelines.dali import why_not_dali
from pipelines.errors import DataError
from pipelines.video import JPEG_FRAMES, OK, Video

VIDEO, INDICES, FRAMES = "video", "indices", "frames"  # names of the inputs and of the output


def serialized_pipeline(spec: ClipSpec, max_batch: int, device: torch.device, threads: int = 1) -> bytes:
    """DALI's serialized pipeline for the centred clip and centre crop of `spec`, at most `max_batch` videos at a time.

    Inputs, each by its name: `video`, uint8 (bytes,), a video file; `indices`, int32 (T, L), zero-based frames, none
    past the file's last one. Output: `frames`, uint8 (T, L, H, W, C), RGB, on `device`. Raises DataError where DALI is
    not installed.
    """
    dali = _dali()
    fn, types = dali.fn, dali.types
    on_gpu = device.type == "cuda"
    pipeline = dali.Pipeline(
        batch_size=max_batch,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        output_dtype=[types.UINT8],
        output_ndim=[5],
    )
    with _untraced(), pipeline:
        encoded = fn.external_source(name=VIDEO, ndim=1, dtype=types.UINT8)
        indices = fn.external_source(name=INDICES, ndim=2, dtype=types.INT32)
        # pad_mode none: every other mode turns an index past the end into a made-up frame, silently
        pictures = fn.decoders.video(
            encoded, frames=fn.reshape(indices, shape=[-1]), pad_mode="none", device="mixed" if on_gpu else "cpu"
        )
        start, end = crop_box(pictures, spec.crop_ratio)
        small = fn.resize(pictures, roi_start=start, roi_end=end, size=[spec.size, spec.size])
        clip = (spec.num_segments, spec.frames_per_segment, spec.size, spec.size, COLOURS)
        pipeline.set_outputs(fn.reshape(small, shape=list(clip), layout="", name=FRAMES))
    return bytes(pipeline.serialize())


def why_not_served(video: Video, where: str) -> str | None:
    """None if the pipeline gives the frames of a scanned video as they are, on "cpu" or "gpu", else why not: it turns
    nothing upright, and knows fewer files than PyAV."""
    file = video.file
    if file.status != OK:
        return file.status
    if file.codec == JPEG_FRAMES:
        return "it is a folder of frames, no file"
    if file.rotation or file.mirrored:
        return "its pictures are stored turned or mirrored"
    return why_not_dali(file, where)


def crop_box(pictures: Any, ratio: float) -> tuple[Any, Any]:
    """`plan.center_crop` in DALI's arithmetic: (top, left) and (bottom, right) of the square in the middle of pictures
    (F, H, W, C) that spans `ratio` of their short side, float pixels."""
    dali = _dali()
    fn, math, types = dali.fn, dali.math, dali.types
    shape = pictures.shape(dtype=types.INT32)
    height, width = shape[1], shape[2]
    short = fn.cast(math.min(height, width), dtype=types.FLOAT64)
    share = short * 0
    for part in float32_parts(ratio):
        share = share + part
    exact = short * share
    whole = math.floor(exact)
    rest, is_odd = exact - whole, whole - 2 * math.floor(whole / 2)
    rounded = whole + (rest > 0.5) + (rest == 0.5) * is_odd  # a half goes to the even number, as Python rounds
    side = math.max(fn.cast(rounded, dtype=types.INT32), 1)
    top, left = (height - side) // 2, (width - side) // 2
    box = fn.stack(top, left), fn.stack(top + side, left + side)
    return fn.cast(box[0], dtype=types.FLOAT), fn.cast(box[1], dtype=types.FLOAT)


@contextmanager
def _untraced() -> Iterator[None]:
    """Within, DALI does not note for each operator which line of which file made it: the names of this machine's
    folders are nobody's business who gets the pipeline."""
    from nvidia.dali._utils import dali_trace  # private, and DALI is pinned to one minor version

    before = dali_trace.is_tracing_enabled()
    dali_trace.set_tracing(enabled=False)
    try:
        yield
    finally:
        dali_trace.set_tracing(enabled=before)


def _dali() -> Any:
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.math
        import nvidia.dali.types
    except ImportError as e:
        raise DataError(f"DALI: {e}; pip install nvidia-dali-cuda120") from e
    return nvidia.dali


def float32_parts(number: float) -> list[float]:
    """Numbers that float32 holds and whose sum in float64, from the first on, is `number`: DALI keeps constants so."""
    parts = []
    while number:
        parts.append(float(np.float32(number)))
        number -= parts[-1]
    return parts
