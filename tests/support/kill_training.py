"""Kill a training by SIGKILL at many points of its saving, resume it, and compare with the run that nobody killed.

`python -m support.kill_training FOLDER KILLS` from tests/: prints a line a kill that ended otherwise, and the count.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from safetensors import safe_open

from pipelines.synthetic import make_dataset
from support.flags import configure
from tdn_bench.recipes import Recipe, demo
from tdn_bench.records import read_record, write_record
from tdn_bench.training import loop, run_state, train, train_record
from tdn_bench.training.store import RunStore


def in_a_process(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process, in which torch is loaded and has no threads yet; return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:  # nothing of the parent's may run in its copy
            if status:
                traceback.print_exc()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FILE_CALLS = ("mkdir", "open", "replace", "unlink", "rmdir")


def train_and_die(recipe: Recipe, kill_at: tuple[str, int] | None) -> None:
    """Train; die at the n-th call or return of any function ("all", n) while the run is saved, or of one that changes a
    folder ("file", n). Leaves the numbers of both."""
    seen = {"all": 0, "file": 0}

    def count(frame: FrameType, event: str, arg: object) -> None:
        of_files = event in ("c_call", "c_return") and getattr(arg, "__name__", "") in FILE_CALLS
        for kind in ("all", "file") if of_files else ("all",):
            if (kind, seen[kind]) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[kind] += 1

    def watched(saving: Callable[..., None]) -> Callable[..., None]:
        def save(*args: object, **options: object) -> None:
            sys.setprofile(count)
            try:
                saving(*args, **options)
            finally:
                sys.setprofile(None)

        return save

    RunStore.save = watched(RunStore.save)
    run_state.write_weights = watched(run_state.write_weights)
    loop.Progress.report = lambda *_: None
    write_record(train_record(recipe, train(recipe, progress=False)), recipe.output)
    recipe.output.with_suffix(".events").write_text(json.dumps(seen))


def outcome(folder: Path) -> dict[str, object]:
    """All that a run left and that is not a time: tensors as bytes, notes, what the record says."""
    found: dict[str, object] = {}
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(folder / name, "pt") as f:
            found[name] = f.metadata(), {k: f.get_tensor(k).numpy().tobytes() for k in f.keys()}  # noqa: SIM118
    state = torch.load(max(folder.glob("checkpoints/*.pt")), weights_only=True)
    tensors = {"network": state["network"], "momentum": state["step"]["momentum"]}
    found["state"] = {p: {k: v.numpy().tobytes() for k, v in part.items()} for p, part in tensors.items()}
    record = read_record(max(folder.glob("train-*.json")))
    found["figures"] = {k: record.figures[k] for k in ("top1_percent", "best_top1_percent", "loss", "bad_clips")}
    found["samples"] = {k: record.samples[k] for k in ("loss", "top1_percent", "top1_epoch")}
    found["confusion"], found["changed"] = record.details["confusion"], record.details.get("changed_settings")
    found["debris"] = sorted(p.name for p in folder.glob(".saving-*"))
    return found


def main(folder: Path, kills: int) -> None:
    data = folder / "data"
    assert in_a_process(lambda: make_dataset(data, train=8, validation=8, workers=1, progress=False)) == 0
    flags = {"batch_size": 4, "epochs": 3, "evaluate_every": 1, "workers": 1, "device": "cpu", "dropout": 0.5}
    recipe = configure(demo(), data=data, output=folder / "whole", model="tsn_resnet_small", lr=0.03, **flags)
    assert in_a_process(lambda: train_and_die(recipe, None)) == 0
    wanted = outcome(recipe.output)
    points = json.loads((folder / "whole.events").read_text())
    killed = different = 0
    for number in range(kills):
        kind = "file" if number % 4 else "all"
        at = kind, number * points[kind] // kills
        run = configure(recipe, output=folder / f"killed-{number}")
        status = in_a_process(lambda run=run, at=at: train_and_die(run, at))
        assert status in (0, -signal.SIGKILL), status
        killed += status != 0  # a few calls are of a first run only, so that the last points are not reached
        # every other resumption is killed as well, once
        again = configure(run, resume="auto")
        if number % 2:
            in_a_process(lambda run=again, at=number: train_and_die(run, ("file", at)))
        status = in_a_process(lambda run=again: train_and_die(run, None))
        found = outcome(run.output) if status == 0 else {"status": status}
        if found != wanted:
            different += 1
            print(
                f"kill at {at} of {points}: differs in {[k for k in wanted if found.get(k) != wanted[k]]}", flush=True
            )
    print(json.dumps({"kills": killed, "points": points, "different": different}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
