"""Training by a recipe: set-up, epochs, validation, and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pipelines.annotations import flip_labels
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.checkpoint import load_backbone, load_checkpoint, load_imagenet
from tdn_bench.cli import flag, pick_device
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.measurement.time_breakdown import TimeBreakdown, break_down
from tdn_bench.models import FrameClassifier, SegmentNetwork, create_model
from tdn_bench.recipes import Recipe
from tdn_bench.records import check_folder, check_name
from tdn_bench.training import run_state
from tdn_bench.training.distributed import Ranks, bad_clip_reasons, distributed, gather, open_data
from tdn_bench.training.progress import Progress, progress_bar
from tdn_bench.training.result import MAX_REASONS, Epoch, TrainResult
from tdn_bench.training.step import TrainStep, autocast, resolve_precision

LOSS_EVERY = 20  # steps: reading the loss waits for the device


@dataclass
class Run:
    """What a training run is made of, on this process."""

    recipe: Recipe
    ranks: Ranks
    manifest: Manifest
    network: SegmentNetwork
    classifier: FrameClassifier
    step: TrainStep
    training: ClipLoader
    validation: ClipLoader
    history: list[Epoch]  # of the epochs before, where the run was resumed


def train(recipe: Recipe, *, progress: bool = True) -> TrainResult:
    """Train by `recipe`; its output folder gets `last` and `best.safetensors`, `last.pt`, scalars, bad_clips.jsonl.
    Raises UserError for settings that cannot be, before any data is read, and where the loss is no number any more."""
    check(recipe)
    with distributed(pick_device(recipe.device)) as (ranks, device):
        shown = progress and ranks.is_first
        with set_up(recipe, device, ranks, shown) as run:
            return run_epochs(run, shown)


def check(recipe: Recipe) -> None:
    """Raise UserError for what could not be trained or written."""
    recipe.clip_spec()
    if recipe.size < 64:
        raise UserError(f"--size {recipe.size}: must be at least 64 pixels")
    starts = [name for name in ("init", "checkpoint", "finetune") if getattr(recipe.start, name) is not None]
    if len(starts) > 1:
        raise UserError(f"--{' and --'.join(starts)} exclude each other: a network has one start")
    check_name("--name", recipe.name)
    check_folder("--output", recipe.output)
    if recipe.results is not None:
        check_folder("--results", recipe.results)
    numbers = {name: getattr(recipe.optimization, name) for name in ("batch_size", "epochs")}
    for name, value in (numbers | {"evaluate_every": recipe.evaluate_every}).items():
        if value < 1:
            raise UserError(f"{flag(name)} {value}: must be at least 1")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.optimization.batch_size % processes:
        raise UserError(f"--batch-size {recipe.optimization.batch_size} does not divide over {processes} processes")


@contextmanager
def set_up(recipe: Recipe, device: torch.device, ranks: Ranks, progress: bool) -> Iterator[Run]:
    """Data, network, optimiser and loaders of a run."""
    manifest = open_data(recipe.data, ranks, progress)
    network = start_network(recipe, len(manifest.classes))
    classifier = FrameClassifier(network).to(device)
    precision = resolve_precision(recipe.precision, device)
    fresh = recipe.start.finetune is not None
    step = TrainStep(classifier, recipe.optimization, precision, device, fresh_classifier=fresh)
    history: list[Epoch] = []
    if recipe.resume:
        history = run_state.restore(recipe.output, step, network)
    elif ranks.is_first:
        run_state.forget(recipe.output)
    step.classifier = _wrapped(classifier, recipe, device, ranks)
    log = recipe.output / ("bad_clips.jsonl" if ranks.is_first else f"bad_clips.{ranks.rank}.jsonl")
    log.unlink(missing_ok=True)
    shared: dict[str, Any] = {
        "spec": recipe.clip_spec(),
        "batch_size": recipe.optimization.batch_size // ranks.world_size,
        "device": device,
        "workers": recipe.data.workers,
        "seed": recipe.seed,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "policy": recipe.loader.policy(log),
    }
    with ExitStack() as stack:
        training = recipe.loader.open(
            manifest.split("train"), flipped_labels=flip_labels(manifest.classes), ledger=Ledger(device), **shared
        )
        stack.enter_context(training)
        validation = stack.enter_context(recipe.loader.open(manifest.split("validation"), **shared))
        yield Run(recipe, ranks, manifest, network, classifier, step, training, validation, history)


def start_network(recipe: Recipe, num_classes: int) -> SegmentNetwork:
    """The recipe's network with the weights that it starts from."""
    torch.manual_seed(recipe.seed)
    try:
        network = create_model(
            recipe.model, num_classes=num_classes, num_segments=recipe.num_segments, dropout=recipe.dropout
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    if recipe.start.init is not None:
        load_imagenet(network, recipe.start.init)
    if recipe.start.checkpoint is not None:
        load_checkpoint(network, recipe.start.checkpoint)
    if recipe.start.finetune is not None:
        load_backbone(network, recipe.start.finetune)
    return network


def _wrapped(classifier: nn.Module, recipe: Recipe, device: torch.device, ranks: Ranks) -> nn.Module:
    """What the optimisation step calls: the network itself, compiled, spread over processes."""
    if recipe.compile:
        classifier = torch.compile(classifier)  # type: ignore[assignment]
    if ranks.world_size > 1:
        ids = [device] if device.type == "cuda" else None
        classifier = nn.parallel.DistributedDataParallel(classifier, device_ids=ids)
    return classifier


def run_epochs(run: Run, progress: bool) -> TrainResult:
    """Train the epochs that are left, validate, save."""
    recipe, ranks, training, validation = run.recipe, run.ranks, run.training, run.validation
    screen = Progress(recipe, ranks.is_first)
    train_s, breakdown, scores = 0.0, None, None
    epochs = recipe.optimization.epochs
    for number in range(len(run.history), epochs):
        epoch, seconds, breakdown = train_epoch(run.step, training, number, progress)
        train_s += seconds
        training.bad_clips.join(bad_clip_reasons(training, ranks))
        if number + 1 == epochs or (number + 1) % recipe.evaluate_every == 0:
            scores = validate(run)
            validation.bad_clips.join(bad_clip_reasons(validation, ranks))
            epoch = replace(epoch, top1=scores.top(1), top5=scores.top(5))
        run.history.append(epoch)
        if ranks.is_first:
            screen.report(epoch, breakdown)
            run_state.save(recipe, run.step, run.network, run.manifest, run.history)
    if scores is None:  # resumed after the last epoch
        scores = validate(run)
    screen.close()
    bad, bad_in_validation = (bad_clip_reasons(loader, ranks) for loader in (training, validation))
    return TrainResult(
        checkpoint=recipe.output / run_state.LAST,
        epochs=tuple(run.history),
        scores=scores,
        bad_clips=len(bad),
        replacements=sum(gather(training.bad_clips.replacements, ranks)),
        validation_bad_clips=len(bad_in_validation),
        bad_clip_reasons=dict(list((bad | bad_in_validation).items())[:MAX_REASONS]),
        train_s=train_s,
        manifest=run.manifest,
        precision=run.step.precision,
        device=training.device,
        ledger=breakdown.figures(len(training) * training.batch_size) if breakdown else {},
        threads=breakdown.threads if breakdown else (),
    )


def train_epoch(step: TrainStep, loader: ClipLoader, number: int, progress: bool) -> tuple[Epoch, float, TimeBreakdown]:
    """Return what the epoch did, its seconds, and where they went. `number` counts from 0."""
    step.classifier.train()
    steps = len(loader)
    total = torch.zeros((), device=step.device)
    clips, done, waited_before, ledger = 0, 0, loader.wait_s, loader.ledger
    ledger.start()
    lane, start = ledger.lane(), time.perf_counter()
    with progress_bar(progress, f"epoch {number + 1}", steps) as advance:
        for batch in loader.epoch(number):
            begun, what = time.perf_counter(), f"step {done}"
            with ledger.on_device("train", what, wait=False):
                total += step(batch.frames, batch.labels, number + done / steps)
            clips, done = clips + len(batch), done + 1
            if (done % LOSS_EVERY == 0 or done == steps) and not torch.isfinite(total):
                raise UserError(f"the loss became {total.item()} in epoch {number + 1}; try a smaller --lr")
            now = time.perf_counter()
            lane.add("train", begun, now, what)
            elapsed = now - start
            advance(
                f"{clips / elapsed:6.1f} clips/s, {(loader.wait_s - waited_before) / elapsed:4.0%} waiting for data"
            )
    loss = (total / done).item()  # waits for the device, so that the epoch's time is whole
    seconds = time.perf_counter() - start
    ledger.stop()
    epoch = Epoch(number + 1, loss, clips / seconds, (loader.wait_s - waited_before) / seconds)
    return epoch, seconds, break_down(ledger)


def validate(run: Run) -> Scores:
    """Score the validation split; with several processes each scores its part and all get the whole."""
    run.classifier.eval()
    loader = run.validation
    part: Scores | None = None
    if len(loader):  # with more processes than videos some have none
        with torch.inference_mode(), autocast(run.step.precision, loader.device):
            part = score(run.classifier, loader.epoch())
    parts = [p for p in gather(part, run.ranks) if p is not None]
    return Scores(
        tuple(i for p in parts for i in p.ids),
        torch.cat([p.logits for p in parts]),
        torch.cat([p.labels for p in parts]),
    )
