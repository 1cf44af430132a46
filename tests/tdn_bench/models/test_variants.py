"""Every network by name: published counts, what it sees of time, training, export, foreign weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines import EngineSpec, create_engine
from tdn_bench.checkpoint import CheckpointError, load_backbone, load_checkpoint, load_imagenet, save_checkpoint
from tdn_bench.cli import run_command
from tdn_bench.complexity import main as complexity_main
from tdn_bench.complexity import published_gmacs
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model, find_variant, list_models
from tdn_bench.models.complexity import measure
from tdn_bench.models.resnet import Bottleneck
from tdn_bench.models.temporal_difference import TemporalConv
from tdn_bench.models.temporal_modules import GroupedSpatioTemporal, InflatedConvBN, ShiftedConvBN
from tdn_bench.models.variants import VARIANTS
from tdn_bench.records.published import PUBLISHED

SMALL = [f"{variant}_resnet_small" for variant in VARIANTS]
# Those that differ in more than an option; options are compared with slow formulations in test_temporal_modules.py.
DISTINCT = [n for n in SMALL if not n.startswith("tdn_") or n.startswith(("tdn_resnet", "tdn_s1"))]
BLIND = {"tsn_resnet_small", "tsn++_resnet_small"}  # to the order of time


def small(name: str, segments: int = 4, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=classes, num_segments=segments, dropout=0)


def clip_for(name: str, batch: int = 1, segments: int = 4, height: int = 64, width: int = 64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, segments, find_variant(name).frames_per_segment, 3, height, width)


@pytest.mark.parametrize(
    ("name", "segments", "giga", "tolerance"),
    [
        # TDN paper, Tables 1 and 2; OFFICIAL counts TDN's own to 5e-4, see test_models.py
        ("tsn_resnet50", 8, 33, 0.5),
        ("tconv_resnet50", 8, 33, 0.5),
        ("l_tdm_resnet50", 8, 33, 0.5),
        ("s_tdm_resnet50", 8, 35, 0.5),
        ("tdn_resnet50", 8, 36, 0.5),
        ("tdn_resnet50", 16, 72, 0.75),
        ("tdn_resnet101", 8, 66, 0.5),
        ("tdn_resnet101", 16, 132, 0.5),
        ("tdn_s123_l45_resnet50", 8, 38, 0.55),
        ("i3d_resnet50", 32, 153, 0.55),
        ("tsm_resnet50", 8, 33, 0.5),
        ("tsm_resnet50", 16, 65, 0.5),
        ("teinet_resnet50", 8, 33, 0.5),
        ("teinet_resnet50", 16, 66, 0.55),
        # what the compared networks' own papers count
        ("stm_resnet50", 16, 67, 1.0),
        ("tea_resnet50", 8, 35, 0.5),
        ("tea_resnet50", 16, 70, 1.0),
        ("gst_resnet50", 16, 59, 1.0),
        ("tanet_resnet50", 8, 33, 0.5),
    ],
)
def test_multiply_adds_as_published(name: str, segments: int, giga: float, tolerance: float) -> None:
    assert measure(name, num_segments=segments).total.macs / 1e9 == pytest.approx(giga, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("tsm_resnet50", 400, 24.3),
        ("gst_resnet50", 174, 21.0),
        ("i3d_resnet50", 400, 28.0),
        ("tsn_resnet50", 400, 24.3),
    ],
)
def test_parameters_as_published(name: str, classes: int, millions: float) -> None:
    assert measure(name, num_classes=classes).total.parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_complexity_of_a_network_is_that_of_its_layers_written_down() -> None:
    """TSN on the small backbone at 64 pixels, by hand: multiply-adds = outputs × inputs of each."""
    found = measure("tsn_resnet_small", num_segments=3, size=64, num_classes=7)
    stem = 3 * 32 * 32 * 32 * 3 * 49  # segments × positions × channels out × channels in × kernel
    positions = 3 * 16 * 16
    res2 = positions * (32 * 32 + 32 * 32 * 9 + 32 * 128 + 32 * 128)  # 1×1, 3×3, 1×1, shortcut
    assert found.stages["stem"].macs == stem
    assert found.stages["res2"].macs == res2
    assert found.stages["res2"].activations == positions * (32 + 32 + 128 + 128)
    assert found.stages["classifier"].macs == 3 * 1024 * 7
    # inputs, weights with biases, outputs
    assert found.stages["classifier"].values == 3 * 1024 + 1024 * 7 + 7 + 3 * 7
    assert found.total.macs == sum(stage.macs for stage in found.stages.values())
    assert found.total.intensity(2) == 2 * found.total.intensity(4)
    with pytest.raises(UserError, match="at least 64"):
        measure("tsn_resnet_small", size=32)
    with pytest.raises(UserError, match="unknown model 'tsn'"):
        measure("tsn")


def test_the_command_shows_counts_beside_published_ones(capsys: pytest.CaptureFixture[str]) -> None:
    complexity_main(["tdn_resnet50"])
    header, whole, *stages = capsys.readouterr().out.splitlines()
    assert whole.split()[:8] == ["tdn_resnet50", "8", "×", "5", "35.639", "36", "(T1)", "24.411"]
    names = ("stem", "short_term.stem", "short_term.res2", "res2", "res3", "res4", "res5", "classifier")
    assert tuple(line.split()[0] for line in stages) == names
    complexity_main(["tsn_resnet50", "tdn_resnet50", "--size", "256"])
    assert len(rows := capsys.readouterr().out.splitlines()) == 3
    assert "(T" not in "".join(rows)  # published counts are of 224 pixels
    assert "G mult-adds" in header
    assert run_command(complexity_main, ["tdn_resnet18"]) == 2
    assert "unknown model 'tdn_resnet18'" in capsys.readouterr().err


def test_published_rows_name_networks_that_exist_and_are_found() -> None:
    for row in PUBLISHED:
        assert row.variant is None or f"{row.variant}_{row.backbone}" in list_models()
        assert any(v is not None for v in (row.gmacs, row.top1_percent, row.ms_per_video))
    row = published_gmacs("tdn_resnet101", 16)
    assert row is not None
    assert (row.gmacs, row.table) == (132, "2")
    assert published_gmacs("tdn_resnet50", 12) is None
    assert published_gmacs("tdn_resnet_small", 8) is None


@pytest.mark.parametrize("name", SMALL)
def test_every_network_trains_and_sees_the_order_of_time(name: str) -> None:
    network = small(name)
    logits = network(clip_for(name, batch=2, height=70, width=64))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    with torch.inference_mode():
        for module in network.modules():  # a gate that starts at the same value everywhere would hide a direction
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.1)
        nn.init.normal_(network.classifier.weight, 0, 0.1)
        clip = clip_for(name)
        a, b = network(clip), network(clip.flip((1, 2)))
        assert ((a - b).abs().max() > 1e-5 * a.abs().max()).item() == (name not in BLIND)


@pytest.mark.parametrize("name", DISTINCT)
@torch.inference_mode()
def test_videos_do_not_mix_and_folding_changes_nothing(name: str) -> None:
    network = small(name).eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    frames = torch.randint(0, 256, (2, 4, find_variant(name).frames_per_segment, 64, 64, 3), dtype=torch.uint8)
    classifier = FrameClassifier(network).eval()
    together = classifier(frames)
    apart = torch.cat([classifier(f[None]) for f in frames])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(classifier.fold_batch_norm()(frames), together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DISTINCT)
@torch.inference_mode()
def test_any_number_of_segments(name: str) -> None:
    segments, batch = 5, 1
    network = small(name, segments).eval()
    assert network(clip_for(name, batch, segments, 66, 75)).isfinite().all()
    with pytest.raises(ValueError, match=f"this network takes {segments} segments"):
        network(clip_for(name, batch, segments + 1))


@pytest.mark.slow
# Networks with ++ are the same modules on more segments.
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "++" in n else n for n in DISTINCT])
def test_exported_graphs_take_any_batch(name: str) -> None:
    """torch.export with a symbolic batch: what ONNX and AOTInductor start from."""
    network = small(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (clip_for(name, 2),), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        for clips in (1, 3):
            clip = clip_for(name, clips)
            torch.testing.assert_close(exported.module()(clip), network(clip), rtol=1e-3, atol=1e-5)


# The others' graphs are compared above, as torch exports them.
LATER = [pytest.param(variant, marks=pytest.mark.slow) for variant in ("stm", "tea", "tanet", "gst", "i3d")]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tsm", "teinet", "tdn_s123_l45", *LATER])
def test_onnx_runtime_computes_the_network(variant: str) -> None:
    network = small(f"{variant}_resnet_small")
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    nn.init.normal_(network.classifier.weight, 0, 0.1)
    classifier = FrameClassifier(network).eval()
    shape = (4, VARIANTS[variant].frames_per_segment, 64, 64, 3)
    frames = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = classifier(frames)
    with create_engine("onnx", classifier, EngineSpec(shape, 3, "fp32", "cpu")) as engine:
        for clips in (3, 1):
            assert (engine(frames[:clips]) - wanted[:clips]).abs().max() < 1e-3 * wanted.std()


def test_networks_that_read_one_frame_read_the_centre_one() -> None:
    network = small("tsm_resnet_small").eval()
    clip = torch.randn(1, 4, 5, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(clip), network(clip[:, :, 2:3]))


def test_all_frames_are_as_many_segments() -> None:
    """TSM++ on 4 × 5 frames is TSM on 20."""
    a, b = small("tsm++_resnet_small").eval(), small("tsm_resnet_small", 20).eval()
    b.load_state_dict(a.state_dict())
    clip = clip_for("tsm++_resnet_small")
    with torch.inference_mode():
        torch.testing.assert_close(a(clip), b(clip.reshape(1, 20, 1, 3, 64, 64)))


def test_where_modules_stand() -> None:
    """TSM shifts every block of ResNet-50 and every other one of ResNet-101; TDN's modules are in Res3 … Res5."""
    with torch.device("meta"):
        blocks = {n: create_model(n, num_classes=2) for n in ("tsm_resnet50", "tsm_resnet101", "tdn_resnet50")}
        i3d = create_model("i3d_resnet50", num_classes=2)
    shifted = {
        n: [isinstance(m.conv1, ShiftedConvBN) for m in net.modules() if isinstance(m, Bottleneck)]
        for n, net in blocks.items()
    }
    assert all(shifted["tsm_resnet50"])
    assert shifted["tsm_resnet101"] == [i % 2 == 0 for depth in (3, 4, 23, 3) for i in range(depth)]
    stages = ("res2", "res3", "res4", "res5")
    temporal = [[isinstance(m, TemporalConv) for m in getattr(blocks["tdn_resnet50"], s).modules()] for s in stages]
    assert [sum(found) for found in temporal] == [0, 4, 6, 3]
    inflated = [[isinstance(b.conv1, InflatedConvBN) for b in getattr(i3d, s)] for s in stages]
    assert inflated == [[True] * 3, [True, False] * 2, [True, False] * 3, [False, True, False]]


# ---- weights of others


def torchvision_names(name: str) -> str:
    stages = (("res2.", "layer1."), ("res3.", "layer2."), ("res4.", "layer3."), ("res5.", "layer4."))
    for ours, theirs in (("stem.", "1."), *stages, ("classifier.", "fc.")):
        if name.startswith(ours):
            name = name.replace(ours, theirs, 1)
    if name.startswith("1."):
        return name[2:].replace("conv.", "conv1.").replace("bn.", "bn1.")
    for i in "123":
        name = name.replace(f".conv{i}.conv.", f".conv{i}.").replace(f".conv{i}.bn.", f".bn{i}.")
    return name.replace("downsample.conv.", "downsample.0.").replace("downsample.bn.", "downsample.1.")


@pytest.fixture(scope="module")
def image_net() -> dict[str, Tensor]:
    """A ResNet-50's state dict as torchvision names it: no biases in convolutions."""
    torch.manual_seed(3)
    network = create_model("tsn_resnet50", num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1)
    state = {n: t for n, t in network.state_dict().items() if not n.endswith("conv.bias")}
    names = {torchvision_names(n): t for n, t in state.items()}
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.2.bn3.running_var", "fc.weight"} <= set(
        names
    )
    assert "layer2.0.downsample.1.weight" in names
    return names


@pytest.mark.parametrize("name", ["tsn", "tsm", "tconv", "teinet", "stm", "tanet", "gst", "i3d", "tdn", "tdn_s123_l45"])
def test_image_net_starts_every_network_on_this_backbone(
    name: str, image_net: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(image_net, tmp_path / "resnet50.pth")
    network = create_model(f"{name}_resnet50", num_classes=7)
    own = {n: t.clone() for n, t in network.state_dict().items() if ".temporal." in n or n.startswith("classifier.")}
    load_imagenet(network, tmp_path / "resnet50.pth")
    state = network.state_dict()
    assert torch.equal(state["res4.5.conv3.conv.weight"], image_net["layer3.5.conv3.weight"])
    assert torch.equal(state["res5.0.downsample.bn.weight"], image_net["layer4.0.downsample.1.weight"])
    assert not state["res3.1.conv3.conv.bias"].any()
    kept = {n: t for n, t in own.items() if not (name == "gst" and ".bn." in n)}
    assert all(torch.equal(state[n], t) for n, t in kept.items())
    kernel, norm = image_net["layer2.1.conv2.weight"], image_net["layer2.1.bn2.running_mean"]
    if name == "gst":
        block = network.res3[1].conv2
        assert isinstance(block, GroupedSpatioTemporal)
        assert torch.equal(block.spatial.conv.weight, kernel[:96, :64])
        assert torch.equal(torch.cat((block.spatial.bn.running_mean, block.temporal.bn.running_mean)), norm)
    else:
        assert torch.equal(state["res3.1.conv2.conv.weight"], kernel)
        assert torch.equal(state["res3.1.conv2.bn.running_mean"], norm)
    if name == "i3d":
        inflated = state["res3.0.conv1.conv.weight"].view(128, 3, 256, 1, 1)
        torch.testing.assert_close(inflated.sum(1), image_net["layer2.0.conv1.weight"])
        assert torch.equal(inflated[:, 0], inflated[:, 2])
    if name == "tdn_s123_l45":
        assert torch.equal(state["short_term.res3.2.conv2.conv.weight"], image_net["layer2.2.conv2.weight"])


def test_an_inflated_network_sees_a_still_clip_as_the_image_network_does(
    image_net: dict[str, Tensor], tmp_path: Path
) -> None:
    """Inflation (I3D, Sec. 2.2): inside a still clip, away from its ends, every feature is the image network's."""
    torch.save(image_net, tmp_path / "resnet50.pth")
    layer = InflatedConvBN(3, 64, 7, 5, 9, stride=2).eval()
    stem = image_net["conv1.weight"]
    layer.conv.weight.data = stem.repeat(1, 5, 1, 1) / 5
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = layer(picture.expand(9, 3, 64, 64)) * (1 + 1e-5) ** 0.5
        wanted = torch.nn.functional.conv2d(picture, stem, layer.conv.bias, stride=2, padding=3)
    torch.testing.assert_close(found[4:5], wanted, rtol=1e-4, atol=1e-4)


def as_released(image_net: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The same backbone as TSM's repository writes it: `module.base_model.`, a classifier, `.net` where it shifts."""
    state = {}
    for name, tensor in image_net.items():
        if kind == "tsm":
            name = name.replace(".conv1.weight", ".conv1.net.weight")
        state["module.new_fc." + name[3:] if name.startswith("fc.") else f"module.base_model.{name}"] = tensor
    return {"state_dict": state}  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["tsn", "tsm"])
def test_released_baselines_load_into_their_own_network_only(
    kind: str, image_net: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"{kind}.pth.tar"
    torch.save(as_released(image_net, kind), path)
    network = create_model(f"{kind}_resnet50", num_classes=10)
    assert load_checkpoint(network, path).unused == ()
    state = network.state_dict()
    assert torch.equal(state["res2.1.conv1.conv.weight"], image_net["layer1.1.conv1.weight"])
    assert torch.equal(state["classifier.weight"], image_net["fc.weight"])
    assert not state["stem.conv.bias"].any()
    other = "tsm" if kind == "tsn" else "tsn"
    with pytest.raises(CheckpointError, match=f"a {kind}'s, this one is a {other}"):
        load_checkpoint(create_model(f"{other}_resnet50", num_classes=10), path)


def test_weights_of_one_variant_are_not_taken_for_anothers(tmp_path: Path) -> None:
    """Their tensors have the same names and shapes; only the notes tell."""
    path = tmp_path / "c.safetensors"
    save_checkpoint(small("tdn_l_average_resnet_small"), path, {"model": "tdn_l_average_resnet_small"})
    load_checkpoint(small("tdn_l_average_resnet_small"), path)
    for load in (load_checkpoint, load_backbone):
        with pytest.raises(CheckpointError, match=r"a tdn_l_average's, this one is a tdn$"):
            load(small("tdn_resnet_small"), path)


def test_unknown_names_and_defaults() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'tdn_resnet18'; did you mean tdn_resnet"):
        create_model("tdn_resnet18", num_classes=2)
    with pytest.raises(ValueError, match=r"unknown model 'x'; choose one of .*tdn-bench list"):
        create_model("x", num_classes=2)
    with torch.device("meta"):
        assert create_model("i3d_resnet_small", num_classes=2).num_segments == 32
        assert create_model("tdn_resnet_small", num_classes=2).num_segments == 8
