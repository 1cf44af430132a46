"""What this program keeps for later runs: found and removed, and nothing that is not provably its own.

Below the user's cache folder, which nobody else can write, that is built engines, compiled kernels, what was scanned of
data sets; below `runs/` of the current folder synthetic videos, by the mark that they bear, and what killed runs left
half written. No link is followed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines import default_cache_dir
from engines.cache import entries, remove_entry
from pipelines.files import find_debris, remove_debris
from pipelines.manifest import is_scan_cache
from storage.private import private_folder

RUNS = Path("runs")
SYNTHETIC = ("synthetic", "gpu-suite-data", "demo/data", "ablate/data")  # below RUNS
COMPILED = ("torchinductor", "triton")  # folders of torch.compile's
DAY_S = 86_400


@dataclass(frozen=True)
class Kept:
    """One thing that is kept: what it is, where, how large, when it was last used, and how it is removed (which says
    whether it could be)."""

    kind: str
    path: Path
    size_bytes: int
    used_s: float  # as time.time() counts
    remove: Callable[[], bool]

    @property
    def age_days(self) -> float:
        return max(0.0, (time.time() - self.used_s) / DAY_S)


def find_kept() -> list[Kept]:
    """All that is kept. Raises EngineError for a user without a home folder, NotPrivate where others could have written
    into the cache folder."""
    from pipelines.synthetic import files_of  # which needs PyAV

    found: list[Kept] = []
    base = default_cache_dir().parent
    if base.is_dir():
        base = private_folder(base)
        engines = base / "engines"
        if engines.is_dir() and not engines.is_symlink():
            for files in entries(private_folder(engines)).values():
                used_s = files[0].lstat().st_mtime
                found.append(Kept("built engine", files[-1], _size(files), used_s, partial(remove_entry, files)))
        for name in COMPILED:
            folder = base / name
            if folder.is_dir() and not folder.is_symlink():
                files = list(_below(folder))
                used_s = _used([folder, *files])
                found.append(Kept("compiled", folder, _size(files), used_s, partial(_remove_tree, folder)))
        for path in sorted(base.iterdir()):
            timings = path.name.startswith("tensorrt") and path.suffix in (".timings", ".cache")
            if (timings and path.is_file() and not path.is_symlink()) or is_scan_cache(path):
                kind = "TensorRT timings" if timings else "scan of a data set"
                found.append(Kept(kind, path, _size([path]), _used([path]), partial(_remove_files, [path])))
    for name in SYNTHETIC:
        root = RUNS / name
        links = any(Path(RUNS, *Path(name).parts[:n]).is_symlink() for n in range(len(Path(name).parts) + 1))
        if not links and (files := files_of(root)):
            remove = partial(_remove_files, files, [root / "labels", *{f.parent for f in files}, root])
            found.append(Kept("synthetic videos", root, _size(files), _used(files), remove))
    for folder in (base, base / "engines", *_folders(RUNS)):
        for path in find_debris(folder):
            files = [path, *_below(path)]
            found.append(Kept("left half written", path, _size(files), _used(files), partial(remove_debris, path)))
    return found


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder; of a file nothing. No link is followed."""
    for where, _, names in os.walk(folder, followlinks=False):
        yield from (Path(where, name) for name in names)


def _folders(folder: Path) -> Iterator[Path]:
    if not folder.is_symlink():
        yield from (Path(where) for where, _, _ in os.walk(folder, followlinks=False))


def _size(files: list[Path]) -> int:
    return sum(path.lstat().st_size for path in files if path.exists() or path.is_symlink())


def _used(files: list[Path]) -> float:
    return max((path.lstat().st_mtime for path in files if path.exists()), default=0.0)


def _remove_tree(folder: Path) -> bool:
    """It is moved away first: whoever comes now starts with an empty one."""
    doomed = folder.with_name(f".saving-{folder.name}-{os.getpid()}")
    try:
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError:
        return False
    return True


def _remove_files(files: list[Path], folders: list[Path] | None = None) -> bool:
    """Remove files, and then those of their folders that are empty."""
    try:
        for path in files:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    for folder in folders or []:
        with suppress(OSError):  # something else lies there
            folder.rmdir()
    return True
