"""How much of everything the suite does: in full on a GPU, as little as will do without one."""

from __future__ import annotations

from dataclasses import dataclass

from engines import ENGINES, PRECISIONS


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything. Pictures are (width, height) in pixels, batches are in clips."""

    model: str
    num_segments: int
    size: int  # height and width of the network's input, pixels
    ceiling_precision: str
    matrix_side: int
    copy_bytes: int
    clip_sizes: tuple[tuple[int, int], ...]
    clip_frames: int
    plans_per_clip: int
    train_videos: int
    validation_videos: int
    loader_batches: tuple[int, ...]
    loader_s: float
    train_precisions: tuple[str, ...]  # fp32 first
    train_compiled: tuple[str, ...]  # precisions in which the network is also compiled
    train_batch: int
    train_epochs: int
    train_compiler: str  # a back end of torch.compile
    engine_precisions: tuple[str, ...]
    engine_batches: tuple[int, ...]
    compile_batches: tuple[int, ...]  # each takes the compiler up to a minute; none in a dry run
    timing_s: float  # of the calls that are timed on their own
    path_engines: tuple[str, ...]
    path_batch: int
    path_s: float
    step_timeout_s: float
    threads: int | None  # of OpenMP; default: one per core


def full() -> Sizes:
    """For a GPU: the paper's network and clip."""
    return Sizes(
        model="tdn_resnet50",
        num_segments=8,
        size=224,
        ceiling_precision="bf16",
        matrix_side=16384,
        copy_bytes=4 * 2**30,
        clip_sizes=((160, 120), (320, 240), (161, 121)),
        clip_frames=120,
        plans_per_clip=8,
        train_videos=512,
        validation_videos=256,
        loader_batches=(1, 4, 16, 64),
        loader_s=5,
        train_precisions=("fp32", "bf16", "fp16"),
        train_compiled=("fp32", "bf16", "fp16"),
        train_batch=32,
        train_epochs=3,
        train_compiler="inductor",
        engine_precisions=PRECISIONS,
        engine_batches=(1, 16, 64, 256),
        compile_batches=(1, 16, 64, 256),
        timing_s=2,
        path_engines=ENGINES,
        path_batch=16,
        path_s=10,
        step_timeout_s=1500,
        threads=None,
    )


def dry() -> Sizes:
    """For a CPU: as little as shows that every step works."""
    return Sizes(
        model="tdn_resnet_small",
        num_segments=4,
        size=64,
        ceiling_precision="fp32",
        matrix_side=512,
        copy_bytes=2**24,
        clip_sizes=((160, 120), (161, 121)),
        clip_frames=30,
        plans_per_clip=2,
        train_videos=8,
        validation_videos=8,
        loader_batches=(4,),
        loader_s=0,
        train_precisions=("fp32", "bf16"),
        train_compiled=("fp32",),
        train_batch=2,
        train_epochs=2,
        train_compiler="aot_eager",
        engine_precisions=("fp32",),
        engine_batches=(2,),
        compile_batches=(),
        timing_s=0,
        path_engines=("eager",),
        path_batch=4,
        path_s=0,
        step_timeout_s=600,
        threads=1,  # several would wait for each other on a busy machine
    )
