"""Options within a step and a run: what one step does with them, and the same weights after a resumption."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.flags import configure
from torch import nn

from pipelines.loader import ClipLoader
from tdn_bench.checkpoint import load_checkpoint
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.recipes import Modern, demo
from tdn_bench.training import TrainStep, train
from tdn_bench.training.ema import WeightAverage
from tdn_bench.training.mixing import mix, step_rng

CPU = torch.device("cpu")
EVERYTHING = {
    "ema_decay": 0.9,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "randaugment": 2,
    "repeats": 2,
    "first_size": 64,
    "growing_epochs": 1,
    "size": 80,
    "dropout": 0.5,
}


def small(modern: Modern | None = None, **changes: Any) -> tuple[TrainStep, FrameClassifier]:
    torch.manual_seed(0)
    classifier = FrameClassifier(create_model("tsn_resnet_small", num_classes=3, num_segments=2, dropout=0)).train()
    optimization = replace(demo().optimization, lr=0.1, warmup_epochs=0, **changes)
    return TrainStep(classifier, optimization, "fp32", CPU, modern=modern), classifier


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (4, 2, 5, 64, 64, 3), dtype=torch.uint8, generator=draw)
    return frames, torch.tensor([0, 1, 2, 0])


def test_a_step_trains_on_the_mixed_clips_and_both_labels() -> None:
    modern = Modern(mixup_alpha=0.4, cutmix_alpha=1.0, label_smoothing=0.2)
    step, classifier = small(modern)
    plain = copy.deepcopy(classifier)
    frames, labels = clips()
    torch.manual_seed(7)
    loss = step(frames, labels, 0.0).loss
    torch.manual_seed(7)
    mixed = mix(frames, labels, modern, step_rng())
    soft = mixed.share * F.one_hot(labels, 3) + (1 - mixed.share) * F.one_hot(mixed.partners, 3)
    soft = 0.8 * soft + 0.2 / 3
    wanted = -(soft * plain(mixed.frames).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=1e-6)


def test_mixing_takes_all_clips_of_a_process_whatever_fits_at_once() -> None:
    losses = []
    for size in (None, 1, 3):
        step, classifier = small(Modern(mixup_alpha=1.0), micro_batch_size=size)
        classifier.eval()  # batch norm sees a pass alone
        torch.manual_seed(7)
        losses.append(step(*clips(), 0.0).loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=1e-6)


def test_the_average_follows_the_steps_and_changes_none() -> None:
    (step, classifier), (plain, other) = small(Modern(ema_decay=0.5)), small()
    follower = WeightAverage(other, 0.5)
    for _ in range(3):
        assert torch.equal(step(*clips(), 0.0).loss, plain(*clips(), 0.0).loss)
        follower.update()
    assert step.average is not None
    for name, tensor in step.average.network.state_dict().items():
        assert torch.equal(tensor, follower.network.state_dict()[name]), name
    assert any(
        not torch.equal(p, q) for p, q in zip(step.average.network.parameters(), classifier.parameters(), strict=True)
    )


def test_a_step_that_had_no_average_begins_one_and_one_that_had_leaves_it() -> None:
    (averaged, _), (plain, _classifier) = small(Modern(ema_decay=0.9)), small()
    plain(*clips(), 0.0)
    averaged.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert averaged.average is not None
    assert averaged.average.updates == 0
    averaged(*clips(), 0.0)
    plain.load_state_dict(copy.deepcopy(averaged.state_dict()))
    assert plain.state_dict()["average"] is None


def test_the_sizes_of_training_grow_to_the_full_one() -> None:
    recipe = configure(demo(), size=224, first_size=112, growing_epochs=4, epochs=6)
    assert [recipe.training_spec(e).size for e in range(6)] == [112, 144, 160, 192, 224, 224]
    assert all(configure(demo(), epochs=6).training_spec(e) == demo().clip_spec() for e in range(6))
    unset = configure(demo(), size=128, first_size=64, epochs=6)  # two thirds of all
    assert [unset.training_spec(e).size for e in range(6)] == [64, 80, 96, 112, 128, 128]


def run(data: Path, output: Path, **changes: Any) -> Any:
    flags = {"batch_size": 4, "epochs": 2, "workers": 1, "device": "cpu", "limit": 8, "evaluate_every": 1}
    return train(configure(demo(), data=data, output=output, **(flags | EVERYTHING | changes)), progress=False)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_all_options_at_once_are_exact_after_a_kill_within_an_epoch(motion_data, tmp_path, monkeypatch) -> None:
    whole = run(motion_data, tmp_path / "whole")
    call, taken = TrainStep.__call__, []

    def dying(self: TrainStep, *args: Any) -> Any:
        if len(taken) == 6:  # four steps an epoch: 8 videos, twice
            raise Killed
        taken.append(1)
        return call(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", dying)
        with pytest.raises(Killed):
            run(motion_data, tmp_path / "killed", save_steps=1)
    resumed = run(motion_data, tmp_path / "killed", save_steps=1, resume="yes")
    assert resumed.stretches[-1].start == (1, 2)
    assert torch.equal(resumed.scores.logits, whole.scores.logits)
    files = [load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


def test_what_is_written_is_what_was_validated(motion_data, tmp_path) -> None:
    """With an average, the average: the weights file gives the run's own logits."""
    result = run(motion_data, tmp_path / "out", epochs=1, repeats=1)
    network = create_model("tdn_resnet_small", num_classes=8, num_segments=4)
    load_checkpoint(network, tmp_path / "out" / "last.safetensors")
    spec = configure(demo(), size=80).clip_spec()
    with ClipLoader(result.manifest.split("validation"), spec, 4, workers=1) as loader, torch.inference_mode():
        classifier: nn.Module = FrameClassifier(network).eval()
        logits = torch.cat([classifier(batch.frames) for batch in loader.epoch()])
    torch.testing.assert_close(logits, result.scores.logits.squeeze(1), rtol=1e-4, atol=1e-4)
