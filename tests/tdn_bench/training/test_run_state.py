"""What a resumption compares and takes over, damaged states, and kills between any two files."""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.flags import configure
from support.paths import TESTS
from torch import nn

from tdn_bench.checkpoint import read_metadata
from tdn_bench.errors import UserError
from tdn_bench.recipes import Recipe, demo
from tdn_bench.training import TrainStep, run_state
from tdn_bench.training.result import Epoch
from tdn_bench.training.run_state import (
    FP16_MAX,
    Partial,
    Past,
    State,
    compare,
    describe,
    find_unsound,
    parse,
    restore,
    state_of,
    write_weights,
)
from tdn_bench.training.store import Loaded, RunStore

CPU = torch.device("cpu")
DATA = {"data": "0" * 64, "classes": ["up", "down", "left"], "backend": "pyav"}


def recipe_in(folder: Path, **flags: Any) -> Recipe:
    return configure(demo(), model="tsn_resnet_small", num_segments=2, output=folder, schedule="step", **flags)


def settings(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    return describe(recipe, CPU, "fp32", 1) | DATA | changes


class Tiny(nn.Module):
    """As little of a network as can be saved and gone on from."""

    num_segments = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)


def fresh(recipe: Recipe) -> tuple[TrainStep, Any]:
    torch.manual_seed(0)
    network = Tiny()
    return TrainStep(network, recipe.optimization, "fp32", CPU), network


def begun(recipe: Recipe) -> Past:
    past = Past({})
    past.begin(settings(recipe), {})
    return past


def pretend_epoch(step: TrainStep, network: Any, past: Past, top1: float | None) -> None:
    """Another epoch's weights, momentum, statistics and history: a pure function of those before."""
    number = len(past.history) + 1
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in network.parameters():
            buffer = step.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            parameter += buffer.mul_(0.9).add_(torch.randn_like(parameter))
        for buffer in network.buffers():
            buffer += 1
    past.history.append(Epoch(number, 1 / number, 10.0, 0.1, 2.0, 0, top1, top1))


def open_store(recipe: Recipe) -> AbstractContextManager[RunStore]:
    return RunStore.claim(recipe.output, resume=True, overwrite=False)


def read(recipe: Recipe) -> State:
    with open_store(recipe) as store:
        loaded = store.newest()
    assert loaded is not None
    return parse(loaded)


def resumed(recipe: Recipe, **changes: Any) -> tuple[TrainStep, Any, Past]:
    step, network = fresh(recipe)
    past = restore(read(recipe), settings(recipe, **changes), recipe, step, network)
    return step, network, past


def save(store: RunStore, recipe: Recipe, step: TrainStep, network: Any, past: Past) -> None:
    """As the loop does at an epoch's end."""
    write_weights(store, recipe, network, past)
    store.save(state_of(step, network, past), past.position, wait=True)


@pytest.fixture
def saved(tmp_path: Path) -> Recipe:
    """A run of two epochs, saved."""
    recipe = recipe_in(tmp_path, epochs=3)
    step, network = fresh(recipe)
    past = begun(recipe)
    with open_store(recipe) as store:
        for top1 in (None, 50.0):
            pretend_epoch(step, network, past, top1)
            save(store, recipe, step, network, past)
    return recipe


def files(folder: Path) -> dict[str, Any]:
    return {f: (load_file(folder / f), read_metadata(folder / f)) for f in ("last.safetensors", "best.safetensors")}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(
        notes == b[name][1] and all(torch.equal(tensor, b[name][0][k]) for k, tensor in tensors.items())
        for name, (tensors, notes) in a.items()
    )


class Killed(BaseException):
    """No handler of the product's catches it, as none catches SIGKILL."""


@pytest.mark.parametrize("top1s", [(50.0, None, 60.0), (50.0, None, 40.0), (None, None, 50.0), (50.0, 50.0, 50.0)])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kill_at", range(1, 14))
def test_a_run_killed_around_any_file_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top1s: tuple[float | None, ...], before: bool, kill_at: int
) -> None:
    def run(folder: Path) -> None:
        recipe = recipe_in(folder, epochs=len(top1s))
        with open_store(recipe) as store:
            step, network = fresh(recipe)
            past = begun(recipe)
            if (loaded := store.newest()) is not None:
                past = restore(parse(loaded), settings(recipe), recipe, step, network)
                write_weights(store, recipe, network, past)
            for top1 in top1s[len(past.history) :]:
                pretend_epoch(step, network, past, top1)
                save(store, recipe, step, network, past)

    run(tmp_path / "whole")
    count, move = 0, os.replace

    def kill(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == kill_at and before:
            raise Killed
        move(source, target)
        if count == kill_at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        try:
            run(tmp_path / "killed")
        except Killed:
            pass
        else:
            assert count < kill_at  # it does not move so many files
    run(tmp_path / "killed")
    assert same(files(tmp_path / "whole"), files(tmp_path / "killed"))


@pytest.mark.slow
def test_real_kills(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.kill_training", str(tmp_path), "10"]  # fifty take many minutes
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] > 5
    assert said["different"] == 0, done.stdout


def test_a_resumption_holds_what_was_saved(saved: Recipe) -> None:
    step, network, past = resumed(saved)
    (other, theirs), done = fresh(saved), begun(saved)
    for _ in range(2):
        pretend_epoch(other, theirs, done, None)
    assert [e.epoch for e in past.history] == [1, 2]
    assert not past.changes
    for (name, ours), expected in zip(network.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, expected), name
        momentum = [s.optimizer.state[p]["momentum_buffer"] for s, p in ((step, ours), (other, expected))]
        assert torch.equal(*momentum), name
    assert all(map(torch.equal, network.buffers(), theirs.buffers()))


@pytest.mark.parametrize(
    ("flags", "changes", "word"),
    [
        ({"lr": 0.1}, {}, "--lr 0.01 → 0.1"),
        ({"batch_size": 4}, {}, "--batch-size 8 → 4"),
        ({"momentum": 0.8}, {}, "--momentum 0.9 → 0.8"),
        ({"weight_decay": 0.0}, {}, "--weight-decay 0.0005 → 0"),
        ({"clip_gradient_norm": 1.0}, {}, "--clip-gradient-norm 20 → 1"),
        ({"warmup_epochs": 2.0}, {}, "--warmup-epochs 1 → 2"),
        ({"milestones": (1, 2)}, {}, "--milestones [30, 45, 55] → [1, 2]"),
        ({"seed": 1}, {}, "--seed 0 → 1"),
        ({"size": 96}, {}, "--size 64 → 96"),
        ({"num_segments": 4}, {}, "--num-segments 2 → 4"),
        ({"crop_ratio": 0.5}, {}, "--crop-ratio 1 → 0.5"),
        ({"crop_scales": (1.0,)}, {}, "--crop-scales [1.0, 0.875] → [1.0]"),
        ({"dropout": 0.5}, {}, "--dropout 0 → 0.5"),
        ({"model": "tdn_resnet_small"}, {}, "--model tsn_resnet_small → tdn_resnet_small"),
        ({"init": Path("/r50.pth")}, {}, "--init None → /r50.pth"),
        ({"checkpoint": Path("/a.pth")}, {}, "--checkpoint None → /a.pth"),
        ({"finetune": Path("/a.pth")}, {}, "--finetune None → /a.pth"),
        ({"seed": 1, "lr": 0.1}, {}, "--lr 0.01 → 0.1, --seed 0 → 1; resume with the run's own"),
        ({}, {"precision": "bf16"}, "--precision fp32 → bf16"),
        ({}, {"data": "f" * 64}, "another data set (digest 000000000000 → ffffffffffff)"),
        ({}, {"backend": "dali"}, "--backend pyav → dali"),
        ({}, {"classes": ["up", "left", "down"]}, "class 1 is 'down' there and 'left' in the data"),
        ({}, {"classes": ["up", "down"]}, "notes 3 classes, the data have 2"),
        ({"epochs": 1}, {}, "--epochs 1: the run of"),
    ],
)
def test_a_setting_that_decides_the_result_may_not_differ(
    saved: Recipe, flags: dict[str, Any], changes: dict[str, Any], word: str
) -> None:
    state = read(saved)
    with pytest.raises(UserError) as caught:
        compare(state, settings(configure(saved, **flags), **changes), ())
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_setting_is_compared_or_said_to_be_free(saved: Recipe) -> None:
    """A recipe's new field is compared until somebody says that it need not be."""
    free = {"name", "output", "results", "resume", "overwrite", "change", "allow_outside", "track"}
    free |= {"dataset", "split", "labels", "manifest", "train_list", "val_list", "class_names"}  # data: digest, classes
    free |= {
        "save_minutes",
        "rank_timeout_s",
        "save_steps",
        "keep_checkpoints",
        "workers",
        "device",
        "compile",
        "checkpoint_activations",
        "evaluate_every",
        "on_bad_clip",
        "max_bad_share",
        "verify_checksums",
        "max_nonfinite_steps",
    }
    state = read(saved)
    refused = set()
    for name in state.past.settings:
        past = replace(state.past, settings=state.past.settings | {name: "another"})
        try:
            compare(replace(state, past=past), settings(saved), ())
        except UserError:
            refused.add(name)
    assert refused == ({*saved.settings(), "classes"} - free - {"epochs"})  # of step, epochs may grow


def test_training_longer_is_free_by_steps_and_refused_along_a_cosine(saved: Recipe) -> None:
    state = read(saved)
    assert compare(state, settings(configure(saved, epochs=9)), ()) == {"epochs": [3, 9]}
    cosine = settings(configure(saved, schedule="cosine"))
    state = replace(state, past=replace(state.past, settings=cosine))
    with pytest.raises(UserError, match="--epochs 3 → 9"):
        compare(state, cosine | {"epochs": 9}, ())


def test_a_change_that_is_allowed_is_taken_and_noted(saved: Recipe) -> None:
    again = configure(saved, lr=0.001, weight_decay=0.0, resume="yes", change=("lr", "weight-decay"))
    step, network, past = resumed(again)
    changed = {"lr": [0.01, 0.001], "weight_decay": [5e-4, 0.0]}
    assert past.changes == [{"after_epoch": 2, "after_step": 0, "changed": changed}]
    assert [g["weight_decay"] for g in step.optimizer.param_groups] == [0, 0, 0]
    pretend_epoch(step, network, past, None)
    with open_store(again) as store:
        save(store, again, step, network, past)
    _, _, past = resumed(configure(again, change=()))  # the new settings are the run's own from here on
    assert past.changes == [{"after_epoch": 2, "after_step": 0, "changed": changed}]


def test_the_gradient_scaler_goes_on_and_a_new_precision_begins_its_own(saved: Recipe) -> None:
    def of_fp16() -> tuple[TrainStep, Any]:
        _, network = fresh(saved)
        return TrainStep(network, saved.optimization, "fp16", CPU), network

    begun = of_fp16()[0].scaler.get_scale()
    step, network = of_fp16()
    allowed = configure(saved, resume="yes", change=("precision",))
    past = restore(read(saved), settings(saved, precision="fp16"), allowed, step, network)
    assert step.scaler.get_scale() == begun
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 4.0, "_growth_tracker": 7})
    pretend_epoch(step, network, past, None)
    with open_store(saved) as store:
        save(store, saved, step, network, past)
    step, network = of_fp16()
    restore(read(saved), settings(saved, precision="fp16"), saved, step, network)
    assert (step.scaler.get_scale(), step.scaler.state_dict()["_growth_tracker"]) == (4.0, 7)


def test_allowed_changes_are_settings_of_a_resumption(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, resume="yes")
    run_state.check_allowed(configure(recipe, change=("lr", "batch-size", "data")))
    for name in ("classes", "output", "learning_rate", "--lr"):
        with pytest.raises(UserError, match=f"--change {name}: no such setting; name some of backend batch_size"):
            run_state.check_allowed(configure(recipe, change=(name,)))
    with pytest.raises(UserError, match="is for --resume"):
        run_state.check_allowed(configure(recipe, change=("lr",), resume="no"))


def notes(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """The damage to the plain part of a state."""

    def damage(state: dict[str, Any]) -> None:
        plain = json.loads(state["notes"])
        change(plain)
        state["notes"] = json.dumps(plain)

    return damage


def first(state: dict[str, Any], part: str, change: Callable[[torch.Tensor], object]) -> None:
    name = next(k for k, v in state[part].items() if v.dim() > 1)
    state[part][name] = change(state[part][name])


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty": lambda s: s.clear(),
    "another format": lambda s: s.update(format="tdn_bench training state 1"),
    "a format of tensors": lambda s: s.update(format=torch.ones(2)),
    "no network": lambda s: s.pop("network"),
    "no state of the step": lambda s: s.pop("step"),
    "a state of the step that is a list": lambda s: s.update(step=[1]),
    "no momentum": lambda s: s["step"].pop("momentum"),
    "a momentum that is a list": lambda s: s["step"].update(momentum=[1]),
    "a momentum less": lambda s: s["step"]["momentum"].popitem(),
    "no notes": lambda s: s.pop("notes"),
    "notes of another type": lambda s: s.update(notes=torch.ones(2)),
    "notes that are no JSON": lambda s: s.update(notes="{"),
    "notes that are a list": lambda s: s.update(notes="[1]"),
    "deep notes": lambda s: s.update(notes="[" * 100_000),
    "a network that is a list": lambda s: s.update(network=[1]),
    "a tensor less": lambda s: s["network"].popitem(),
    "a tensor more": lambda s: s["network"].update(more=torch.ones(2)),
    "a momentum more": lambda s: s["step"]["momentum"].update(more=torch.ones(2)),
    "a tensor of another shape": lambda s: first(s, "network", lambda t: t[:1]),
    "a tensor of another type": lambda s: first(s, "network", lambda t: t.double()),
    "a complex tensor": lambda s: first(s, "network", lambda t: t.to(torch.complex64)),
    "a sparse tensor": lambda s: first(s, "network", lambda t: t.to_sparse()),
    "a number for a tensor": lambda s: first(s, "network", lambda t: 3),
    "NaN": lambda s: first(s, "network", lambda t: t * math.nan),
    "weights of 1e29": lambda s: first(s, "network", lambda t: t + 1e29),
    "infinite momentum": lambda s: first(s["step"], "momentum", lambda t: t / 0),
    "momentum of another shape": lambda s: first(s["step"], "momentum", lambda t: t[:1]),
    "no history": notes(lambda n: n.pop("history")),
    "an empty history": notes(lambda n: n["history"].clear()),
    "losses that are a number": notes(lambda n: n["partial"].update(losses=3)),
    "losses of words": notes(lambda n: n["partial"].update(losses=["small"])),
    "a time below zero": notes(lambda n: n["partial"].update(train_s=-1.0)),
    "stretches of words": notes(lambda n: n.update(stretches=["first"])),
    "a stretch from nowhere": notes(lambda n: n["stretches"][0].update(start=[1])),
    "a history of words": notes(lambda n: n.update(history="epochs")),
    "an epoch more": notes(lambda n: n["history"].append(n["history"][0])),
    "an epoch of other fields": notes(lambda n: n["history"][0].update(accuracy=3)),
    "a loss of words": notes(lambda n: n["history"][0].update(loss="small")),
    "a loss of NaN": notes(lambda n: n["history"][0].update(loss=math.nan)),
    "no loss": notes(lambda n: n["history"][0].update(loss=None)),
    "settings that are a number": notes(lambda n: n.update(settings=3)),
    "no settings": notes(lambda n: n.update(settings={})),
    "changes that are a number": notes(lambda n: n["stretches"][0].update(changed=3)),
    "bad clips that are a list": notes(lambda n: n.update(bad_clips=[1])),
    "a scaler that is a number": lambda s: s["step"].update(scaler=3),
    "a scaler of words": lambda s: s["step"].update(scaler={"scale": "large"}),
    "a scaler where there is none": lambda s: s["step"].update(scaler={"scale": 3.0}),
}


def damaged(saved: Recipe, change: Callable[[dict[str, Any]], object]) -> None:
    """Resume from the newest checkpoint's content, changed: what a file says that is whole and yet wrong."""
    with open_store(saved) as store:
        loaded = store.newest()
    assert loaded is not None
    state = dict(loaded.state)
    change(state)
    step, network = fresh(saved)
    restore(parse(Loaded(loaded.file, state, loaded.position)), settings(saved), saved, step, network)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_line(saved: Recipe, damage: str) -> None:
    with pytest.raises(UserError, match=r"\.pt: .*(--overwrite|resume with|class names)") as caught:
        damaged(saved, DAMAGE[damage])
    assert "\n" not in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(["settings", "history", "partial", "stretches", "bad_clips"]), PLAIN)
def test_no_plain_part_of_a_state_is_a_traceback(key: str, value: object) -> None:
    past = Past({}, [Epoch(1, 1, 1, 0, 1, 0)], Partial([0.5], 1.0, 0.5))
    plain = asdict(past) | {key: value}
    state = {"format": run_state.FORMAT, "notes": json.dumps(plain), "network": {}, "step": {}}
    with contextlib.suppress(UserError):
        now = settings(recipe_in(Path("run")))
        parsed = parse(Loaded(Path("run"), state, (1, 1)))
        compare(parsed, now, ())
        parsed.past.begin(now, {})


def test_what_no_sound_network_holds_is_named() -> None:
    sound = {"w": torch.tensor([-1.0, 3.0]), "bn.running_var": torch.tensor([1e9]), "count": torch.tensor(10**12)}
    assert find_unsound(sound) is None
    for name, value in (
        ("w", -1e29),
        ("w", math.nan),
        ("w", math.inf),
        ("w", 1.1 * FP16_MAX),
        ("bn.running_var", 1e10),
    ):
        assert find_unsound(sound | {name: torch.tensor([0.0, value])}) == f"{name} reaches {abs(value):g}"
    past = Past({}, [Epoch(n, 1, 1, 0, 1, 0) for n in (1, 2)], Partial([1e6]))
    with pytest.raises(
        UserError, match=r"the loss became 1e.06 in epoch 3, which is not saved; .* the last checkpoint"
    ):
        run_state.check_sound(torch.nn.Linear(1, 1), past)


def test_a_run_that_replaces_another_leaves_none_of_its_weights(saved: Recipe) -> None:
    (step, network), past = fresh(saved), begun(saved)
    pretend_epoch(step, network, past, None)
    with RunStore.claim(saved.output, resume=False, overwrite=True) as store:
        save(store, saved, step, network, past)
    assert read_metadata(saved.output / "last.safetensors")["epoch"] == 1
    assert not (saved.output / "best.safetensors").exists()
