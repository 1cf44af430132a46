"""The command: videos in, pictures out; what is refused, and before any work."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import make
from support.planted import CLASSES, PIXELS, SEGMENTS, planted, save
from support.videos import write_video

from pipelines.scan import as_video
from tdn_bench.cli import run_command
from tdn_bench.visualize import main
from tdn_bench.visualizing.looking import Looker, load_subjects


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 256, (20, 72, 96, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("clips") / "my clip.webm", frames)


@pytest.fixture(scope="module")
def frame_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "my clip"
    folder.mkdir()
    for number in range(1, 13):
        Image.new("RGB", (80, 64), (20 * number, 90, 30)).save(folder / f"{number:05d}.jpg")
    return folder


def run(capsys, *arguments):
    try:
        status = run_command(main, [str(a) for a in arguments])
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines(keepends=True) if not line.startswith("Visualizing: ")]  # on a busy machine
    return status, out, "".join(said)


def test_everything_beside_two_baselines(capsys, tmp_path, clip, frame_folder, checkpoint):
    flags = ["--checkpoint", checkpoint("tdn"), "--against", checkpoint("tsn"), "--against", checkpoint("s_tdm")]
    flags += ["--show", "gates,grad-cam, differences", "--format", "png,webp", "--output", tmp_path / "new" / "folder"]
    status, out, err = run(capsys, clip, frame_folder, *flags)
    assert (status, err) == (0, "")
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    stem = "my-clip-visualized", "my-clip-2-visualized"
    assert files == sorted(f"{s}.{kind}" for s in stem for kind in ("png", "webp"))
    assert len(out.splitlines()) == 2
    for name in (
        "tdn_resnet_small",
        "tsn_resnet_small",
        "s_tdm_resnet_small",
        "my clip.webm",
        "my-clip-visualized.png",
    ):
        assert name in out.splitlines()[0]


def test_bad_videos_are_named_and_the_others_done(capsys, tmp_path, clip, checkpoint):
    (tmp_path / "torn\x1b[31m.mp4").write_bytes(clip.read_bytes()[:700])
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "torn\x1b[31m.mp4", tmp_path / "empty", tmp_path / "nowhere.mp4"]
    status, out, err = run(capsys, *bad, clip, "--checkpoint", checkpoint("tsn"), "--output", tmp_path / "out")
    assert status == 1
    assert out.count("\n") == 1
    lines = err.splitlines()
    assert [line.startswith("not used: ") for line in lines] == [True, True, True, False]
    assert lines[-1] == "3 of 4 videos could not be used"
    assert "\x1b" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my-clip-visualized.png"]


def test_no_video_that_can_be_used_is_an_error(capsys, tmp_path, checkpoint):
    flags = ["--checkpoint", checkpoint("tsn"), "--output", tmp_path / "out"]
    status, out, err = run(capsys, tmp_path / "nowhere.mp4", *flags)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "error: no video could be used, of 1"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--show", "gates"], "--show gates: tsn_resnet_small has no L-TDM; leave it out"),
        (["--show", "differences"], "--show differences: tsn_resnet_small has no S-TDM; leave it out"),
        (["--show", "heat"], "--show 'heat': choose from grad-cam, differences, gates, with commas between"),
        (["--show", ","], "--show ',': choose from"),
        (["--format", "gif"], "--format 'gif': choose from png, mp4, webp, with commas between"),
        (["--class", "upp"], "--class 'upp': the checkpoint knows no such class; use one of its 7, as 'up'"),
        (["--device", "tpu"], "--device tpu: "),
        (["--against", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint file"),
        (["--output", "/proc/x"], "--output /proc/x: cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(capsys, tmp_path, monkeypatch, clip, checkpoint, flags, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, clip, "--checkpoint", checkpoint("tsn"), *flags)
    assert status == 2
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_of_other_classes_is_refused(capsys, tmp_path, clip, checkpoint):
    other = save(make("tsn"), "tsn", tmp_path / "other.safetensors", classes=[f"other {i}" for i in range(7)])
    status, _, err = run(capsys, clip, "--checkpoint", checkpoint("tdn"), "--against", other)
    assert status == 2
    assert "other.safetensors: not of the same classes" in err
    assert "compare networks that were trained on the same data set" in err


def test_no_video_is_refused(capsys, checkpoint):
    assert run(capsys, "--checkpoint", checkpoint("tsn"))[0] == 2


def looked(checkpoints, video, **how):
    subjects = load_subjects(checkpoints, torch.device("cpu"))
    with Looker.open(subjects, device=torch.device("cpu"), **how) as looker:
        return looker, subjects, looker.look(as_video(video))


def test_a_baselines_classes_may_be_in_another_order(tmp_path, clip):
    classifier = make("tsn")
    first = save(classifier, "tsn", tmp_path / "a.safetensors")
    with torch.no_grad():
        for tensor in (classifier.network.classifier.weight, classifier.network.classifier.bias):
            tensor.copy_(tensor.flip(0))
    second = save(classifier, "tsn", tmp_path / "b.safetensors", classes=CLASSES[::-1])
    _, subjects, found = looked([first, second], clip, target=3)
    assert [s.label.partition(" ")[2] for s in subjects] == [f"({tmp_path.name}/{n}.safetensors)" for n in "ab"]
    _, one, other = found.panels
    assert list(one.lines[1:]) == list(other.lines[1:])
    assert np.array_equal(one.pictures, other.pictures)


def test_networks_of_other_lengths_and_crops_stand_beside_each_other(tmp_path, clip, checkpoint):
    longer = save(
        make("tsm", num_segments=6), "tsm", tmp_path / "longer.safetensors", num_segments=6, crop_ratio=0.875, size=96
    )
    wide = save(make("i3d", num_segments=12), "i3d", tmp_path / "i3d.safetensors", num_segments=12)
    _, _, found = looked([checkpoint("tdn"), longer, wide], clip, stage="res3")
    shapes = [panel.pictures.shape for panel in found.panels]
    assert shapes == [(4, 5, 64, 64, 3), (6, 1, 96, 96, 3), (12, 1, 64, 64, 3), (4, 5, 64, 64, 3)]


def test_heat_is_where_the_light_is_in_the_video(tmp_path):
    """From file to picture, through decoding, crop and scaling: right way up, and not mirrored."""
    frames = np.full((20, 120, 160, 3), 16, np.uint8)
    x, y, side = 100, 36, round(0.8 * 120)  # up and to the right; a crop of 96 pixels from (32, 12)
    frames[:, y - 3 : y + 4, x - 3 : x + 4] = 235
    video = write_video(tmp_path / "light.webm", frames)
    path = save(planted(), "tsn", tmp_path / "planted.safetensors", crop_ratio=0.8)
    [subject] = load_subjects([path], torch.device("cpu"))
    with Looker.open([subject], stage="res3", target=0, device=torch.device("cpu")) as looker:
        heat, middles = looker.heat(subject, looker.read(as_video(video), subject), 0)
    assert heat.shape == (SEGMENTS, PIXELS, PIXELS)
    assert middles.tolist() == [0, 1, 2, 3]
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    for picture in heat:
        centre = [(picture * axis).sum() / picture.sum() for axis in (columns, rows)]
        assert centre == pytest.approx([(x - 32) * PIXELS / side, (y - 12) * PIXELS / side], abs=3)


def test_a_strip_of_bytes_is_the_same_every_time(tmp_path, clip, checkpoint, capsys):
    pictures = []
    for _ in range(2):
        assert run(capsys, clip, "--checkpoint", checkpoint("tdn"), "--output", tmp_path)[0] == 0
        pictures.append(np.asarray(Image.open(io.BytesIO((tmp_path / "my-clip-visualized.png").read_bytes()))))
    assert np.array_equal(*pictures)
