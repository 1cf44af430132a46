"""What a checkpoint holds of a run, beside its weights; what a resumption compares, and takes over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.manifest import Manifest
from tdn_bench.cli import flag
from tdn_bench.errors import UserError
from tdn_bench.models import SegmentNetwork
from tdn_bench.recipes import Recipe
from tdn_bench.records import utc_now
from tdn_bench.training.ema import tensors_like
from tdn_bench.training.result import Epoch, Stretch
from tdn_bench.training.step import TrainStep, are_numbers
from tdn_bench.training.store import LAST, Loaded, RunStore

FORMAT = "tdn_bench training state 3"  # the second knew whole epochs only

# Three kinds of settings may differ between an interrupted run and its resumption without being allowed by name: how it
# was called and where things lie, which no state notes (data count by digest and classes instead); ...
_OF_THE_CALL = ("name", "output", "results", "resume", "overwrite", "change", "allow_outside", "track", "dry_run")
_OF_THE_DATA = ("dataset", "data", "split", "labels", "manifest", "train_list", "val_list", "class_names")
# ... what is computed where, which may change the last digits; what is looked at and saved, and when a run gives up.
_OF_THE_SPEED = ("workers", "device")
_OF_THE_SAVING = ("save_minutes", "save_steps", "keep_checkpoints")
_OF_THE_WATCH = (
    *("evaluate_every", "rank_timeout_s", "max_nonfinite_steps"),
    *("on_bad_clip", "max_bad_share", "verify_checksums"),
)
_FREE = (*_OF_THE_SPEED, *_OF_THE_SAVING, *_OF_THE_WATCH, "compile", "checkpoint_activations", "processes")
NOT_OF_THE_RESULT = (*_OF_THE_CALL, *_OF_THE_SPEED, *_OF_THE_SAVING)

# The largest number of fp16. No weight, loss or activation of a sound network comes near it: in fp16, which it may be
# trained and run in, it would be infinite.
FP16_MAX = torch.finfo(torch.float16).max


@dataclass
class Partial:
    """What was done of the epoch that is being trained; counts and times are of all stretches, losses of all
    processes."""

    losses: list[float | None] = field(default_factory=list)  # of every step; None: not finite
    train_s: float = 0.0
    waited_s: float = 0.0
    replaced: int = 0
    skipped: int = 0  # steps that changed nothing, since their gradients were not finite
    in_row: int = 0  # steps with such gradients or losses, of those that were last

    @property
    def step(self) -> int:
        """Steps that were done."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean of the losses that are finite; NaN where none is."""
        finite = [loss for loss in self.losses if loss is not None]
        return sum(finite) / len(finite) if finite else math.nan


@dataclass
class Past:
    """What a run has done up to now, as its state holds it."""

    settings: dict[str, Any]  # that it goes on with, as `describe` gives them
    history: list[Epoch] = field(default_factory=list)  # finished epochs
    partial: Partial = field(default_factory=Partial)  # of the next one
    stretches: list[Stretch] = field(default_factory=list)
    bad_clips: dict[str, dict[str, str]] = field(default_factory=dict)  # split → path below the root → reason

    @property
    def position(self) -> tuple[int, int]:
        """Epochs, and steps of the next one, that were done."""
        return len(self.history), self.partial.step

    @property
    def changes(self) -> list[dict[str, Any]]:
        """By resumptions, as a record has them: after_epoch, after_step, {setting: [before, after]}."""
        return [
            {"after_epoch": s.start[0], "after_step": s.start[1], "changed": s.changed}
            for s in self.stretches
            if s.changed
        ]

    def begin(self, settings: dict[str, Any], changed: dict[str, list[Any]]) -> None:
        """Another stretch, with these settings."""
        self.settings = settings
        self.stretches.append(Stretch(utc_now(), self.position, settings["processes"], changed=changed))


@dataclass(frozen=True)
class State:
    """A checkpoint that was read, its plain part looked through; its tensors are when they are taken over."""

    file: Path
    past: Past
    network: object
    step: object


def describe(recipe: Recipe, device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """The run's settings as plain values that can be compared: flags with absolute paths, device and precision as
    `auto` came to, the number of processes. What is known of the data once they are read is added then."""
    settings = recipe.settings() | {"device": device.type, "precision": precision, "processes": processes}
    noted = {name: v for name, v in settings.items() if name not in (*_OF_THE_CALL, *_OF_THE_DATA, "backend")}
    return json.loads(json.dumps(noted, default=lambda v: str(v.absolute() if isinstance(v, Path) else v)))


def describe_data(manifest: Manifest, backend: str) -> dict[str, Any]:
    """What is added then."""
    return {"data": manifest.digest(), "classes": list(manifest.classes), "backend": backend}


def parse(loaded: Loaded) -> State:
    """The state that a checkpoint holds. Raises UserError where it is damaged, or none of this version's."""
    file, raw = loaded.file, loaded.state
    if raw.get("format") != FORMAT:
        raise UserError(
            f"{file}: not a state that this version can resume; start anew with --overwrite, from its weights with "
            f"--checkpoint {LAST} if you like"
        )
    try:
        notes = json.loads(raw["notes"])
        partial = dict(notes["partial"])
        past = Past(
            dict(notes["settings"]),
            [Epoch(**e) for e in notes["history"]],
            Partial(list(partial.pop("losses")), **partial),
            [Stretch(**s) for s in notes["stretches"]],
            _reasons(notes["bad_clips"]),
        )
        state = State(file, past, raw["network"], raw["step"])
        if not _is_sound(past) or past.position == (0, 0):
            raise ValueError("numbers that cannot be")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise UserError(f"{file}: damaged ({type(e).__name__}: {e}); {_ANEW}") from e
    return state


_ANEW = "put a copy of it back, or start anew with --overwrite"


def _reasons(by_split: Any) -> dict[str, dict[str, str]]:
    return {str(s): {str(k): str(v) for k, v in reasons.items()} for s, reasons in by_split.items()}


def _is_sound(past: Past) -> bool:
    """Whether it holds the numbers that its classes say."""
    partial = past.partial
    ordered = [e.epoch for e in past.history] == list(range(1, len(past.history) + 1))
    numbers = [partial.train_s, partial.waited_s, partial.replaced, partial.skipped, partial.in_row]
    numbers += [loss for loss in partial.losses if loss is not None]
    for stretch in past.stretches:
        epoch, step = stretch.start
        numbers += [epoch, step, stretch.train_s, stretch.processes, stretch.bad_clips]
        if not isinstance(stretch.begun, str) or not all(len(pair) == 2 for pair in stretch.changed.values()):
            return False
        stretch.start = (epoch, step)  # JSON has no tuples
    return ordered and all(map(_is_whole, past.history)) and are_numbers(numbers)


def _is_whole(epoch: Epoch) -> bool:
    """Whether it holds the numbers that `Epoch` says; accuracies may be missing."""
    return are_numbers(v for f in fields(epoch) if (v := getattr(epoch, f.name)) is not None or f.default)


def compare(state: State, now: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, list[Any]]:
    """The settings that differ: {name: [the interrupted run's, this one's]}. Raises UserError where one of them decides
    the result and is not `allowed` to differ."""
    past = state.past
    if (done := len(past.history) + (past.partial.step > 0)) > now["epochs"]:
        raise UserError(f"--epochs {now['epochs']}: the run of {state.file} is in epoch {done} already")
    changed = {name: [past.settings.get(name), value] for name, value in now.items()}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    if "classes" in changed:
        difference = first_difference(*changed["classes"])
        raise UserError(f"{state.file}: {difference}; give the data the class names of the run, in their order")
    free = {*_FREE, *(name.replace("-", "_") for name in allowed)}
    if now["schedule"] == "step":  # to train longer changes nothing of what was done
        free.add("epochs")
    if refused := [name for name in changed if name not in free]:
        told = ", ".join(_tell(name, *changed[name]) for name in refused)
        raise UserError(
            f"{state.file}: its run had other settings: {told}; resume with the run's own, or take the new ones with "
            f"--change {' '.join(refused)}"
        )
    return changed


def first_difference(noted: Any, now: Sequence[str]) -> str | None:
    """Of the class names that a file notes and those of the data, in words; None where there is none."""
    if not isinstance(noted, list) or len(noted) != len(now):
        return f"notes {len(noted) if isinstance(noted, list) else 'no'} classes, the data have {len(now)}"
    differing = (i for i, pair in enumerate(zip(noted, now, strict=True)) if pair[0] != pair[1])
    number = next(differing, None)
    return None if number is None else f"class {number} is {noted[number]!r} there and {now[number]!r} in the data"


def _tell(name: str, before: Any, now: Any) -> str:
    if name == "data":
        return f"another data set (digest {str(before)[:12]} → {now[:12]})"
    short = [f"{value:g}" if isinstance(value, float) else str(value)[:80] for value in (before, now)]
    return f"{name if name == 'processes' else flag(name)} {short[0]} → {short[1]}"


def check_allowed(recipe: Recipe) -> None:
    """Raise UserError where --change names what is no setting."""
    known = {*recipe.settings()} - {*_OF_THE_CALL, *_OF_THE_DATA, *_FREE} | {"data"}
    for name in recipe.change:
        if name.replace("-", "_") not in known:
            raise UserError(f"--change {name}: no such setting; name some of {' '.join(sorted(known))}")
    if recipe.change and recipe.resume == "no":
        raise UserError("--change is for --resume: a new run has nothing to differ from")


def restore(state: State, now: dict[str, Any], recipe: Recipe, step: TrainStep, network: SegmentNetwork) -> Past:
    """Take over the state's tensors, which are looked through before any is. Return what the run has done, with the
    settings `now` that it goes on with. Raises UserError where they differ and may not, and for tensors of another
    network and for what no training can go on from."""
    changed = compare(state, now, recipe.change)
    try:
        weights = tensors_like("weights", state.network, network.state_dict())
        if unsound := find_unsound(weights):
            raise ValueError(unsound)
        step.load_state_dict(state.step)
    except ValueError as e:
        raise UserError(f"{state.file}: {e}; {_ANEW}") from e
    network.load_state_dict(weights)
    state.past.begin(now, changed)
    return state.past


@torch.no_grad()
def find_unsound(tensors: Mapping[str, Tensor]) -> str | None:
    """Which tensor of a state dict no sound network has, in words; None where all are well. Weights and means may reach
    FP16_MAX, variances its square."""
    named = [(name, t.abs().amax()) for name, t in tensors.items() if t.is_floating_point() and t.numel()]
    largest = torch.stack([value.float() for _, value in named]).tolist()  # one wait for the device
    for (name, _), value in zip(named, largest, strict=True):
        if not value <= (FP16_MAX**2 if name.endswith("running_var") else FP16_MAX):  # so written that NaN fails
            return f"{name} reaches {value:g}"
    return None


def check_sound(network: nn.Module, past: Past) -> None:
    """Raise UserError where the epoch came to what nobody can go on from: it must not take the place of the last good
    state."""
    epoch, loss = len(past.history) + 1, past.partial.loss
    unsound = find_unsound(network.state_dict())
    if loss > FP16_MAX:
        unsound = f"the loss became {loss:g}"
    if unsound:
        raise UserError(f"{unsound} in epoch {epoch}, which is not saved; {WAY_OUT}")


# where training came to nothing
WAY_OUT = "try a smaller --lr, from the last checkpoint on, if there is one: --resume --change lr --lr NUMBER"


def state_of(step: TrainStep, network: nn.Module, past: Past) -> dict[str, object]:
    """What a checkpoint holds."""
    notes = json.dumps(asdict(past))
    return {"format": FORMAT, "notes": notes, "network": network.state_dict(), "step": step.state_dict()}


def write_weights(store: RunStore, recipe: Recipe, network: SegmentNetwork, past: Past) -> None:
    """Write the weights of the epoch that was finished last, and where it is the best so far, as the best, too."""
    epoch = past.history[-1]
    notes = {
        "model": recipe.model,
        "num_segments": network.num_segments,
        "size": recipe.size,
        "crop_ratio": recipe.crop_ratio,
        "classes": past.settings["classes"],
        "epoch": epoch.epoch,
        "top1": epoch.top1,
    }
    store.save_weights("last", network, notes)
    best = max((e.top1 for e in past.history if e.top1 is not None), default=None)
    if best is not None and epoch.top1 == best:
        store.save_weights("best", network, notes)
