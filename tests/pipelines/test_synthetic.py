"""The synthetic motion set: its files, its promise that single frames say nothing, and wrong use."""

import dataclasses
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp
from support.paths import ROOT

from pipelines.errors import DataError
from pipelines.synthetic import (
    CLASSES,
    HEIGHT,
    TEMPLATES,
    VALIDATION_START,
    WIDTH,
    Scene,
    draw_scene,
    make_dataset,
    object_masks,
    pose,
    render,
)

PARTNER = {0: 1, 1: 0, 2: 5, 5: 2, 3: 4, 4: 3, 6: 7, 7: 6}
MOTIONS = [("radius", -1), ("radius", 1), ("y", 1), ("x", 1), ("x", -1), ("y", -1), ("angle", 1), ("angle", -1)]
CLIPS = "20bn-something-something-v2"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("set") / "sub" / "set", train=16, validation=8, workers=2)


def reversed_scene(scene: Scene) -> Scene:
    """The equally likely scene of the partner class whose clip is this one's played backwards."""
    phase = tuple((math.pi - phase) % (2 * math.pi) for phase in scene.camera_phase)
    return dataclasses.replace(scene, label=PARTNER[scene.label], camera_phase=phase)


def circular(a: np.ndarray, b: np.ndarray, period: float) -> float:
    return float(np.abs((a - b + period / 2) % period - period / 2).max())


def test_layout_and_labels(dataset: Path) -> None:
    labels = json.loads((dataset / "labels/labels.json").read_text())
    assert list(labels) == list(CLASSES) == sorted(CLASSES)
    assert list(labels.values()) == [str(i) for i in range(8)]
    names = []
    for name, count in (("train", 16), ("validation", 8)):
        text = (dataset / f"labels/{name}.json").read_text()
        rows = json.loads(text)
        assert len(rows) == count == text.count("\n") - 2  # one a line between the brackets
        for row in rows:
            assert list(row) == ["id", "label", "template", "placeholders"]
            assert row["template"] in TEMPLATES
            template = row["template"].replace("[something]", row["placeholders"][0])
            assert row["label"].lower() == template.lower()
            assert row["label"][0].islower()
        counts = [sum(row["template"] == template for row in rows) for template in TEMPLATES]
        assert counts == [count // 8] * 8
        names += [f"{row['id']}.webm" for row in rows]
    assert sorted(path.name for path in (dataset / CLIPS).iterdir()) == sorted(names)


def test_clips_are_what_they_should_be(dataset: Path) -> None:
    for row in json.loads((dataset / "labels/train.json").read_text()):
        scene = draw_scene(0, int(row["id"]))
        assert TEMPLATES[scene.label] == row["template"]
        with av.open(str(dataset / CLIPS / f"{row['id']}.webm")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "vp9"
            assert stream.average_rate == 12
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.profile == "Profile 0"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert 36 <= len(frames) == scene.frames <= 60
        assert frames[0].shape == (HEIGHT, WIDTH, 3) == (128, 160, 3)
        if row["id"] == "0":  # what is decoded is what was drawn, but for the loss of coding
            assert np.abs(np.stack(frames).astype(int) - render(scene)).mean() < 6


def test_same_seed_same_bytes(dataset: Path, tmp_path: Path) -> None:
    again = make_dataset(tmp_path / "again", train=8, validation=8, workers=1, progress=False)
    for name in ("0", "5", "7", "100000"):
        assert (again / CLIPS / f"{name}.webm").read_bytes() == (dataset / CLIPS / f"{name}.webm").read_bytes()
    assert draw_scene(0, 3) == draw_scene(0, 3) != draw_scene(1, 3)
    assert {draw_scene(1, VALIDATION_START + i).label for i in range(8)} == set(range(8))


def test_resume_and_growth_touch_nothing_finished(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    lost = root / CLIPS / "3.webm"
    content = lost.read_bytes()
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in (root / CLIPS).iterdir()}
    make_dataset(root, train=17, validation=8, workers=1, progress=False)
    after = {path: path.stat().st_mtime_ns for path in (root / CLIPS).iterdir()}
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before.keys()} == {"3.webm", "16.webm"}
    assert lost.read_bytes() == content
    assert len(json.loads((root / "labels/train.json").read_text())) == 17


@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**20))
def test_played_backwards_it_is_a_clip_of_the_partner(seed: int, index: int) -> None:
    scene = draw_scene(seed, index)
    frames = np.arange(scene.frames)
    back, other = pose(scene, frames[::-1]), pose(reversed_scene(scene), frames)
    periods = {"x": WIDTH, "y": HEIGHT, "angle": 2 * math.pi}
    for name in back._fields:
        assert circular(getattr(back, name), getattr(other, name), periods.get(name, 1e6)) < 1e-6, name


def test_reversed_pixels_are_the_partners() -> None:
    for scene in (draw_scene(5, index) for index in range(8)):
        difference = render(scene)[::-1].astype(int) - render(reversed_scene(scene))
        assert (np.abs(difference) > 1).mean() < 1e-4  # rounding may pick a neighbouring texel


@pytest.mark.parametrize("label", range(8))
def test_each_class_moves_only_as_its_name_says(label: int) -> None:
    field, sign = MOTIONS[label]
    scene = next(scene for scene in (draw_scene(2, i) for i in range(8)) if scene.label == label)
    still = dataclasses.replace(scene, camera_sway=(0.0, 0.0))
    track = pose(still, np.arange(scene.frames))
    period = {"x": WIDTH, "y": HEIGHT, "angle": 2 * math.pi}
    for name in ("x", "y", "radius", "angle"):
        values = np.unwrap(getattr(track, name), period=period.get(name, 1e6))
        if name == field:
            assert (sign * np.diff(values) > 0).all()
        else:
            np.testing.assert_allclose(values, values[0])


def test_one_frame_does_not_give_the_class_away() -> None:
    rng = np.random.default_rng(0)
    seen: list[list[tuple[float, ...]]] = [[] for _ in CLASSES]
    names: list[list[str]] = [[] for _ in CLASSES]
    for index in range(8 * 600):
        scene = draw_scene(11, index)
        at = pose(scene, rng.integers(scene.frames, size=1))
        seen[scene.label].append((*np.concatenate(at).tolist(), *scene.rgb, *scene.background_rgb, scene.frames))
        names[scene.label].append(f"{scene.colour} {scene.shape} {scene.background}")
    columns = [np.array(rows) for rows in seen]
    pairs = list(itertools.combinations(range(8), 2))
    tests = [ks_2samp(columns[a][:, c], columns[b][:, c]) for a, b in pairs for c in range(columns[0].shape[1])]
    # 364 comparisons of 600 with 600: Bonferroni at one per cent.
    assert min(test.pvalue for test in tests) > 0.01 / len(tests)
    for part in range(3):
        values = [[name.split()[part] for name in rows] for rows in names]
        kinds = sorted(set(values[0]))
        assert chi2_contingency([[rows.count(kind) for kind in kinds] for rows in values]).pvalue > 0.001


def test_object_is_seen_against_its_background() -> None:
    luma = np.array([0.30, 0.59, 0.11])
    gaps = [abs(luma @ (np.array(s.rgb) - s.background_rgb)) for s in (draw_scene(0, i) for i in range(400))]
    assert np.quantile(gaps, 0.02) > 0.15


@pytest.mark.parametrize("wrong", [{"train": 7}, {"train": 100_001}, {"validation": 0}, {"seed": -1}, {"workers": 0}])
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="must be"):
        make_dataset(tmp_path / "set", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()


def test_what_is_already_there_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="remove the folder or choose another"):
        make_dataset(dataset, train=8, validation=8, seed=1)
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="choose another folder"):
        make_dataset(tmp_path, train=8, validation=8)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/synthetic.json").write_text("{cut")
    with pytest.raises(DataError, match="another synthetic data set"):
        make_dataset(tmp_path, train=8, validation=8)


@pytest.mark.parametrize("arguments", [["{file}"], ["{file}/set"], ["{folder}/set", "--train", "3"]])
def test_command_line_says_it_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    filled = [argument.format(file=file, folder=tmp_path) for argument in arguments]
    run = subprocess.run(
        [sys.executable, "-m", "pipelines.synthetic", *filled],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1


@settings(max_examples=20)
@given(st.integers(0, 200))
def test_the_mask_is_where_the_object_covers_the_background(index: int) -> None:
    """Two renderings that differ in the background's brightness alone differ by that much where it is seen."""
    scene = dataclasses.replace(draw_scene(0, index), rgb=(0.5,) * 3)
    frames = np.array([0, scene.frames // 2, scene.frames - 1])
    dark, light = (
        render(dataclasses.replace(scene, background_rgb=(level,) * 3))[frames].astype(float) for level in (0.42, 0.58)
    )
    opacity = 1 - np.median(light - dark, -1) / (0.16 * 255)
    clear = (abs(opacity - 0.5) > 0.1) & (dark.min(-1) > 0) & (light.max(-1) < 255)
    masks = object_masks(scene, frames)
    assert clear.mean() > 0.9
    assert np.array_equal(masks[clear], opacity[clear] > 0.5)
