"""A trained network on videos: files in, class names with probabilities out. The checkpoint alone is enough.

recognize = load_recognizer("best.safetensors")
recognize("clip.mp4").top(5)  # [("Pushing something from left to right", 0.91), …]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor

from engines import QUANTISED, Engine, create_engine, default_cache_dir, default_precision
from pipelines.clip import ClipSpec
from pipelines.cpu import clip_of_frames
from pipelines.errors import BadClip
from pipelines.label_files import check_classes
from pipelines.loader import Decoder, create_decoder, decode_videos
from pipelines.processes import cores
from pipelines.sampling import evenly_spaced
from pipelines.scan import as_video
from pipelines.video import Video
from tdn_bench.checkpoint import CheckpointError, are_numbers, count_classes, known_classes, read_metadata
from tdn_bench.cli import BuildFlags, Network, NetworkFlags, pick_device
from tdn_bench.cli.flags import check_memory
from tdn_bench.errors import UserError
from tdn_bench.hub import local_checkpoint
from tdn_bench.models import FrameClassifier

# Clips, crops, size in pixels (None: the network's): the paper's protocols, Sec. 4.1.
VIEWS: dict[int, tuple[int, Literal[1, 3], int | None]] = {1: (1, 1, None), 30: (10, 3, 256)}
CALIBRATION_CLIPS, CALIBRATION_BATCH = 64, 8


@dataclass(frozen=True)
class Trained:
    """A trained network and what its checkpoint says of it; `classifier` takes uint8 frames (B, T, L, H, W, C) and
    returns float32 logits (B, classes)."""

    network: Network
    classes: tuple[str, ...]
    classifier: FrameClassifier

    def clip_spec(self, views: int = 1, size: int | None = None) -> ClipSpec:
        """The clips of one video: `views` is a key of VIEWS; `size` in pixels overrules theirs."""
        clips, crops, usual = VIEWS[views]
        spec = self.network.clip_spec()
        return replace(spec, num_clips=clips, num_crops=crops, size=size or usual or spec.size)


def load_trained(
    checkpoint: str | Path,
    flags: NetworkFlags | None = None,
    *,
    device: torch.device | str = "cpu",
    classes: Sequence[str] | None = None,
) -> Trained:
    """The network of a checkpoint, on `device`, in eval mode; `flags` overrule what the checkpoint notes. `classes`
    names the classes of a checkpoint that does not: the authors', whose classes are else "class 0", "class 1", …

    Raises CheckpointError for a file that is not whole, is no network's, or names its classes otherwise, UserError for
    flags that cannot be, DataError for names that cannot be told apart.
    """
    path = local_checkpoint(checkpoint)
    names = _class_names(path, classes)
    network = replace(flags or NetworkFlags(), checkpoint=path).resolve()
    return Trained(network, names, network.build(names, torch.device(device)))


def _class_names(path: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    """A checkpoint's class names: its own, or those that are given, or numbers."""
    noted = known_classes(read_metadata(path), path)
    if given is not None and noted is not None and not are_numbers(noted):
        raise CheckpointError(f"{path}: names its own {len(noted)} classes; leave out the names that you give")
    if given is None and noted is None and path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: names no classes; give their names, in its order (--class-names FILE)")
    if given is not None and len(given) != (count := count_classes(path)):
        raise CheckpointError(f"{path}: knows {count} classes, but {len(given)} names are given")
    names = given or noted or [f"class {i}" for i in range(count_classes(path))]
    check_classes(path, names)
    return tuple(names)


@dataclass(frozen=True)
class Prediction:
    """What the network says of one video. `probabilities`: float64 (classes,), the softmax averaged over the views."""

    path: str
    classes: tuple[str, ...]
    probabilities: Tensor

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities, likeliest first; all of them where there are fewer.
        Raises ValueError for a `k` below 1."""
        return [(name, p) for _, name, p in self.ranked(k)]

    def ranked(self, k: int) -> list[tuple[int, str, float]]:
        """As `top`, with each class's place in the order of the logits before its name."""
        if k < 1:
            raise ValueError(f"k is {k}: give 1 or more")
        values, places = self.probabilities.topk(min(k, len(self.classes)))
        return [(i, self.classes[i], p) for i, p in zip(places.tolist(), values.tolist(), strict=True)]


class Recognizer:
    """Calls a trained network's engine on video files. Made by `load_recognizer`; one caller at a time. `with` frees
    its engine and threads at the end; without it, they are there until the program ends."""

    def __init__(
        self, trained: Trained, engine: Engine, decoder: Decoder, spec: ClipSpec, workers: int | None = None
    ) -> None:
        self.trained, self.engine, self.decoder, self.spec = trained, engine, decoder, spec
        self.workers = workers or cores()
        self._turn: AbstractContextManager[object] = nullcontext() if decoder.concurrent else Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.trained.classes

    def __call__(self, video: str | Path | Video | Tensor) -> Prediction:
        """What the network says of a video file or a folder of JPEG frames; of a scanned `Video`, without scanning it
        again; of all frames of a video, RGB uint8 (N, H, W, 3). Raises BadClip, which names the file and the reason,
        UserError for logits that are no numbers."""
        if isinstance(video, Tensor):
            views = clip_of_frames(video, self.spec).unflatten(0, (-1, self.spec.num_segments))
            return self._prediction("frames", self.probabilities(views))
        [answer] = self._answers(self._decode([video], map))
        if isinstance(answer, BadClip):
            raise answer
        return answer

    def many(self, videos: Iterable[str | Path | Video]) -> Iterator[Prediction | BadClip]:
        """What the network says of each video, or why it says nothing, in their order. Videos are scanned and decoded
        ahead by threads, while the engine runs on batches of them; few are in memory at a time."""
        videos = iter(videos)
        at_once = max(1, self.engine.spec.max_batch // self.spec.num_views)
        ahead = 1 + -(-self.workers // at_once)  # batches: one in hand, and what keeps all workers busy
        pending: deque[Future[list[tuple[Video, Tensor | BadClip]]]] = deque()
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="scan") as scanning,
            ThreadPoolExecutor(ahead, thread_name_prefix="batch") as decoding,
        ):

            def fill() -> None:
                while len(pending) < ahead and (some := list(islice(videos, at_once))):
                    pending.append(decoding.submit(self._decode, some, scanning.map))

            try:
                fill()
                while pending:
                    clips = pending.popleft().result()
                    fill()
                    yield from self._answers(clips)
            finally:
                for future in pending:
                    future.cancel()

    def _decode(
        self, videos: Sequence[str | Path | Video], each: Callable[..., Iterable[Video]]
    ) -> list[tuple[Video, Tensor | BadClip]]:
        """Scan and decode some videos; `each` maps over them."""
        rows = list(each(_scanned, videos))
        with self._turn:
            clips = decode_videos(self.decoder, rows, self.spec)
            if self.decoder.device.type == "cuda":  # finished, before another thread's stream reads it
                torch.cuda.current_stream(self.decoder.device).synchronize()
        return list(zip(rows, clips, strict=True))

    def _answers(self, clips: list[tuple[Video, Tensor | BadClip]]) -> Iterator[Prediction | BadClip]:
        """Run the engine on the clips of some videos together."""
        good = [clip for _, clip in clips if isinstance(clip, Tensor)]
        said: Iterator[Tensor] = iter(())
        if good:
            frames = good[0] if len(good) == 1 else torch.cat(good)
            said = iter(self._probabilities(frames.unflatten(0, (-1, self.spec.num_segments)), len(good)))
        for row, clip in clips:
            if isinstance(clip, BadClip):
                yield clip
                continue
            yield self._prediction(row.path, next(said))

    def _prediction(self, path: str, probabilities: Tensor) -> Prediction:
        if not torch.isfinite(probabilities).all():
            raise UserError(
                f"{path}: its logits are NaN or infinite: the weights are beyond what the network can compute with in "
                f"{self.engine.spec.precision}"
            )
        return Prediction(path, self.classes, probabilities)

    def probabilities(self, views: Tensor) -> Tensor:
        """float64 (classes,): the mean softmax of one video's views, uint8 (V, T, L, H, W, C)."""
        return self._probabilities(views, 1)[0]

    def _probabilities(self, views: Tensor, videos: int) -> Tensor:
        """float64 (videos, classes), from uint8 (videos·V, T, L, H, W, C)."""
        device = torch.device(self.engine.spec.device)
        with torch.inference_mode():
            logits = [self.engine(some.to(device)).cpu() for some in views.split(self.engine.spec.max_batch)]
            return torch.cat(logits).double().softmax(1).unflatten(0, (videos, -1)).mean(1)

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


def _scanned(video: str | Path | Video) -> Video:
    return video if isinstance(video, Video) else as_video(Path(video))


def device_of(engine: str, device: str) -> torch.device:
    """Where an engine runs: what `device` names; for `auto` the GPU where there is one, and the engine has use of it.
    Raises UserError for a GPU that is not there."""
    return torch.device("cpu") if (engine, device) == ("openvino", "auto") else pick_device(device)


def load_recognizer(
    checkpoint: str | Path,
    *,
    engine: str = "eager",
    precision: str = "auto",
    views: int = 1,
    device: str = "auto",
    backend: str = "pyav",
    batch_size: int | None = None,
    classes: Sequence[str] | None = None,
    network: NetworkFlags | None = None,
    calibration: Sequence[Tensor] | None = None,
    calibrate_on: Sequence[str | Path] = (),
    workers: int | None = None,
) -> Recognizer:
    """A recognizer from a checkpoint: network, T, size, crop and class names come from the file's own notes.

    Args:
        checkpoint: what `tdn-bench train` wrote (.safetensors), or the authors' (.pth.tar); or hf-hub:user/repo,
            local-dir:PATH (`tdn-bench push`).
        engine: one of `engines.ENGINES`. eager computes exactly what `tdn-bench evaluate` does, in its precision.
        precision: of the engine's arithmetic; auto is fp32 on a CPU, fp16 on a GPU.
        views: 1, a centred clip; or 30, ten clips × three crops of 256 pixels, averaged (the paper's Kinetics).
        device: auto, cpu, cuda or cuda:N.
        backend: what decodes. pyav takes every video; dali is faster on a GPU, and refuses many (BT.709 colours).
        batch_size: views that the engine takes at a time; by default one video's, or a third of its crops.
        classes: class names, where the checkpoint has none.
        network: overrules the checkpoint's notes.
        calibration: for int8 and fp8, batches of uint8 frames (B, T, L, H, W, C).
        calibrate_on: for int8 and fp8 instead: videos, of which 64 evenly spaced ones are read.
        workers: threads that scan, and that decode; by default one for each processor.

    Raises CheckpointError, UserError, EngineError and DataError for what cannot be loaded or built.
    """
    if views not in VIEWS:
        raise UserError(f"{views} views: choose {' or '.join(map(str, VIEWS))}")
    where = device_of(engine, device)
    trained = load_trained(checkpoint, network, device=where, classes=classes)
    spec = trained.clip_spec(views, network.size if network is not None else None)
    batch_size = (1 if views == 1 else spec.num_crops) if batch_size is None else batch_size
    check_memory("batch_size", batch_size, spec)
    if precision == "auto":
        precision = default_precision(engine, str(where))
    if precision in QUANTISED and calibration is None and calibrate_on:
        calibration = read_clips(evenly_spaced(list(calibrate_on), CALIBRATION_CLIPS), spec, workers)
    # the network as it is where it is run as it is: the other engines may rewrite it, the reference must not
    build = replace(BuildFlags(), rewrite=engine != "eager").spec(spec, batch_size, precision, where)
    ready = create_engine(engine, trained.classifier, build, calibration=calibration, cache=default_cache_dir())
    return Recognizer(trained, ready, create_decoder(backend, spec, where, workers or cores()), spec, workers)


def read_clips(videos: Sequence[str | Path], spec: ClipSpec, workers: int | None = None) -> list[Tensor]:
    """The centred clips of some videos, for calibration: batches of uint8 frames (B, T, L, H, W, C). Raises BadClip for
    the first that cannot be used."""
    centred = replace(spec, num_clips=1, num_crops=1)
    with closing(create_decoder("pyav", centred, torch.device("cpu"), workers or cores())) as decoder:
        clips = decode_videos(decoder, list(map(_scanned, videos)), centred)
    if bad := [clip for clip in clips if isinstance(clip, BadClip)]:
        raise bad[0]
    return list(torch.stack([clip for clip in clips if isinstance(clip, Tensor)]).split(CALIBRATION_BATCH))
