"""A run on disk: its folder, which is its own; what `--resume` needs; the last epoch's weights, and the best ones."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipelines.manifest import Manifest
from tdn_bench.checkpoint import clear_debris, read_training_state, save_checkpoint, write_training_state
from tdn_bench.cli import flag
from tdn_bench.errors import UserError
from tdn_bench.models import SegmentNetwork
from tdn_bench.recipes import Recipe
from tdn_bench.training.result import Epoch
from tdn_bench.training.step import TrainStep

STATE, LAST, BEST, LOCK = "last.pt", "last.safetensors", "best.safetensors", ".lock"
FORMAT = "tdn_bench training state 2"  # the first had neither settings nor class names: nobody could compare them

# Three kinds of settings may differ between an interrupted run and its resumption without being allowed by name: how it
# was called and where things lie, which no state notes (data count by digest and classes instead); ...
_OF_THE_CALL = ("name", "output", "results", "resume", "overwrite", "allow_changes", "allow_outside", "track")
_OF_THE_DATA = ("dataset", "data", "split", "labels", "manifest", "train_list", "val_list", "class_names")
# ... what is computed where, which may change the last digits; and what is looked at, and when a run gives up.
_OF_THE_SPEED = ("workers", "device")
_FREE = (*_OF_THE_SPEED, "compile", "evaluate_every", "on_bad_clip", "max_bad_share", "verify_checksums")
NOT_OF_THE_RESULT = (*_OF_THE_CALL, *_OF_THE_SPEED)

# The largest number of fp16. No weight, loss or activation of a sound network comes near it: in fp16, which it may be
# trained and run in, it would be infinite.
FP16_MAX = torch.finfo(torch.float16).max


@dataclass
class Past:
    """What a run has done up to now, as its state holds it."""

    settings: dict[str, Any]  # that it goes on with, as `describe` gives them
    history: list[Epoch] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)  # by resumptions: after_epoch, {setting: [old, new]}
    bad_clips: dict[str, dict[str, str]] = field(default_factory=dict)  # split → path below the root → reason


@dataclass(frozen=True)
class State:
    """A state file that was read, its plain part looked through; its tensors are when they are taken over."""

    file: Path
    past: Past
    scaler: dict[str, Any]
    network: object
    momentum: object


@contextmanager
def claim(recipe: Recipe) -> Iterator[None]:
    """Keep the output folder for this run alone, until the end of the context or of the process. Raises UserError
    where another process writes there, and where an earlier run lies there and nobody said what becomes of it."""
    folder = recipe.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as e:
        raise UserError(f"--output {folder}: cannot be locked ({e.strerror}: {LOCK})") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(
                f"--output {folder}: another training is writing there; wait for its end, or name another folder"
            ) from e
        except OSError as e:  # some network file systems
            print(f"{folder}: cannot be locked ({e.strerror}); start no second training there", flush=True)
        held = [name for name in (STATE, LAST, BEST) if (folder / name).exists()]
        if held and not (recipe.resume or recipe.overwrite):
            raise UserError(
                f"--output {folder}: holds a run already ({held[0]}); go on with it with --resume, replace it with "
                "--overwrite, or name another folder"
            )
        clear_debris(folder)
        yield


def describe(recipe: Recipe, device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """The run's settings as plain values that can be compared: flags with absolute paths, device and precision as
    `auto` came to, the number of processes. What is known of the data once they are read is added then."""
    settings = recipe.settings() | {"device": device.type, "precision": precision, "processes": processes}
    noted = {name: v for name, v in settings.items() if name not in (*_OF_THE_CALL, *_OF_THE_DATA, "backend")}
    return json.loads(json.dumps(noted, default=lambda v: str(v.absolute() if isinstance(v, Path) else v)))


def describe_data(manifest: Manifest, backend: str) -> dict[str, Any]:
    """What is added then."""
    return {"data": manifest.digest(), "classes": list(manifest.classes), "backend": backend}


def read(folder: Path) -> State:
    """The state of the run in `folder`. Raises UserError where it is missing, damaged, or none of this version's."""
    file = folder / STATE
    raw = read_training_state(file)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise UserError(
            f"{file}: not a state that this version can resume; start anew with --overwrite, from its weights with "
            f"--checkpoint {LAST} if you like"
        )
    try:
        notes = json.loads(raw["notes"])
        history = [Epoch(**e) for e in notes["history"]]
        past = Past(dict(notes["settings"]), history, list(notes["changes"]), _reasons(notes["bad_clips"]))
        state = State(file, past, dict(notes["scaler"]), raw["network"], raw["momentum"])
        ordered = [e.epoch for e in history] == list(range(1, len(history) + 1))
        if not history or not ordered or not all(_is_whole(e) for e in history) or not _are_numbers(state.scaler):
            raise ValueError("numbers that cannot be")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise UserError(f"{file}: damaged ({type(e).__name__}: {e}); {_ANEW}") from e
    return state


_ANEW = "put a copy of it back, or start anew with --overwrite"


def _reasons(by_split: Any) -> dict[str, dict[str, str]]:
    return {str(s): {str(k): str(v) for k, v in reasons.items()} for s, reasons in by_split.items()}


def _are_numbers(values: Mapping[str, Any]) -> bool:
    return all(type(v) in (int, float) and 0 <= v < math.inf for v in values.values())


def _is_whole(epoch: Epoch) -> bool:
    """Whether it holds the numbers that `Epoch` says; accuracies may be missing."""
    return _are_numbers({f.name: v for f in fields(epoch) if (v := getattr(epoch, f.name)) is not None or f.default})


def compare(state: State, now: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, list[Any]]:
    """The settings that differ: {name: [the interrupted run's, this one's]}. Raises UserError where one of them decides
    the result and is not `allowed` to differ."""
    past = state.past
    if (done := len(past.history)) > now["epochs"]:
        raise UserError(f"--epochs {now['epochs']}: the run in {state.file.parent} has done {done} already")
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
            f"--allow-changes {' '.join(refused)}"
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
    """Raise UserError where --allow-changes names what is no setting."""
    known = {*recipe.settings(), "processes"} - {*_OF_THE_CALL, *_OF_THE_DATA, *_FREE} | {"data"}
    for name in recipe.allow_changes:
        if name.replace("-", "_") not in known:
            raise UserError(f"--allow-changes {name}: no such setting; name some of {' '.join(sorted(known))}")
    if recipe.allow_changes and not recipe.resume:
        raise UserError("--allow-changes is for --resume: a new run has nothing to differ from")


def restore(state: State, now: dict[str, Any], recipe: Recipe, step: TrainStep, network: SegmentNetwork) -> Past:
    """Take over the state's tensors, which are looked through before any is. Return what the run has done, with the
    settings `now` that it goes on with. Raises UserError where they differ and may not, and for tensors of another
    network and for what no training can go on from."""
    changed = compare(state, now, recipe.allow_changes)
    parameters = dict(network.named_parameters())
    weights = _like(state.file, "weights", state.network, network.state_dict(), whole=True)
    momentum = _like(state.file, "momentum", state.momentum, parameters, whole=False)
    if (unsound := find_unsound(weights)) or not all(m.isfinite().all() for m in momentum.values()):
        raise UserError(f"{state.file}: {unsound or 'its momentum is not finite'}; {_ANEW}")
    if state.scaler.keys() == (fresh := step.scaler.state_dict()).keys() and fresh:
        step.scaler.load_state_dict(state.scaler)
    elif "precision" not in changed and state.scaler.keys() != fresh.keys():
        raise UserError(f"{state.file}: damaged (its gradient scaler's state is not whole); {_ANEW}")
    network.load_state_dict(weights)
    for name, value in momentum.items():
        parameter = parameters[name]
        step.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(value)
    past = state.past
    if changed:
        past.changes.append({"after_epoch": len(past.history), "changed": changed})
    return Past(now, past.history, past.changes, past.bad_clips)


def _like(file: Path, what: str, found: Any, wanted: Mapping[str, Tensor], *, whole: bool) -> dict[str, Tensor]:
    """`found`, if it is a mapping of names to tensors as `wanted` has them; not `whole`: to some of them."""
    if not isinstance(found, dict) or not (found.keys() == wanted.keys() if whole else found.keys() <= wanted.keys()):
        raise UserError(f"{file}: its {what} are not those of this network; {_ANEW}")
    for name, tensor in found.items():
        like = wanted[name]
        alike = isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
        if not alike or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{file}: its {what} of {name} are not those of this network; {_ANEW}")
    return found


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


def check_sound(network: nn.Module, epoch: Epoch) -> None:
    """Raise UserError where an epoch came to what nobody can go on from: it must not take the place of the last good
    state."""
    unsound = find_unsound(network.state_dict())
    if not epoch.loss <= FP16_MAX:
        unsound = f"the loss became {epoch.loss:g}"
    if unsound:
        raise UserError(f"{unsound} in epoch {epoch.epoch}, which is not saved; {way_out(epoch.epoch)}")


def way_out(epoch: int) -> str:
    """What to do where training came to nothing in this epoch (counted from 1)."""
    if epoch == 1:
        return "try a smaller --lr"
    return f"try a smaller --lr from epoch {epoch - 1} on, which is kept: --resume --allow-changes lr --lr NUMBER"


def save(recipe: Recipe, step: TrainStep, network: SegmentNetwork, past: Past) -> None:
    """Write what `--resume` needs, then the weights. A process may die between any two files: the state comes first,
    and `write_weights` derives the others from it. Raises UserError where the disk takes no more."""
    momentum = {
        name: buffer
        for name, parameter in network.named_parameters()
        if (buffer := step.optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None
    }
    notes = asdict(past) | {"scaler": step.scaler.state_dict()}
    state = {"format": FORMAT, "notes": json.dumps(notes), "network": network.state_dict(), "momentum": momentum}
    try:
        write_training_state(recipe.output / STATE, state)
        write_weights(recipe, network, past)
    except (OSError, SafetensorError) as e:
        done = past.history[-1].epoch
        raise UserError(f"{recipe.output}: epoch {done} cannot be saved ({e}); make room, then --resume") from e


def write_weights(recipe: Recipe, network: SegmentNetwork, past: Past) -> None:
    """Write the epoch's weights, and where it is the best so far, those too."""
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
    save_checkpoint(network, recipe.output / LAST, notes)
    best = max((e.top1 for e in past.history if e.top1 is not None), default=None)
    if best is None:
        (recipe.output / BEST).unlink(missing_ok=True)  # of a run that this one replaces
    elif epoch.top1 == best:
        save_checkpoint(network, recipe.output / BEST, notes)
