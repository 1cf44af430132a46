"""What a network said of every video: accuracy, files of scores, the sum of several networks, the mean of splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.files import clear_debris, fault_of_file
from tdn_bench.checkpoint import CheckpointError, match_classes, read_notes, read_tensors, write_tensors
from tdn_bench.errors import UserError
from tdn_bench.records import check_file

FORMAT = "tdn_bench scores 1"


@dataclass(frozen=True)
class Scores:
    """What a classifier said of N videos, on the CPU.

    logits: float32 (N, views, classes), raw; labels: int64 (N,), −1 = unknown. Videos of unknown label count in no
    accuracy; where no label is known, accuracies are NaN.
    """

    ids: tuple[str, ...]
    logits: Tensor
    labels: Tensor

    @property
    def num_views(self) -> int:
        return self.logits.shape[1]

    @property
    def num_classes(self) -> int:
        return self.logits.shape[2]

    def select(self, ids: Sequence[str]) -> Scores:
        """The scores of these videos alone, in this order. Raises KeyError for one that is not there."""
        place = {video: i for i, video in enumerate(self.ids)}
        rows = torch.tensor([place[video] for video in ids])
        return Scores(tuple(ids), self.logits[rows], self.labels[rows])

    def probabilities(self) -> Tensor:
        """float64 (N, classes): the softmax of every view, averaged over the views."""
        views = self.logits.unbind(1)  # one after the other: thirty of them in float64 would fill the memory
        total = torch.zeros(len(self.ids), self.num_classes, dtype=torch.float64)
        for view in views:
            total += view.double().softmax(1)
        return total / len(views)

    @cached_property
    def _ranking(self) -> Tensor:
        """(N, classes): what the classes are ranked by, logits of one view or probabilities of several."""
        return self.logits[:, 0] if self.num_views == 1 else self.probabilities()

    @property
    def _known(self) -> Tensor:
        return self.labels >= 0

    def found(self, k: int) -> Tensor:
        """bool (known videos,): fewer than k other classes score as high as the label; ties and NaN count against."""
        ranking, labels = self._ranking[self._known], self.labels[self._known]
        own = ranking.gather(1, labels[:, None])
        return (~(ranking < own)).sum(1) - 1 < k

    def top(self, k: int) -> float:
        """Top-k accuracy in percent."""
        return 100 * self.found(k).double().mean().item()

    def answers(self) -> Tensor:
        """int64 (N,): the class that ranks first."""
        return self._ranking.argmax(1)

    def confusion(self) -> Tensor:
        """int64 (classes, classes): rows are true classes, columns predictions."""
        labels, said = self.labels[self._known], self.answers()[self._known]
        pairs = labels * self.num_classes + said
        return torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes)

    def per_class(self) -> tuple[Tensor, Tensor]:
        """int64 (classes,) videos, and float64 (classes,) top-1 accuracy in percent; NaN for a class without videos."""
        labels = self.labels[self._known]
        videos = torch.bincount(labels, minlength=self.num_classes)
        found = torch.bincount(labels[self.found(1)], minlength=self.num_classes)
        return videos, 100 * found.double() / videos

    def mean_class_accuracy(self) -> float:
        """Top-1 accuracy in percent, averaged over the classes that have videos."""
        return self.per_class()[1].nanmean().item()

    def figures(self) -> dict[str, Any]:
        """Counts, and accuracies where labels are known, as records hold them."""
        found: dict[str, Any] = {"videos": len(self.ids), "views": self.num_views}
        if self._known.any():
            found |= {"top1_percent": self.top(1), "top5_percent": self.top(5)}
            found |= {"mean_class_percent": self.mean_class_accuracy()}
        return found

    def __str__(self) -> str:
        if not self._known.any():
            return "no labels"
        return f"top-1 {self.top(1):.2f} %, top-5 {self.top(5):.2f} %, mean class {self.mean_class_accuracy():.2f} %"

    def save(self, path: Path, notes: Mapping[str, object]) -> None:
        """Write a safetensors file with JSON-able notes, whole or not at all. Raises UserError where it cannot be."""
        write_tensors(path, {"logits": self.logits, "labels": self.labels}, {"ids": self.ids, **notes}, FORMAT)

    def reordered(self, order: Sequence[int]) -> Scores:
        """The same with class i where class `order[i]` was, in logits and labels."""
        place = torch.empty(len(order), dtype=torch.int64)
        place[torch.tensor(order)] = torch.arange(len(order))
        labels = torch.where(self.labels < 0, self.labels, place[self.labels.clamp(min=0)])
        return Scores(self.ids, self.logits[..., list(order)], labels)

    def check_finite(self, what: object) -> None:
        """Raise UserError where logits are not finite: whatever is computed from them is no accuracy."""
        wrong = (~torch.isfinite(self.logits)).flatten(1).any(1).nonzero().flatten().tolist()
        if wrong:
            raise UserError(
                f"{what}: the logits of {len(wrong)} of {len(self.ids)} videos are NaN or infinite, first of "
                f"{self.ids[wrong[0]]!r}; the network's weights are beyond what it can compute with"
            )


def check_target(path: Path) -> None:
    """Raise UserError where `Scores.save` cannot write, or would destroy a file of another kind (a checkpoint): to be
    known before hours of work, not after."""
    check_file("--scores", path)
    if path.exists() and not _is_scores(path):
        raise UserError(f"{path}: exists and holds no scores; name another file for the scores")
    clear_debris(path.parent)


def _is_scores(path: Path) -> bool:
    try:
        return read_notes(path).get("format") == FORMAT
    except CheckpointError:
        return False


def load_scores(path: Path) -> tuple[Scores, dict[str, Any]]:
    """Read what `Scores.save` wrote: scores and notes. Raises UserError for a damaged file, one of another kind, and
    logits that are not finite."""
    if (fault := fault_of_file(path)) is not None:
        raise UserError(f"{path}: no scores ({fault}); `tdn-bench evaluate --scores FILE` writes them")
    if not _is_scores(path):
        raise UserError(f"{path}: holds no readable scores; `tdn-bench evaluate --scores FILE` writes such a file")
    tensors, notes = read_tensors(path)
    del notes["format"]
    ids, logits, labels = notes.pop("ids", None), tensors.get("logits"), tensors.get("labels")
    if logits is None or labels is None or not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise UserError(f"{path}: lacks logits, labels or ids; evaluate anew")
    scores = Scores(tuple(ids), logits, labels)
    whole = (logits.dtype, logits.ndim, labels.dtype, labels.ndim) == (torch.float32, 3, torch.int64, 1)
    whole = whole and len(scores.ids) == len(logits) == len(labels) > 0 and min(logits.shape) > 0
    if not whole or not -1 <= labels.min() <= labels.max() < scores.num_classes:
        raise UserError(f"{path}: its logits, labels and ids do not belong together; evaluate anew")
    scores.check_finite(path)
    return scores, notes


def load_alike(files: Sequence[Path], keys: Sequence[str]) -> tuple[list[Scores], list[dict[str, Any]]]:
    """Read two files or more: scores and notes. Classes are matched to those of the first by name; where they had to
    be, the notes say so under `class_match`. Raises UserError where the notes named by `keys` or the classes differ,
    for fewer files, and as `load_scores` does."""
    if len(files) < 2:
        raise UserError(f"two files of scores or more are needed, not {len(files)}")
    scores, notes = map(list, zip(*map(load_scores, files), strict=True))
    classes = [class_names(part, note) for part, note in zip(scores, notes, strict=True)]
    for i, (path, other) in enumerate(zip(files, notes, strict=True)):
        for key in keys:
            if other.get(key) != notes[0].get(key):
                this, that = _short(notes[0], key), _short(other, key)
                raise UserError(f"{files[0]} and {path} are not of the same {key}: {this} and {that}")
        match = match_classes(classes[i], classes[0], path, files[0], "evaluate on the same classes")
        if match.order is not None:
            scores[i] = scores[i].reordered(match.order)
        if match.note is not None:
            other["class_match"] = match.note
    return scores, notes


def class_names(scores: Scores, notes: Mapping[str, Any]) -> list[str]:
    """The names in the notes, or the classes' numbers where those do not fit."""
    names = notes.get("classes")
    if not isinstance(names, list) or len(names) != scores.num_classes:
        names = list(range(scores.num_classes))
    return [str(name) for name in names]


def _short(notes: Mapping[str, Any], key: str) -> str:
    text = str(notes.get(key))
    return text if len(text) <= 80 else f"{text[:80]}…"


def ensemble(parts: Sequence[Scores], names: Sequence[object] = ()) -> Scores:
    """The authors' ensemble of networks: the sum of their softmax scores, as one view of log probabilities.

    Videos are matched by id, in the order of the first. `names` is what errors call the parts. Raises UserError where
    videos, labels or classes differ.
    """
    first = parts[0]
    names = names or [f"scores {number}" for number in range(1, len(parts) + 1)]
    total = torch.zeros(len(first.ids), first.num_classes, dtype=torch.float64)
    for name, part in zip(names, parts, strict=True):
        place = {video: i for i, video in enumerate(part.ids)}
        if len(place) < len(part.ids):
            twice = next(video for i, video in enumerate(part.ids) if place[video] != i)
            raise UserError(f"{name}: holds video {twice} twice")
        if odd := sorted(place.keys() ^ set(first.ids)):
            raise UserError(
                f"{names[0]} and {name} are of other videos: {len(odd)} are in one only, first {odd[0]}; "
                "an ensemble needs the same videos"
            )
        if part.num_classes != first.num_classes:
            raise UserError(f"{names[0]} and {name} have {first.num_classes} and {part.num_classes} classes")
        order = torch.tensor([place[video] for video in first.ids])
        wrong = (part.labels[order] != first.labels).nonzero().flatten().tolist()
        if wrong:
            raise UserError(f"{names[0]} and {name} give video {first.ids[wrong[0]]} different labels")
        total += part.probabilities()[order]
    # Floored, because a logarithm of zero is no score. A softmax gives the mean back.
    mean = (total / len(parts)).clamp_min(torch.finfo(torch.float32).tiny)
    return Scores(first.ids, mean.log().float()[:, None], first.labels)


def score_differences(a: Scores, b: Scores) -> dict[str, float]:
    """On the videos that both have: their number, the change of top-1 from `a` to `b` in percentage points where labels
    are known, the share in percent on which both name the same class, and the largest difference of a softmax score."""
    both = sorted(set(a.ids) & set(b.ids))
    if not both:
        return {"videos": 0}
    one, other = a.select(both), b.select(both)
    p, q = one.probabilities(), other.probabilities()
    figures: dict[str, float] = {"videos": len(both)}
    if (one.labels >= 0).any():
        figures["top1_change_percent"] = other.top(1) - one.top(1)
    figures["same_class_percent"] = 100 * (p.argmax(1) == q.argmax(1)).double().mean().item()
    figures["max_score_difference"] = (p - q).abs().max().item()
    return figures


def per_class_lines(scores: Scores, classes: Sequence[str]) -> list[str]:
    """A line with top-1 and videos for every class that has videos, worst first; `classes` are their names."""
    videos, percent = (column.tolist() for column in scores.per_class())
    worst_first = sorted((i for i, n in enumerate(videos) if n), key=lambda i: (percent[i], i))
    return [f"  {percent[i]:6.2f} %  {videos[i]:6d} videos  {classes[i]}" for i in worst_first]
