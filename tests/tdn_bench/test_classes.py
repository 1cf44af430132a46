"""A checkpoint's classes beside a data set's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdn_bench.checkpoint import CheckpointError, load_backbone, load_checkpoint, match_classes, save_checkpoint
from tdn_bench.models import create_model

NAMES = ["Pushing something", "Moving left", "Moving right", "Turning"]


@given(st.permutations(range(6)))
def test_any_order_is_matched_by_name(order):
    known = ["a", "b", "c", "d", "e", "f"]
    wanted = [known[i] for i in order]
    match = match_classes(known, wanted, "file")
    assert [known[i] for i in match.order or range(6)] == wanted
    assert (match.note is None) == (wanted == known)


@pytest.mark.parametrize(
    ("known", "wanted", "order"),
    [
        (["ApplyEyeMakeup", "PushUps"], ["Apply Eye Makeup", "push_ups"], None),
        (["Pushing [something]", "Turn"], ["turn", "Pushing something"], (1, 0)),
        (["push-up", "caf\u00e9"], ["pushup", "cafe\u0301"], None),
    ],
)
def test_names_spelt_otherwise_are_matched_and_told(known, wanted, order):
    match = match_classes(known, wanted, "file")
    assert match.order == order
    assert "spells classes differently" in match.note
    assert "\n" not in match.note


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (NAMES, NAMES[:3], r"class 3 is 'Turning' there, none in the data set \(4 and 3 classes\)"),
        (NAMES[:3], NAMES, r"class 3 is none there, 'Turning' in the data set"),
        (NAMES, [*NAMES[:3], "Lifting"], "class 3 is 'Turning' there, 'Lifting' in the data set"),
        (NAMES, ["w", "x", "y", "z"], "class 0 is .*; class 1 is .*; class 2 is .*; 1 more"),
        (["a", "a", "b"], ["a", "b", "a"], "class 1 is 'a' there, 'b'"),  # twice the same name: which is which?
        (["A", "a"], ["a", "A "], "class 0"),  # alike in spelling, so no spelling tells
        (["+1", "1"], ["1", "-1"], "class 0"),
        (["1.5 m", "15 m"], ["15m", "1 5 m"], "class 0"),
        (NAMES, ["0", "1", "2"], "knows 4 classes, the data set has 3"),
        (["0", "1", "2"], NAMES, "knows 3 classes, the data set has 4"),
        (["\x1b[31m", "b"], ["a", "b"], r"'\\x1b\[31m' there"),  # nothing reaches the terminal as it is
    ],
)
def test_other_classes_are_refused_with_the_first_differences(known, wanted, message):
    with pytest.raises(CheckpointError, match=message) as error:
        match_classes(known, wanted, "file")
    assert "\n" not in str(error.value)
    assert "use the data set that it was trained on" in str(error.value)


def test_numbers_stand_for_no_names_unless_both_sides_have_them():
    assert match_classes(["0", "1"], ["left", "right"], "file").order is None
    assert match_classes(None, ["left", "right"], "file").order is None
    assert match_classes(["0", "1", "2"], ["2", "0", "1"], "file").order == (2, 0, 1)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = create_model("tdn_resnet_small", num_classes=4, num_segments=4).eval()
    torch.nn.init.normal_(network.classifier.weight)
    torch.nn.init.normal_(network.classifier.bias)
    path = tmp_path / "c.safetensors"
    save_checkpoint(network, path, {"model": "tdn_resnet_small", "classes": NAMES})
    return network, path


def test_logits_follow_the_names(saved):
    network, path = saved
    order = np.random.default_rng(3).permutation(4)
    other = create_model("tdn_resnet_small", num_classes=4, num_segments=4).eval()
    report = load_checkpoint(other, path, [NAMES[i] for i in order])
    assert "matched by name" in report.class_note
    clip = torch.rand(1, 4, 5, 3, 64, 64)
    with torch.inference_mode():
        theirs, ours = network(clip)[0], other(clip)[0]
    for i, place in enumerate(order):
        assert torch.isclose(ours[i], theirs[place], atol=1e-5)
    assert load_checkpoint(other, path, NAMES).class_note is None


def test_other_classes_load_nothing(saved, tmp_path):
    _, path = saved
    network = create_model("tdn_resnet_small", num_classes=4, num_segments=4)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="not of the same classes"):
        load_checkpoint(network, path, ["a", "b", "c", "d"])
    with pytest.raises(CheckpointError, match="knows 4 classes, the data set has 3"):
        load_checkpoint(create_model("tdn_resnet_small", num_classes=3, num_segments=4), path, ["0", "1", "2"])
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    load_backbone(network, path)  # the classifier is its own, whatever the file's classes are


def test_files_without_names_are_held_to_their_number(tmp_path):
    network = create_model("tdn_resnet_small", num_classes=4, num_segments=4)
    save_checkpoint(network, tmp_path / "c.safetensors", {"model": "tdn_resnet_small"})
    assert load_checkpoint(network, tmp_path / "c.safetensors", NAMES).class_note is None
    with pytest.raises(CheckpointError, match="is for 4 classes, the data set has 3"):
        load_checkpoint(
            create_model("tdn_resnet_small", num_classes=3, num_segments=4), tmp_path / "c.safetensors", NAMES[:3]
        )
    for classes in (5, [1, 2, 3, 4], [], "abcd", ["a", "b"]):
        save_checkpoint(network, tmp_path / "c.safetensors", {"classes": classes})
        with pytest.raises(CheckpointError):
            load_checkpoint(network, tmp_path / "c.safetensors", NAMES)
