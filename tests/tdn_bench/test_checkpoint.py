"""Weights in and out: the authors' files, our own, torchvision's; and files that must be refused."""

import pickle

import pytest
import torch
from support.reference import CASES, released_state_dict

from tdn_bench.checkpoint import (
    CheckpointError,
    load_backbone,
    load_checkpoint,
    load_imagenet,
    read_metadata,
    read_training_state,
    save_checkpoint,
    write_training_state,
)
from tdn_bench.models import create_model

RELEASED = next(c for c in CASES if c["arch"] == "resnet50" and c["num_classes"] == 10 and c["num_segments"] == 8)


def tdn50(classes: int = 10):
    return create_model("tdn_resnet50", num_classes=classes, num_segments=8)


@pytest.fixture(scope="module")
def released():
    return released_state_dict(RELEASED)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("classifier", ["new_fc", "base_model.fc"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_both_prefixes_and_classifier_names(tmp_path, released, prefix, classifier, wrapped):
    state = {prefix + n.replace("new_fc", classifier): t for n, t in released.items()}
    torch.save({"state_dict": state, "epoch": 7} if wrapped else state, tmp_path / "c.pth.tar")
    network = tdn50()
    report = load_checkpoint(network, tmp_path / "c.pth.tar")
    assert torch.equal(network.classifier.weight, released["new_fc.weight"])
    assert torch.equal(network.res3[1].temporal.conv.weight, released["base_model.layer2_bak.1.shift.conv.weight"])
    assert report.unused == tuple(f"{prefix}base_model.conv1_temp.{leaf}" for leaf in ("bias", "weight"))
    assert report.metadata == ({"epoch": 7} if wrapped else {})


@pytest.mark.parametrize("classifier", ["new_fc", "base_model.fc"])
def test_a_backbone_from_other_classes_leaves_the_classifier_alone(tmp_path, released, classifier):
    state = {f"module.{n.replace('new_fc', classifier)}": t for n, t in released.items()}
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "c.pth.tar")
    network, whole = tdn50(3), tdn50()
    before = {n: t.clone() for n, t in network.classifier.state_dict().items()}
    report = load_backbone(network, tmp_path / "c.pth.tar")
    assert report.metadata == {"epoch": 7}
    assert report.unused == load_checkpoint(whole, tmp_path / "c.pth.tar").unused
    for name, tensor in network.state_dict().items():
        kept = name.startswith("classifier.")
        assert torch.equal(tensor, before[name[11:]] if kept else whole.state_dict()[name]), name


def test_a_backbone_of_another_network_is_refused(tmp_path, released):
    path = tmp_path / "c.pth"
    torch.save({n: t for n, t in released.items() if n != "base_model.layer3_bak.2.conv2.weight"}, path)
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors missing, first res4\.2\.conv2\.conv\.weight"):
        load_backbone(tdn50(3), path)
    path = tmp_path / "c.safetensors"
    for saved, into in (("tsn_resnet101", "tsn_resnet50"), ("tdn_resnet50", "tsn_resnet50"), ("tsn_resnet50", None)):
        save_checkpoint(create_model(saved, num_classes=5), path, {})
        network = create_model(into, num_classes=3) if into else tdn50(3)
        before = {n: t.clone() for n, t in network.state_dict().items()}
        with pytest.raises(CheckpointError, match="of another network"):
            load_backbone(network, path)
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())  # nothing was half loaded


def test_missing_and_misshaped_tensors_are_named(tmp_path, released):
    path = tmp_path / "c.pth"
    torch.save({n: t for n, t in released.items() if n != "base_model.layer3_bak.2.mse.conv2.weight"}, path)
    with pytest.raises(
        CheckpointError, match=r"1 of \d+ tensors missing.*res4\.2\.temporal\.difference\.smooth\.weight"
    ):
        load_checkpoint(tdn50(), path)
    torch.save(released, path)
    with pytest.raises(CheckpointError, match=r"new_fc\.weight: \(10, 2048\) in the file, \(11, 2048\)"):
        load_checkpoint(tdn50(11), path)


@pytest.mark.parametrize(("saved", "loaded"), [("tdn_resnet50", "tsn_resnet50"), ("tsn_resnet50", "tdn_resnet50")])
def test_a_checkpoint_of_another_network(tmp_path, saved, loaded):
    path = tmp_path / "c.safetensors"
    save_checkpoint(create_model(saved, num_classes=3), path, {})
    with pytest.raises(CheckpointError, match="of another network"):
        load_checkpoint(create_model(loaded, num_classes=3), path)


def test_a_deeper_network_of_equal_shapes_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(create_model("tsn_resnet101", num_classes=3), path, {})
    with pytest.raises(CheckpointError, match="of another network"):
        load_checkpoint(create_model("tsn_resnet50", num_classes=3), path)


def test_own_format_round_trip(tmp_path):
    path = tmp_path / "run" / "c.safetensors"
    a, b = (create_model("tdn_resnet_small", num_classes=3, num_segments=4) for _ in range(2))
    save_checkpoint(a, path, {"model": "tdn_resnet_small", "classes": ["x", "y", "z"]})
    report = load_checkpoint(b, path)
    assert report.metadata == read_metadata(path) == {"model": "tdn_resnet_small", "classes": ["x", "y", "z"]}
    assert report.unused == ()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


class Hostile:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_hostile_pickles_never_run(tmp_path, capsys):
    for number, content in enumerate([Hostile(), {"state_dict": Hostile()}, {"state_dict": {}, "extra": Hostile()}]):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="refused") as error:
            load_checkpoint(tdn50(), path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tdn50(), tmp_path / "raw.pth")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", bytes(100), "cut"])
def test_unreadable_files_are_one_line(tmp_path, suffix, content):
    path = tmp_path / f"bad{suffix}"
    network = create_model("tdn_resnet_small", num_classes=3)
    if content == "cut":
        save_checkpoint(network, path, {}) if suffix == ".safetensors" else torch.save(network.state_dict(), path)
        content = path.read_bytes()[:5000]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(network, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_state_dict(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(tdn50(), tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tdn50(), tmp_path / "nowhere.pth")


def torchvision_resnet(blocks=(1, 1, 1, 1), width=32):
    """A state dict under torchvision's names (no convolution biases), with random values."""
    state = {}

    def conv_bn(conv, bn, c_out, c_in, k):
        state[f"{conv}.weight"] = torch.randn(c_out, c_in, k, k)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{bn}.{leaf}"] = torch.rand(c_out)

    conv_bn("conv1", "bn1", width, 3, 7)
    c_in = width
    for stage, count in enumerate(blocks):
        c = width << stage
        for i in range(count):
            at = f"layer{stage + 1}.{i}"
            for k, (o, n, size) in enumerate(((c, c_in, 1), (c, c, 3), (4 * c, c, 1)), 1):
                conv_bn(f"{at}.conv{k}", f"{at}.bn{k}", o, n, size)
            if i == 0:
                conv_bn(f"{at}.downsample.0", f"{at}.downsample.1", 4 * c, c_in, 1)
            c_in = 4 * c
    state["fc.weight"], state["fc.bias"] = torch.randn(1000, c_in), torch.randn(1000)
    return state


@pytest.mark.parametrize("name", ["tdn_resnet_small", "tsn_resnet_small"])
def test_imagenet_start(tmp_path, name):
    state = torchvision_resnet()
    torch.save(state, tmp_path / "resnet.pth")
    network = create_model(name, num_classes=3, num_segments=4)
    report = load_imagenet(network, tmp_path / "resnet.pth")
    assert report.unused == ("fc.bias", "fc.weight")
    assert torch.equal(network.stem.conv.weight, state["conv1.weight"])
    assert torch.equal(network.res4[0].conv2.bn.running_var, state["layer3.0.bn2.running_var"])
    assert torch.equal(network.res3[0].downsample.conv.weight, state["layer2.0.downsample.0.weight"])
    assert not network.stem.conv.bias.any()
    if network.short_term is None:
        return
    inflated = network.short_term.stem.conv.weight
    assert inflated.shape == (32, 12, 7, 7)
    for c in range(12):
        assert torch.allclose(inflated[:, c], state["conv1.weight"].mean(1))
    assert torch.equal(network.short_term.res2[0].conv3.conv.weight, state["layer1.0.conv3.weight"])
    assert torch.equal(network.res2[0].conv3.conv.weight, state["layer1.0.conv3.weight"])


def test_imagenet_start_from_another_depth_is_refused(tmp_path):
    torch.save(torchvision_resnet((1, 1, 2, 1)), tmp_path / "deeper.pth")
    with pytest.raises(CheckpointError, match="of another network"):
        load_imagenet(create_model("tdn_resnet_small", num_classes=3), tmp_path / "deeper.pth")


def test_training_state_round_trip_and_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        read_training_state(tmp_path / "last.pt")
    write_training_state(tmp_path / "last.pt", {"epoch": 3, "network": {"w": torch.ones(2)}})
    state = read_training_state(tmp_path / "last.pt")
    assert state["epoch"] == 3
    assert torch.equal(state["network"]["w"], torch.ones(2))
