"""What a network said of every video: accuracy, files of scores, the sum of several networks, the mean of splits."""

from __future__ import annotations

import csv
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.records.record import make_record, write_record

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

    def confusion(self) -> Tensor:
        """int64 (classes, classes): rows are true classes, columns predictions."""
        labels, said = self.labels[self._known], self._ranking[self._known].argmax(1)
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
        metadata = {"format": FORMAT, "ids": json.dumps(self.ids)} | {k: json.dumps(v) for k, v in notes.items()}
        tensors = {"logits": self.logits.contiguous(), "labels": self.labels.contiguous()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
                temporary = Path(folder) / path.name
                save_file(tensors, temporary, metadata)
                os.replace(temporary, path)
        except OSError as e:
            raise UserError(f"{path}: the scores cannot be written ({e.strerror})") from e


def check_target(path: Path) -> None:
    """Raise UserError where `Scores.save` cannot write, or would destroy a file of another kind (a checkpoint): to be
    known before hours of work, not after."""
    if path.exists() and not _is_scores(path):
        raise UserError(f"{path}: exists and holds no scores; name another file for the scores")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as e:
        raise UserError(f"{path}: scores cannot be written there ({e.strerror})") from e


def _is_scores(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as f:
            return (f.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load_scores(path: Path) -> tuple[Scores, dict[str, Any]]:
    """Read what `Scores.save` wrote: scores and notes. Raises UserError for a damaged file and one of another kind."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of scores; `tdn-bench evaluate --scores FILE` writes one")
    if not _is_scores(path):
        raise UserError(f"{path}: holds no readable scores; `tdn-bench evaluate --scores FILE` writes such a file")
    try:
        with safe_open(path, "pt") as f:
            notes = {k: json.loads(v) for k, v in f.metadata().items() if k != "format"}
            scores = Scores(tuple(notes.pop("ids")), f.get_tensor("logits"), f.get_tensor("labels"))
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a readable file of scores ({e})") from e
    logits, labels = scores.logits, scores.labels
    whole = (logits.dtype, logits.ndim, labels.dtype, labels.ndim) == (torch.float32, 3, torch.int64, 1)
    whole = whole and len(scores.ids) == len(logits) == len(labels) > 0 and min(logits.shape) > 0
    if not whole or not -1 <= labels.min() <= labels.max() < scores.num_classes:
        raise UserError(f"{path}: its logits, labels and ids do not belong together; evaluate anew")
    return scores, notes


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


def print_per_class(scores: Scores, classes: Sequence[str]) -> None:
    """Videos and top-1 of every class that has videos, worst first."""
    videos, percent = (column.tolist() for column in scores.per_class())
    for i in sorted((i for i, n in enumerate(videos) if n), key=lambda i: (percent[i], i)):
        print(f"  {percent[i]:6.2f} %  {videos[i]:6d} videos  {classes[i]}")


@dataclass(frozen=True)
class Show:
    """Accuracy of one file of scores."""

    file: Path
    """Written by `tdn-bench evaluate --scores FILE`."""
    per_class: bool = False
    """Also print the accuracy of every class, worst first."""
    confusion: Path | None = None
    """Also write the confusion matrix to this CSV file: a row a true class, a column a prediction."""


@dataclass(frozen=True)
class Ensemble:
    """The sum of the softmax scores of several networks (8 + 16 segments in the paper) on the same videos."""

    files: tuple[Path, ...]
    """Two or more files of scores."""
    results: Path | None = None
    """Also write a record to this folder."""


@dataclass(frozen=True)
class Mean:
    """Mean accuracy over splits: the three of UCF101 or HMDB51."""

    files: tuple[Path, ...]
    """Two or more files of scores, one a split."""


def _load(files: Sequence[Path], alike: Sequence[str]) -> tuple[list[Scores], list[dict[str, Any]]]:
    """Read two files or more. Raises UserError where the notes named in `alike` differ."""
    if len(files) < 2:
        raise UserError(f"two files of scores or more are needed, not {len(files)}")
    scores, notes = zip(*map(load_scores, files), strict=True)
    for path, other in zip(files, notes, strict=True):
        for key in alike:
            if other.get(key) != notes[0].get(key):
                raise UserError(f"{files[0]} and {path} are not of the same {key}: {_short(notes[0], key)} "
                                f"and {_short(other, key)}")  # fmt: skip
    return list(scores), list(notes)


def _short(notes: Mapping[str, Any], key: str) -> str:
    text = str(notes.get(key))
    return text if len(text) <= 80 else f"{text[:80]}…"


def _class_names(scores: Scores, notes: Mapping[str, Any]) -> list[str]:
    names = notes.get("classes")
    fit = isinstance(names, list) and len(names) == scores.num_classes
    return [str(name) for name in names] if fit else [str(i) for i in range(scores.num_classes)]  # type: ignore[union-attr]


def _title(notes: Mapping[str, Any], scores: Scores) -> str:
    views = f"{scores.num_views} view{'s' if scores.num_views > 1 else ''}"
    return f"{notes.get('model')} on {notes.get('data')}/{notes.get('subset')}: {len(scores.ids)} videos, {views}"


def show(config: Show) -> None:
    """Print what one file says."""
    scores, notes = load_scores(config.file)
    classes = _class_names(scores, notes)
    print(f"{_title(notes, scores)}, {scores}")
    print(f"  checkpoint {notes.get('checkpoint')}, protocol {notes.get('protocol')}")
    if config.per_class:
        print_per_class(scores, classes)
    if config.confusion is not None:
        try:
            with config.confusion.open("w", newline="", encoding="utf-8") as f:
                writer = csv.writer(f)
                writer.writerow(["true class", *classes])
                writer.writerows([name, *row] for name, row in zip(classes, scores.confusion().tolist(), strict=True))
        except OSError as e:
            raise UserError(f"--confusion {config.confusion}: cannot be written ({e.strerror})") from e


def run_ensemble(config: Ensemble) -> None:
    """Print the accuracy of each file and of their sum."""
    parts, notes = _load(config.files, alike=("classes",))
    together = ensemble(parts, config.files)
    for path, part in zip(config.files, parts, strict=True):
        print(f"{path}: {part}")
    print(f"ensemble of {len(parts)}: {len(together.ids)} videos, {together}")
    if config.results is not None:
        kept = [{k: v for k, v in n.items() if k != "classes"} for n in notes]
        details = {
            "files": [{"file": str(path), **n} for path, n in zip(config.files, kept, strict=True)],
            "confusion": together.confusion().tolist(),
            "classes": _class_names(together, notes[0]),
        }
        record = make_record(
            "evaluate", f"ensemble-{len(parts)}-{notes[0].get('data')}", figures=together.figures(), samples={},
            settings=asdict(config), device=torch.device("cpu"), details=details,
        )  # fmt: skip
        print(f"record: {write_record(record, config.results)}")


def mean(config: Mean) -> None:
    """Print the accuracy on each split, their mean and their standard deviation."""
    parts, notes = _load(config.files, alike=("classes", "model", "protocol", "subset"))
    for i, j in combinations(range(len(parts)), 2):
        digests = notes[i].get("digest"), notes[j].get("digest")
        if (None not in digests and digests[0] == digests[1]) or set(parts[i].ids) == set(parts[j].ids):
            raise UserError(f"{config.files[i]} and {config.files[j]} are of the same split; name one file a split")
    for path, part in zip(config.files, parts, strict=True):
        if "top1_percent" not in part.figures():
            raise UserError(f"{path}: holds no labels, so there is no accuracy to average")
        print(f"{path}: {len(part.ids)} videos, {part}")
    for k in (1, 5):
        values = [part.top(k) for part in parts]
        print(f"top-{k}: mean {statistics.mean(values):.2f} %, standard deviation {statistics.stdev(values):.2f} "
              f"(sample) over {len(parts)} splits")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Accuracy from files of scores: of one, of an ensemble, over splits."""
    import tyro

    config = tyro.extras.subcommand_cli_from_dict(
        {"show": Show, "ensemble": Ensemble, "mean": Mean},
        args=argv, prog="tdn-bench scores", config=(tyro.conf.PositionalRequiredArgs,),
    )  # fmt: skip
    if isinstance(config, Show):
        show(config)
    elif isinstance(config, Ensemble):
        run_ensemble(config)
    else:
        mean(config)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
