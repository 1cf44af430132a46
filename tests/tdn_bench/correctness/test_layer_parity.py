"""Where a layer's error is found, and which layers eight bits hurt."""

from dataclasses import replace

import pytest
import torch
from support.networks import make, make_frames

from engines import EngineSpec, create_engine
from tdn_bench.correctness import layer_parity
from tdn_bench.correctness.layer_parity import Probe, layer_names, per_layer
from tdn_bench.models import FrameClassifier


@torch.inference_mode()
def test_probe_returns_what_the_layers_return() -> None:
    network, frames = make("tdn"), make_frames("tdn")
    names = layer_names(network)
    assert "network.short_term.stem" in names
    assert "network.res3.0.temporal.difference" in names
    assert not any(".temporal.difference." in name for name in names)  # rewriting changes them
    kept = {}
    layer = network.get_submodule("network.res4.0.conv2")
    with layer.register_forward_hook(lambda _, inputs, output: kept.update(output=output.clone())):
        logits = network(frames)
    assert torch.equal(Probe(network, ["network.classifier"])(frames).view(2, 4, 7).mean(1), logits)
    wanted = kept["output"].reshape(2, -1)
    found = Probe(network, ["network.res4.0.conv2"])(frames)
    step = -(-wanted.shape[1] // layer_parity.SAMPLES)
    assert torch.equal(found, wanted[:, ::step])


def test_a_layer_that_an_engine_gets_wrong_is_found(monkeypatch) -> None:
    """The third stage's weights are damaged on their way to the engine: from there on, and not before."""
    network, frames = make("tdn"), make_frames("tdn")
    real = layer_parity.create_engine

    def create(name, probe, spec, **options):
        probe.network.network.res4[0].conv2.conv.weight.data *= 1.5
        return real(name, probe, spec, **options)

    monkeypatch.setattr(layer_parity, "create_engine", create)
    spec = EngineSpec(tuple(frames.shape[1:]), 2, rewrite=False)  # type: ignore[arg-type]
    rows = {row["layer"]: row["relative"] for row in per_layer("eager", network, spec, frames, None).rows}
    assert rows["network.res4.0.conv1"] < 1e-6
    assert rows["network.res4.0.conv2"] == pytest.approx(0.5, abs=0.3)
    assert rows["network.classifier"] > 0.01


@pytest.fixture(scope="module")
def hurt() -> FrameClassifier:
    """A network one layer of which has huge weights for a channel that is always zero: its steps are spent on those."""
    network = make("tdn")
    block = network.network.res5[0]
    block.conv2.bn.weight.data[0], block.conv2.bn.bias.data[0] = 0, -1
    block.conv3.conv.weight.data[:, 0] = 100 * block.conv3.conv.weight.data.abs().max()
    return network


HURT = "network.res5.0.conv3"


def test_the_layer_that_eight_bits_hurt_is_named(hurt: FrameClassifier) -> None:
    pytest.importorskip("onnxruntime")
    frames = make_frames("tdn")
    spec = EngineSpec(tuple(frames.shape[1:]), 2, "int8")  # type: ignore[arg-type]
    found = per_layer("onnx", hurt, spec, frames, [frames])
    rows = {row["layer"]: row for row in found.rows}
    worst = max((row for row in rows.values() if "alone" in row), key=lambda row: row["alone"])
    assert worst["layer"] == HURT
    assert found.lines()[-1].endswith(f"--exclude-layers {HURT}.conv")
    assert sum(row.get("share", 0) for row in rows.values()) == pytest.approx(1)
    assert "alone" not in rows["network.stem"]  # three channels: not quantised


@pytest.mark.slow
def test_the_layer_that_eight_bits_hurt_may_be_excluded(hurt: FrameClassifier) -> None:
    pytest.importorskip("onnxruntime")
    frames = make_frames("tdn")
    spec = EngineSpec(tuple(frames.shape[1:]), 2, "int8")  # type: ignore[arg-type]
    with create_engine("eager", hurt, replace(spec, precision="fp32", rewrite=False)) as eager:
        exact = eager(frames)
    errors = []
    for excluded in ((), (f"{HURT}.conv",)):
        with create_engine("onnx", hurt, replace(spec, exclude_layers=excluded), calibration=[frames]) as engine:
            errors.append((engine(frames) - exact).square().mean().item())
    assert errors[1] < errors[0] / 10


def test_torch_compile_shows_no_layers() -> None:
    network, frames = make("tsn"), make_frames("tsn")
    found = per_layer("compile", network, EngineSpec(tuple(frames.shape[1:]), 2), frames, None)  # type: ignore[arg-type]
    assert found.rows == []
    assert "aoti" in found.lines()[0]
