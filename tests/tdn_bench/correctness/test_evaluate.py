"""Evaluation: every video once in all its views, the same in every run, and the command."""

import shutil
from pathlib import Path

import pytest
import torch
from support.flags import configure
from support.videos import flat_frames, write_video

from pipelines.annotations import Sample
from pipelines.clip import ClipBatch, ClipSpec
from pipelines.cpu import PyAVDecoder
from pipelines.manifest import Manifest, Video, as_video
from pipelines.plan import plan_evaluation
from tdn_bench.checkpoint import read_tensors, write_tensors
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.scores import Scores, load_scores
from tdn_bench.errors import UserError
from tdn_bench.evaluate import Evaluate, main
from tdn_bench.records import read_record


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """What an evaluation keeps below runs/ is the test's own."""
    monkeypatch.chdir(tmp_path)


def batch_of(numbers, ids):
    """A batch of frames that are one number each, which is also the label."""
    return ClipBatch(torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1, 1, 1), torch.tensor(numbers), ids)


def test_score_keeps_batches_in_order():
    batches = [batch_of([4, 5], ("a", "b")), batch_of([6], ("c",))]
    scores = score(lambda frames: frames.flatten(1).repeat(1, 3), batches)
    assert scores.ids == ("a", "b", "c")
    assert scores.labels.tolist() == [4, 5, 6]
    assert scores.logits.shape == (3, 1, 3)
    assert scores.logits[:, 0, 0].tolist() == [4, 5, 6]
    with pytest.raises(UserError, match="no video"):
        score(lambda frames: frames, [])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
def test_score_gathers_views_and_runs_on_no_more_than_it_may(batch_size):
    seen = []

    def classify(frames):
        seen.append(len(frames))
        return frames.flatten(1).repeat(1, 2)

    views = [batch_of([1, 2, 3, 4, 5, 6], ("a",) * 3 + ("b",) * 3), batch_of([7, 8, 9], ("c",) * 3)]
    scores = score(classify, views, 3, batch_size)
    assert scores.ids == ("a", "b", "c")
    assert scores.logits[..., 1].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert scores.labels.tolist() == [1, 4, 7]
    assert max(seen) == min(batch_size, 6)


def test_protocols_are_the_papers(small_checkpoint):
    one = configure(Evaluate(), checkpoint=small_checkpoint)
    _, spec = one.resolve()
    assert spec == ClipSpec(4, size=64, crop_ratio=1.0)
    thirty = configure(one, protocol="thirty-view")
    _, spec = thirty.resolve()
    assert (spec.num_clips, spec.num_crops, spec.size, spec.num_views) == (10, 3, 256, 30)
    _, spec = configure(thirty, size=128, clips=2).resolve()
    assert (spec.num_clips, spec.num_crops, spec.size) == (2, 3, 128)
    _, spec = configure(one, crops=3).resolve()
    assert (spec.num_clips, spec.num_crops, spec.size) == (1, 3, 64)
    with pytest.raises(UserError, match="--clips 0"):
        configure(one, clips=0).resolve()


def test_the_command(small_checkpoint, motion_data, tmp_path, capsys):
    flags = ["--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--workers", "1", "--device", "cpu"]
    saved = tmp_path / "new" / "scores.safetensors"
    assert run_command(main, [*flags, "--results", str(tmp_path), "--scores", str(saved), "--per-class"]) == 0
    out = capsys.readouterr().out
    scores, notes = load_scores(saved)
    assert "tdn_resnet_small on" in out
    assert f"8 videos, top-1 {scores.top(1):.2f} %, top-5 {scores.top(5):.2f} %" in out
    assert out.count(" %       1 videos  ") == 8  # one a class
    (path,) = tmp_path.glob("evaluate-*.json")
    record = read_record(path)
    assert record.figures == {
        "videos": 8,
        "views": 1,
        "top1_percent": scores.top(1),
        "top5_percent": scores.top(5),
        "mean_class_percent": scores.mean_class_accuracy(),
        "bad_clips": 0,
    }
    assert record.details["confusion"] == scores.confusion().tolist()
    assert sum(c["videos"] for c in record.details["per_class"].values()) == 8
    assert record.settings["size"] == 64
    assert notes["digest"] == record.data["digest"]
    assert notes["checkpoint"] == small_checkpoint.name
    assert notes["classes"] == record.details["classes"]
    assert notes["protocol"] == record.details["protocol"]

    assert run_command(main, ["--data", str(motion_data)]) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err
    assert run_command(main, [*flags, "--scores", str(small_checkpoint)]) == 2
    assert "exists and holds no scores" in capsys.readouterr().err
    assert run_command(main, [*flags, "--subset", "test"]) == 2
    assert "--subset test" in capsys.readouterr().err


def test_a_part_of_the_videos_is_said_to_be_one(small_checkpoint, motion_data, tmp_path, capsys):
    flags = ["--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--workers", "1", "--device", "cpu"]
    assert run_command(main, [*flags, "--limit", "3", "--results", str(tmp_path), "--scores", "some"]) == 0
    said = capsys.readouterr()
    assert "--limit 3: only 3 of 16 train, 3 of 8 validation videos; all figures are of these alone" in said.err
    assert "/validation: 3 of 8 videos, top-1" in said.out
    (path,) = tmp_path.glob("evaluate-*.json")
    record = read_record(path)
    assert record.name.endswith("-limit3")
    assert (record.data["videos"], record.data["of_videos"], record.settings["limit"]) == (6, 24, 3)
    whole = DataFlags(data=motion_data).open(progress=False)
    assert load_scores(tmp_path / "some")[0].ids == tuple(whole.split("validation")[i].id for i in (0, 2, 5))
    assert record.data["digest"] != whole.digest()
    assert run_command(main, [*flags, "--limit", "8", "--subset", "validation"]) == 0
    assert "/validation: 8 videos, top-1" in capsys.readouterr().out.replace(" of 8", "")
    for wrong in ("0", "-1"):
        assert run_command(main, [*flags, "--limit", wrong]) == 2
        assert f"error: --limit {wrong}: must " in capsys.readouterr().err


def test_results_that_could_not_be_kept_are_refused_before_anything_is_read(small_checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    flags = ["--checkpoint", str(small_checkpoint), "--data", str(tmp_path / "no such data")]
    assert run_command(main, [*flags, "--results", str(tmp_path / "file" / "records")]) == 2
    assert f"error: --results {tmp_path / 'file' / 'records'}: cannot be written" in capsys.readouterr().err


def test_a_video_that_is_listed_twice_counts_once(small_checkpoint, motion_data, tmp_path, capsys):
    videos = sorted((motion_data / "20bn-something-something-v2").iterdir())[:4]
    lines = [f"{path.relative_to(motion_data)} {label}\n" for label, path in enumerate(videos)]
    odd = [lines[1].replace("/", "/../20bn-something-something-v2/"), *lines[2:]]
    relabelled = lines[0].replace(" 0\n", " 1\n")
    for name, more in (("t", [lines[0]]), ("v", [lines[0], *odd, lines[3]]), ("w", [relabelled])):
        (tmp_path / f"{name}.txt").write_text("".join([*lines, *more]))
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(8)))

    def evaluate(validation, *more):
        flags = ["--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--train-list", tmp_path / "t.txt"]
        flags += ["--val-list", tmp_path / validation, "--class-names", tmp_path / "classes.txt", "--device", "cpu"]
        status = run_command(main, [str(flag) for flag in (*flags, "--workers", "1", *more)])
        return status, capsys.readouterr()

    status, said = evaluate("v.txt")
    assert (status, said.out.count(": 4 videos, top-1")) == (0, 1)
    assert "\n5 repeated entries of validation and test left out" in said.err
    assert said.err.count("read as 'path label', separated by spaces\n") == 2  # how each list was understood
    status, said = evaluate("v.txt", "--subset", "train")
    assert (status, said.out.count(": 4 videos, top-1")) == (0, 1)
    assert "1 repeated entry of train left out" in said.err
    status, said = evaluate("w.txt")
    assert status == 2
    assert f"{videos[0]}: the validation split lists it with the labels 0 and 1; correct the list" in said.err


def test_several_views_are_the_same_in_every_run_and_on_every_backend(small_checkpoint, motion_data, tmp_path, capsys):
    videos = list(DataFlags(data=motion_data).open(progress=False).split("validation"))[:3]
    manifest = Manifest.of("three", tuple("abcdefgh"), videos)
    manifest.write(tmp_path / "three.arrow")
    flags = ["--checkpoint", str(small_checkpoint), "--manifest", str(tmp_path / "three.arrow"), "--workers", "1"]
    flags += ["--device", "cpu", "--protocol", "thirty-view", "--clips", "2", "--size", "64", "--batch-size", "4"]

    def scores(backend, name):
        path = tmp_path / f"{name}.safetensors"
        assert run_command(main, [*flags, "--backend", backend, "--scores", str(path)]) == 0
        assert "3 videos, 6 views each, top-1" in capsys.readouterr().out
        return load_scores(path)[0]

    first, again = scores("pyav", "first"), scores("pyav", "again")
    assert first.logits.shape == (3, 6, 8)
    assert torch.equal(first.logits, again.logits)
    assert first.ids == again.ids == tuple(v.id for v in videos)
    assert first.labels.tolist() == [v.sample.label for v in videos]

    # one video at a time, planned and decoded here
    config = configure(Evaluate(), checkpoint=small_checkpoint, size=64, clips=2, crops=3)
    resolved, spec = config.resolve()
    network = resolved.build("abcdefgh", torch.device("cpu"))
    decode = PyAVDecoder(spec, 1)
    for video, logits in zip(videos, first.logits, strict=True):
        (frames,) = decode([plan_evaluation(video, spec)])
        with torch.inference_mode():
            wanted = [network(view[None])[0] for view in frames.unflatten(0, (6, 4))]
        assert torch.allclose(logits, torch.stack(wanted), atol=1e-4)
    decode.close()

    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    other = scores("dali", "dali")  # other colours, the same clips
    assert other.ids == first.ids
    assert torch.equal(other.labels, first.labels)
    # what sets a video's views apart is the same, whatever the colours do to all of them
    apart = [(x.logits - x.logits.mean(1, keepdim=True)).flatten() for x in (first, other)]
    assert torch.corrcoef(torch.stack(apart))[0, 1] > 0.9


def test_bad_clips_are_left_out_and_counted(small_checkpoint, motion_data, tmp_path, capsys):
    shutil.copytree(motion_data, tmp_path / "set")
    manifest = DataFlags(data=tmp_path / "set").open(progress=False)
    manifest.write(tmp_path / "set.arrow")
    bad = Path(manifest.split("validation")[3].path)
    bad.write_bytes(bad.read_bytes()[:100])
    flags = ["--checkpoint", str(small_checkpoint), "--manifest", str(tmp_path / "set.arrow"), "--workers", "1"]
    flags += ["--device", "cpu", "--results", str(tmp_path / "results"), "--batch-size", "2"]
    assert run_command(main, [*flags, "--max-bad-share", "1"]) == 0
    out = capsys.readouterr().out
    assert "7 videos (1 of 8 could not be used), top-1" in out
    assert f"not used: {bad}: " in out
    (path,) = (tmp_path / "results").glob("*.json")
    record = read_record(path)
    assert (record.figures["videos"], record.figures["bad_clips"]) == (7, 1)
    assert list(record.details["bad_clips"]) == [str(bad)]
    assert run_command(main, flags) == 2  # an eighth is more than a hundredth
    assert "--max-bad-share" in capsys.readouterr().err
    assert run_command(main, [*flags, "--on-bad-clip", "error"]) == 2
    assert str(bad) in capsys.readouterr().err


def test_videos_without_labels(small_checkpoint, tmp_path, capsys):
    known = as_video(write_video(tmp_path / "v.webm", flat_frames(12, 90, size=64)))
    manifest = Manifest.of("unlabelled", tuple("abcdefgh"), [Video(Sample("v", known.path, -1, "test"), known.file)])
    manifest.write(tmp_path / "m.arrow")
    flags = ["--checkpoint", str(small_checkpoint), "--manifest", str(tmp_path / "m.arrow"), "--workers", "1"]
    flags += ["--device", "cpu", "--subset", "test", "--results", str(tmp_path)]
    assert run_command(main, flags) == 0
    assert "unlabelled/test: 1 videos, no labels" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert read_record(path).figures == {"videos": 1, "views": 1, "bad_clips": 0}


@pytest.fixture
def named(small_checkpoint, motion_data, tmp_path):
    """A checkpoint that knows the data set's classes in another order, a manifest, and the flags for both."""
    manifest = DataFlags(data=motion_data).open(progress=False)
    manifest.write(tmp_path / "m.arrow")
    tensors, notes = read_tensors(small_checkpoint)
    del notes["format"]
    names = manifest.classes[::-1]
    tensors |= {name: t.flip(0) for name, t in tensors.items() if name.startswith("classifier.")}
    write_tensors(tmp_path / "named.safetensors", tensors, notes | {"classes": names})
    flags = ["--checkpoint", str(tmp_path / "named.safetensors"), "--manifest", str(tmp_path / "m.arrow")]
    return tensors, notes, [*flags, "--workers", "1", "--device", "cpu"]


def test_classes_of_a_checkpoint_are_matched_by_name(named, small_checkpoint, tmp_path, capsys):
    flags = named[2]
    saved = [tmp_path / "by name.safetensors", tmp_path / "as they are.safetensors"]
    assert run_command(main, [*flags, "--scores", str(saved[0]), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("matched by name") == 1
    (path,) = tmp_path.glob("*.json")
    assert "8 moved" in read_record(path).details["class_match"]
    assert run_command(main, [*flags[2:], "--checkpoint", str(small_checkpoint), "--scores", str(saved[1])]) == 0
    a, b = (load_scores(path)[0] for path in saved)
    assert torch.equal(a.logits, b.logits)


def test_other_classes_and_poisoned_weights_are_refused(named, tmp_path, capsys):
    tensors, notes, flags = named
    path = Path(flags[1])
    write_tensors(path, tensors, notes | {"classes": list("abcdefgh")})
    assert run_command(main, flags) == 2
    assert "not of the same classes: class 0 is 'a' there" in capsys.readouterr().err
    huge = {name: t * 1e30 if t.is_floating_point() and not name.endswith("var") else t for name, t in tensors.items()}
    write_tensors(path, huge, notes)  # finite weights, from which nothing finite follows
    assert run_command(main, [*flags, "--results", str(tmp_path / "none")]) == 2
    assert "the logits of 8 of 8 videos are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()  # nor is an empty folder left


def test_a_permutation_of_the_labels_is_told_and_noted(named, tmp_path, capsys, monkeypatch):
    def shifted(classify, batches, views, batch_size, **_):
        labels = torch.arange(8).repeat(4)
        logits = torch.nn.functional.one_hot((labels + 1) % 8, 8).float()[:, None]
        return Scores(tuple(map(str, range(32))), logits, labels)

    monkeypatch.setattr("tdn_bench.evaluate.score", shifted)
    assert run_command(main, [*named[2], "--results", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "top-1 0.00 %" in output.out  # never another accuracy
    assert "warning: the labels seem to be permuted: top-1 is 100.00 % with 8 classes renumbered" in output.err
    (path,) = tmp_path.glob("*.json")
    record = read_record(path)
    assert record.figures["top1_percent"] == 0
    assert record.details["label_permutation"] == {"classes": [1, 2, 3, 4, 5, 6, 7, 0], "top1_percent": 100}
