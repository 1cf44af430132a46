"""Re-encode all videos of a folder into another one of the same layout; a second run does only what is new."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.annotations import VIDEO_SUFFIXES
from pipelines.errors import DataError, printable
from pipelines.files import clear_debris
from pipelines.inside import Inside
from pipelines.processes import cores, map_in_processes
from pipelines.progress import tracked
from tdn_bench.dataset_tools.encoding import CODECS, Encoding
from tdn_bench.dataset_tools.summary import walk
from tdn_bench.dataset_tools.transcoding import Transcoded, transcode_file
from tdn_bench.errors import UserError

LABEL_SUFFIXES = frozenset({".json", ".csv", ".txt"})
LABEL_BYTES = 64_000_000  # larger ones are no labels
STAMP = "transcode.json"  # in the folder of results: how they were encoded

Job = tuple[Path, Path]  # source, target


@dataclass(frozen=True)
class FolderPlan:
    """What there is to do: `jobs` are the videos of `videos` that were not done before. `left_out` have the names of
    label files, but are links to elsewhere or no regular files."""

    videos: int
    label_files: int
    left_out: list[Path]
    jobs: list[Job]


def plan_folder(
    root: Path, out: Path, encoding: Encoding, *, keep_names: bool = True, limit: int | None = None
) -> FolderPlan:
    """Look for videos below `root`, mark `out` as holding this encoding, and copy the label files.

    Arguments:
        keep_names: Whether results keep the names of their sources; else they end with the codec's suffix.
        limit: Only the first so many videos.

    Raises UserError for a folder that cannot be read, holds no videos, or lies within the other; and for an `out` that
    holds anything else or cannot be written.
    """
    if not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    if root.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out {out}: must lie outside of --data-root {root}, and not around it")
    files = _files(root)
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES][:limit]
    if not videos:
        raise UserError(f"--data-root {root}: holds no videos ({' '.join(sorted(VIDEO_SUFFIXES))})")
    suffix = CODECS[encoding.codec].suffix
    targets = [out / (f if keep_names else f.with_suffix(suffix)).relative_to(root) for f in videos]
    if len(set(targets)) < len(targets):
        raise UserError("--no-keep-names: some videos differ only in their suffix and would overwrite each other")
    try:
        _claim(out, asdict(encoding) | {"options": encoding.options(), "keep_names": keep_names})
        labels, left_out = _copy_labels(root, out, files)
    except OSError as e:
        raise UserError(f"--out {out}: cannot be written ({e.strerror})") from e
    jobs = [job for job in zip(videos, targets, strict=True) if not _is_done(*job)]
    return FolderPlan(len(videos), labels, left_out, jobs)


def transcode_all(
    jobs: list[Job], encoding: Encoding, workers: int | None = None
) -> Iterator[tuple[Path, Transcoded | str]]:
    """Re-encode videos, in `workers` processes (default: one per core); yields every source in order, with what became
    of it, or why it could not be done. Raises UserError where a process dies."""
    for folder in {target.parent for _, target in jobs}:
        clear_debris(folder)
    workers = min(workers or cores(), len(jobs))
    for (source, _), result in zip(jobs, _results(jobs, encoding, workers), strict=True):
        yield source, result


def _results(jobs: list[Job], encoding: Encoding, workers: int) -> Iterator[Transcoded | str]:
    work = partial(_work, encoding=encoding)
    if workers <= 1:
        yield from tracked(map(work, jobs), "Transcoding", len(jobs))
        return
    done = 0
    try:
        for result in tracked(map_in_processes(work, jobs, workers), "Transcoding", len(jobs)):
            yield result
            done += 1
    except BrokenProcessPool as e:
        raise UserError(
            f"{jobs[done][0]}: an encoding process died at this video or one of the {workers} after it (FFmpeg "
            "crashed, or memory ran out); finished videos are kept: run again with fewer --workers"
        ) from e


def _work(job: Job, encoding: Encoding) -> Transcoded | str:
    """Transcode one file; a string says why it could not be done."""
    if not job[0].is_file():  # a pipe would never end
        return f"{job[0]}: not a regular file"
    try:
        return transcode_file(str(job[0]), job[1], encoding)
    except DataError as e:
        return str(e)


def _files(root: Path) -> list[Path]:
    """All files below a folder, and below those that links in it lead to, sorted. Each folder counts once, by its own
    name if it has one below, and a link to a folder above is no way down. Raises UserError where one cannot be listed:
    no video is lost in silence."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{printable(error.filename)}: cannot be listed ({error.strerror}); make it readable"
        ) from error

    def is_detour(path: Path) -> bool:
        target = path.resolve()
        return path.is_symlink() and (target.is_relative_to(home) or home.is_relative_to(target))

    home, found, seen = root.resolve(), list[Path](), set[Path]()
    for folder, folders, names in walk(root, onerror=refuse, followlinks=True):
        if (real := Path(folder).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_detour(Path(folder, name)))
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _claim(out: Path, stamp: dict[str, Any]) -> None:
    """Mark a folder as holding what is encoded as `stamp` says. Raises UserError if it holds anything else."""
    path = out / STAMP
    try:
        found = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        found = "nothing readable"
    if found is None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: holds other files; choose an empty or a new folder")
    if found is not None and found != stamp:
        raise UserError(f"--out {out}: its {STAMP} records other settings; choose another folder, or delete it first")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _is_done(source: Path, target: Path) -> bool:
    """Whether a result exists (then it is complete) and is no older than its source."""
    try:
        return target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def _copy_labels(root: Path, out: Path, files: Iterable[Path]) -> tuple[int, list[Path]]:
    """Copy label files that are new or changed; returns how many label files there are, and what was left out. A link
    to elsewhere is: what it leads to is not of this data set, and may be private."""
    inside = Inside([root])
    named = [f for f in files if f.suffix.lower() in LABEL_SUFFIXES and f != root / STAMP]
    kept = [f for f in named if f.is_file() and inside.holds(str(f.absolute()))]
    labels = [f for f in kept if f.stat().st_size < LABEL_BYTES]
    for file in labels:
        target = out / file.relative_to(root)
        if not _is_done(file, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return len(labels), sorted(set(named) - set(kept))
