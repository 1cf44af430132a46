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

from engines.pytorch import keep_freed_memory
from pipelines.annotations import flip_labels
from pipelines.clip import ClipBatch
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from pipelines.progress import progress as show_progress
from tdn_bench.checkpoint import CheckpointError, load_backbone, load_checkpoint, load_imagenet
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
from tdn_bench.training.distributed import (
    Agreement,
    Ranks,
    bad_clips_of_all,
    distributed,
    from_first,
    gather,
    open_data,
    share_buffers,
    spread,
)
from tdn_bench.training.health import LOOK_EVERY, Health, NonFiniteSteps, explain
from tdn_bench.training.progress import Progress
from tdn_bench.training.result import MAX_REASONS, Epoch, TrainResult, train_record
from tdn_bench.training.run_state import Partial, Past
from tdn_bench.training.signals import SAVE, STOP, Asked, listening
from tdn_bench.training.step import TrainStep, autocast, resolve_precision
from tdn_bench.training.store import LAST, RunStore


@dataclass
class Run:
    """What a training run is made of, on this process."""

    recipe: Recipe
    ranks: Ranks
    store: RunStore | None  # the first process's: the others write nothing
    manifest: Manifest
    network: SegmentNetwork
    classifier: FrameClassifier
    step: TrainStep
    training: ClipLoader
    validation: ClipLoader
    health: Health
    past: Past  # what was done before, where the run was resumed

    @property
    def judged(self) -> FrameClassifier:
        """What is validated and written: the average of the weights, where one is kept."""
        average = self.step.average
        if average is None or not average.updates:
            return self.classifier
        assert isinstance(average.network, FrameClassifier)
        return average.network

    def write_weights(self) -> None:
        """Write the weights of the epoch that was finished last, on the first process."""
        if self.store is not None:
            network = self.judged.network
            assert isinstance(network, SegmentNetwork)
            run_state.write_weights(self.store, self.recipe, network, self.past)

    def save(self, *, wait: bool = False) -> None:
        """Save where the run is. All processes call it at the same place. Raises UserError where nobody could go on
        from there, where too many clips are bad, and where the disk takes no more."""
        run_state.check_sound(self.network, self.past)
        note_bad_clips(self)
        if self.store is not None:
            state = run_state.state_of(self.step, self.network, self.past)
            self.store.save(state, self.past.position, wait=wait)
        if wait:
            gather(None, self.ranks)  # none leaves before the first has written


class Saving:
    """When a run is saved within an epoch: after minutes and steps, and as signals ask. All processes decide alike."""

    def __init__(self, run: Run, asked: Asked) -> None:
        self._run, self._asked, self._agreement = run, asked, Agreement(run.ranks)
        self._limit_s = 60 * run.recipe.saving.save_minutes or float("inf")
        self._since, self._told = time.monotonic(), 0

    def is_due(self, done: int) -> bool:
        """Whether to save after `done` steps of an epoch."""
        in_time = self._run.ranks.is_first and time.monotonic() - self._since > self._limit_s
        self._told = self._agreement.agree(self._asked.flags | SAVE * in_time)
        every = self._run.recipe.saving.save_steps
        return self._told > 0 or (every > 0 and done % every == 0)

    def save(self) -> None:
        """Save, and end the run where it was asked to. Raises KeyboardInterrupt."""
        stopping = bool(self._told & STOP)
        self._run.save(wait=stopping)
        self._since, self._asked.save = time.monotonic(), False
        if stopping:
            if self._run.ranks.is_first:
                epoch, step = self._run.past.position
                print(f"saved after step {step} of epoch {epoch + 1}: go on with --resume", flush=True)
            self._asked.stop()


def train(recipe: Recipe, *, progress: bool = True, begun: Callable[[], object] = lambda: None) -> TrainResult:
    """Train by `recipe`; its output folder gets checkpoints, `last` and `best.safetensors`, scalars, bad_clips.jsonl.
    `begun` is called, on the first process, once the folder is this run's own, before any data is read. Raises
    UserError for settings that cannot be, before any data is read; for a folder that holds another run; and where loss
    or weights come to what nobody can go on from. A signal that asks the process to end ends it, as KeyboardInterrupt,
    after the step in hand is saved."""
    check(recipe)
    with ExitStack() as stack:
        store = None
        if os.environ.get("RANK", "0") == "0":
            store = stack.enter_context(
                RunStore.claim(
                    recipe.output,
                    resume=recipe.resume != "no",
                    overwrite=recipe.overwrite,
                    keep=recipe.saving.keep_checkpoints,
                )
            )
            begun()
        asked = stack.enter_context(listening())
        device = pick_device(recipe.device)
        if device.type == "cpu":
            keep_freed_memory()
        ranks, device = stack.enter_context(distributed(device, recipe.processes.rank_timeout_s))
        shown = progress and ranks.is_first
        if ranks.is_first:
            _say_rate(recipe, ranks)
        run = stack.enter_context(set_up(recipe, device, ranks, store, shown))
        screen = stack.enter_context(closing(Progress(recipe, ranks.is_first, run.past.history)))
        result = run_epochs(run, screen, asked, shown)
        if ranks.is_first and recipe.track is not None:
            screen.finish(train_record(recipe, result))
        return result


def _read_state(recipe: Recipe, ranks: Ranks, store: RunStore | None) -> run_state.State | None:
    """What the run goes on from, as the first process found it; None for a new run."""
    if recipe.resume == "no":
        return None
    loaded = from_first(store.newest() if store is not None else None, ranks)
    if loaded is None:
        if recipe.resume == "yes":
            raise CheckpointError(f"{recipe.output}: holds nothing to resume from; start without --resume")
        return None
    return run_state.parse(loaded)


@contextmanager
def set_up(recipe: Recipe, device: torch.device, ranks: Ranks, store: RunStore | None, progress: bool) -> Iterator[Run]:
    """Data, network, optimiser and loaders of a run."""
    precision = resolve_precision(recipe.precision, device)
    settings = run_state.describe(recipe, device, precision, ranks.world_size)
    state = _read_state(recipe, ranks, store)
    if state is not None:  # here already: reading the data may take hours
        run_state.compare(state, settings, recipe.change)
    manifest = open_data(recipe.data, ranks, progress, recipe.part.limit)
    network = start_network(recipe, manifest.classes, resumed=state is not None)
    if recipe.checkpoint_activations:
        network.checkpoint_activations()
    classifier = FrameClassifier(network).to(device)
    fresh = recipe.start.finetune is not None
    step = TrainStep(classifier, recipe.optimization, precision, device, fresh_classifier=fresh, modern=recipe.modern)
    log = recipe.output / "bad_clips.jsonl" if store is not None else None  # a dry run writes nothing
    if state is None and log is not None:
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
            manifest.split("train"),
            flipped_labels=flip_labels(manifest.classes),
            repeats=recipe.modern.repeats,
            ledger=Ledger(device),
            **shared,
        )
        stack.enter_context(training)
        validation = stack.enter_context(recipe.loader.open(manifest.split("validation"), **shared))
        settings |= run_state.describe_data(manifest, training.decoder.name)
        past = run_state.Past(settings)
        if state is None:
            past.begin(settings, {})
        else:
            past = run_state.restore(state, settings, recipe, step, network)
            if past.partial.step > len(training):
                raise UserError(f"{state.file}: is after step {past.partial.step} of an epoch of {len(training)} steps")
            if ranks.is_first:
                _say_resumed(past)
        step.adopt(
            spread(
                classifier,
                ranks,
                device,
                sync_norm=recipe.processes.sync_batch_norm,
                compiled=recipe.compile,
                accumulates=recipe.optimization.micro_batch_size is not None,
            )
        )
        health = stack.enter_context(
            closing(Health(recipe, step, training, ranks, past.position, logs=store is not None))
        )
        yield Run(recipe, ranks, store, manifest, network, classifier, step, training, validation, health, past)


def _say_rate(recipe: Recipe, ranks: Ranks) -> None:
    o = recipe.optimization
    rule = "" if o.lr is not None else f" ({o.lr_per_64_clips:g} for 64 clips, in proportion)"
    spread_over = f", {o.batch_size // ranks.world_size} on each of {ranks.world_size} processes"
    print(
        f"{recipe.name}: learning rate {o.peak_lr:g}{rule}, {o.batch_size} clips a step"
        f"{spread_over if ranks.world_size > 1 else ''}",
        flush=True,
    )


def _say_resumed(past: Past) -> None:
    (epoch, step), changed = past.position, past.stretches[-1].changed
    told = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changed.items())
    where = f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"
    print(f"resumed after {where}{f', from here on {told}' if told else ''}", flush=True)
    if "processes" in changed:
        print(
            "every step still takes the same clips; not as before are batch norm's statistics, which are of a "
            "process's own clips, dropout's masks, and the last digits of sums",
            flush=True,
        )


def start_network(recipe: Recipe, classes: Sequence[str], *, resumed: bool = False) -> SegmentNetwork:
    """The recipe's network with the weights that it starts from; a resumed one's come from its state."""
    torch.manual_seed(recipe.seed)
    try:
        network = create_model(
            recipe.model, num_classes=len(classes), num_segments=recipe.num_segments, dropout=recipe.dropout
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    if resumed:
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


def run_epochs(run: Run, screen: Progress, asked: Asked, progress: bool) -> TrainResult:
    """Train what is left, validate, save."""
    recipe, ranks, training = run.recipe, run.ranks, run.training
    past, saving = run.past, Saving(run, asked)
    asked.waits = True
    measured, scores = None, None
    epochs = recipe.optimization.epochs
    if past.history and past.partial.step == 0:
        run.write_weights()  # the run may have died before it did
    for number in range(len(past.history), epochs):
        measured = train_epoch(run, number, saving, progress) or measured
        share_buffers(run.network, ranks)
        if run.judged is not run.classifier:
            share_buffers(run.judged, ranks)
        run.save()  # validation may be long
        epoch = _finished(run, number)
        if number + 1 == epochs or (number + 1) % recipe.evaluate_every == 0:
            scores = validate(run, asked, progress)
            epoch = replace(epoch, top1=scores.top(1), top5=scores.top(5))
        past.history.append(epoch)
        past.partial = Partial()
        run.write_weights()
        run.save()
        if ranks.is_first:
            health = run.health.last
            screen.report(epoch, measured[0] if measured else None, health.steps if health else None)
        asked.stop_if_asked()
    if scores is None:  # resumed after the last epoch
        scores = validate(run, asked, progress)
        note_bad_clips(run)
    if run.store is not None:
        run.store.wait()
    bad, bad_in_validation = (
        {run.manifest.videos.locate(path): reason for path, reason in past.bad_clips[split].items()}
        for split in ("train", "validation")
    )
    return TrainResult(
        checkpoint=recipe.output / LAST,
        epochs=tuple(past.history),
        scores=scores,
        bad_clips=len(bad),
        validation_bad_clips=len(bad_in_validation),
        bad_clip_reasons=dict(list((bad | bad_in_validation).items())[:MAX_REASONS]),
        manifest=run.manifest,
        precision=run.step.precision,
        device=training.device,
        ledger=measured[0].figures(measured[1]) if measured else {},
        threads=measured[0].threads if measured else (),
        health=run.health.last,
        disturbed=[*run.health.last.disturbed, *measured[0].reasons()] if run.health.last and measured else (),
        stretches=past.stretches,
        changes=past.changes,
    )


def _finished(run: Run, number: int) -> Epoch:
    """The epoch that was trained, in all stretches of it."""
    partial = run.past.partial
    clips = partial.step * run.recipe.optimization.batch_size
    return Epoch(
        number + 1,
        loss=partial.loss,
        clips_per_s=clips / partial.train_s,
        wait_share=partial.waited_s / partial.train_s,
        train_s=partial.train_s,
        stand_ins=partial.replaced,
        skipped_steps=partial.skipped,
    )


def note_bad_clips(run: Run) -> None:
    """Add what the loaders of all processes found to what the run knows. A loader looks at every video anew: a
    resumption may come after a repair. Raises DataError where too many are bad."""
    for split, loader in (("train", run.training), ("validation", run.validation)):
        loader.bad_clips.join(bad_clips_of_all(loader, run.ranks))
        found = {p.removeprefix(f"{run.manifest.root}/"): r for p, r in loader.bad_clips.by_path().items()}
        known = run.past.bad_clips.get(split, {})
        run.past.stretches[-1].bad_clips += len(found.keys() - known.keys())
        run.past.bad_clips[split] = known | found


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed what draws dropout's masks: others in every step and on every process, and the same after a resumption."""
    (state,) = np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state))


def train_epoch(run: Run, number: int, saving: Saving, progress: bool) -> tuple[TimeBreakdown, int] | None:
    """Train the steps of an epoch, counted from 0, that are not done yet: `run.past.partial` holds them afterwards.
    Return where the time went, and of how many clips on this process; None where all were done."""
    step, loader, past = run.step, run.training, run.past
    loader.change_spec(run.recipe.training_spec(number))
    first, steps, before = past.partial.step, len(loader), replace(past.partial)
    if first == steps:
        return None
    stretch = past.stretches[-1]
    stretch_s, replaced, waited_before = stretch.train_s, 0, loader.wait_s
    step.classifier.train()
    health, ledger = run.health, loader.ledger
    ledger.start()
    lane, start = ledger.lane(), time.perf_counter()

    def note(done: int) -> None:
        """Take over what was done since the last call; waits for the device. All processes call it together."""
        looked = health.look(done, past.partial)
        elapsed = time.perf_counter() - start
        past.partial = replace(
            looked,
            train_s=before.train_s + elapsed,
            waited_s=before.waited_s + loader.wait_s - waited_before,
            replaced=before.replaced + sum(gather(replaced, run.ranks)),
        )
        stretch.train_s = stretch_s + elapsed

    try:
        with (
            health.follow(number),
            closing(loader.epoch(number, first_batch=first)) as batches,
            show_progress(f"Epoch {number + 1}", steps, "steps", done=first, shown=progress, still=True) as advance,
        ):
            for done, batch in enumerate(batches, first):
                step.clock.lap("wait")
                begun, what = time.perf_counter(), f"step {done}"
                seed_step(run.recipe.seed, number, done, run.ranks.rank)
                with ledger.on_device("train", what, wait=False):
                    health.after(step(batch.frames, batch.labels, number + done / steps), done)
                replaced += batch.replacements
                now = time.perf_counter()
                lane.add("train", begun, now, what)
                due = saving.is_due(done + 1)
                if due or (done + 1) % LOOK_EVERY == 0 or done + 1 == steps:
                    note(done + 1)
                if due:
                    saving.save()
                if run.ranks.beats is not None:
                    run.ranks.beats.beat(f"after step {done + 1} of epoch {number + 1}")
                elapsed = time.perf_counter() - start
                clips = (done + 1 - first) * run.recipe.optimization.batch_size
                waiting = (loader.wait_s - waited_before) / elapsed
                advance(1, f"{clips / elapsed:.1f} clips/s, {waiting:.0%} waiting for data")
                step.clock.lap("other")
    except NonFiniteSteps as e:
        raise explain(e, loader, number, run.recipe.output) from e
    ledger.stop()
    return break_down(ledger), (steps - first) * loader.batch_size


def validate(run: Run, asked: Asked, shown: bool = False) -> Scores:
    """Score the validation split; with several processes each scores its part and all get the whole. The run is saved:
    a signal ends it at once, as KeyboardInterrupt."""
    run.classifier.eval()
    loader = run.validation
    part: Scores | None = None
    if len(loader):  # with more processes than videos some have none
        with (
            torch.inference_mode(),
            autocast(run.step.precision, loader.device),
            show_progress("Validating", len(loader.videos) // run.ranks.world_size, shown=shown) as advance,
        ):

            def scored(batch: ClipBatch, part: Scores) -> None:
                advance(len(part.ids))
                asked.stop_if_asked()

            part = score(run.judged, loader.epoch(), done=scored)
    parts = [p for p in gather(part, run.ranks) if p is not None]
    logits = torch.cat([p.logits for p in parts])
    if not logits.isfinite().all():
        done = len(run.past.history) + 1
        raise UserError(f"validation after epoch {done}: logits that are not finite; {run_state.WAY_OUT}")
    return Scores(tuple(i for p in parts for i in p.ids), logits, torch.cat([p.labels for p in parts]))
