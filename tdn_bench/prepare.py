"""Scan a data set before it is used: how many videos, of what kind, and which cannot be used and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro

from pipelines.annotations import NEEDED_SPLITS, NUM_SPLITS, SPLITS, write_list
from pipelines.manifest import OK, Manifest, Videos
from tdn_bench.cli.flags import DataFlags, DatasetName
from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError

Source = Literal["sthv1", "sthv2", "kinetics400", "ucf101", "hmdb51", "lists"]
LISTED, LISTED_OF_A_KIND = 20, 5  # bad files named without --all
KINDS = {  # what the status of a file that cannot be used says; other statuses: "unreadable"
    "missing": r"^no such file",
    "empty": r"^empty file",
    "truncated": r"^truncated:|is cut short$",
    "too short": r"^\d+ frames, fewer",
    "no video": r"^audio only|^holds no ",
    "frame missing": r"^frame \d+ is missing",
    "frame twice": r"^frame \d+ is there twice",
    "mixed sizes": r" is \d+×\d+, not \d+×\d+$",
}


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Where a data set lies, and what annotates it."""

    root: Path | None = None
    """The data set's folder, as it is distributed; of lists: the folder that their paths are relative to."""
    split: int = 1
    """Which official split: 1, 2 or 3 of UCF101 and HMDB51."""
    labels: Path | None = None
    """Folder of the annotation files, where they do not lie below --root."""
    train_list: Path | None = None
    """For lists: the authors' list of training videos or frame folders, `path num_frames label` a line."""
    val_list: Path | None = None
    """For lists: the list of validation videos."""
    class_names: Path | None = None
    """For lists: a text file, one class name a line."""
    workers: int | None = None
    """Scanning processes; default: one a core."""

    def open_source(self, source: Source) -> Manifest:
        """Read the annotations and scan their videos (remembered across runs)."""
        lists = self.train_list, self.val_list
        if source == "lists" and None in lists:
            raise UserError("lists: name both by --train-list FILE and --val-list FILE")
        if source != "lists" and lists != (None, None):
            raise UserError(
                f"{source} reads its own annotations; for --train-list and --val-list say lists in its place"
            )
        if source != "lists" and self.root is None:
            raise UserError(f"{source}: say where it lies by --root DIR")
        return DataFlags(
            dataset=source if source != "lists" else get_args(DatasetName)[0], data=self.root, split=self.split,
            labels=self.labels, train_list=self.train_list, val_list=self.val_list, class_names=self.class_names,
            workers=self.workers,
        ).open()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepare(SourceFlags):
    """Scan a data set's videos (remembered: a second run looks only at what changed), and write the manifest that
    other commands take."""

    dataset: tyro.conf.Positional[Source]
    """How the data set is laid out and annotated; lists: by the authors' text lists."""
    out: Path | None = None
    """Where the manifest goes; default: runs/<data set>.arrow."""
    lists: Path | None = None
    """Also write the authors' lists of the usable videos here: train.txt, validation.txt; and classes.txt."""
    all: bool = False
    """Name every bad file, not a few of each kind."""


def kind_of(status: str) -> str:
    """The short word for what is wrong with a file, by which reasons are counted."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, status)), "unreadable")


def describe(videos: Videos) -> str:
    """One line: how many are usable, and what they are."""
    good = videos.where("status", OK)
    columns = {name: videos.column(name) for name in ("codec", "num_frames", "width", "height", "bytes")}
    of_good = {name: column[good].tolist() for name, column in columns.items()}
    codecs = ", ".join(f"{n} {codec}" for codec, n in Counter(of_good["codec"]).most_common())
    frames = sorted(of_good["num_frames"]) or [0]
    sizes = Counter(zip(of_good["width"], of_good["height"], strict=True)).most_common()
    pictures = ", ".join(f"{n} {w}×{h}" for (w, h), n in sizes[:3]) + f", … {len(sizes)} sizes" * (len(sizes) > 3)
    return (
        f"{good.sum()} of {len(videos)} videos usable ({codecs or 'none'}), {frames[0]}–{frames[-1]} frames, "
        f"median {frames[len(frames) // 2]}; {pictures or 'no pictures'}; {columns['bytes'].sum() / 1e6:.1f} MB"
    )


def print_counts(found: Sequence[tuple[str, str]]) -> None:
    """A table of (kind, split) pairs: kinds by splits, the most frequent kind first."""
    splits = [s for s in SPLITS if any(split == s for _, split in found)]
    cells, kinds = Counter(found), Counter(kind for kind, _ in found)
    print(f"  {'':16s}" + "".join(f"{split:>12s}" for split in splits))
    for kind, _ in kinds.most_common():
        print(f"  {kind:16s}" + "".join(f"{cells[kind, split]:12d}" for split in splits))


def print_files(found: Sequence[tuple[str, str, str]], everything: bool) -> None:
    """Name files, given as (kind, path, reason): all, or a few of each kind, the rarest kinds first."""
    by_kind: dict[str, list[str]] = {}
    for kind, path, reason in found:
        by_kind.setdefault(kind, []).append(f"  {kind}: {path}: {reason}")
    groups = sorted(by_kind.values(), key=len)
    lines = [line for group in groups for line in (group if everything else group[:LISTED_OF_A_KIND])]
    lines = lines if everything else lines[:LISTED]
    print("\n".join(lines))
    if len(lines) < len(found):
        print(f"  … and {len(found) - len(lines)} more; --all names them")


def print_summary(manifest: Manifest) -> None:
    """What the data set is, and a line a split."""
    print(f"{manifest.name}: {len(manifest.classes)} classes, digest {manifest.digest()[:16]}, in {manifest.root}")
    for split in SPLITS:
        if len(videos := manifest.split(split)):
            print(f"  {split}: {describe(videos)}")


def write_lists(manifest: Manifest, folder: Path) -> None:
    """Write the usable videos of each split as the authors' lists, paths relative to the data set's folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in manifest.classes), encoding="utf-8")
    except OSError as e:
        raise UserError(f"--lists {folder}: cannot be written ({e.strerror})") from e
    for split in NEEDED_SPLITS:
        if not len(videos := manifest.split(split)):
            continue
        good = np.flatnonzero(videos.where("status", OK))
        paths = (os.path.relpath(videos.locate(path), manifest.root) for path in videos.values("path", good))
        rows = zip(paths, videos.values("num_frames", good), videos.values("label", good), strict=True)
        write_list(folder / f"{split}.txt", rows)
        print(f"list: {folder / f'{split}.txt'}: {len(good)} videos, {len(videos) - len(good)} unusable left out")


def main(argv: Sequence[str] | None = None) -> None:
    """Scan a data set, say what is missing or broken, write its manifest."""
    config = tyro.cli(Prepare, args=argv, prog="tdn-bench prepare")
    manifest = config.open_source(config.dataset)
    print_summary(manifest)
    videos = manifest.videos
    bad = np.flatnonzero(~videos.where("status", OK))
    splits, paths, reasons = (videos.values(name, bad) for name in ("split", "path", "status"))
    kinds = [kind_of(reason) for reason in reasons]
    if kinds:
        print_counts(list(zip(kinds, splits, strict=True)))
        print_files(list(zip(kinds, map(videos.locate, paths), reasons, strict=True)), config.all)
    for split in NEEDED_SPLITS:
        if len(videos := manifest.split(split)) and not videos.where("status", OK).any():
            raise UserError(f"{manifest.root}: no video of the {split} split can be used; is this the right folder?")
    numbered = f"-split{config.split}" if config.dataset in NUM_SPLITS else ""
    out = config.out or Path("runs", f"{config.dataset}{numbered}.arrow")
    manifest.write(out)
    print(f"manifest: {out}; other commands take it as --manifest {out}")
    if config.lists is not None:
        write_lists(manifest, config.lists)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
