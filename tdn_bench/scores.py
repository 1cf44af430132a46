"""Compute accuracy from saved scores, ensembles too."""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from tdn_bench.cli import begin_run, parse_subcommand, run_command, settings_of
from tdn_bench.correctness.scores import Scores, class_names, ensemble, load_alike, load_scores, per_class_lines
from tdn_bench.errors import UserError
from tdn_bench.records import Record, check_file, check_folder, make_record, write_record

EXAMPLES = (
    "tdn-bench scores show runs/scores.safetensors --per-class",
    "tdn-bench scores ensemble tdn8.safetensors tdn16.safetensors",
    "tdn-bench scores mean split1.safetensors split2.safetensors split3.safetensors",
)
COMMON = ("per_class", "confusion", "results")


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
    """Accuracy of several networks together: the sum of their softmax scores on the same videos (8 + 16 segments in the
    paper)."""

    files: tuple[Path, ...]
    """Two or more files of scores."""
    results: Path | None = None
    """Also write a record to this folder."""


@dataclass(frozen=True)
class Mean:
    """Mean accuracy over splits: the three of UCF101 or HMDB51."""

    files: tuple[Path, ...]
    """Two or more files of scores, one a split."""


def _title(notes: Mapping[str, Any], scores: Scores) -> str:
    views = f"{scores.num_views} view{'s' if scores.num_views > 1 else ''}"
    return f"{notes.get('model')} on {notes.get('data')}/{notes.get('subset')}: {len(scores.ids)} videos, {views}"


def show(config: Show) -> None:
    """Print what one file says."""
    check_file("--confusion", config.confusion)
    scores, notes = load_scores(config.file)
    classes = class_names(scores, notes)
    print(f"{_title(notes, scores)}, {scores}")
    print(f"  checkpoint {notes.get('checkpoint')}, protocol {notes.get('protocol')}")
    if config.per_class:
        for line in per_class_lines(scores, classes):
            print(line)
    if config.confusion is not None:
        rows = zip(classes, scores.confusion().tolist(), strict=True)
        try:
            with config.confusion.open("w", newline="", encoding="utf-8") as f:
                csv.writer(f).writerows([["true class", *classes], *([name, *row] for name, row in rows)])
        except OSError as e:
            raise UserError(f"--confusion {config.confusion}: cannot be written ({e.strerror})") from e


def _load(files: Sequence[Path], *keys: str) -> tuple[list[Scores], list[dict[str, Any]]]:
    """`load_alike`, and a line for every file whose classes had to be matched."""
    parts, notes = load_alike(files, keys)
    for note in notes:
        if "class_match" in note:
            print(note["class_match"], file=sys.stderr)
    return parts, notes


def run_ensemble(config: Ensemble) -> None:
    """Print the accuracy of each file and of their sum."""
    if config.results is not None:
        check_folder("--results", config.results)
        begin_run(config.results, "scores ensemble", config)
    parts, notes = _load(config.files)
    together = ensemble(parts, config.files)
    for path, part in zip(config.files, parts, strict=True):
        print(f"{path}: {part}")
    print(f"ensemble of {len(parts)}: {len(together.ids)} videos, {together}")
    if config.results is not None:
        print(f"record: {write_record(_record(config, together, notes), config.results)}")


def _record(config: Ensemble, together: Scores, notes: Sequence[Mapping[str, Any]]) -> Record:
    of_files = [{k: v for k, v in n.items() if k != "classes"} for n in notes]
    return make_record(
        "evaluate",
        f"ensemble-{len(notes)}-{notes[0].get('data')}",
        figures=together.figures(),
        samples={},
        settings=settings_of(config),
        device=torch.device("cpu"),
        details={
            "files": [{"file": str(path), **n} for path, n in zip(config.files, of_files, strict=True)],
            "confusion": together.confusion().tolist(),
            "classes": class_names(together, notes[0]),
        },
    )


def mean(config: Mean) -> None:
    """Print the accuracy on each split, their mean and their standard deviation."""
    parts, notes = _load(config.files, "model", "protocol", "subset")
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
        average, deviation = statistics.mean(values), statistics.stdev(values)
        print(f"top-{k}: mean {average:.2f} %, standard deviation {deviation:.2f} (sample) over {len(parts)} splits")


def main(argv: Sequence[str] | None = None) -> None:
    """Accuracy from files of scores: of one, of an ensemble, over splits."""
    from tyro.conf import PositionalRequiredArgs

    kinds = {"show": Show, "ensemble": Ensemble, "mean": Mean}
    match parse_subcommand(kinds, argv, "scores", PositionalRequiredArgs, examples=EXAMPLES, common=COMMON):
        case Show() as config:
            show(config)
        case Ensemble() as config:
            run_ensemble(config)
        case Mean() as config:
            mean(config)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
