"""What could not be trained or written, found before any data is read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

from pipelines.processes import cores
from tdn_bench.cli import flag, pick_device
from tdn_bench.cli.flags import MAX_SEGMENTS, SIZES
from tdn_bench.errors import UserError
from tdn_bench.hub import local_checkpoint
from tdn_bench.recipes import Precision, Recipe
from tdn_bench.records import check_folder, check_name
from tdn_bench.training import run_state
from tdn_bench.training.step import resolve_precision
from tdn_bench.training.trackers import check_tracker

MAX_BATCH_BYTES = 2**35  # of uint8 frames, on one process; the network's float copies take many times as much


def check(recipe: Recipe) -> None:
    """Raise UserError for what could not be trained or written."""
    _check_numbers(recipe)
    recipe.loader.policy()
    starts = [name for name in ("init", "checkpoint", "finetune") if getattr(recipe.start, name) is not None]
    if len(starts) > 1:
        raise UserError(f"--{' and --'.join(starts)} exclude each other: a network has one start")
    for name in starts:
        file = getattr(recipe.start, name)
        if recipe.resume == "no" and not local_checkpoint(file).is_file():
            raise UserError(f"{flag(name)} {file}: no such checkpoint file")
    if recipe.compile and recipe.checkpoint_activations:
        raise UserError("--compile and --checkpoint-activations exclude each other: the compiler chooses what it keeps")
    if recipe.resume != "no" and recipe.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if recipe.resume != "no" and recipe.dry_run:
        raise UserError("--dry-run and --resume exclude each other: a dry run begins anew")
    if pick_device(recipe.device).type == "cpu" and recipe.processes.sync_batch_norm:
        raise UserError("--sync-batch-norm: PyTorch has it on GPUs only; leave it out")
    run_state.check_allowed(recipe)
    check_tracker(recipe.track)
    check_name("--name", recipe.name)
    check_folder("--output", recipe.output)
    if recipe.results is not None:
        check_folder("--results", recipe.results)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with nothing left open: T, learning rate, device, precision, workers, and where its start lies. It
    trains on this machine what `recipe` does. Raises UserError for a network or a device that is not there."""
    device = pick_device(recipe.device)
    files = {name: file.absolute() for name, file in vars(recipe.start).items() if file is not None and file.is_file()}
    return replace(
        recipe,
        num_segments=recipe.clip_spec().num_segments,
        optimization=replace(recipe.optimization, lr=recipe.optimization.peak_lr),
        device=str(device),
        precision=cast(Precision, resolve_precision(recipe.precision, device)),
        data=replace(recipe.data, workers=recipe.data.workers or cores()),
        start=replace(recipe.start, **files),
    )


def _ascend(epochs: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise((0, *epochs, 10**6)))


def _check_numbers(recipe: Recipe) -> None:
    spec, o, m, saving = recipe.clip_spec(), recipe.optimization, recipe.modern, recipe.saving
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    recipe.data.check()
    recipe.part.check()
    # every comparison is false of NaN
    for name, value, right, words in (
        ("num_segments", spec.num_segments, 1 <= spec.num_segments <= MAX_SEGMENTS, f"from 1 to {MAX_SEGMENTS}"),
        ("size", spec.size, SIZES[0] <= spec.size <= SIZES[1], f"from {SIZES[0]} to {SIZES[1]} pixels"),
        ("crop_ratio", spec.crop_ratio, 0 < spec.crop_ratio <= 1, "above 0 and at most 1"),
        ("crop_scales", spec.crop_scales, all(0 < s <= 1 for s in spec.crop_scales or [0]), "above 0 and at most 1"),
        ("dropout", recipe.dropout, 0 <= recipe.dropout < 1, "from 0 to below 1"),
        ("batch_size", o.batch_size, o.batch_size >= 1, "at least 1"),
        (
            "micro_batch_size",
            o.micro_batch_size,
            o.micro_batch_size is None or 1 <= o.micro_batch_size <= o.batch_size,
            f"from 1 to --batch-size {o.batch_size}",
        ),
        ("epochs", o.epochs, 1 <= o.epochs < 10**6, "at least 1, and below a million"),
        ("lr", o.lr, o.lr is None or 0 < o.lr <= 1000, "above 0 and at most 1000"),
        ("lr_per_64_clips", o.lr_per_64_clips, 0 < o.lr_per_64_clips <= 1000, "above 0 and at most 1000"),
        ("milestones", o.milestones, _ascend(o.milestones), "above 0, ascending, and below a million"),
        ("warmup_epochs", o.warmup_epochs, 0 <= o.warmup_epochs <= o.epochs, f"from 0 to --epochs {o.epochs}"),
        ("momentum", o.momentum, 0 <= o.momentum < 1, "from 0 to below 1"),
        ("weight_decay", o.weight_decay, 0 <= o.weight_decay <= 1000, "from 0 to 1000"),
        ("clip_gradient_norm", o.clip_gradient_norm, 0 < o.clip_gradient_norm <= 1e9, "above 0 and at most 1e9"),
        ("max_nonfinite_steps", o.max_nonfinite_steps, 1 <= o.max_nonfinite_steps <= 10**6, "from 1 to a million"),
        ("ema_decay", m.ema_decay, 0 <= m.ema_decay < 1, "from 0 to below 1"),
        ("label_smoothing", m.label_smoothing, 0 <= m.label_smoothing < 1, "from 0 to below 1"),
        ("mixup_alpha", m.mixup_alpha, 0 <= m.mixup_alpha <= 1000, "from 0 to 1000"),
        ("cutmix_alpha", m.cutmix_alpha, 0 <= m.cutmix_alpha <= 1000, "from 0 to 1000"),
        ("randaugment", m.randaugment, 0 <= m.randaugment <= 100, "from 0 to 100"),
        ("randaugment_strength", strength := m.randaugment_strength, 0 <= strength <= 10, "from 0 to 10"),
        ("repeats", m.repeats, 1 <= m.repeats <= 1000, "from 1 to 1000"),
        (
            "first_size",
            m.first_size,
            m.first_size is None or SIZES[0] <= m.first_size <= spec.size,
            f"from {SIZES[0]} to --size {spec.size} pixels",
        ),
        ("growing_epochs", m.growing_epochs, 0 <= m.growing_epochs <= o.epochs, f"from 0 to --epochs {o.epochs}"),
        (
            "evaluate_every",
            recipe.evaluate_every,
            1 <= recipe.evaluate_every <= 10**6,
            "at least 1, and below a million",
        ),
        ("rank_timeout_s", limit_s := recipe.processes.rank_timeout_s, 1 <= limit_s <= 1e6, "from 1 to a million"),
        ("save_minutes", saving.save_minutes, 0 <= saving.save_minutes <= 1e6, "from 0 to a million"),
        ("save_steps", saving.save_steps, 0 <= saving.save_steps < 10**9, "from 0 to below 10^9"),
        ("keep_checkpoints", saving.keep_checkpoints, 1 <= saving.keep_checkpoints <= 1000, "from 1 to 1000"),
        ("seed", recipe.seed, 0 <= recipe.seed < 2**63, "at least 0, and below 2^63"),
    ):
        if not right:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"{flag(name)} {shown}: must be {words}")
    if o.batch_size % processes:
        raise UserError(f"--batch-size {o.batch_size} does not divide over {processes} processes")
    if m.mixes and o.batch_size == processes:
        raise UserError(
            "--mixup-alpha and --cutmix-alpha mix clips of a process: give each two at least (--batch-size)"
        )
    if m.growing_epochs and m.first_size is None:
        raise UserError("--growing-epochs says how long clips grow: name the size that they start from by --first-size")
    if (size := o.batch_size // processes * math.prod(spec.shape)) > MAX_BATCH_BYTES:
        raise UserError(
            f"--batch-size {o.batch_size}, --num-segments {spec.num_segments}, --size {spec.size}: the frames of one "
            f"batch would take {size / 2**30:.0f} GiB, over {MAX_BATCH_BYTES // 2**30}; make one of them smaller"
        )
