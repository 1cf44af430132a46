"""Scan a data set and write its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from pipelines.annotations import NEEDED_SPLITS, NUM_SPLITS
from pipelines.manifest import OK, Manifest
from tdn_bench.cli import SourceFlags, parse, run_command
from tdn_bench.cli.flags import Source
from tdn_bench.dataset_tools.audit import listing_findings
from tdn_bench.dataset_tools.class_findings import class_findings
from tdn_bench.dataset_tools.summary import (
    kind_of,
    print_counts,
    print_files,
    print_findings,
    print_summary,
    write_lists,
)
from tdn_bench.errors import UserError

EXAMPLES = (
    "tdn-bench prepare sthv2 --root something-something-v2",
    "tdn-bench prepare ucf101 --root UCF-101 --split 2 --out ucf2.arrow",
    "tdn-bench prepare lists --train-list train.txt --val-list val.txt",
)
COMMON = ("root", "split", "labels", "train_list", "val_list", "decode", "workers", "out", "all")


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Scan a data set's videos, and write the manifest that other commands take. Scans are remembered: a second run
    looks only at what changed."""

    dataset: Positional[Source]
    """How the data set is laid out and annotated; lists: by the authors' text lists."""
    source: SourceFlags = field(default_factory=SourceFlags)
    out: Path | None = None
    """Where the manifest goes; default: runs/<data set>.arrow."""
    lists: Path | None = None
    """Also write the authors' lists of the usable videos to this folder: train.txt, validation.txt, classes.txt."""
    all: bool = False
    """Name every bad file, not only a few of each kind."""

    def target(self) -> Path:
        """The manifest's file."""
        numbered = f"-split{self.source.split}" if self.dataset in NUM_SPLITS else ""
        return self.out or Path("runs", f"{self.dataset}{numbered}.arrow")


def main(argv: Sequence[str] | None = None) -> None:
    """Scan a data set, say what is missing or broken, write its manifest."""
    config = parse(Prepare, argv, "prepare", examples=EXAMPLES, common=COMMON)
    manifest = config.source.open(config.dataset)
    print_summary(manifest)
    print_bad_files(manifest, config.all)
    print_findings("findings in what is listed: number of videos", listing_findings(manifest), config.all)
    for sentence in class_findings(manifest):
        print(f"classes: {sentence}")
    for split in NEEDED_SPLITS:
        if len(videos := manifest.split(split)) and not videos.where("status", OK).any():
            raise UserError(f"{manifest.root}: no video of the {split} split can be used; is this the right folder?")
    out = config.target()
    manifest.write(out)
    print(f"manifest: {out}; other commands take it as --manifest {out}")
    if config.lists is not None:
        write_lists(manifest, config.lists)


def print_bad_files(manifest: Manifest, everything: bool) -> None:
    """The videos that cannot be used: counted by kind and split, and all or a few of them by name."""
    videos = manifest.videos
    bad = np.flatnonzero(~videos.where("status", OK))
    splits, paths, reasons = (videos.values(name, bad) for name in ("split", "path", "status"))
    kinds = [kind_of(reason) for reason in reasons]
    if kinds:
        print_counts(list(zip(kinds, splits, strict=True)))
        print_files(list(zip(kinds, map(videos.locate, paths), reasons, strict=True)), everything)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
