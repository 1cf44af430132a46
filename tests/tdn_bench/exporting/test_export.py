"""Exported files: loaded by a stranger's few lines they are the network; the JSON tells the truth; refusals and
failures leave nothing."""

import copy
import hashlib
import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import ROOT
from support.reference import CASES, released_state_dict
from support.videos import flat_frames, write_video
from torch import Tensor

import tdn_bench.exporting.formats as formats
import tdn_bench.exporting.plan as plan_module
from engines import why_unavailable
from pipelines.synthetic import CLASSES
from tdn_bench.checkpoint import load_checkpoint
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.recognizer import load_trained

SHAPE = (4, 5, 64, 64, 3)


def clips(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(batch))


@torch.inference_mode()
def right(checkpoint: Path, frames: Tensor) -> np.ndarray:
    """The logits of eager fp32."""
    return load_trained(checkpoint).classifier(frames).numpy()


def tolerance(wanted: np.ndarray, share: float) -> float:
    return float(share * wanted.std())


def said(target: Path) -> dict[str, Any]:
    """The description beside a file, and that its checksums hold."""
    about = json.loads(target.with_name(f"{target.name}.json").read_text(encoding="utf-8"))
    for name, file in about["files"].items():
        content = (target.parent / name).read_bytes()
        assert str(ROOT / "tdn_bench").encode() not in content, name  # the maker's folders are nobody's business
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return about


def test_onnx_for_every_batch(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    """Batches of 1, 3 and 8, by ONNX Runtime; classes, T and crop in the file itself."""
    import onnx
    import onnxruntime

    target = tmp_path / "a folder" / "it's.onnx"
    status, out, err = export(
        trained_checkpoint, "--format", "onnx", "--dynamic-batch", "--batch-size", 8, "--output", target
    )
    assert status == 0, err
    assert "on 8 synthetic clips" in out
    assert "onnxruntime" in out
    onnx.checker.check_model(target, full_check=True)
    session = onnxruntime.InferenceSession(target)
    for batch in (1, 3, 8):
        wanted = right(trained_checkpoint, clips(batch))
        [logits] = session.run(None, {"frames": clips(batch).numpy()})
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=tolerance(wanted, 1e-3))
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == list(CLASSES)
    assert (held["num_segments"], held["frames_per_segment"], held["size"]) == ("4", "5", "64")
    about = said(target)
    assert about["inputs"][0]["shape"] == ["batch", *SHAPE]
    assert about["outputs"][0]["shape"] == ["batch", 8]
    assert about["batch"] == {"smallest": 1, "largest": 8}
    assert about["classes"] == list(CLASSES)
    assert about["network"] == {"model": "tdn_resnet_small", "T": 4, "L": 5}
    assert about["checkpoint"]["sha256"] == hashlib.sha256(trained_checkpoint.read_bytes()).hexdigest()
    assert about["check"]["clips"] == "synthetic"
    assert about["check"]["against_eager_fp32"]["max_difference"] < 1e-3
    assert about["versions"]["onnxruntime"] == onnxruntime.__version__
    assert str(tmp_path) not in json.dumps(about)
    assert sorted(path.name for path in target.parent.iterdir()) == ["it's.onnx", "it's.onnx.json"]


def test_a_fixed_batch_on_given_videos(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    """OpenVINO, three videos at a time; of the files given, one is no video."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    rng = np.random.default_rng(0)
    for i in range(2):
        write_video(tmp_path / "videos" / f"{i}.webm", rng.integers(0, 256, (20, 48, 64, 3), np.uint8))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"404 Not Found")
    target = tmp_path / "net.xml"
    arguments = ("--format", "openvino", "--batch-size", 3, "--output", target, "--check-on", tmp_path / "videos")
    status, out, err = export(trained_checkpoint, *arguments)
    assert status == 0, err
    assert "broken.mp4" in err
    assert "on 2 given clips" in out
    about = said(target)
    assert set(about["files"]) == {"net.xml", "net.bin"}
    assert about["check"]["videos"] == ["0.webm", "1.webm"]
    compiled = openvino.Core().compile_model(target, "CPU", about["load_with"])
    wanted = right(trained_checkpoint, clips(3))
    logits = compiled({"frames": clips(3).numpy()})["logits"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=tolerance(wanted, 1e-3))
    assert openvino.Core().read_model(target).get_rt_info(["tdn_bench", "num_segments"]).astype(str) == "4"


def test_torch_export(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    """In bf16, for every batch; the file keeps the class names."""
    arguments = ("--format", "torch-export", "--precision", "bf16", "--dynamic-batch", "--batch-size", 8)
    status, _, err = export(trained_checkpoint, *arguments, "--output", tmp_path)
    assert status == 0, err
    target = tmp_path / "tdn_resnet_small-torch-export-bf16.pt2"
    extra = {"classes": "", "num_segments": ""}
    module = torch.export.load(target, extra_files=extra).module()
    with zipfile.ZipFile(target) as archive:
        assert not [name for name in archive.namelist() if str(ROOT).encode() in archive.read(name)]
    for batch in (1, 3, 8):
        wanted = right(trained_checkpoint, clips(batch))
        np.testing.assert_allclose(module(clips(batch)).numpy(), wanted, rtol=0, atol=tolerance(wanted, 0.15))
    assert json.loads(extra["classes"]) == list(CLASSES)
    assert said(target)["precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [("--batch-size", 2), ("--batch-size", 4, "--dynamic-batch")])
def test_aoti(batch: tuple[object, ...], trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    if reason := why_unavailable("aoti", "cpu"):
        pytest.skip(reason)
    target = tmp_path / "net.pt2"
    status, _, err = export(trained_checkpoint, "--format", "aoti", *batch, "--output", target)
    assert status == 0, err
    module = torch._inductor.aoti_load_package(str(target))
    for size in (1, 2, 4) if "--dynamic-batch" in batch else (2,):
        wanted = right(trained_checkpoint, clips(size))
        np.testing.assert_allclose(module(clips(size)).numpy(), wanted, rtol=0, atol=tolerance(wanted, 1e-3))
    assert said(target)["batch"] == {"smallest": 1 if len(batch) > 2 else 2, "largest": batch[1]}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "precision"), [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "int8")])
def test_low_precision(
    form: str, precision: str, trained_checkpoint: Path, tmp_path: Path, motion_data: Path, export: Any
) -> None:
    """The comparison in the JSON is of a rounded network: near the right one, and not equal to it."""
    if form == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    calibration = ("--calibrate-on", motion_data, "--calibration-clips", 8) if precision == "int8" else ()
    arguments = ("--format", form, "--precision", precision, "--output", tmp_path, *calibration)
    status, _, err = export(trained_checkpoint, *arguments)
    assert status == 0, err
    [about] = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert 1e-5 < about["check"]["against_eager_fp32"]["max_difference"] < {"fp16": 0.03, "int8": 0.8}[precision]


@pytest.mark.needs_tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_rtx_says_what_was_run(precision: str, trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None or torch.cuda.is_available():
        pytest.skip("needs tensorrt_rtx, and no GPU")
    arguments = ("--format", "trt-rtx", "--precision", precision, "--output", tmp_path / "net.plan")
    status, out, err = export(trained_checkpoint, *arguments)
    assert status == 0, err
    assert "note: the engine itself was not run" in out
    assert ("checked against eager" in out) == (precision == "fp16")
    about = said(tmp_path / "net.plan")
    assert "was not run" in about["check"]["not_run"]
    assert (about["check"]["against_eager_fp32"] is None) == (precision == "bf16")
    assert about["layer_outputs"]["Half" if precision == "fp16" else "BFloat16"] > 30
    assert len(list(tmp_path.iterdir())) == 2  # the ONNX file that it was built from is gone


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


REFUSED = [
    (("--format", "onnx", "--precision", "bf16"), "--precision bf16: --format onnx has fp32, fp16, int8 only"),
    (("--format", "onnx", "--precision", "int8"), "name some by --calibrate-on"),
    (("--format", "onnx", "--batch-size", 0), "--batch-size 0: must be from 1"),
    (("--format", "onnx", "--batch-size", 1, "--dynamic-batch"), "give 2 or more"),
    (("--format", "onnx", "--check-clips", -3), "--check-clips -3: must not be negative"),
    (("--format", "onnx", "--check-on", "nowhere"), "--check-on nowhere: no such file or folder"),
    (("--format", "onnx", "--check-on", "empty"), "--check-on empty: holds no video"),
    (("--format", "onnx", "--check-on", "none*.mp4"), "--check-on none*.mp4: no such file or folder"),
    (("--format", "onnx", "--precision", "int8", "--calibrate-on", "no-*", "empty"), "--calibrate-on empty: holds no"),
    (("--format", "onnx", "--check-on", "no-video.mp4"), "none of its 1 videos can be used"),
    (("--format", "onnx", "--name", "tdn"), "--name goes with --format triton"),
    (("--format", "onnx", "--exclude-layers", "x"), "fp32 quantises no layer"),
    (("--format", "onnx", "--output", "net.pt"), "onnx files end in .onnx"),
    (("--format", "onnx", "--output", "no-video.mp4/net.onnx"), "cannot be written"),
    (("--format", "onnx", "--output", "net\0.onnx"), "--output"),
    (("--format", "onnx", "--device", "cuda:9"), "--device cuda:9"),
    (("--format", "triton", "--name", "../tdn"), "--name ../tdn: use letters"),
    (("--format", "triton", "--backend", "openvino"), "cannot be told to compute in fp32"),
    (("--format", "triton", "--batch-size", 1), "give 2 or more"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_refusals_come_before_work_and_leave_nothing(
    flags: tuple[object, ...],
    message: str,
    trained_checkpoint: Path,
    tmp_path: Path,
    export: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "openvino" in flags:
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if "cuda:9" in flags and torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-video.mp4").write_bytes(b"<!DOCTYPE html>")
    before = everything_below(tmp_path)
    status, out, err = export(trained_checkpoint, *flags)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert not out
    assert everything_below(tmp_path) == before


def test_formats_that_are_not_there(
    trained_checkpoint: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for form, missing in {
        "trt": "tensorrt is not installed: pip install tensorrt",
        "trt-rtx": "tensorrt_rtx is not installed: pip install 'tdn_bench[trt-rtx]'",
        "openvino": "OpenVINO is not installed: pip install openvino",
        "onnx": "ONNX Runtime is not installed",
    }.items():
        status, _, err = export(trained_checkpoint, "--format", form)
        assert status == 2
        assert f"--format {form}: {missing}" in err
        assert err.count("\n") == 1
    assert not everything_below(tmp_path)
    assert export(trained_checkpoint, "--format", "coreml")[0] == 2


def test_a_checkpoint_that_cannot_be(tmp_path: Path, small_checkpoint: Path, export: Any) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(small_checkpoint.read_bytes()[:-100])
    for path, message in ((broken, "broken.safetensors"), (tmp_path / "no", "no"), (small_checkpoint, "no classes")):
        status, _, err = export(path, "--format", "onnx", "--output", tmp_path / "net.onnx")
        assert status == 2
        assert message in err
    assert everything_below(tmp_path) == ["broken.safetensors"]


def test_what_is_there_stays_unless_told(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    for name in ("net.onnx", "net.onnx.json"):
        (tmp_path / name).write_text("mine")
        status, _, err = export(trained_checkpoint, "--format", "onnx", "--output", tmp_path / "net.onnx")
        assert status == 2
        assert f"{name} is there already" in err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "folder.onnx").mkdir()  # a folder is where the file goes, not what it replaces
    (tmp_path / "folder.onnx" / "tdn_resnet_small-onnx-fp32.onnx").mkdir()
    status, _, err = export(trained_checkpoint, "--format", "onnx", "--output", tmp_path / "folder.onnx", "--overwrite")
    assert status == 2
    assert "is a folder" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    tmp_path.chmod(0o500)
    status, _, err = export(trained_checkpoint, "--format", "onnx", "--output", tmp_path / "new" / "net.onnx")
    tmp_path.chmod(0o700)
    assert status == 2
    assert "cannot be written" in err


@pytest.mark.parametrize("overwrite", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_file_that_is_another_network_is_not_kept(
    overwrite: bool, trained_checkpoint: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1; what was there before is as it was."""
    honest = formats.TorchExportFormat.program

    def dishonest(self: Any, network: Any, spec: Any) -> Any:
        other = copy.deepcopy(network)  # the network that is written, not the one that it is compared with
        with torch.no_grad():
            other.network.classifier.weight[0] += 0.05
        return honest(self, other, spec)

    monkeypatch.setattr(formats.TorchExportFormat, "program", dishonest)
    target = tmp_path / "new" / "net.pt2"
    if overwrite:
        target.parent.mkdir()
        target.write_text("mine")
    before = everything_below(tmp_path)
    arguments = ("--format", "torch-export", "--output", target, *(["--overwrite"] if overwrite else []))
    status, out, err = export(trained_checkpoint, *arguments)
    assert status == 1
    assert "the file is not the network" in err
    assert not out
    assert everything_below(tmp_path) == before
    assert not overwrite or target.read_text() == "mine"


def test_ctrl_c_leaves_nothing(
    trained_checkpoint: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_module, "check_loaded", interrupted)
    status, out, _ = export(trained_checkpoint, "--format", "torch-export", "--output", tmp_path / "a" / "net.pt2")
    assert (status, out) == (130, "")
    assert not everything_below(tmp_path)


@pytest.mark.slow
def test_grey_videos_are_no_proof_but_no_fault(trained_checkpoint: Path, tmp_path: Path, export: Any) -> None:
    """Clips that are all alike say nothing of the clips' order; the logits are compared all the same."""
    write_video(tmp_path / "grey.webm", flat_frames(12, 128))
    arguments = ("--format", "torch-export", "--output", tmp_path / "net.pt2", "--check-on", tmp_path / "grey.webm")
    status, out, err = export(trained_checkpoint, *arguments)
    assert status == 0, err
    assert "on 1 given clip:" in out


def test_the_authors_files(tmp_path: Path, export: Any) -> None:
    """A released file says neither its network nor its classes: flags do. Names of a wrong number are refused."""
    case = next(c for c in CASES if c["arch"] == "resnet50" and c["num_classes"] == 10 and c["num_segments"] == 8)
    released, target = tmp_path / "TDN.pth.tar", tmp_path / "net.pt2"
    torch.save({"state_dict": {f"module.{n}": t for n, t in released_state_dict(case).items()}, "epoch": 7}, released)
    names, few = [f'Doing {i} {{c}} "it"' for i in range(10)], tmp_path / "few.txt"
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    few.write_text("one\ntwo\n", encoding="utf-8")
    arguments = (released, "--format", "torch-export", "--output", target, "--num-segments", 8, "--size", 64)
    status, _, err = export(*arguments, "--class-names", few)
    assert status == 2
    assert "knows 10 classes, but 2 names are given" in err
    assert not target.exists()
    status, out, err = export(*arguments, "--check-clips", 1, "--class-names", tmp_path / "classes.txt")
    assert status == 0, err
    assert "8 × 5 × 64 × 64 × 3, 10 classes" in out
    about = said(target)
    assert about["classes"] == names
    assert about["network"] == {"model": "tdn_resnet50", "T": 8, "L": 5}
    frames = torch.randint(0, 256, (1, 8, 5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = create_model("tdn_resnet50", num_classes=10, num_segments=8)
    load_checkpoint(network, released)
    with torch.inference_mode():
        wanted = FrameClassifier(network).eval()(frames).numpy()
        logits = torch.export.load(target).module()(frames).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=tolerance(wanted, 1e-3))
