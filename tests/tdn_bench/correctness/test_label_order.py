"""Labels that are numbered otherwise than the network's classes are told; a bad network is not."""

import numpy as np
import pytest
import torch

from tdn_bench.correctness.label_order import find_permutation
from tdn_bench.correctness.scores import Scores


def scores_of(labels: np.ndarray, said: np.ndarray, classes: int) -> Scores:
    logits = torch.nn.functional.one_hot(torch.tensor(said), classes).float()[:, None]
    return Scores(tuple(map(str, range(len(labels)))), logits, torch.tensor(labels))


def network(classes: int, videos: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the answers of a network that is right on a share of the videos and guesses on the others."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), videos)
    return labels, np.where(rng.random(len(labels)) < right, labels, rng.integers(0, classes, len(labels)))


@pytest.mark.parametrize(("classes", "videos"), [(2, 40), (4, 8), (10, 20), (174, 6)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_permutation_is_found_with_its_accuracy(classes: int, videos: int, shuffled: bool) -> None:
    labels, said = network(classes, videos, 0.9)
    numbering = np.roll(np.arange(classes), 1)  # as labels that count from 1
    if shuffled and classes > 2:
        numbering = np.random.default_rng(2).permutation(classes)
    found = find_permutation(scores_of(labels, numbering[said], classes))
    assert found is not None
    assert found.classes == tuple(numbering)
    assert found.top1_percent == pytest.approx(100 * (labels == said).mean())
    assert f"top-1 is {100 * (labels == said).mean():.2f} %" in str(found)


def test_half_of_the_classes_permuted() -> None:
    labels, said = network(20, 20, 0.8)
    numbering = np.r_[np.roll(np.arange(10), 3), np.arange(10, 20)]
    found = find_permutation(scores_of(labels, numbering[said], 20))
    assert found is not None
    assert found.classes == tuple(numbering)
    assert "10 classes renumbered" in str(found)


@pytest.mark.parametrize("classes", [2, 4, 10, 51])
@pytest.mark.parametrize("right", [0.0, 0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("way", ["guesses", "one class", "few classes", "unbalanced"])
def test_a_bad_network_is_not_taken_for_a_permutation(classes: int, right: float, way: str) -> None:
    for seed in range(5):
        labels, said = network(classes, 12, right, seed)
        wrong, rng = labels != said, np.random.default_rng(seed)
        if way == "one class":
            said[wrong] = seed % classes
        if way == "few classes":
            said[wrong] = rng.integers(0, max(1, classes // 4), wrong.sum())
        if way == "unbalanced":  # most videos are of class 0, and all wrong answers are class 1
            labels = np.r_[labels, np.zeros(100 * classes, np.int64)]
            said = np.r_[said, np.ones(100 * classes, np.int64)]
            said[rng.random(len(said)) >= right] = 1
        assert find_permutation(scores_of(labels, said, classes)) is None


def test_too_few_videos_or_no_labels_tell_nothing() -> None:
    labels, said = network(8, 1, 1)
    assert find_permutation(scores_of(labels, (said + 1) % 8, 8)) is None
    unknown = scores_of(labels, said, 8)
    assert find_permutation(Scores(unknown.ids, unknown.logits, torch.full((8,), -1))) is None
