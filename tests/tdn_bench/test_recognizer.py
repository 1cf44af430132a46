"""Videos in, class names out: the same as `evaluate` says, from a checkpoint alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from support.reference import CASES, released_state_dict
from support.videos import flat_frames, write_video

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip, DataError
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench import load_recognizer
from tdn_bench.checkpoint import CheckpointError, read_tensors, write_tensors
from tdn_bench.cli import DataFlags, NetworkFlags, run_command
from tdn_bench.correctness.scores import load_scores
from tdn_bench.errors import UserError
from tdn_bench.evaluate import main as evaluate
from tdn_bench.recognizer import Prediction, read_clips


def with_classes(source: Path, path: Path, classes: object) -> Path:
    """A checkpoint's weights, with these names of classes."""
    tensors, notes = read_tensors(source)
    write_tensors(path, tensors, {k: v for k, v in notes.items() if k != "format"} | {"classes": classes})
    return path


@pytest.fixture(scope="module")
def manifest(motion_data: Path) -> Manifest:
    return DataFlags(data=motion_data, workers=1).open(progress=False)


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_classes(small_checkpoint, tmp_path_factory.mktemp("named") / "best.safetensors", manifest.classes)


def evaluated(checkpoint: Path, manifest: Manifest, folder: Path, *flags: str):
    """(paths, scores) of the validation videos as `tdn-bench evaluate` writes them."""
    manifest.write(folder / "set.arrow")
    command = ["--checkpoint", checkpoint, "--manifest", folder / "set.arrow", "--scores", folder / "said.safetensors"]
    assert run_command(evaluate, [*map(str, command), "--device", "cpu", "--workers", "1", *flags]) == 0
    return [video.path for video in manifest.split("validation")], load_scores(folder / "said.safetensors")[0]


def test_one_view_is_what_evaluate_says_bit_for_bit(checkpoint: Path, manifest: Manifest, tmp_path: Path) -> None:
    paths, scores = evaluated(checkpoint, manifest, tmp_path, "--batch-size", "3")
    with load_recognizer(checkpoint, device="cpu", batch_size=3, workers=1) as recognize:
        clips, run = [], recognize.engine
        recognize.engine = lambda frames: clips.append(run(frames)) or clips[-1]  # type: ignore[assignment]
        recognize.engine.spec = run.spec  # type: ignore[attr-defined]
        said = list(recognize.many(paths))
        recognize.engine = run
    assert torch.equal(torch.cat(clips), scores.logits[:, 0])
    assert torch.equal(torch.stack([answer.probabilities for answer in said]), scores.probabilities())
    assert [answer.path for answer in said] == paths
    assert said[0].classes == manifest.classes


def test_thirty_views_are_what_evaluate_says(checkpoint: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Of the files by themselves, under other folders: the clips are drawn by a file's own name."""
    few = Manifest.of("few", manifest.classes, list(manifest.split("validation"))[:2])
    paths, scores = evaluated(checkpoint, few, tmp_path, "--protocol", "thirty-view", "--size", "64")
    assert scores.num_views == 30
    copies = [shutil.copy(path, tmp_path) for path in paths]
    network = NetworkFlags(size=64)
    with load_recognizer(checkpoint, device="cpu", views=30, batch_size=16, network=network) as recognize:
        said = torch.stack([answer.probabilities for answer in recognize.many(copies)])
        one = recognize(copies[0]).probabilities
    torch.testing.assert_close(said, scores.probabilities(), rtol=0, atol=1e-12)
    torch.testing.assert_close(one, said[0], rtol=0, atol=1e-12)
    with load_recognizer(checkpoint, device="cpu", views=30) as recognize:
        assert recognize.spec.size == 256


def test_many_keeps_the_order_and_names_bad_clips(checkpoint: Path, manifest: Manifest, tmp_path: Path) -> None:
    good = [Path(video.path) for video in manifest.split("train")][:5]
    cut = tmp_path / "cut.webm"
    cut.write_bytes(good[0].read_bytes()[:2000])
    videos = [good[0], tmp_path / "gone.mp4", *good[1:3], cut, good[3], good[4], good[0]]
    recognize = load_recognizer(checkpoint, device="cpu", batch_size=2, workers=2)
    answers = list(recognize.many(iter(videos)))
    assert [Path(answer.path) for answer in answers] == videos
    assert [isinstance(answer, BadClip) for answer in answers] == [False, True, False, False, True, False, False, False]
    alone = {path: recognize(path).probabilities for path in good}
    for path, answer in zip(videos, answers, strict=True):
        if isinstance(answer, Prediction):
            torch.testing.assert_close(answer.probabilities, alone[path], rtol=0, atol=1e-6)
    with pytest.raises(BadClip, match=r"gone\.mp4: no such file"):
        recognize(str(tmp_path / "gone.mp4"))
    some = recognize.many(videos)
    next(some)
    some.close()  # a caller that has seen enough
    assert list(recognize.many([])) == []
    recognize.close()


def test_few_videos_are_read_ahead(checkpoint: Path, manifest: Manifest) -> None:
    path, taken = manifest.split("validation")[0].path, []
    endless = (taken.append(i) or path for i in range(10**6))
    with load_recognizer(checkpoint, device="cpu", batch_size=4, workers=2) as recognize:
        answers = recognize.many(endless)
        for _ in range(8):
            next(answers)
        answers.close()
    assert 8 <= len(taken) <= 8 + 3 * 4


def test_top(checkpoint: Path) -> None:
    said = Prediction("a", ("x", "y", "z"), torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64))
    assert said.top(2) == [("y", 0.7), ("x", 0.2)]
    assert [name for name, _ in said.top(99)] == ["y", "x", "z"]
    with pytest.raises(ValueError, match="k is 0: give 1 or more"):
        said.top(0)


def test_frames_in_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip.v2"
    folder.mkdir()
    for i, picture in enumerate(flat_frames(9, 128, 64), 1):
        Image.fromarray(picture).save(folder / f"{i:05d}.jpg")
    video = write_video(tmp_path / "clip.mkv", flat_frames(9, 128, 64), "libx264")
    with load_recognizer(checkpoint, device="cpu") as recognize:
        a, b = recognize(folder), recognize(video)
    assert sum(p for _, p in a.top(8)) == pytest.approx(1)
    torch.testing.assert_close(a.probabilities, b.probabilities, rtol=0, atol=0.05)  # a grey of 128, or nearly


@pytest.mark.parametrize("views", [1, 30])
def test_frames_that_are_decoded_already(checkpoint: Path, tmp_path: Path, views: int) -> None:
    """As of a folder of such frames, to the last bit."""
    folder = tmp_path / "frames"  # the name that the thirty views are drawn by
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(1, 41):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(folder / f"{i}.jpg")
    files = [(folder / f"{i}.jpg").read_bytes() for i in range(1, 41)]
    pictures = [simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=False) for data in files]
    frames = torch.from_numpy(np.stack(pictures))
    with load_recognizer(checkpoint, device="cpu", views=views, network=NetworkFlags(size=64)) as recognize:
        assert torch.equal(recognize(frames).probabilities, recognize(folder).probabilities)
        for wrong in (frames.float(), frames[0], frames[..., :1], frames[:4], frames[:0]):
            with pytest.raises(BadClip):
                recognize(wrong)


@pytest.mark.parametrize(
    ("noted", "given", "said"),
    [
        (None, None, "names no classes; give their names"),
        ([f"c{i}" for i in range(8)], [f"d{i}" for i in range(8)], "names its own 8 classes"),
        (None, ["a", "b"], "knows 8 classes, but 2 names are given"),
        (None, [f"d{i}" for i in range(9)], "knows 8 classes, but 9 names are given"),
        (None, ["a"] * 8, "'a' is named twice"),
        (["a"] * 8, None, "'a' is named twice"),
        ([*"abcdefg", "h\x1b[31m"], None, "no plain text"),
        ([f"c{i}" for i in range(7)], None, "7"),
        ("all", None, "gives its classes as 'all'"),
    ],
)
def test_class_names_that_do_not_fit(
    small_checkpoint: Path, tmp_path: Path, noted: object, given: list[str] | None, said: str
) -> None:
    path = small_checkpoint if noted is None else with_classes(small_checkpoint, tmp_path / "c.safetensors", noted)
    with pytest.raises((CheckpointError, DataError), match=said) as caught:
        load_recognizer(path, device="cpu", classes=given)
    assert "\n" not in str(caught.value)


def test_names_for_classes_that_have_numbers_alone(small_checkpoint: Path, tmp_path: Path) -> None:
    path = with_classes(small_checkpoint, tmp_path / "c.safetensors", [str(i) for i in range(8)])
    names = tuple("abcdefgh")
    with load_recognizer(path, device="cpu", classes=names) as recognize:
        assert recognize.classes == names


def test_the_authors_files(manifest: Manifest, tmp_path: Path) -> None:
    """A released file has neither names nor notes: its own tensors say how many classes there are."""
    case = next(c for c in CASES if c["arch"] == "resnet50" and c["num_classes"] == 10 and c["num_segments"] == 8)
    path = tmp_path / "TDN.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in released_state_dict(case).items()}, "epoch": 7}, path)
    network = NetworkFlags(size=64)
    with load_recognizer(path, device="cpu", network=network) as recognize:
        said = recognize(manifest.split("validation")[0].path)
    assert said.classes == tuple(f"class {i}" for i in range(10))
    with pytest.raises(CheckpointError, match="knows 10 classes, but 9 names are given"):
        load_recognizer(path, device="cpu", classes="abcdefghi")


def test_weights_that_compute_no_numbers(checkpoint: Path, manifest: Manifest, tmp_path: Path) -> None:
    tensors, notes = read_tensors(checkpoint)
    tensors["classifier.weight"].fill_(3e38)
    path = tmp_path / "huge.safetensors"
    write_tensors(path, tensors, {k: v for k, v in notes.items() if k != "format"})
    with load_recognizer(path, device="cpu") as recognize, pytest.raises(UserError, match="NaN or infinite"):
        recognize(manifest.split("validation")[0].path)


def test_clips_to_calibrate_on(manifest: Manifest, tmp_path: Path) -> None:
    """Of each video the one that `recognize` sees, in batches of eight."""
    videos = [video.path for video in manifest.split("train")][:9]
    spec = ClipSpec(4, size=64)
    batches = read_clips(videos, replace(spec, num_clips=10, num_crops=3))
    assert [batch.shape for batch in batches] == [(8, *spec.shape), (1, *spec.shape)]
    with ClipLoader(manifest.split("train")[:9], spec, 9, workers=1) as loader:
        [expected] = loader.epoch()
    assert torch.equal(torch.cat(batches), expected.frames)
    with pytest.raises(BadClip, match="no such file"):
        read_clips([videos[0], tmp_path / "gone.mp4"], spec)


def test_another_number_of_views(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="choose 1 or 30"):
        load_recognizer(checkpoint, views=3)
