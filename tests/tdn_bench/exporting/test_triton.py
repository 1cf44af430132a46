"""Model repositories: parsed by Triton's own descriptor, walked, run; and the example client against a server's
stand-in."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT
from support.triton_server import Models, serve
from support.videos import write_video

from pipelines.clip import ClipSpec
from pipelines.cpu import PyAVDecoder
from pipelines.dali import DaliDecoder
from pipelines.plan import plan_evaluation
from pipelines.scan import as_video
from pipelines.synthetic import CLASSES, draw_scene, encode, render
from pipelines.video import Video
from tdn_bench.cli import run_command
from tdn_bench.export import main
from tdn_bench.exporting.clips import Clips
from tdn_bench.exporting.job import CheckFailed
from tdn_bench.exporting.pbtxt import Symbol, to_pbtxt
from tdn_bench.exporting.triton import Repository, check_pipeline
from tdn_bench.recognizer import load_recognizer, load_trained

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient, or the grpcio that TensorBoard brings, is not installed")
SPEC = ClipSpec(4, 5, size=64, crop_ratio=0.875)


@pytest.fixture(scope="module")
def repository(hostile_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "models"
    arguments = [hostile_checkpoint, "--format", "triton", "--output", folder, "--name", "tdn", "--batch-size", 4]
    assert run_command(main, [str(a) for a in (*arguments, "--check-clips", 2)]) == 0
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    """Of several lengths; one is shorter than a clip, so that frames are repeated."""
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for i in range(2):
        paths.append(folder / f"{i}.webm")
        paths[-1].write_bytes(encode(render(draw_scene(1, i))))
    rng = np.random.default_rng(0)
    paths.append(write_video(folder / "short.webm", rng.integers(0, 256, (7, 50, 82, 3), np.uint8)))
    paths.append(write_video(folder / "overlapping.webm", rng.integers(0, 256, (11, 90, 66, 3), np.uint8)))
    return [as_video(path) for path in paths]


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with serve(repository) as where:
        yield where


@pytest.fixture
def client() -> ModuleType:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    spec = importlib.util.spec_from_file_location("triton_client", ROOT / "examples" / "triton_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sent(video: Video) -> dict[str, np.ndarray]:
    """What a client sends of a video."""
    indices = plan_evaluation(video, SPEC).frames.astype(np.int32)
    return {"video": np.fromfile(video.path, np.uint8)[None], "indices": indices[None]}


def test_its_models_fit_together(repository: Path) -> None:
    """Names, types and shapes from step to step of the ensemble."""
    models = Models(repository)
    assert sorted(models.configs) == ["tdn", "tdn_network", "tdn_preprocess"]
    ensemble = models.configs["tdn"]
    tensors = {one.name: one for one in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        inside = models.configs[step.model_name]
        assert inside.max_batch_size == ensemble.max_batch_size == 4
        assert inside.HasField("dynamic_batching")
        assert {one.name for one in inside.input} == set(step.input_map)
        for one in inside.input:
            given_by = tensors[step.input_map[one.name]]
            assert (one.data_type, list(one.dims)) == (given_by.data_type, list(given_by.dims))
        tensors |= {step.output_map[one.name]: one for one in inside.output}
    [output] = ensemble.output
    made = tensors[output.name]
    assert (output.data_type, list(output.dims)) == (made.data_type, list(made.dims))
    assert list(models.configs["tdn_preprocess"].output[0].dims) == list(SPEC.shape)
    assert not ensemble.HasField("dynamic_batching")  # Triton takes one scheduler a model
    ragged = {one.name: one.allow_ragged_batch for one in models.configs["tdn_preprocess"].input}
    assert ragged == {"video": True, "indices": False}  # files differ in length
    assert (repository / "tdn" / "1").is_dir()


def test_no_path_of_this_machine_is_in_it(repository: Path) -> None:
    for path in repository.rglob("*"):
        assert path.is_dir() or str(ROOT).encode() not in path.read_bytes(), path


def test_hostile_class_names_stay_text(repository: Path, hostile_checkpoint: Path) -> None:
    """A class a line, in order; nothing of a name becomes a field of a configuration."""
    classes = load_trained(hostile_checkpoint).classes
    models = Models(repository)
    for name in ("tdn", "tdn_network"):
        labels = models.labels(name, "logits")
        assert len(labels) == len(classes) == models.configs[name].output[0].dims[0]
        assert labels[0] == classes[0]
        assert labels[1].startswith("turned")
        assert "round" in labels[1]
    assert json.loads((repository / "tdn.json").read_text(encoding="utf-8"))["classes"] == list(classes)


def test_its_pipeline_gives_our_frames(repository: Path, videos: list[Video]) -> None:
    """Of DALI to the bit; of PyAV to the difference between the two decoders' colours."""
    models = Models(repository)
    plans = [plan_evaluation(video, SPEC) for video in videos]
    assert (np.diff(plans[3].frames.ravel()) < 0).any()  # segments overlap: indices go back
    for video, wanted, near in zip(
        videos,
        DaliDecoder(SPEC, torch.device("cpu"), 1)(plans),
        PyAVDecoder(SPEC, 1)(plans),
        strict=True,
    ):
        frames = models.run("tdn_preprocess", sent(video))["frames"][0]
        np.testing.assert_array_equal(frames, wanted.reshape(SPEC.shape).numpy())  # type: ignore[union-attr]
        difference = frames.astype(int) - near.reshape(SPEC.shape).numpy()  # type: ignore[union-attr]
        assert np.abs(difference).mean() < (3 if video.id.isdigit() else 8)  # levels of 255; the others are noise


def test_no_clip_is_no_check(repository: Path) -> None:
    made = Repository("tdn", "onnxruntime", "dali", torch.device("cpu"))
    none = Clips(torch.zeros(0, 4, 5, 64, 64, 3, dtype=torch.uint8), (), "given")
    with pytest.raises(CheckFailed, match="was not checked"):
        check_pipeline(made, repository, none, ClipSpec(4, size=64))


def test_an_index_past_the_end_is_an_error(repository: Path, videos: list[Video]) -> None:
    request = sent(videos[0])
    request["indices"][0, -1, -1] = videos[0].file.num_frames
    with pytest.raises(RuntimeError, match="out-of-bounds frame index"):
        Models(repository).run("tdn_preprocess", request)


def test_from_file_to_logits(repository: Path, hostile_checkpoint: Path, videos: list[Video]) -> None:
    """The ensemble's logits are eager fp32's on DALI's frames; several at a time."""
    models, network = Models(repository), load_trained(hostile_checkpoint).classifier
    frames = DaliDecoder(SPEC, torch.device("cpu"), 1)([plan_evaluation(video, SPEC) for video in videos])
    with torch.inference_mode():
        wanted = network(torch.cat([one.unflatten(0, (-1, 4)) for one in frames])).numpy()  # type: ignore[union-attr]
    for video, right in zip(videos, wanted, strict=True):
        logits = models.run("tdn", sent(video))["logits"][0]
        np.testing.assert_allclose(logits, right, rtol=0, atol=1e-3 * wanted.std())
    batch = np.concatenate([models.run("tdn_preprocess", sent(video))["frames"] for video in videos])
    logits = models.run("tdn_network", {"frames": batch})["logits"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-3 * wanted.std())


@pytest.mark.parametrize("model", ["tdn", "tdn_network"])
def test_the_example_client(
    model: str,
    url: str,
    client: ModuleType,
    hostile_checkpoint: Path,
    videos: list[Video],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its answers are those of `predict` in eager fp32: exactly where it decodes, and on DALI's frames else."""
    client.main([str(videos[0].path), "--model", model, "--url", url, "--top", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    if model == "tdn_network":
        top = load_recognizer(hostile_checkpoint)(videos[0].path).top(3)
        shares = [share for _, share in top]
    else:
        [frames] = DaliDecoder(SPEC, torch.device("cpu"), 1)([plan_evaluation(videos[0], SPEC)])
        with torch.inference_mode():
            logits = load_trained(hostile_checkpoint).classifier(frames.unflatten(0, (-1, 4)))  # type: ignore[union-attr]
        shares = logits.softmax(1)[0].sort(descending=True).values[:3].tolist()
    found = [float(line.split("%")[0]) for line in lines]
    assert found == pytest.approx([100 * share for share in shares], abs=0.11)


def test_the_example_client_refuses(
    url: str, client: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    avi = write_video(tmp_path / "clip.avi", np.zeros((12, 48, 64, 3), np.uint8), "mpeg4")
    for path, model, message in (
        (avi, "tdn", "DALI cannot decode mpeg4 on the cpu"),
        (tmp_path / "nothing.webm", "tdn", "no such file"),
        (avi, "other", "'other' is not found"),
    ):
        with pytest.raises(SystemExit, match=message):
            client.main([str(path), "--model", model, "--url", url])
    client.main([str(avi), "--model", "tdn_network", "--url", url])
    assert len(capsys.readouterr().out.splitlines()) == 5
    with pytest.raises(SystemExit, match=r"error: 127\.0\.0\.1:1"):
        client.main([str(avi), "--model", "tdn", "--url", "127.0.0.1:1"])


def test_into_a_repository_that_has_other_models(
    trained_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others stay; one of the name is replaced when told; a folder that is no model never is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "other" / "1").mkdir(parents=True)
    mine = tmp_path / "models" / "tdn" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = [str(trained_checkpoint), "--format", "triton", "--preprocessing", "none", "--output", "models"]
    command += ["--name", "tdn", "--check-clips", "1"]
    assert run_command(main, command) == 2
    assert "is there already" in capsys.readouterr().err
    assert run_command(main, [*command, "--overwrite"]) == 2
    assert "no Triton model" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    (mine.parent / "config.pbtxt").write_text('name: "tdn"')
    assert run_command(main, [*command, "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["other", "tdn", "tdn.json"]
    config = (tmp_path / "models" / "tdn" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert sorted(path.name for path in mine.parent.rglob("*")) == ["1", "config.pbtxt", "labels.txt", "model.onnx"]
    assert (mine.parent / "labels.txt").read_text().splitlines() == list(CLASSES)


@pytest.mark.slow
def test_openvino_in_triton(trained_checkpoint: Path, tmp_path: Path) -> None:
    """Triton's backend fixes the batch of what it reads at the largest: the file must bear that."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    command = [str(trained_checkpoint), "--format", "triton", "--backend", "openvino", "--precision", "bf16"]
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    assert run_command(main, [*command, "--preprocessing", "none", "--output", str(tmp_path), "--name", "net"]) == 0
    model = openvino.Core().read_model(tmp_path / "net" / "1" / "model.xml")
    model.reshape([8, *SPEC.shape])
    compiled = openvino.Core().compile_model(model, "CPU")
    assert compiled({"frames": np.zeros((8, *SPEC.shape), np.uint8)})["logits"].shape == (8, 8)
    assert "ENABLE_BATCH_PADDING" in (tmp_path / "net" / "config.pbtxt").read_text()


@given(st.text(), st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(0, 2**31 - 1)), st.booleans())
def test_every_text_survives_the_text_format(text: str, number: int, dims: list[int], flag: bool) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    message = {
        "name": text,
        "max_batch_size": number,
        "input": [{"name": text, "dims": dims, "data_type": Symbol("TYPE_UINT8"), "allow_ragged_batch": flag}],
        "parameters": [{"key": text, "value": {"string_value": text}}],
    }
    parsed = text_format.Parse(to_pbtxt(message), model_config_pb2.ModelConfig())
    assert (parsed.name, parsed.max_batch_size, parsed.parameters[text].string_value) == (text, number, text)
    [tensor] = parsed.input
    assert (tensor.name, list(tensor.dims), tensor.allow_ragged_batch) == (text, dims, flag)
    assert tensor.data_type == model_config_pb2.TYPE_UINT8
