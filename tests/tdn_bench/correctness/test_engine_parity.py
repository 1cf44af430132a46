"""`tdn-bench parity engines`: what it compares, what it catches, and where a layer's error is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.networks import make, make_frames

from engines import EngineSpec, create_engine
from tdn_bench.cli.run import run_command
from tdn_bench.correctness import engine_parity
from tdn_bench.correctness.engine_parity import Probe, layer_names, per_layer
from tdn_bench.correctness.logits import main


def flags(data: Path, checkpoint: Path, *more: str) -> list[str]:
    common = ["--data", str(data), "--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "1"]
    return ["engines", *common, *more]


def test_table_and_record(motion_data: Path, small_checkpoint: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxruntime")
    arguments = flags(motion_data, small_checkpoint, "--engines", "eager", "onnx", "--results", str(tmp_path))
    assert run_command(main, [*arguments, "--precisions", "fp32", "int8", "--calibration-clips", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows if row[0] in ("eager", "onnx")] == [
        ["eager", "fp32"],
        ["onnx", "fp32"],
        ["onnx", "int8"],
    ]
    (path,) = tmp_path.glob("parity-engines-*.json")
    figures = json.loads(path.read_text())["figures"]
    assert figures["onnx-fp32"]["max_difference"] < 1e-3
    assert figures["onnx-fp32"]["top1_percent"] == 100  # of clips on which both say the same
    assert figures["onnx-int8"]["max_difference"] > 1e-4
    assert figures["eager-fp32"].keys() >= {"accuracy_top1_percent", "accuracy_top5_percent"}
    assert figures["onnx-int8"]["clips"] == 8


def test_an_engine_that_is_not_the_network_ends_with_status_one(
    motion_data: Path, small_checkpoint: Path, monkeypatch, capsys
) -> None:
    real = engine_parity.create_engine

    def create(name, network, spec, **options):
        if spec.rewrite:  # not the reference
            network.network.classifier.bias.data[0] += 1e4
        return real(name, network, spec, **options)

    monkeypatch.setattr(engine_parity, "create_engine", create)
    arguments = flags(motion_data, small_checkpoint, "--engines", "eager", "--precisions", "bf16")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "not the network: eager bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--engines", "tvm"], "engine 'tvm' is unknown"),
        (["--engines", "eager", "--precisions", "int8"], "--precisions int8: none of eager has them on cpu"),
        (["--subset", "test"], "--subset test:"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--engines", "onnx", "--precisions", "int8", "--calibration-clips", "0"], "--calibration-clips 0"),
        (["--engines", "onnx", "--precisions", "int8", "--keep", "nothing"], "keep names 'nothing'"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, motion_data: Path, small_checkpoint: Path, capsys
) -> None:
    if "onnx" in more:
        pytest.importorskip("onnxruntime")
    assert run_command(main, flags(motion_data, small_checkpoint, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


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
    step = -(-wanted.shape[1] // engine_parity.SAMPLES)
    assert torch.equal(found, wanted[:, ::step])


def test_a_layer_that_an_engine_gets_wrong_is_found(monkeypatch, capsys) -> None:
    """The third stage's weights are damaged on their way to the engine: from there on, and not before."""
    network, frames = make("tdn"), make_frames("tdn")
    real = engine_parity.create_engine

    def create(name, probe, spec, **options):
        probe.network.network.res4[0].conv2.conv.weight.data *= 1.5
        return real(name, probe, spec, **options)

    monkeypatch.setattr(engine_parity, "create_engine", create)
    spec = EngineSpec(tuple(frames.shape[1:]), 2, rewrite=False)  # type: ignore[arg-type]
    rows = {row["layer"]: row["relative"] for row in per_layer("eager", network, spec, frames, None)}
    assert rows["network.res4.0.conv1"] < 1e-6
    assert rows["network.res4.0.conv2"] == pytest.approx(0.5, abs=0.3)
    assert rows["network.classifier"] > 0.01


def test_the_layer_that_eight_bits_hurt_is_named_and_may_be_kept(capsys) -> None:
    """One layer has huge weights for a channel that is always zero: its steps are spent on those."""
    pytest.importorskip("onnxruntime")
    network, frames = make("tdn"), make_frames("tdn")
    block = network.network.res5[0]
    block.conv2.bn.weight.data[0], block.conv2.bn.bias.data[0] = 0, -1
    block.conv3.conv.weight.data[:, 0] = 100 * block.conv3.conv.weight.data.abs().max()
    spec = EngineSpec(tuple(frames.shape[1:]), 2, "int8")  # type: ignore[arg-type]
    rows = {row["layer"]: row for row in per_layer("onnx", network, spec, frames, [frames])}
    worst = max((row for row in rows.values() if "alone" in row), key=lambda row: row["alone"])
    assert worst["layer"] == "network.res5.0.conv3"
    assert "--keep network.res5.0.conv3.conv\n" in capsys.readouterr().out
    assert sum(row.get("share", 0) for row in rows.values()) == pytest.approx(1)
    assert "alone" not in rows["network.stem"]  # three channels: not quantised
    with create_engine("eager", network, replace(spec, precision="fp32", rewrite=False)) as eager:
        exact = eager(frames)
    errors = []
    for keep in ((), (f"{worst['layer']}.conv",)):
        with create_engine("onnx", network, replace(spec, keep=keep), calibration=[frames]) as engine:
            errors.append((engine(frames) - exact).square().mean().item())
    assert errors[1] < errors[0] / 10
