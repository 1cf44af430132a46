"""A run on disk: what `--resume` needs, the last epoch's weights, and the best ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipelines.manifest import Manifest
from tdn_bench.checkpoint import read_training_state, save_checkpoint, write_training_state
from tdn_bench.errors import UserError
from tdn_bench.models import SegmentNetwork
from tdn_bench.recipes import Recipe
from tdn_bench.training.result import Epoch
from tdn_bench.training.step import TrainStep

STATE, LAST, BEST = "last.pt", "last.safetensors", "best.safetensors"


def forget(folder: Path) -> None:
    """A new run begins: nobody may resume the one before."""
    (folder / STATE).unlink(missing_ok=True)


def restore(folder: Path, step: TrainStep, network: SegmentNetwork) -> list[Epoch]:
    """Go on from the last finished epoch of the run in `folder`; return what its epochs did. Raises UserError where
    the state is missing, damaged, or another network's."""
    file = folder / STATE
    state = read_training_state(file)
    try:
        network.load_state_dict(state["network"])
        step.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as e:
        raise UserError(f"{file}: is of another network or start; resume with the flags of its run") from e
    step.scaler.load_state_dict(state["scaler"])
    return [Epoch(**e) for e in state["history"]]


def save(recipe: Recipe, step: TrainStep, network: SegmentNetwork, manifest: Manifest, history: list[Epoch]) -> None:
    """Write what `--resume` needs, the epoch's weights, and where it is the best so far, those too."""
    state = {
        "network": network.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "history": [asdict(e) for e in history],
    }
    write_training_state(recipe.output / STATE, state)
    epoch = history[-1]
    notes = {
        "model": recipe.model,
        "num_segments": network.num_segments,
        "size": recipe.size,
        "crop_ratio": recipe.crop_ratio,
        "classes": list(manifest.classes),
        "epoch": epoch.epoch,
        "top1": epoch.top1,
    }
    save_checkpoint(network, recipe.output / LAST, notes)
    if epoch.top1 is not None and epoch.top1 == max(e.top1 for e in history if e.top1 is not None):
        save_checkpoint(network, recipe.output / BEST, notes)
