"""Weights in and out: the authors' files, our own, torchvision's; and files that must be refused."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.reference import CASES, released_state_dict

from tdn_bench.checkpoint import (
    CheckpointError,
    load_backbone,
    load_checkpoint,
    load_imagenet,
    read_metadata,
    read_tensors,
    read_training_state,
    save_checkpoint,
    write_tensors,
    write_training_state,
)
from tdn_bench.cli import NetworkFlags
from tdn_bench.errors import UserError
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
        with pytest.raises(CheckpointError, match=r"refused.*\((builtins\.)?print\)") as error:
            load_checkpoint(tdn50(), path)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)  # PyTorch's own message advises to run the file
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


def state_of(classes: int = 4):
    torch.manual_seed(0)
    return create_model("tdn_resnet_small", num_classes=classes, num_segments=4).state_dict()


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", ["c.safetensors", "last.pt"])
def test_no_flipped_bit_is_silent(tmp_path, name):
    path, rng = tmp_path / name, random.Random(0)
    tensors = {"weight": torch.rand(64, 8), "count": torch.tensor(3), "half": torch.rand(9).half()}
    if name == "last.pt":
        wanted = {"network": tensors, "history": {"loss": 0.25, "epoch": 3, "name": "a"}}
        write_training_state(path, wanted)
        read = read_training_state
    else:
        wanted = {**tensors, "notes": {"classes": ["left", "right"], "epoch": 3}}
        write_tensors(path, tensors, wanted["notes"])

        def read(path):
            found, notes = read_tensors(path)
            return {**{k: found[k] for k in tensors}, "notes": {k: notes[k] for k in wanted["notes"]}}

    assert alike(read(path), wanted)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read(path)
        except CheckpointError:
            refused += 1
        else:  # padding, times of day
            assert alike(found, wanted)
    assert refused > 100


def test_files_without_a_checksum_load(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "c.safetensors", {"format": "pt", "source": "not JSON", "epoch": "3"})
    tensors, notes = read_tensors(tmp_path / "c.safetensors")
    assert torch.equal(tensors["a"], torch.ones(3))
    assert notes == {"format": "pt", "source": "not JSON", "epoch": 3}
    torch.save({"epoch": 3, "network": {}}, tmp_path / "last.pt")
    assert read_training_state(tmp_path / "last.pt") == {"epoch": 3, "network": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.fill_(float("nan")), r"values of tensor classifier\.weight are NaN or infinite"),
        (
            lambda t: t.index_fill_(0, torch.tensor(1), float("-inf")),
            "1024 of 4096 values of tensor",
        ),
        (lambda t: t.double().fill_(1e300), "NaN or infinite"),  # of float32
        (lambda t: t.to(torch.int64), r"classifier\.weight is torch\.int64, the network's is torch\.float32"),
        (lambda t: t.to(torch.complex64), "is torch.complex64"),
        (lambda t: t.to(torch.bool), "is torch.bool"),
        (lambda t: t.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
    ],
)
def test_values_that_no_network_has_are_refused(tmp_path, change, message):
    state, path = state_of(), tmp_path / "c.safetensors"
    network = create_model("tdn_resnet_small", num_classes=4, num_segments=4)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    write_tensors(path, {**state, "classifier.weight": change(state["classifier.weight"].clone())}, {})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(network, path)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_buffer_counts_as_a_weight(tmp_path):
    state = state_of()
    for name, value in (("res3.0.conv2.bn.running_mean", float("nan")), ("res3.0.conv2.bn.running_var", -1.0)):
        bad = {**state, name: torch.full_like(state[name], value)}
        write_tensors(tmp_path / "c.safetensors", bad, {})
        with pytest.raises(CheckpointError, match=f"tensor {name}"):
            load_checkpoint(create_model("tdn_resnet_small", num_classes=4, num_segments=4), tmp_path / "c.safetensors")


def zipped(path, pickled, **entries):
    with zipfile.ZipFile(path, "w", entries.pop("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {"version": b"3\n", **entries}.items():
            archive.writestr(f"archive/{name}", content)


def bomb(path):
    zipped(path, pickle.dumps({}, 2), zeros=bytes(2**25), compression=zipfile.ZIP_DEFLATED)


def expanded(path):
    torch.save({"state_dict": {"a": torch.zeros(1).expand(2**20, 2**20)}}, path)


NO_CHECKPOINTS = {
    "web page": (b"<!DOCTYPE html><html>Sign in to continue</html>", "is a web page"),
    "error of a store": (b'\n<?xml version="1.0"?><Error/>', "is a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "JSON": (b'{"a": 1}', "no checkpoint of PyTorch"),
    "gzip": (b"\x1f\x8b" + bytes(50), "unpack it first"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "unpack it first"),
    "empty": (b"", "is empty"),
    "bomb": (bomb, "refused, it is a compressed archive of 33"),
    "TorchScript": (lambda p: torch.jit.script(torch.nn.Identity()).save(str(p)), "a TorchScript program"),
    "expanded": (expanded, r"state_dict.a is a tensor of shape \(1048576, 1048576\), larger than the file"),
    "sparse": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "refused, a is a sparse"),
    "meta": (lambda p: torch.save({"a": torch.ones(3, device="meta")}, p), "refused, a is a sparse"),
    "bytearray": (lambda p: zipped(p, b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."), "a bytearray"),
    "deep": (lambda p: zipped(p, b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b"."), "nested too deeply"),
    "in itself": (lambda p: zipped(p, b"\x80\x02]q\x00h\x00a."), "nested too deeply"),
    "safetensors": (lambda p: write_tensors(p, {"a": torch.ones(3)}, {}), "rename it to .safetensors"),
    "no names": (lambda p: torch.save({1: torch.ones(3)}, p), "without a name"),
    "folder": (Path.mkdir, "is a folder"),
    "pipe": (os.mkfifo, "is a pipe or a device"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a pipe or a device"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_people_take_for_checkpoints_is_named(tmp_path, kind):
    content, message = NO_CHECKPOINTS[kind]
    path = tmp_path / "c.pth.tar"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    network = create_model("tdn_resnet_small", num_classes=4)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(network, path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError):
        read_training_state(path) if kind != "no names" else load_checkpoint(network, path)


HEADERS = {
    "nested": '{"__metadata__": {"model": "%s"}}' % ("[" * 10**5),
    "number": '{"__metadata__": {"num_segments": "%s"}}' % ("9" * 5000),
    "infinite": '{"__metadata__": {"size": "1e999"}}',
    "list": '{"__metadata__": []}',
    "no text": '{"__metadata__": {"model": 5}}',
    "surrogate": '{"__metadata__": {"model": "\\"\\\\ud800\\""}}',
    "shape": '{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
    "no object": "[1]",
    "no JSON": "{",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_safetensors_are_one_line(tmp_path, kind):
    header = HEADERS[kind].encode()
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError) as error:
        NetworkFlags(checkpoint=path).resolve().build("abcd", torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_header_larger_than_the_file_takes_no_memory(tmp_path):
    (tmp_path / "c.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="its header would be larger than it may be"):
        read_metadata(tmp_path / "c.safetensors")


def test_poisoned_training_states_are_refused(tmp_path):
    write_training_state(tmp_path / "last.pt", {"network": {"w": torch.tensor([1.0, float("inf")])}, "history": []})
    with pytest.raises(CheckpointError, match=r"network\.w has values that are NaN or infinite"):
        read_training_state(tmp_path / "last.pt")
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="no state of a training run"):
        read_training_state(tmp_path / "last.pt")


def test_checkpoints_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "c.safetensors", {"a": torch.ones(1)}, {})
        write_training_state(tmp_path / "last.pt", {"a": 1})
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o640}


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(create_model("tdn_resnet_small", num_classes=3), tmp_path / "file" / "c.safetensors", {})
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_training_state(tmp_path / "file" / "last.pt", {})
