"""Training by a recipe: set-up, epochs, validation, and what came of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from engines import prepare_compiler
from pipelines.annotations import flip_labels
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from pipelines.progress import progress as show_progress
from tdn_bench.checkpoint import load_backbone, load_checkpoint, load_imagenet
from tdn_bench.cli import pick_device
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.hub import local_checkpoint
from tdn_bench.measurement.time_breakdown import TimeBreakdown, break_down
from tdn_bench.models import FrameClassifier, SegmentNetwork, create_model
from tdn_bench.recipes import Recipe
from tdn_bench.training import run_state
from tdn_bench.training.checks import check
from tdn_bench.training.distributed import Ranks, bad_clip_reasons, distributed, gather, open_data, share_buffers
from tdn_bench.training.progress import Progress
from tdn_bench.training.result import MAX_REASONS, Epoch, TrainResult, train_record
from tdn_bench.training.run_state import Past
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
    past: Past  # what was done before, where the run was resumed


def train(recipe: Recipe, *, progress: bool = True, begun: Callable[[], object] = lambda: None) -> TrainResult:
    """Train by `recipe`; its output folder gets `last` and `best.safetensors`, `last.pt`, scalars, bad_clips.jsonl.
    `begun` is called, on the first process, once the folder is this run's own, before any data is read. Raises
    UserError for settings that cannot be, before any data is read; for a folder that holds another run; and where loss
    or weights come to what nobody can go on from."""
    check(recipe)
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":
            stack.enter_context(run_state.claim(recipe))
            begun()
        ranks, device = stack.enter_context(distributed(pick_device(recipe.device)))
        shown = progress and ranks.is_first
        run = stack.enter_context(set_up(recipe, device, ranks, shown))
        screen = stack.enter_context(closing(Progress(recipe, ranks.is_first, run.past.history)))
        result = run_epochs(run, screen, shown)
        if ranks.is_first and recipe.track is not None:
            screen.finish(train_record(recipe, result))
        return result


@contextmanager
def set_up(recipe: Recipe, device: torch.device, ranks: Ranks, progress: bool) -> Iterator[Run]:
    """Data, network, optimiser and loaders of a run."""
    precision = resolve_precision(recipe.precision, device)
    settings = run_state.describe(recipe, device, precision, ranks.world_size)
    state = run_state.read(recipe.output) if recipe.resume else None
    if state is not None:  # here already: reading the data may take hours
        run_state.compare(state, settings, recipe.allow_changes)
    manifest = open_data(recipe.data, ranks, progress, recipe.part.limit)
    network = start_network(recipe, manifest.classes)
    classifier = FrameClassifier(network).to(device)
    fresh = recipe.start.finetune is not None
    step = TrainStep(classifier, recipe.optimization, precision, device, fresh_classifier=fresh)
    log = recipe.output / ("bad_clips.jsonl" if ranks.is_first else f"bad_clips.{ranks.rank}.jsonl")
    if state is None:
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
        settings |= run_state.describe_data(manifest, training.decoder.name)
        past = run_state.Past(settings)
        if state is not None:
            past = run_state.restore(state, settings, recipe, step, network)
            if ranks.is_first:
                run_state.write_weights(recipe, network, past)  # the run may have died before it did
                _say_resumed(past)
        step.classifier = _wrapped(classifier, recipe, device, ranks)
        yield Run(recipe, ranks, manifest, network, classifier, step, training, validation, past)


def _say_resumed(past: Past) -> None:
    done, changes = len(past.history), past.changes
    changed = changes[-1]["changed"] if changes and changes[-1]["after_epoch"] == done else {}
    told = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changed.items())
    print(f"resumed after epoch {done}{f', from here on {told}' if told else ''}", flush=True)


def start_network(recipe: Recipe, classes: Sequence[str]) -> SegmentNetwork:
    """The recipe's network with the weights that it starts from; a resumed one's come from its state."""
    torch.manual_seed(recipe.seed)
    try:
        network = create_model(
            recipe.model, num_classes=len(classes), num_segments=recipe.num_segments, dropout=recipe.dropout
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    if recipe.resume:
        return network
    if recipe.start.init is not None:
        load_imagenet(network, recipe.start.init)
    if recipe.start.checkpoint is not None:
        report = load_checkpoint(network, local_checkpoint(recipe.start.checkpoint), classes)
        if report.class_note is not None and os.environ.get("RANK", "0") == "0":
            print(report.class_note, file=sys.stderr)
    if recipe.start.finetune is not None:
        load_backbone(network, local_checkpoint(recipe.start.finetune))
    return network


def _wrapped(classifier: nn.Module, recipe: Recipe, device: torch.device, ranks: Ranks) -> nn.Module:
    """What the optimisation step calls: the network itself, compiled, spread over processes."""
    if recipe.compile:
        prepare_compiler()
        classifier = torch.compile(classifier)  # type: ignore[assignment]
    if ranks.world_size > 1:
        ids = [device] if device.type == "cuda" else None
        classifier = nn.parallel.DistributedDataParallel(classifier, device_ids=ids)
    return classifier


def run_epochs(run: Run, screen: Progress, progress: bool) -> TrainResult:
    """Train the epochs that are left, validate, save."""
    recipe, ranks, training, validation = run.recipe, run.ranks, run.training, run.validation
    past = run.past
    breakdown, scores = None, None
    epochs = recipe.optimization.epochs
    for number in range(len(past.history), epochs):
        seed_epoch(recipe.seed, number, ranks.rank)
        replaced = training.bad_clips.replacements
        epoch, breakdown = train_epoch(run.step, training, number, progress)
        epoch = replace(epoch, stand_ins=sum(gather(training.bad_clips.replacements - replaced, ranks)))
        share_buffers(run.network, ranks)
        run_state.check_sound(run.network, epoch)
        training.bad_clips.join(bad_clip_reasons(training, ranks))
        if number + 1 == epochs or (number + 1) % recipe.evaluate_every == 0:
            scores = validate(run, progress)
            validation.bad_clips.join(bad_clip_reasons(validation, ranks))
            epoch = replace(epoch, top1=scores.top(1), top5=scores.top(5))
        past.history.append(epoch)
        _note_bad_clips(run)
        if ranks.is_first:
            run_state.save(recipe, run.step, run.network, past)
            screen.report(epoch, breakdown)
    if scores is None:  # resumed after the last epoch
        scores = validate(run, progress)
        validation.bad_clips.join(bad_clip_reasons(validation, ranks))
        _note_bad_clips(run)
    bad, bad_in_validation = (
        {run.manifest.videos.locate(path): reason for path, reason in past.bad_clips[split].items()}
        for split in ("train", "validation")
    )
    return TrainResult(
        checkpoint=recipe.output / run_state.LAST,
        epochs=tuple(past.history),
        scores=scores,
        bad_clips=len(bad),
        validation_bad_clips=len(bad_in_validation),
        bad_clip_reasons=dict(list((bad | bad_in_validation).items())[:MAX_REASONS]),
        manifest=run.manifest,
        precision=run.step.precision,
        device=training.device,
        ledger=breakdown.figures(len(training) * training.batch_size) if breakdown else {},
        threads=breakdown.threads if breakdown else (),
        changes=past.changes,
    )


def _note_bad_clips(run: Run) -> None:
    """Add what the loaders found to what the run knows. A loader looks at every video anew: a resumption may come after
    a repair."""
    for split, loader in (("train", run.training), ("validation", run.validation)):
        found = {p.removeprefix(f"{run.manifest.root}/"): reason for p, reason in loader.bad_clips.reasons.items()}
        run.past.bad_clips[split] = run.past.bad_clips.get(split, {}) | found


def seed_epoch(seed: int, number: int, rank: int) -> None:
    """Seed what draws dropout's masks: others in every epoch and on every process, and the same after a resumption."""
    (state,) = np.random.SeedSequence((seed, number, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state))


def train_epoch(step: TrainStep, loader: ClipLoader, number: int, progress: bool) -> tuple[Epoch, TimeBreakdown]:
    """Return what the epoch did and where its time went. `number` counts from 0."""
    step.classifier.train()
    steps = len(loader)
    total = torch.zeros((), device=step.device)
    clips, done, waited_before, ledger = 0, 0, loader.wait_s, loader.ledger
    ledger.start()
    lane, start = ledger.lane(), time.perf_counter()
    with show_progress(f"Epoch {number + 1}", steps, "steps", shown=progress, still=True) as advance:
        for batch in loader.epoch(number):
            begun, what = time.perf_counter(), f"step {done}"
            with ledger.on_device("train", what, wait=False):
                total += step(batch.frames, batch.labels, number + done / steps)
            clips, done = clips + len(batch), done + 1
            if (done % LOSS_EVERY == 0 or done == steps) and not torch.isfinite(total):
                raise UserError(
                    f"the loss became {total.item()} in epoch {number + 1}; {run_state.way_out(number + 1)}"
                )
            now = time.perf_counter()
            lane.add("train", begun, now, what)
            elapsed = now - start
            waiting = (loader.wait_s - waited_before) / elapsed
            advance(1, f"{clips / elapsed:.1f} clips/s, {waiting:.0%} waiting for data")
    loss = (total / done).item()  # waits for the device, so that the epoch's time is whole
    seconds = time.perf_counter() - start
    ledger.stop()
    wait_share = (loader.wait_s - waited_before) / seconds
    return Epoch(number + 1, loss, clips / seconds, wait_share, seconds, stand_ins=0), break_down(ledger)


def validate(run: Run, shown: bool = False) -> Scores:
    """Score the validation split; with several processes each scores its part and all get the whole."""
    run.classifier.eval()
    loader = run.validation
    part: Scores | None = None
    if len(loader):  # with more processes than videos some have none
        with (
            torch.inference_mode(),
            autocast(run.step.precision, loader.device),
            show_progress("Validating", len(loader.videos) // run.ranks.world_size, shown=shown) as advance,
        ):
            part = score(run.classifier, loader.epoch(), done=lambda batch, part: advance(len(part.ids)))
    parts = [p for p in gather(part, run.ranks) if p is not None]
    logits = torch.cat([p.logits for p in parts])
    if not logits.isfinite().all():
        done = len(run.past.history)
        raise UserError(f"validation after epoch {done + 1}: logits that are not finite; {run_state.way_out(done + 1)}")
    return Scores(tuple(i for p in parts for i in p.ids), logits, torch.cat([p.labels for p in parts]))
