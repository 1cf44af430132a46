"""Training: the recipe's optimiser and schedule, one step against plain PyTorch, and whole runs on a few clips."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.flags import configure
from torch import nn

from pipelines.errors import DataError
from pipelines.plan import epoch_order
from tdn_bench import evaluate
from tdn_bench.checkpoint import CheckpointError, read_metadata, save_checkpoint
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.correctness.scores import load_scores
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.recipes import RECIPES, demo, hmdb51, kinetics400, sthv1, sthv2, ucf101
from tdn_bench.records import read_record
from tdn_bench.train import main
from tdn_bench.training import TrainStep, learning_rate, loop, parameter_groups, resolve_precision, train, train_record
from tdn_bench.training.distributed import Ranks, open_data

CPU = torch.device("cpu")


def tiny(data, output, **changes):
    """A run of seconds on a handful of clips."""
    flags = {"batch_size": 4, "epochs": 2, "evaluate_every": 1, "workers": 1, "device": "cpu"} | changes
    return configure(demo(), data=data, output=output, **flags)


def test_recipes_hold_the_authors_numbers():
    ss, k = sthv2().optimization, kinetics400().optimization
    assert (ss.peak_lr, ss.batch_size, ss.epochs, ss.milestones, ss.weight_decay) == (0.01, 64, 60, (30, 45, 55), 5e-4)
    assert (k.peak_lr, k.batch_size, k.epochs, k.milestones, k.weight_decay) == (0.02, 128, 100, (50, 75, 90), 1e-4)
    for make in RECIPES.values():
        optimization = make().optimization
        assert optimization.momentum == 0.9
        assert optimization.clip_gradient_norm == 20
    assert sthv2().dropout == kinetics400().dropout == 0.5
    assert configure(sthv1(), name="sthv2", dataset="sthv2", output=sthv2().output) == sthv2()
    assert all(RECIPES[name]().data.dataset == name.split("_")[0] for name in RECIPES if not name.startswith("demo"))
    for recipe in (ucf101(), hmdb51()):  # what the paper's accuracies belong to
        assert (recipe.model, recipe.num_segments) == ("tdn_resnet50", 16)


def test_step_schedule_divides_by_ten_after_each_milestone():
    rates = [learning_rate(sthv2().optimization, e) for e in (0, 29.99, 30, 44.99, 45, 55, 59.99)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-5, 1e-5])


def test_cosine_schedule_with_warmup():
    optimization = replace(demo().optimization, lr=1.0, epochs=11, warmup_epochs=1)
    assert [learning_rate(optimization, e) for e in (0, 0.5, 1, 6, 11)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_optimiser_groups_are_the_authors():
    network = create_model("tdn_resnet_small", num_classes=3, num_segments=4)
    groups = parameter_groups(network, 0.1, 5e-4)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 5e-4), (0.2, 0), (0.1, 0)]
    where = {id(p): number for number, g in enumerate(groups) for p in g["params"]}
    assert len(where) == len(list(network.parameters())) == sum(len(g["params"]) for g in groups)
    norms = {
        f"{m}.{leaf}"
        for m, x in network.named_modules()
        if isinstance(x, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    for name, p in network.named_parameters():
        assert where[id(p)] == (2 if name in norms else 1 if name.endswith("bias") else 0), name


def test_a_fresh_classifier_has_groups_of_its_own():
    classifier = FrameClassifier(create_model("tdn_resnet_small", num_classes=3, num_segments=4))
    head = classifier.network.classifier
    groups = parameter_groups(classifier, 0.1, 5e-4, fresh_classifier=True)
    scales = [(g["lr_scale"], g["weight_decay"]) for g in groups]
    assert scales == [(1, 5e-4), (2, 0), (1, 0), (5, 5e-4), (10, 0)]
    assert [g["lr"] for g in groups] == pytest.approx([0.1, 0.2, 0.1, 0.5, 1])
    assert [id(p) for g in groups[3:] for p in g["params"]] == [id(head.weight), id(head.bias)]
    plain = parameter_groups(classifier, 0.1, 5e-4)
    for with_head, without in zip(groups, plain, strict=False):  # the rest is as it is without fine-tuning
        rest = [id(p) for p in without["params"] if p is not head.weight and p is not head.bias]
        assert [id(p) for p in with_head["params"]] == rest


def test_the_schedule_keeps_the_groups_apart():
    network = create_model("tsn_resnet_small", num_classes=3, num_segments=2, dropout=0)
    step = TrainStep(FrameClassifier(network), ucf101().optimization, "fp32", CPU, fresh_classifier=True)
    weight, bias = (p.detach().clone() for p in (network.classifier.weight, network.classifier.bias))
    step(torch.randint(0, 256, (3, 2, 5, 64, 64, 3), dtype=torch.uint8), torch.arange(3), 10)
    assert [g["lr"] for g in step.optimizer.param_groups] == pytest.approx([1e-4, 2e-4, 1e-4, 5e-4, 1e-3])
    # the gradients are left as they were clipped
    head = network.classifier
    assert torch.allclose(head.weight, weight - 5e-4 * (head.weight.grad + 5e-4 * weight), atol=1e-7)
    assert torch.allclose(head.bias, bias - 1e-3 * head.bias.grad, atol=1e-7)


def test_fine_tuning_starts_from_all_but_the_classifier(motion_data, tmp_path):
    start = create_model("tsn_resnet_small", num_classes=5, num_segments=4)
    torch.nn.init.normal_(start.classifier.bias)
    save_checkpoint(start, tmp_path / "five.safetensors", {})
    recipe = tiny(motion_data, tmp_path / "out", model="tsn_resnet_small")
    network = loop.start_network(configure(recipe, finetune=tmp_path / "five.safetensors"), "abcdefgh")
    state = network.state_dict()
    for name, tensor in start.named_parameters():
        if not name.startswith("classifier."):
            assert torch.equal(state[name], tensor), name
    assert state["classifier.weight"].shape == (8, start.classifier.weight.shape[1])
    assert state["classifier.weight"].std().item() == pytest.approx(0.001, rel=0.2)
    assert not state["classifier.bias"].any()


def test_a_step_is_sgd_with_clipping():
    torch.manual_seed(0)
    optimization = replace(demo().optimization, lr=0.1, warmup_epochs=0, clip_gradient_norm=0.5)
    classifiers = [
        FrameClassifier(create_model("tsn_resnet_small", num_classes=3, num_segments=2, dropout=0)) for _ in "ab"
    ]
    classifiers[1].load_state_dict(classifiers[0].state_dict())
    frames = torch.randint(0, 256, (4, 2, 5, 64, 64, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    step = TrainStep(classifiers[0], optimization, "fp32", CPU)
    losses = [step(frames, labels, 0).loss.item() for _ in range(2)]

    ours, momentum = [], {}
    plain = classifiers[1]
    for _ in range(2):
        loss = F.cross_entropy(plain(frames), labels)
        ours.append(loss.item())
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for group in parameter_groups(plain, 0.1, optimization.weight_decay):
                for p in group["params"]:
                    g = next(g for q, g in zip(plain.parameters(), gradients, strict=True) if q is p)
                    g = g * min(1, 0.5 / norm) + group["weight_decay"] * p
                    momentum[id(p)] = g if id(p) not in momentum else 0.9 * momentum[id(p)] + g
                    p -= group["lr"] * momentum[id(p)]
    assert losses == pytest.approx(ours, rel=1e-4)
    for (name, a), b in zip(classifiers[0].named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


def one_batch_step(precision, name):
    torch.manual_seed(0)
    optimization = replace(demo().optimization, lr=0.05, warmup_epochs=0, epochs=100)
    classifier = FrameClassifier(create_model(name, num_classes=3, num_segments=2, dropout=0))
    step = TrainStep(classifier, optimization, precision, CPU)
    frames = torch.randint(0, 256, (3, 2, 5, 64, 64, 3), dtype=torch.uint8)
    return step, lambda: step(frames, torch.arange(3), 0).loss.item()


def test_bf16_steps_lower_the_loss_of_one_batch():
    step, run = one_batch_step("bf16", "tdn_resnet_small")
    losses = [run() for _ in range(8)]
    assert min(losses[4:]) < 0.5 * losses[0]
    assert not step.scaler.is_enabled()
    assert all(p.dtype == torch.float32 for p in step.classifier.parameters())


def test_fp16_steps_scale_the_gradient_and_leave_out_one_that_overflows():
    step, run = one_batch_step("fp16", "tsn_resnet_small")
    weight = next(step.classifier.parameters())
    before = weight.detach().clone()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # far too large: the gradients overflow
    run()
    assert torch.equal(weight, before)
    assert step.scaler.get_scale() == 2.0**39


def test_precision_on_a_cpu():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_a_run_leaves_what_it_promises_and_resumes_to_the_same_weights(motion_data, tmp_path, capsys):
    whole = train(tiny(motion_data, tmp_path / "whole", dropout=0.5), progress=False)
    assert [e.epoch for e in whole.epochs] == [1, 2]
    assert len(whole.scores.ids) == 8
    assert all(e.top1 is not None and 0 <= e.wait_share <= 1 for e in whole.epochs)
    figures = train_record(tiny(motion_data, tmp_path), whole).figures  # of the last epoch, a video
    assert figures["ledger_unexplained_percent"] < 25  # about 1; more where others take the processors
    assert figures["bottleneck"] in ("decode", "train")
    assert figures["ledger_infer_ms"] == 0
    wall_ms = 1000 / whole.epochs[-1].clips_per_s
    assert figures["ledger_train_ms"] + figures["ledger_idle_ms"] == pytest.approx(wall_ms, rel=0.05)
    assert {row["thread"].partition("_")[0] for row in whole.threads} >= {"consumer", "loader"}
    files = {p.name.split(".")[0] for p in (tmp_path / "whole").iterdir()}
    assert {"best", "last", "events", "checkpoints"} <= files
    assert read_metadata(whole.checkpoint)["classes"] == list(whole.manifest.classes)

    # the same run, cut after its first epoch: a schedule of two epochs, of which one is done
    half = tiny(motion_data, tmp_path / "half", dropout=0.5)

    def stop(run, number, saving, progress, original=loop.train_epoch):
        if number == 1:
            raise KeyboardInterrupt
        return original(run, number, saving, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(half, progress=False)
    resumed = train(replace(half, resume="yes"), progress=False)
    assert [e.epoch for e in resumed.epochs] == [1, 2]
    assert torch.equal(resumed.scores.logits, whole.scores.logits)
    assert capsys.readouterr().out.count("epoch 2/2") == 2
    again = train(replace(half, resume="yes"), progress=False)  # nothing left to do: validates only
    assert not again.ledger
    assert torch.equal(again.scores.logits, resumed.scores.logits)
    assert train_record(half, again).figures["train_s"] == sum(e.train_s for e in resumed.epochs)
    with pytest.raises(UserError, match="holds a run already"):
        train(half, progress=False)
    # a state that was not followed by its weights
    (tmp_path / "half" / "last.safetensors").unlink()
    train(replace(half, resume="auto"), progress=False)
    assert read_metadata(tmp_path / "half" / "last.safetensors")["epoch"] == 2


def test_masks_differ_by_step_and_process_and_are_the_same_after_a_resumption():
    def mask(*of):
        loop.seed_step(*of)
        return F.dropout(torch.ones(64)).tolist()

    masks = {of: mask(*of) for of in itertools.product((0, 1), (0, 1), (0, 1), (0, 1))}
    assert len(set(map(tuple, masks.values()))) == len(masks)
    assert all(mask(*of) == masks[of] for of in masks)


def test_a_poisoned_epoch_keeps_the_last_state_and_a_smaller_lr_goes_on_from_it(motion_data, tmp_path):
    recipe = tiny(motion_data, tmp_path, epochs=2, schedule="step", warmup_epochs=0, model="tsn_resnet_small")
    train(configure(recipe, epochs=1), progress=False)
    poison = configure(recipe, resume="yes", change=("lr", "clip_gradient_norm"), lr=1e3, clip_gradient_norm=1e9)
    with pytest.raises(
        UserError, match=r"epoch 2.* a smaller --lr, from the last checkpoint on.*: --resume --change lr"
    ):
        train(poison, progress=False)
    cured = configure(poison, lr=0.001, clip_gradient_norm=recipe.optimization.clip_gradient_norm)
    result = train(cured, progress=False)
    changed = {"epochs": [1, 2], "lr": [0.005, 0.001]}
    assert train_record(cured, result).details["changed_settings"] == [
        {"after_epoch": 1, "after_step": 0, "changed": changed}
    ]


def test_resume_without_a_checkpoint(motion_data, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing to resume from; start without --resume"):
        train(tiny(motion_data, tmp_path, resume="yes"), progress=False)


def test_a_loss_that_explodes_stops_the_run(motion_data, tmp_path):
    with pytest.raises(UserError, match=r"the loss became .* try a smaller --lr"):
        train(tiny(motion_data, tmp_path, lr=1e3, clip_gradient_norm=1e9, warmup_epochs=0), progress=False)


def test_the_command_writes_a_record(motion_data, tmp_path, capsys):
    arguments = ["demo", "--data", str(motion_data), "--output", str(tmp_path), "--epochs", "1", "--batch-size", "8"]
    assert run_command(main, [*arguments, "--model", "tsn_resnet_small", "--workers", "1"]) == 0
    (path,) = tmp_path.glob("train-demo-*.json")
    record = read_record(path)
    assert record.settings["model"] == "tsn_resnet_small"
    assert record.figures["top1_percent"] == record.samples["top1_percent"][-1]
    assert record.data["videos"] == 24
    assert sum(map(sum, record.details["confusion"])) == 8
    assert str(path) in capsys.readouterr().out
    json.loads(path.read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "32"], "--size 32: must be from 64 to 4096"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--batch-size", "64"], "do not fill one batch of 64"),
        (["--model", "resnet"], "unknown model 'resnet'"),
        (["--device", "cuda:9"], "--device cuda:9"),
        (["--init", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["--finetune", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["--init", "a.pth", "--checkpoint", "b.pth"], "--init and --checkpoint exclude each other"),
        (["--checkpoint", "a.pth", "--finetune", "b.pth"], "--checkpoint and --finetune exclude each other"),
        (["--compile", "--checkpoint-activations"], "--compile and --checkpoint-activations exclude each other"),
        (["--max-bad-share", "2"], "--max-bad-share 2.0: must be from 0 to 1"),
        (["--workers", "0"], "--workers 0: must be from 1 to"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_status_two(motion_data, tmp_path, capsys, flags, message):
    assert run_command(main, ["demo", "--data", str(motion_data), "--output", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sthv2_without_its_data_says_what_it_looked_for(tmp_path, capsys):
    assert run_command(main, ["sthv2", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for needed in ("labels/labels.json", "labels/train.json", "labels/validation.json", "20bn-something", "https://"):
        assert needed in error


def spoiled(data, folder, train_positions, validation_positions):
    """A manifest whose scan found all videos sound, of which those at the given places are now cut short."""
    shutil.copytree(data, folder / "set")
    manifest = DataFlags(data=folder / "set").open(progress=False)
    manifest.write(folder / "set.arrow")
    for split, positions in (("train", train_positions), ("validation", validation_positions)):
        for position in positions:
            file = Path(manifest.split(split)[position].path)
            file.write_bytes(file.read_bytes()[:200])
    return folder / "set.arrow", manifest


def test_bad_clips_are_replaced_in_training_and_left_out_of_validation(motion_data, tmp_path):
    places = epoch_order(16, seed=0, epoch=0, shuffle=True)[:4].tolist()  # the whole first batch
    path, manifest = spoiled(motion_data, tmp_path, places, [2])
    recipe = tiny(None, tmp_path / "out", manifest=path, epochs=1, model="tsn_resnet_small", max_bad_share=1)
    result = train(recipe, progress=False)
    record = train_record(recipe, result)
    assert (result.bad_clips, result.validation_bad_clips) == (4, 1)
    stand_ins = sum(e.stand_ins for e in result.epochs)
    assert stand_ins >= 4
    figures = {k: record.figures[k] for k in ("bad_clips", "stand_ins", "validation_bad_clips")}
    assert figures == {"bad_clips": 4, "stand_ins": stand_ins, "validation_bad_clips": 1}
    wanted = {manifest.split("train")[i].path for i in places} | {manifest.split("validation")[2].path}
    assert set(record.details["bad_clips"]) == wanted
    log = (tmp_path / "out" / "bad_clips.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in log} == wanted
    assert manifest.split("validation")[2].id not in result.scores.ids
    assert len(result.scores.ids) == 7
    with pytest.raises(DataError, match=r"more than --max-bad-share 0\.01 allows"):
        train(configure(recipe, max_bad_share=0.01, overwrite=True), progress=False)
    with pytest.raises(DataError, match="--on-bad-clip skip"):
        train(configure(recipe, on_bad_clip="error", overwrite=True), progress=False)


KEEP_SCORES = """
import sys
from tdn_bench.cli import run_command
from tdn_bench.train import main
from tdn_bench.training import loop

def validate(run, asked, shown, original=loop.validate):
    scores = original(run, asked, shown)
    if run.ranks.is_first:
        scores.save(run.recipe.output / "scores.safetensors", {})
    return scores

loop.validate = validate
raise SystemExit(run_command(main))
"""


def two_processes(manifest, *flags):
    script = manifest.with_name("keep_scores.py")
    script.write_text(KEEP_SCORES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(script), "demo", "--manifest", str(manifest), "--data", str(manifest.parent / "set")]
    command += ["--epochs", "1", "--batch-size", "4", "--model", "tsn_resnet_small", "--workers", "1"]
    return subprocess.run(
        [*command, "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_scan_may_take_hours(motion_data, tmp_path, monkeypatch, rank):
    """torch's groups give up after 10 minutes (NCCL) or 30 (gloo): the wait for the scan must not be one of theirs."""
    calls = []
    monkeypatch.setattr(dist, "new_group", lambda **options: options)
    monkeypatch.setattr(dist, "barrier", lambda group=None: calls.append(group))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    manifest = open_data(tiny(motion_data, tmp_path).data, Ranks(rank, 2), False)
    assert len(manifest.videos) == 24
    (group,) = calls
    assert group["backend"] == "gloo"
    assert group["timeout"] > timedelta(days=1)


@pytest.mark.slow
def test_the_share_of_bad_clips_is_that_of_all_processes(motion_data, tmp_path):
    places = epoch_order(16, seed=0, epoch=0, shuffle=True)[:2].tolist()  # one for each process
    path, _ = spoiled(motion_data, tmp_path, places, [])
    done = two_processes(path, "--output", str(tmp_path), "--max-bad-share", "0.1")
    assert done.returncode != 0
    said = r"error: rank \d on \S+: 2 of 16 videos \(12\.5%\) cannot be used, more than --max-bad-share 0\.1 allows"
    assert re.search(said, done.stderr)


def test_two_processes_share_a_run_and_bad_clips_do_not_stall_it(motion_data, tmp_path):
    # the second process visits every other place: its whole first batch is bad
    places = epoch_order(16, seed=0, epoch=0, shuffle=True)[1:4:2].tolist()
    path, manifest = spoiled(motion_data, tmp_path, places, [1])
    done = two_processes(path, "--output", str(tmp_path), "--max-bad-share", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epoch 1/1") == 1
    (path,) = tmp_path.glob("train-demo-*.json")  # one record, of all processes
    record = read_record(path)
    assert sum(map(sum, record.details["confusion"])) == 7
    assert (record.figures["bad_clips"], record.figures["validation_bad_clips"]) == (2, 1)
    assert record.figures["stand_ins"] >= 2
    (row,) = map(json.loads, (tmp_path / "steps.jsonl").read_text().splitlines())
    assert row["clips_per_s"] == pytest.approx(4000 / row["step_ms"], rel=1e-4)  # of both
    assert row["all_reduce_ms"] > 0
    wanted = [manifest.split("train")[i].path for i in places] + [manifest.split("validation")[1].path]
    assert set(record.details["bad_clips"]) == set(wanted)
    # What was validated is what was saved. Other batch sizes change the last bits, other statistics the third digit.
    flags = ["--manifest", str(tmp_path / "set.arrow"), "--data", str(tmp_path / "set"), "--workers", "1"]
    flags += ["--checkpoint", str(tmp_path / "last.safetensors"), "--device", "cpu", "--max-bad-share", "1"]
    evaluate.main([*flags, "--scores", str(tmp_path / "evaluated.safetensors")])
    (trained, _), (evaluated, _) = (load_scores(tmp_path / f"{f}.safetensors") for f in ("scores", "evaluated"))
    assert torch.allclose(trained.select(evaluated.ids).logits, evaluated.logits, rtol=0, atol=1e-6)
