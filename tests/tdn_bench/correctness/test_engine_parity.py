"""`tdn-bench parity engines`: what it compares, and what it catches."""

import json
from pathlib import Path

import pytest

from tdn_bench.cli import run_command
from tdn_bench.correctness import engine_parity
from tdn_bench.parity import main


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
        (["--limit", "0"], "--limit 0: must be from 1"),
        (["--engines", "onnx", "--precisions", "int8", "--calibration-clips", "0"], "--calibration-clips 0"),
        (["--engines", "onnx", "--precisions", "int8", "--exclude-layers", "stm"], "stm … no quantised layer"),
        (["--engines", "onnx", "--precisions", "int8", "--keep", "stm"], "stm … no quantised layer"),  # the old name
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, motion_data: Path, small_checkpoint: Path, capsys
) -> None:
    if "onnx" in more:
        pytest.importorskip("onnxruntime")
    assert run_command(main, flags(motion_data, small_checkpoint, *more)) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in message.split(" … "))
    assert error.count("\n") == 1
