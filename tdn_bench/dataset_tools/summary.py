"""A data set in a few lines: what its videos are, how many cannot be used, and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.annotations import NEEDED_SPLITS, SPLITS, write_list
from pipelines.errors import printable
from pipelines.manifest import OK, Manifest, Videos
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from tdn_bench.dataset_tools.audit import Finding

LISTED, LISTED_OF_A_KIND = 20, 5  # bad files named without --all
# By what the status of a file that cannot be used says; any other is "unreadable".
KINDS = {
    "missing": r"^no such file",
    "empty": r"^empty file",
    "truncated": r"^truncated:|is cut short$",
    "too short": r"^\d+ frames, fewer",
    "no video": r"^audio only|^holds no ",
    "frame missing": r"^frame \d+ is missing",
    "frame twice": r"^frame \d+ is there twice",
    "mixed sizes": r" is \d+×\d+, not \d+×\d+$",
}


def kind_of(status: str) -> str:
    """The short word for what is wrong with a file, by which reasons are counted.

    Arguments:
        status: `VideoFile.status` of a file that cannot be used.
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, status)), "unreadable")


def counted(count: int, noun: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def walk(top: str | Path, **how: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, which gives up where folders are nested a thousand deep: then UserError."""
    try:
        yield from os.walk(top, **how)
    except RecursionError as e:
        raise UserError(f"{top}: its folders are nested too deep to be walked through; take the deep ones out") from e


def describe(videos: Videos) -> str:
    """One line: how many are usable, and what they are."""
    good = videos.where("status", OK)
    columns = {name: videos.column(name) for name in ("codec", "num_frames", "width", "height", "bytes")}
    of_good = {name: column[good].tolist() for name, column in columns.items()}
    codecs = ", ".join(f"{n} {codec}" for codec, n in Counter(of_good["codec"]).most_common())
    frames = sorted(of_good["num_frames"]) or [0]
    sizes = Counter(zip(of_good["width"], of_good["height"], strict=True)).most_common()
    pictures = ", ".join(f"{n} at {w}×{h}" for (w, h), n in sizes[:3]) + f", … ({len(sizes)} sizes)" * (len(sizes) > 3)
    odd = Counter(videos.column("oddity")[good].tolist())
    del odd[""]
    notes = "".join(f"; {n} with {oddity}" for oddity, n in odd.most_common(3))
    return (
        f"{good.sum()} of {len(videos)} videos usable ({codecs or 'none'}), {frames[0]}–{frames[-1]} frames, "
        f"median {frames[len(frames) // 2]}; {pictures or 'no pictures'}; {columns['bytes'].sum() / 1e6:.1f} MB{notes}"
    )


def print_counts(found: Sequence[tuple[str, str]]) -> None:
    """A table of how often each kind was found in each split, the most frequent kind first.

    Arguments:
        found: A pair (kind, split) for every video.
    """
    splits = [s for s in SPLITS if any(split == s for _, split in found)]
    cells, kinds = Counter(found), Counter(kind for kind, _ in found)
    print(f"  {'':16s}" + "".join(f"{split:>12s}" for split in splits))
    for kind, _ in kinds.most_common():
        print(f"  {kind:16s}" + "".join(f"{cells[kind, split]:12d}" for split in splits))


def print_files(found: Sequence[tuple[str, str, str]], everything: bool) -> None:
    """Name files, the rarest kinds first.

    Arguments:
        found: (kind, path, reason) of every file.
        everything: Name all, not only a few of each kind.
    """
    by_kind: dict[str, list[str]] = {}
    for kind, path, reason in found:
        by_kind.setdefault(kind, []).append(f"  {kind}: {printable(path)}: {printable(reason)}")
    groups = sorted(by_kind.values(), key=len)
    lines = [line for group in groups for line in (group if everything else group[:LISTED_OF_A_KIND])]
    lines = lines if everything else lines[:LISTED]
    print("\n".join(lines))
    if len(lines) < len(found):
        print(f"  … and {len(found) - len(lines)} more; --all names them")


def print_findings(title: str, found: Sequence[Finding], everything: bool) -> None:
    """What is wrong with videos, by kind and split and then file by file."""
    if found:
        print(title)
        print_counts([(f.kind, f.split) for f in found])
        print_files([(f.kind, f.path, f.reason) for f in found], everything)


def print_summary(manifest: Manifest) -> None:
    """What the data set is, and a line a split."""
    name, root = printable(manifest.name), printable(str(manifest.root))
    print(f"{name}: {len(manifest.classes)} classes, digest {manifest.digest()[:16]}, in {root}")
    for split in SPLITS:
        if len(videos := manifest.split(split)):
            print(f"  {split}: {describe(videos)}")


def write_lists(manifest: Manifest, folder: Path) -> None:
    """Write classes.txt, and the usable videos of each split as the authors' lists: `path num_frames label` a line,
    paths relative to the data set's folder. Raises UserError where `folder` cannot be written."""
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
