"""Train a network by a recipe: `python -m tdn_bench.train RECIPE [--field value …]`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.annotations import flip_labels
from pipelines.clip import ClipSpec
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.checkpoint import (
    load_backbone,
    load_checkpoint,
    load_imagenet,
    read_training_state,
    save_checkpoint,
    write_training_state,
)
from tdn_bench.cli.flags import known_variant, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.evaluate import score
from tdn_bench.measurement.time_breakdown import Account, close
from tdn_bench.models import FrameClassifier, SegmentNetwork, create_model
from tdn_bench.recipes import RECIPES, Recipe
from tdn_bench.records.record import Record, check_folder, make_record, write_record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


T = TypeVar("T")
SCAN_LIMIT = timedelta(days=7)
MAX_REASONS = 100  # bad clips that a record names; the log in the output folder names all


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training did."""

    epoch: int
    loss: float
    clips_per_s: float
    wait_share: float  # of the epoch's time, spent waiting for data
    top1: float | None = None  # percent, on the validation split
    top5: float | None = None


@dataclass(frozen=True)
class TrainResult:
    checkpoint: Path  # of the last epoch, which `scores` belong to
    epochs: tuple[Epoch, ...]
    scores: Scores
    bad_clips: int  # of the training split; these four are counted over all processes
    stand_ins: int  # times that another video took a bad one's place
    validation_bad_clips: int
    bad_clip_reasons: Mapping[str, str]  # by path, of both splits, the first MAX_REASONS
    train_s: float  # wall time of all epochs, validation left out
    manifest: Manifest
    precision: str
    device: torch.device
    ledger: Mapping[str, object]  # figures of this process's last epoch; none where a resumed run had nothing to do
    threads: Sequence[Mapping[str, Any]]  # what each of its threads booked then


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, *, fresh_classifier: bool = False
) -> list[dict[str, object]]:
    """The authors' optimiser groups: biases of convolutions and linear layers learn twice as fast and do not
    decay; batch norm does not decay. A fresh classifier on a trained backbone learns 5 times (weight) and 10 times
    (bias) as fast."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    fresh_weights: list[nn.Parameter] = []
    fresh_biases: list[nn.Parameter] = []
    for path, module in model.named_modules():
        fresh = fresh_classifier and path.rpartition(".")[2] == "classifier"
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norms.append(parameter)
            elif name == "bias":
                (fresh_biases if fresh else biases).append(parameter)
            else:
                (fresh_weights if fresh else weights).append(parameter)
    groups = (
        (weights, 1.0, weight_decay), (biases, 2.0, 0.0), (norms, 1.0, 0.0),
        (fresh_weights, 5.0, weight_decay), (fresh_biases, 10.0, 0.0),
    )  # fmt: skip
    return [
        {"params": params, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        for params, scale, decay in groups
        if params
    ]


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate at a point of training, in epochs (fractions count)."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** sum(epoch >= m for m in recipe.milestones)
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where tensor cores have it (compute capability 8.0 on), fp16 on older GPUs, fp32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainStep:
    """One optimisation step under AMP: forward, backward, clipping, update."""

    def __init__(self, classifier: nn.Module, recipe: Recipe, precision: str, device: torch.device) -> None:
        self.classifier, self.recipe, self.device = classifier, recipe, device
        self.dtype = _DTYPES[precision]
        fresh = recipe.finetune is not None
        groups = parameter_groups(classifier, recipe.lr, recipe.weight_decay, fresh_classifier=fresh)
        self.optimizer = torch.optim.SGD(groups, momentum=recipe.momentum)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self, frames: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """Return the loss, still on the device (so that the host need not wait for it)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, epoch) * group["lr_scale"]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = F.cross_entropy(self.classifier(frames), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.classifier.parameters(), self.recipe.clip_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that torchrun started (alone without it)."""

    rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that torchrun's environment names; yield (ranks, this process's device)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(0, 1), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world_size), device
    finally:
        dist.destroy_process_group()


def train(recipe: Recipe, *, progress: bool = True) -> TrainResult:
    """Train by `recipe`; its output folder gets `last` and `best.safetensors`, `last.pt`, scalars, bad_clips.jsonl."""
    recipe = resolved(recipe)
    _check(recipe)
    with distributed(pick_device(recipe.device)) as (ranks, device):
        return _train(recipe, device, ranks, progress and ranks.is_first)


def resolved(recipe: Recipe) -> Recipe:
    """Fill what the network decides, so that a record shows it. Raises UserError for an unknown network."""
    if recipe.num_segments is not None:
        return recipe
    return replace(recipe, num_segments=known_variant(recipe.model).num_segments)


def _check(recipe: Recipe) -> None:
    if recipe.size < 64:
        raise UserError(f"--size {recipe.size}: must be at least 64 pixels")
    starts = [flag for flag in ("init", "checkpoint", "finetune") if getattr(recipe, flag) is not None]
    if len(starts) > 1:
        raise UserError(f"--{' and --'.join(starts)} exclude each other: a network has one start")
    check_folder("--output", recipe.output)
    if recipe.results is not None:
        check_folder("--results", recipe.results)
    for flag in ("batch_size", "epochs", "evaluate_every"):
        if getattr(recipe, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(recipe, flag)}: must be at least 1")


def _train(recipe: Recipe, device: torch.device, ranks: Ranks, progress: bool) -> TrainResult:
    manifest = _open(recipe, ranks, progress)
    precision = resolve_precision(recipe.precision, device)
    network = _network(recipe, len(manifest.classes))
    classifier = FrameClassifier(network).to(device)
    step = TrainStep(classifier, recipe, precision, device)

    state_file = recipe.output / "last.pt"
    history: list[Epoch] = []
    if recipe.resume:
        state = read_training_state(state_file)
        try:
            network.load_state_dict(state["network"])
            step.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as e:
            raise UserError(f"{state_file}: is of another network or start; resume with the flags of its run") from e
        step.scaler.load_state_dict(state["scaler"])
        history = [Epoch(**e) for e in state["history"]]
    elif ranks.is_first and state_file.exists():
        state_file.unlink()

    callable_: nn.Module = classifier
    if recipe.compile:
        callable_ = torch.compile(callable_)  # type: ignore[assignment]
    if ranks.world_size > 1:
        callable_ = nn.parallel.DistributedDataParallel(
            callable_, device_ids=[device] if device.type == "cuda" else None
        )
    step.classifier = callable_

    log = recipe.output / ("bad_clips.jsonl" if ranks.is_first else f"bad_clips.{ranks.rank}.jsonl")
    log.unlink(missing_ok=True)
    assert recipe.num_segments is not None
    frames = known_variant(recipe.model).frames_per_segment
    spec = ClipSpec(recipe.num_segments, frames, recipe.size, recipe.crop_ratio, recipe.crop_scales)
    shared: dict[str, Any] = {
        "backend": recipe.backend,
        "device": device,
        "workers": recipe.workers,
        "seed": recipe.seed,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "policy": recipe.bad_clip_policy(log),
    }
    if recipe.batch_size % ranks.world_size:
        raise UserError(f"--batch-size {recipe.batch_size} does not divide over {ranks.world_size} processes")
    batch_size = recipe.batch_size // ranks.world_size
    writer = _scalar_writer(recipe.output) if ranks.is_first else None
    train_s = 0.0
    account: Account | None = None
    scores: Scores | None = None
    with (
        ClipLoader(
            manifest.split("train"),
            spec,
            batch_size,
            flipped_labels=flip_labels(manifest.classes),
            ledger=Ledger(device),
            **shared,
        ) as training,
        ClipLoader(manifest.split("validation"), spec, batch_size, **shared) as validation,
    ):
        for number in range(len(history), recipe.epochs):
            epoch, seconds, account = _train_epoch(step, training, number, progress)
            train_s += seconds
            training.bad_clips.join(_reasons(training, ranks))
            last = number + 1 == recipe.epochs
            if last or (number + 1) % recipe.evaluate_every == 0:
                scores = validate(classifier, validation, ranks, precision)
                validation.bad_clips.join(_reasons(validation, ranks))
                epoch = Epoch(**(asdict(epoch) | {"top1": scores.top(1), "top5": scores.top(5)}))
            history.append(epoch)
            if not ranks.is_first:
                continue
            _report(epoch, account, recipe, writer, learning_rate(recipe, number))
            _save(recipe, step, network, manifest, history)
        if scores is None:  # resumed after the last epoch
            scores = validate(classifier, validation, ranks, precision)
        bad, bad_in_validation = (_reasons(loader, ranks) for loader in (training, validation))
        stand_ins = sum(_gather(training.bad_clips.stand_ins, ranks))
    if writer is not None:
        writer.close()
    return TrainResult(
        recipe.output / "last.safetensors",
        tuple(history),
        scores,
        len(bad),
        stand_ins,
        len(bad_in_validation),
        dict(list((bad | bad_in_validation).items())[:MAX_REASONS]),
        train_s,
        manifest,
        precision,
        device,
        account.figures(len(training) * batch_size) if account else {},
        account.threads if account else (),
    )


def _open(recipe: Recipe, ranks: Ranks, progress: bool) -> Manifest:
    """The data set; one process of each machine scans its files, the others find them in its cache."""
    if ranks.world_size == 1:
        return recipe.open(progress)
    # A group of its own: others give up after ten minutes (NCCL), and reading all of Kinetics may take hours.
    waiting = dist.new_group(backend="gloo", timeout=SCAN_LIMIT)
    scans = os.environ.get("LOCAL_RANK", "0") == "0"
    if not scans:
        dist.barrier(waiting)
    manifest = recipe.open(progress)
    if scans:
        dist.barrier(waiting)
    return manifest


def _gather(value: T, ranks: Ranks) -> list[T]:
    """The value of every process, in every process."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def _reasons(loader: ClipLoader, ranks: Ranks) -> dict[str, str]:
    """The bad clips of all processes' parts of a split: path → reason."""
    return {path: reason for part in _gather(loader.bad_clips.reasons, ranks) for path, reason in part.items()}


def _network(recipe: Recipe, num_classes: int) -> SegmentNetwork:
    """The recipe's network with the weights that it starts from."""
    torch.manual_seed(recipe.seed)
    try:
        network = create_model(
            recipe.model, num_classes=num_classes, num_segments=recipe.num_segments, dropout=recipe.dropout
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    if recipe.init is not None:
        load_imagenet(network, recipe.init)
    if recipe.checkpoint is not None:
        load_checkpoint(network, recipe.checkpoint)
    if recipe.finetune is not None:
        load_backbone(network, recipe.finetune)
    return network


def _save(recipe: Recipe, step: TrainStep, network: SegmentNetwork, manifest: Manifest, history: list[Epoch]) -> None:
    """Write what `--resume` needs, the epoch's weights, and where it is the best so far, those too."""
    state = {
        "network": network.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "history": [asdict(e) for e in history],
    }
    write_training_state(recipe.output / "last.pt", state)
    epoch = history[-1]
    notes = {
        "model": recipe.model,
        "num_segments": recipe.num_segments,
        "size": recipe.size,
        "crop_ratio": recipe.crop_ratio,
        "classes": list(manifest.classes),
        "epoch": epoch.epoch,
        "top1": epoch.top1,
    }
    save_checkpoint(network, recipe.output / "last.safetensors", notes)
    if epoch.top1 is not None and epoch.top1 == max(e.top1 for e in history if e.top1 is not None):
        save_checkpoint(network, recipe.output / "best.safetensors", notes)


def _train_epoch(step: TrainStep, loader: ClipLoader, number: int, progress: bool) -> tuple[Epoch, float, Account]:
    """Return what the epoch did, its seconds, and where they went."""
    step.classifier.train()
    steps = len(loader)
    total = torch.zeros((), device=step.device)
    clips, done, waited_before, ledger = 0, 0, loader.wait_s, loader.ledger
    ledger.start()
    lane, start = ledger.lane(), time.perf_counter()
    with _progress(progress, f"epoch {number + 1}", steps) as advance:
        for batch in loader.epoch(number):
            begun, what = time.perf_counter(), f"step {done}"
            with ledger.on_device("train", what, wait=False):
                total += step(batch.frames, batch.labels, number + done / steps)
            clips, done = clips + len(batch), done + 1
            # reading the loss waits for the device, so not at every step
            if (done % 20 == 0 or done == steps) and not torch.isfinite(total):
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
    return epoch, seconds, close(ledger)


def validate(classifier: nn.Module, loader: ClipLoader, ranks: Ranks, precision: str) -> Scores:
    """Score the validation split; with several processes each scores its part and all get the whole."""
    classifier.eval()
    device = loader.device
    dtype = _DTYPES[precision]
    part: Scores | None = None
    if len(loader):  # with more processes than videos some have none
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            part = score(classifier, loader.epoch())
    parts = [p for p in _gather(part, ranks) if p is not None]
    return Scores(
        tuple(i for p in parts for i in p.ids),
        torch.cat([p.logits for p in parts]),
        torch.cat([p.labels for p in parts]),
    )


def _report(epoch: Epoch, account: Account, recipe: Recipe, writer: SummaryWriter | None, lr: float) -> None:
    accuracy = "" if epoch.top1 is None else f", top-1 {epoch.top1:.2f} %, top-5 {epoch.top5:.2f} %"
    print(
        f"{recipe.name}: epoch {epoch.epoch}/{recipe.epochs}: loss {epoch.loss:.4f}, {epoch.clips_per_s:.1f} clips/s, "
        f"{epoch.wait_share:.0%} waiting for data, bottleneck {account.bottleneck} (busy "
        f"{account.overlap_efficiency:.0%}){accuracy}",
        flush=True,
    )
    if writer is None:
        return
    scalars = {"train/loss": epoch.loss, "train/lr": lr, "train/clips_per_s": epoch.clips_per_s}
    scalars |= {"train/wait_share": epoch.wait_share}
    if epoch.top1 is not None and epoch.top5 is not None:
        scalars |= {"validation/top1": epoch.top1, "validation/top5": epoch.top5}
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, epoch.epoch)
    writer.flush()


def _scalar_writer(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


@contextmanager
def _progress(enabled: bool, title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; the yielded function advances it by one with a note."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=not enabled or not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


def train_record(recipe: Recipe, result: TrainResult) -> Record:
    """The run as a record: accuracy of the last epoch, and what every epoch did."""
    last = result.epochs[-1]
    figures = {
        "top1_percent": result.scores.top(1),
        "top5_percent": result.scores.top(5),
        "best_top1_percent": max(e.top1 for e in result.epochs if e.top1 is not None),
        "loss": last.loss,
        "train_s": result.train_s,
        "clips_per_s": sum(e.clips_per_s for e in result.epochs) / len(result.epochs),
        "wait_share": sum(e.wait_share for e in result.epochs) / len(result.epochs),
        "bad_clips": result.bad_clips,
        "stand_ins": result.stand_ins,
        "validation_bad_clips": result.validation_bad_clips,
        **result.ledger,
    }
    samples = {
        "loss": [e.loss for e in result.epochs],
        "clips_per_s": [e.clips_per_s for e in result.epochs],
        "wait_share": [e.wait_share for e in result.epochs],
        "top1_percent": [e.top1 for e in result.epochs if e.top1 is not None],
        "top1_epoch": [float(e.epoch) for e in result.epochs if e.top1 is not None],
    }
    details = {
        "precision": result.precision,
        "confusion": result.scores.confusion().tolist(),
        "classes": list(result.manifest.classes),
        "bad_clips": result.bad_clip_reasons,
        "ledger": result.threads,
    }
    return make_record(
        "train", recipe.name, figures=figures, samples=samples, settings=asdict(recipe), device=result.device,
        manifest=result.manifest, details=details,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a named recipe; every field of the recipe is a flag."""
    import tyro

    configs = {name: ((make.__doc__ or "").splitlines()[0], make()) for name, make in RECIPES.items()}
    recipe = resolved(tyro.extras.overridable_config_cli(configs, args=argv, prog="tdn-bench train"))
    result = train(recipe)
    print(f"checkpoint: {result.checkpoint}")
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"record: {write_record(train_record(recipe, result), recipe.results or recipe.output)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
