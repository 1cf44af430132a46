"""An evaluation that is interrupted goes on, and comes to the same bits; nothing of another one is mixed in."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

from tdn_bench.checkpoint import read_tensors, write_tensors
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.correctness import partial_scores
from tdn_bench.correctness.partial_scores import PartialScores
from tdn_bench.correctness.scores import load_scores
from tdn_bench.evaluate import main


@pytest.fixture
def data(motion_data, tmp_path, monkeypatch):
    """A copy of the data set; the current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(motion_data, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def flags(small_checkpoint, data):
    views = ("--clips", "2", "--crops", "3", "--batch-size", "6", "--max-bad-share", "1")
    return ["--checkpoint", str(small_checkpoint), "--data", "set", "--workers", "1", "--device", "cpu", *views]


def interrupt(patch, after):
    """The next evaluation ends with Ctrl-C after so many batches."""
    original, count = PartialScores.add, [0]

    def add(self, batch, part):
        original(self, batch, part)
        count[0] += 1
        if count[0] == after:
            raise KeyboardInterrupt

    patch.setattr(PartialScores, "add", add)


def interrupted(flags, after):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after)
        assert run_command(main, flags) == 130


def result(path):
    scores, notes = load_scores(Path(path))
    return scores.ids, scores.logits, scores.labels, notes


def assert_same(a, b):
    (ids, logits, labels, notes), (other_ids, other_logits, other_labels, other_notes) = result(a), result(b)
    assert (ids, notes) == (other_ids, other_notes)
    assert torch.equal(logits, other_logits)
    assert torch.equal(labels, other_labels)


def test_it_goes_on_to_the_same_bits(flags, capsys):
    assert run_command(main, [*flags, "--scores", "whole"]) == 0
    assert not Path("whole.partial").exists()
    capsys.readouterr()
    interrupted([*flags, "--scores", "part"], 3)
    assert "kept 3 of 8 videos in part.partial; the same command goes on from there" in capsys.readouterr().err
    assert not Path("part").exists()
    interrupted([*flags, "--scores", "part"], 2)
    assert "going on with 3 of 8 videos from part.partial" in capsys.readouterr().err
    interrupted([*flags, "--scores", "part"], 3)  # after the last video, before anything is written
    assert "going on with 5 of 8 videos" in capsys.readouterr().err
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    assert "going on with 8 of 8 videos" in capsys.readouterr().err
    assert_same("whole", "part")
    assert not Path("part.partial").exists()
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    assert "going on" not in capsys.readouterr().err


def test_without_a_file_of_scores_each_evaluation_has_its_own(flags, capsys):
    interrupted(flags, 3)
    (kept,) = Path("runs/evaluate").iterdir()
    assert str(kept) in capsys.readouterr().err
    for other in (
        ["--clips", "1"],
        ["--batch-size", "12"],
        ["--subset", "train"],
        ["--limit", "4"],
        ["--crops", "1"],
    ):
        assert run_command(main, [*flags, *other]) == 0
        assert "going on" not in capsys.readouterr().err
        assert [*Path("runs/evaluate").iterdir()] == [kept]
    assert run_command(main, [*flags, "--fresh"]) == 0
    assert "going on" not in capsys.readouterr().err
    assert not Path("runs/evaluate").exists()


def test_nothing_is_left_of_one_that_scored_nothing(flags, monkeypatch):
    def interrupt_at_once(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tdn_bench.evaluate.score", interrupt_at_once)
    assert run_command(main, flags) == 130
    assert not Path("runs").exists()


def test_another_checkpoint_is_another_evaluation(flags, small_checkpoint, capsys):
    interrupted([*flags, "--scores", "part"], 3)
    tensors, notes = read_tensors(small_checkpoint)
    del notes["format"]
    write_tensors(Path("other.safetensors"), tensors | {"classifier.bias": torch.ones(8)}, notes)
    capsys.readouterr()
    assert run_command(main, [*flags, "--checkpoint", "other.safetensors", "--scores", "part"]) == 0
    assert "part.partial: of another evaluation (other checkpoint); begun anew" in capsys.readouterr().err
    assert run_command(main, [*flags, "--checkpoint", "other.safetensors", "--scores", "whole"]) == 0
    assert_same("whole", "part")


def test_damage_and_changed_videos_are_scored_anew(flags, data, capsys):
    assert run_command(main, [*flags, "--scores", "whole"]) == 0
    manifest = DataFlags(data=data).open(progress=False)
    manifest.write(Path("m.arrow"))
    flags = [*flags, "--manifest", "m.arrow"]
    interrupted([*flags, "--scores", "part"], 5)
    kept = Path("part.partial").read_bytes()
    starts = [i for i in range(len(kept)) if kept.startswith(b'{"number": ', i)]
    assert len(starts) == 5
    cases = {"a flipped bit": (starts[3] + 200, 3), "a flipped number": (starts[4] - 10, 3), "the key": (40, 0)}
    for what, (place, videos) in cases.items():
        damaged = bytearray(kept)
        damaged[place] ^= 1
        Path("part.partial").write_bytes(damaged)
        capsys.readouterr()
        interrupted([*flags, "--scores", "part"], 1)
        said = capsys.readouterr().err
        assert (f"going on with {videos} of 8 videos" in said) == (videos > 0), what
        assert f"kept {videos + 1} of 8 videos" in said, what
    Path("part.partial").write_bytes(kept[: starts[2] + 100])  # cut, as a full disk leaves it
    video = Path(manifest.split("validation")[1].path)
    os.utime(video, ns=(1, 1))
    capsys.readouterr()
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    assert "going on with 1 of 8 videos" in capsys.readouterr().err
    assert_same("whole", "part")


def test_bad_clips_of_the_first_part_count(flags, data, capsys):
    manifest = DataFlags(data=data).open(progress=False)
    manifest.write(Path("m.arrow"))
    bad = [Path(manifest.split("validation")[i].path) for i in (1, 2, 6)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    flags = [*flags, "--manifest", "m.arrow"]
    assert run_command(main, [*flags, "--scores", "whole"]) == 0
    told = capsys.readouterr().out.replace("whole", "part")
    assert "5 videos (3 of 8 could not be used)" in told
    interrupted([*flags, "--scores", "part"], 3)
    capsys.readouterr()
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    said = capsys.readouterr()
    assert "going on with 3 of 8 videos" in said.err
    assert said.out == told
    assert_same("whole", "part")
    interrupted([*flags, "--scores", "again"], 3)
    assert run_command(main, [*flags, "--scores", "again", "--on-bad-clip", "error"]) == 2
    assert run_command(main, [*flags, "--scores", "again", "--max-bad-share", "0.1"]) == 2


def test_a_full_disk_is_one_line(flags, monkeypatch, capsys):
    def full(self, content, original=PartialScores._write):
        if self.next_batch == 2:

            class Full:
                def write(self, content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                def close(self):
                    pass

            self._file = Full()
        original(self, content)

    monkeypatch.setattr(PartialScores, "_write", full)
    assert run_command(main, [*flags, "--scores", "part"]) == 2
    said = capsys.readouterr().err
    assert "error: part.partial: scores cannot be kept (No space left on device); make room" in said
    assert "kept 2 of 8 videos" in said
    monkeypatch.undo()


def test_where_nothing_can_be_kept_the_evaluation_goes_on(flags, capsys):
    Path("runs").write_text("a file in the way")
    assert run_command(main, flags) == 0
    assert "scores are not kept on the way (runs/evaluate/" in capsys.readouterr().err
    os.mkfifo("pipe.partial")
    assert run_command(main, [*flags, "--scores", "pipe"]) == 0
    assert "pipe.partial: is not a regular file" in capsys.readouterr().err
    with open("held.partial", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run_command(main, [*flags, "--scores", "held"]) == 0
    assert "held.partial: another run writes there" in capsys.readouterr().err


def test_the_key_says_where_it_runs(flags, monkeypatch, capsys):
    interrupted([*flags, "--scores", "part"], 3)
    monkeypatch.setattr(partial_scores, "versions", lambda: {"torch": "another"})
    capsys.readouterr()
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    assert "of another evaluation (other versions)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_one_goes_on_to_the_same_bits(flags, capsys):
    assert run_command(main, [*flags, "--scores", "whole"]) == 0
    slow = (
        "import time\nfrom tdn_bench.correctness.partial_scores import PartialScores\nadd = PartialScores.add\n"
        "PartialScores.add = lambda *a: (add(*a), time.sleep(0.5))\n"
        f"from tdn_bench.evaluate import main\nmain({[*flags, '--scores', 'part']!r})\n"
    )
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", slow], env=os.environ | {"PYTHONPATH": str(ROOT)})
        before = Path("part.partial").stat().st_size if Path("part.partial").exists() else 3000  # more than a key
        while process.poll() is None and not (
            Path("part.partial").exists() and Path("part.partial").stat().st_size > before
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    assert run_command(main, [*flags, "--scores", "part"]) == 0
    assert "going on with " in capsys.readouterr().err
    assert_same("whole", "part")
