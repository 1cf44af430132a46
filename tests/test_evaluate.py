"""Accuracy against a slow count, and the command."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clip import ClipBatch
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.evaluate import Scores, main, score


@given(st.integers(1, 20), st.integers(2, 7), st.integers(1, 5), st.integers(0, 2**16))
@settings(deadline=None)
def test_top_k_is_a_sorted_list(videos, classes, k, seed):
    torch.manual_seed(seed)
    logits, labels = torch.rand(videos, classes), torch.randint(classes, (videos,))
    found = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        best = sorted(range(classes), key=lambda c: -row[c])[:k]
        found += label in best
    assert Scores(("v",) * videos, logits, labels).top(k) == pytest.approx(100 * found / videos)


def test_a_constant_classifier_is_not_right():
    assert Scores(("a", "b"), torch.zeros(2, 4), torch.tensor([0, 3])).top(1) == 0


def test_confusion_counts_rows_by_truth():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    confusion = Scores(("v",) * 4, logits, torch.tensor([0, 0, 1, 2])).confusion()
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_score_keeps_batches_in_order():
    batches = [
        ClipBatch(
            torch.full((n, 1, 1, 1, 1, 1), n, dtype=torch.uint8), torch.arange(n), tuple(f"{n}{i}" for i in range(n))
        )
        for n in (2, 1)
    ]
    scores = score(lambda frames: frames.flatten(1).repeat(1, 3), batches)
    assert scores.ids == ("20", "21", "10")
    assert scores.labels.tolist() == [0, 1, 0]
    assert scores.logits[:, 0].tolist() == [2, 2, 1]
    with pytest.raises(UserError, match="no video"):
        score(lambda frames: frames, [])


def test_the_command(small_checkpoint, motion_data, tmp_path, capsys):
    flags = ["--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--workers", "1"]
    assert run_command(main, [*flags, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "tdn_resnet_small on" in out
    assert "8 videos, top-1" in out
    assert len(list(tmp_path.glob("evaluate-*.json"))) == 1
    assert run_command(main, ["--data", str(motion_data)]) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err
