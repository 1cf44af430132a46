"""Scores: accuracies against slow counts, files of them and files that are none, ensembles, means, the command."""

import csv
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tdn_bench.cli import run_command
from tdn_bench.correctness.scores import Scores, check_target, ensemble, load_scores, score_differences
from tdn_bench.errors import UserError
from tdn_bench.records import read_record
from tdn_bench.scores import main


def random_scores(videos: int, views: int, classes: int, seed: int, unknown: bool = False) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(videos, views, classes, generator=draw)
    labels = torch.randint(-1 if unknown else 0, classes, (videos,), generator=draw)
    return Scores(tuple(f"v{i}" for i in range(videos)), logits, labels)


def mean_softmax(views: list[list[float]]) -> list[float]:
    """One video's softmax scores, averaged over its views, with pencil and paper."""
    shares = []
    for view in views:
        powers = [math.exp(x) for x in view]
        shares.append([x / sum(powers) for x in powers])
    return [statistics.fmean(column) for column in zip(*shares, strict=True)]


def slow_top(rows: list[list[float]], labels: list[int], k: int) -> float:
    """Top-k in percent by sorted lists; the rows hold no ties."""
    known = [(row, label) for row, label in zip(rows, labels, strict=True) if label >= 0]
    found = sum(label in sorted(range(len(row)), key=lambda c: -row[c])[:k] for row, label in known)
    return 100 * found / len(known) if known else math.nan


shapes = st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(2, 7), st.integers(0, 2**16))


@given(shapes, st.integers(1, 5))
def test_top_k_is_a_sorted_list_of_mean_softmax_scores(shape, k):
    scores = random_scores(*shape, unknown=True)
    rows = [mean_softmax(views) for views in scores.logits.tolist()]
    assert scores.probabilities().tolist() == [pytest.approx(row) for row in rows]
    assert scores.top(k) == pytest.approx(slow_top(rows, scores.labels.tolist(), k), nan_ok=True)


def test_views_are_averaged_as_softmax_scores_not_as_logits():
    logits = torch.tensor([[[30.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])  # the mean logit favours class 0 by far
    assert Scores(("v",), logits, torch.tensor([1])).top(1) == 100  # (0 + 3 · 0.73) / 4 is more than a half


@pytest.mark.parametrize("logits", [torch.zeros(2, 1, 4), torch.zeros(2, 3, 4), torch.full((2, 1, 4), math.nan)])
def test_a_constant_classifier_and_one_without_numbers_are_not_right(logits):
    assert Scores(("a", "b"), logits, torch.tensor([0, 3])).top(1) == 0


def test_videos_of_unknown_label_do_not_count():
    logits = torch.eye(3)[[0, 1, 2]][:, None]
    scores = Scores(("a", "b", "c"), logits, torch.tensor([0, -1, 1]))
    assert scores.top(1) == 50
    assert scores.confusion().tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    unknown = Scores(scores.ids, logits, torch.full((3,), -1))
    assert math.isnan(unknown.top(1))
    assert math.isnan(unknown.mean_class_accuracy())
    assert str(unknown) == "no labels"
    assert unknown.figures() == {"videos": 3, "views": 1}


@given(shapes)
def test_confusion_and_per_class_accuracy_are_counts(shape):
    scores = random_scores(*shape, unknown=True)
    classes = scores.num_classes
    rows = [mean_softmax(views) for views in scores.logits.tolist()]
    said = [max(range(classes), key=row.__getitem__) for row in rows]
    pairs = list(zip(scores.labels.tolist(), said, strict=True))
    wanted = [[pairs.count((truth, guess)) for guess in range(classes)] for truth in range(classes)]
    assert scores.confusion().tolist() == wanted
    videos, percent = scores.per_class()
    assert videos.tolist() == [sum(row) for row in wanted]
    shares = [100 * row[i] / sum(row) if sum(row) else math.nan for i, row in enumerate(wanted)]
    assert percent.tolist() == pytest.approx(shares, nan_ok=True)
    there = [share for share in shares if not math.isnan(share)]
    mean = statistics.fmean(there) if there else math.nan
    assert scores.mean_class_accuracy() == pytest.approx(mean, nan_ok=True)


NOTES = {
    "model": "tdn",
    "protocol": {"clips": 1, "crops": 1},
    "data": "set",
    "digest": "d1",
    "subset": "validation",
    "checkpoint": "c.safetensors",
    "classes": ["ä", "b", "c"],
}


def test_a_file_gives_back_what_was_saved(tmp_path):
    scores = random_scores(5, 2, 3, 0, unknown=True)
    path = tmp_path / "new" / "s.safetensors"
    scores.save(path, NOTES)
    scores.save(path, NOTES)  # takes the old one's place
    read, notes = load_scores(path)
    assert notes == NOTES
    assert read.ids == scores.ids
    assert torch.equal(read.logits, scores.logits)
    assert torch.equal(read.labels, scores.labels)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_scores_take_the_place_of_scores_only(tmp_path, small_checkpoint):
    path = tmp_path / "s.safetensors"
    random_scores(2, 1, 3, 0).save(path, NOTES)
    check_target(path)
    for other in (small_checkpoint, tmp_path):
        with pytest.raises(UserError, match=r"holds no scores|not a regular file"):
            check_target(other)


def test_scores_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        random_scores(2, 1, 3, 0).save(tmp_path / "file" / "s.safetensors", {})
    with pytest.raises(UserError, match="cannot be written"):
        check_target(tmp_path / "file" / "s.safetensors")
    check_target(tmp_path / "new" / "s.safetensors")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["nowhere", "empty", "text", "cut", "checkpoint", "label", "ids", "shape", "notes"])
def test_damaged_and_foreign_files_are_one_line(tmp_path, kind, small_checkpoint):
    path = tmp_path / "s.safetensors"
    scores = random_scores(4, 1, 3, 0)
    scores.save(path, NOTES)
    whole = path.read_bytes()
    if kind == "nowhere":
        path.unlink()
    elif kind == "label":
        Scores(scores.ids, scores.logits, scores.labels + 3).save(path, NOTES)
    elif kind == "ids":
        Scores(scores.ids[:3], scores.logits, scores.labels).save(path, NOTES)
    elif kind == "shape":
        Scores(scores.ids, scores.logits[:, 0], scores.labels).save(path, NOTES)
    elif kind == "notes":
        save_file({"logits": scores.logits, "labels": scores.labels}, path, {"format": "tdn_bench scores 1"})
    else:
        contents = {"empty": b"", "text": b"no scores at all", "cut": whole[:-9]}
        path.write_bytes(contents.get(kind) or (small_checkpoint.read_bytes() if kind == "checkpoint" else b""))
    with pytest.raises(UserError) as error:
        load_scores(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def shuffled(scores: Scores, seed: int) -> Scores:
    order = torch.randperm(len(scores.ids), generator=torch.Generator().manual_seed(seed))
    return Scores(tuple(scores.ids[i] for i in order), scores.logits[order], scores.labels[order])


@given(shapes, st.integers(1, 3), st.integers(1, 5))
def test_an_ensemble_sums_softmax_scores_whatever_the_order(shape, other_views, k):
    videos, _, classes, seed = shape
    first = random_scores(*shape)
    second = random_scores(videos, other_views, classes, seed + 1)
    second = Scores(second.ids, second.logits, first.labels)
    together = ensemble([first, shuffled(second, seed)])
    sums = [
        [a + b for a, b in zip(mean_softmax(x), mean_softmax(y), strict=True)]
        for x, y in zip(first.logits.tolist(), second.logits.tolist(), strict=True)
    ]
    assert together.ids == first.ids
    assert (2 * together.probabilities()).tolist() == [pytest.approx(row, rel=1e-5) for row in sums]
    assert together.top(k) == pytest.approx(slow_top(sums, first.labels.tolist(), k))


def test_an_ensemble_of_certainties():
    logits = torch.tensor([[[1e4, 0.0, 0.0]]])  # the softmax of the others is 0
    together = ensemble([Scores(("v",), logits, torch.tensor([0]))] * 2)
    assert together.probabilities()[0].tolist() == pytest.approx([1, 0, 0])
    assert together.top(1) == 100


def test_what_is_no_ensemble_names_the_video():
    first = random_scores(3, 1, 4, 0)
    with pytest.raises(UserError, match=r"a and b are of other videos: 2 are in one only, first v2"):
        ensemble([first, Scores(("v0", "v1", "x"), first.logits, first.labels)], ["a", "b"])
    with pytest.raises(UserError, match="scores 2: holds video v1 twice"):
        ensemble([first, Scores(("v0", "v1", "v1"), first.logits, first.labels)])
    with pytest.raises(UserError, match="4 and 5 classes"):
        ensemble([first, Scores(first.ids, torch.zeros(3, 1, 5), first.labels)])
    labels = first.labels.clone()
    labels[1] = (labels[1] + 1) % 4
    with pytest.raises(UserError, match="give video v1 different labels"):
        ensemble([first, Scores(first.ids, first.logits, labels)])


def test_score_differences() -> None:
    one = Scores(("a", "b", "c"), torch.tensor([[[9.0, 0]], [[0, 9.0]], [[9.0, 0]]]), torch.tensor([0, 1, 1]))
    other = Scores(("c", "b"), torch.tensor([[[0.0, 9.0]], [[0.0, 9.0]]]), torch.tensor([1, 1]))
    found = score_differences(one, other)
    assert found["videos"] == 2
    assert found["top1_change_percent"] == 50
    assert found["same_class_percent"] == 50
    assert found["max_score_difference"] == pytest.approx(1 / (1 + math.exp(-9)) - 1 / (1 + math.exp(9)))
    assert score_differences(one, replace(other, ids=("x", "y"))) == {"videos": 0}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Scores of one network on three splits: other videos, other digests."""
    paths = [tmp_path / f"split{n}.safetensors" for n in (1, 2, 3)]
    for n, path in enumerate(paths):
        scores = random_scores(10, 2, 3, n)
        Scores(tuple(f"{n}-{i}" for i in scores.ids), scores.logits, scores.labels).save(path, NOTES | {"digest": n})
    return paths


def test_show(files, tmp_path, capsys):
    matrix = tmp_path / "confusion.csv"
    assert run_command(main, ["show", str(files[0]), "--per-class", "--confusion", str(matrix)]) == 0
    out = capsys.readouterr().out
    scores, _ = load_scores(files[0])
    assert f"tdn on set/validation: 10 videos, 2 views, top-1 {scores.top(1):.2f} %" in out
    percents = [float(line.split("%")[0]) for line in out.splitlines() if "videos  " in line]
    assert percents == sorted(percents)
    with matrix.open(newline="", encoding="utf-8") as f:
        header, *rows = csv.reader(f)
    assert header == ["true class", "ä", "b", "c"]
    assert [row[0] for row in rows] == ["ä", "b", "c"]
    assert [[int(x) for x in row[1:]] for row in rows] == scores.confusion().tolist()


def test_the_mean_of_splits(files, capsys):
    assert run_command(main, ["mean", *map(str, files)]) == 0
    out = capsys.readouterr().out
    for k in (1, 5):
        values = [load_scores(path)[0].top(k) for path in files]
        mean = sum(values) / 3
        deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / 2)
        assert f"top-{k}: mean {mean:.2f} %, standard deviation {deviation:.2f}" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": 0}, "are of the same split"),
        ({"classes": ["a", "b", "c"]}, "not of the same classes"),
        ({"model": "tsn"}, "not of the same model: tdn and tsn"),
        ({"protocol": {"clips": 10}}, "not of the same protocol"),
    ],
)
def test_files_that_have_no_mean(files, capsys, change, message):
    scores, notes = load_scores(files[1])
    scores.save(files[1], notes | change)
    assert run_command(main, ["mean", *map(str, files)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(files[0]) in error
    assert str(files[1]) in error
    assert error.count("\n") == 1


def test_a_mean_wants_two_files_and_labels(files, capsys):
    assert run_command(main, ["mean", str(files[0])]) == 2
    assert "two files of scores or more are needed, not 1" in capsys.readouterr().err
    scores, notes = load_scores(files[1])
    Scores(scores.ids, scores.logits, torch.full((10,), -1)).save(files[1], notes)
    assert run_command(main, ["mean", *map(str, files)]) == 2
    assert "holds no labels" in capsys.readouterr().err


def test_the_ensemble_command_writes_a_record(files, tmp_path, capsys):
    first, notes = load_scores(files[0])
    other = random_scores(10, 1, 3, 9)
    Scores(first.ids, other.logits, first.labels).save(files[1], notes | {"model": "wider"})
    assert run_command(main, ["ensemble", *map(str, files[:2]), "--results", str(tmp_path / "r")]) == 0
    together = ensemble([load_scores(path)[0] for path in files[:2]])
    assert f"ensemble of 2: 10 videos, top-1 {together.top(1):.2f} %" in capsys.readouterr().out
    (path,) = (tmp_path / "r").glob("evaluate-ensemble-2-set-*.json")
    record = read_record(path)
    assert record.figures["top1_percent"] == together.top(1)
    assert [f["model"] for f in record.details["files"]] == ["tdn", "wider"]
    assert run_command(main, ["ensemble", *map(str, files[1:])]) == 2
    assert "of other videos" in capsys.readouterr().err


def test_other_orders_of_the_classes_are_matched_by_name(tmp_path, capsys):
    names, order = ["left", "right", "up", "down"], [2, 0, 3, 1]
    first = random_scores(9, 2, 4, 5)
    place = [order.index(label) for label in first.labels.tolist()]
    other = Scores(first.ids, first.logits[..., order], torch.tensor(place))  # what it says, with classes renumbered
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    first.save(paths[0], {"classes": names})
    other.save(paths[1], {"classes": [names[i] for i in order]})
    assert run_command(main, ["ensemble", *map(str, paths), "--results", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert f"ensemble of 2: 9 videos, {first}" in output.out
    assert "matched by name" in output.err
    (path,) = tmp_path.glob("*.json")
    assert "matched by name" in read_record(path).details["files"][1]["class_match"]
    other.save(paths[1], {"classes": ["left", "right", "up", "back"]})
    assert run_command(main, ["ensemble", *map(str, paths)]) == 2
    assert "class 3 is 'back' there, 'down' in" in capsys.readouterr().err


@given(st.permutations(range(5)), st.integers(0, 99))
def test_renumbering_changes_no_accuracy(order, seed):
    scores = random_scores(12, 1, 5, seed, unknown=True)
    moved = scores.reordered(order)
    for i, place in enumerate(order):
        assert torch.equal(moved.logits[..., i], scores.logits[..., place])
    assert [-1 if label < 0 else order[label] for label in moved.labels.tolist()] == scores.labels.tolist()


def test_logits_that_are_not_finite_are_no_scores(tmp_path):
    scores = random_scores(3, 1, 4, 0)
    scores.logits[1, 0, 2] = math.nan
    scores.save(tmp_path / "s.safetensors", {})
    with pytest.raises(UserError, match="the logits of 1 of 3 videos are NaN or infinite, first of 'v1'"):
        load_scores(tmp_path / "s.safetensors")


def test_a_flipped_bit_in_scores_is_found(tmp_path):
    path = tmp_path / "s.safetensors"
    random_scores(30, 1, 4, 0).save(path, {"classes": list("abcd")})
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="its checksum does not fit"):
        load_scores(path)
