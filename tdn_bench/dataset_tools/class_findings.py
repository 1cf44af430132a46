"""What is wrong with a data set's classes: some that no split, or only one of train and validation, has videos of."""

from __future__ import annotations

from pipelines.errors import printable
from pipelines.manifest import Manifest
from pipelines.video import NEEDED_SPLITS, SPLITS

NAMED = 5  # classes named in a sentence


def class_findings(manifest: Manifest) -> list[str]:
    """Sentences on the classes that lack videos, by what the annotations list; of a split that lists none, nothing is
    said."""
    labels = manifest.videos.column("label")
    used = {s: set(labels[manifest.videos.where("split", s)].tolist()) - {-1} for s in SPLITS}
    anywhere = set().union(*used.values())
    nowhere = set(range(len(manifest.classes))) - anywhere
    found = []
    if anywhere and min(anywhere) == 1:
        nowhere.discard(0)
        found.append(f"{_classes(manifest, {0})} has no video in any split; labels seem to count from 1")
    if nowhere:
        found.append(f"{_classes(manifest, nowhere)} without a video in any split")
    for split, noun in zip(NEEDED_SPLITS, ("training", "validation"), strict=True):
        if used[split] and (lacking := anywhere - used[split]):
            found.append(f"{_classes(manifest, lacking)} without a {noun} video")
    return found


def _classes(manifest: Manifest, labels: set[int]) -> str:
    """`class 3 up`, or `2 classes (3 up, 4 down)`; a class that is named by its number is its number."""
    some = sorted(labels)[:NAMED]
    known = [manifest.classes[i] if 0 <= i < len(manifest.classes) else "no such class" for i in some]
    named = [str(i) if str(i) == name else f"{i} {printable(name)}" for i, name in zip(some, known, strict=True)]
    if len(labels) == 1:
        return f"class {named[0]}"
    return f"{len(labels)} classes ({', '.join(named)}{', …' * (len(labels) > NAMED)})"
