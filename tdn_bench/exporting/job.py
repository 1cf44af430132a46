"""One export: write, check what was written, describe it, and only then give it its name."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import tdn_bench
from engines import EngineSpec, create_engine, exact_float32
from pipelines.errors import printable
from pipelines.files import sync, write_whole
from tdn_bench.cli.progress import progress
from tdn_bench.correctness import EngineMismatch, LogitComparison, check_engine, reference_spec
from tdn_bench.errors import UserError
from tdn_bench.exporting.clips import Clips
from tdn_bench.exporting.formats import Loaded, filled
from tdn_bench.recognizer import Trained
from tdn_bench.records import check_file
from tdn_bench.records.environment import commit, versions
from tdn_bench.records.record import laid_out

AXES = ("batch", "segment", "frame", "row", "column", "colour")


class CheckFailed(Exception):
    """A written file does not compute what the network computes: what differs, in one line."""


@dataclass(frozen=True)
class Checked:
    """What the check of a written file found. `comparison` is None where nothing here can run it."""

    loaded: Loaded
    clips: Clips
    comparison: LogitComparison | None

    def lines(self) -> list[str]:
        """For people."""
        c, count, lines = self.comparison, len(self.clips.videos), []
        if c is not None:
            clips = f"{count} {self.clips.source} clip{'s' * (count > 1)}"
            lines = [
                f"checked against eager fp32 on {clips}: largest difference "
                f"{c.max_difference:.2g} standard deviations (at most {c.tolerance:g}), same class on "
                f"{c.top1_percent:.3g} %, rank correlation {c.rank_correlation:.4f}; run by {self.loaded.by}"
            ]
        return lines if self.loaded.not_run is None else [*lines, f"note: {self.loaded.not_run}"]

    def described(self) -> dict[str, Any]:
        """For the description."""
        names = [os.path.basename(video.path) for video in self.clips.videos]
        found = None if self.comparison is None else asdict(self.comparison)
        return {
            "by": self.loaded.by,
            "not_run": self.loaded.not_run,
            "clips": self.clips.source,
            "videos": names,
            "against_eager_fp32": found,
        }


def check_loaded(loaded: Loaded, trained: Trained, spec: EngineSpec, clips: Clips) -> Checked:
    """Hold a loaded file against eager float32 of the network as it is written. Raises CheckFailed where it differs by
    more than its precision may."""
    if loaded.run is None:
        return Checked(loaded, clips, None)
    run = loaded.run if spec.dynamic_batch else filled(loaded.run, spec.max_batch)
    where = next(trained.classifier.parameters()).device
    exact_float32()
    reference = reference_spec(EngineSpec(spec.frames_shape, spec.max_batch, device=str(where)))
    with (
        create_engine("eager", trained.classifier, reference) as eager,
        progress("Checking", len(clips.frames), "clips") as advance,
    ):

        def right(frames: Tensor) -> Tensor:
            answer = eager(frames.to(where))
            advance(len(frames))
            return answer

        try:
            comparison = check_engine(run, right, clips.frames.split(spec.max_batch), spec.precision)
        except EngineMismatch as error:
            raise CheckFailed(f"run by {loaded.by}, the file is not the network: {error.fault}") from error
    return Checked(loaded, clips, comparison)


def input_of(spec: EngineSpec) -> dict[str, Any]:
    """What the file takes, for a description."""
    return {
        "name": "frames",
        "dtype": "uint8",
        "shape": ["batch" if spec.dynamic_batch else spec.max_batch, *spec.frames_shape],
        "axes": list(AXES),
        "colours": "RGB",
        "values": [0, 255],
    }


def output_of(trained: Trained, spec: EngineSpec) -> dict[str, Any]:
    """What the file returns, for a description."""
    batch = "batch" if spec.dynamic_batch else spec.max_batch
    return {"name": "logits", "dtype": "float32", "shape": [batch, len(trained.classes)], "axes": ["batch", "class"]}


def notes_of(trained: Trained) -> dict[str, str]:
    """What the file itself carries, as short texts."""
    network, clip = trained.network, trained.clip_spec()
    return {
        "classes": json.dumps(trained.classes),
        "model": network.model,
        "num_segments": str(clip.num_segments),
        "frames_per_segment": str(clip.frames_per_segment),
        "size": str(clip.size),
        "crop_ratio": repr(clip.crop_ratio),
    }


def describe(
    trained: Trained, spec: EngineSpec, form: Mapping[str, Any], paths: Mapping[str, Path], checked: Checked
) -> dict[str, Any]:
    """All that a program needs to know of the written `paths`, by their names below the target's folder. `form` is what
    the format adds."""
    clip, checkpoint = trained.clip_spec(), trained.network.checkpoint
    assert checkpoint is not None
    return {
        **form,
        "precision": spec.precision,
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in sorted(paths.items())},
        "batch": {"smallest": 1 if spec.dynamic_batch else spec.max_batch, "largest": spec.max_batch},
        "classes": list(trained.classes),
        "network": {"model": trained.network.model, "T": clip.num_segments, "L": clip.frames_per_segment},
        "preprocessing": {
            "sampling": "the middle of each of T equal segments, L consecutive frames each, the last frame repeated in "
            "short videos: pipelines.sampling.center_frame_indices(num_frames, T, L)",
            "orientation": "pictures are turned upright first, as a player shows them",
            "crop": "the square in the middle; its side is crop_ratio × short side, rounded, a half to the even number",
            "crop_ratio": clip.crop_ratio,
            "resize": "bilinear with antialiasing, to size × size pixels",
            "size": clip.size,
            "normalisation": "none: it lies inside the graph",
        },
        "check": checked.described(),
        "checkpoint": {"name": checkpoint.name, "sha256": sha256(checkpoint)},
        "tdn_bench": {"version": tdn_bench.__version__, "commit": commit()},
        "versions": versions(),
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(entries: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError unless `entries`, files or folders, can be written, and are not there yet or may be replaced."""
    for entry in entries:
        shown = printable(str(entry))
        if os.path.lexists(entry) and not overwrite:
            raise UserError(f"--output: {shown} is there already; name another, or use --overwrite")
        if not entry.is_dir():
            check_file("--output", entry)
        elif not (entry / "config.pbtxt").is_file():
            raise UserError(f"--output: {shown} is a folder, and no Triton model; name another place")


def description_file(target: Path) -> Path:
    """The JSON beside `target`."""
    return target.with_name(f"{target.name}.json")


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder on the file system of `target`, gone when the block ends; no folder is made that stays empty."""
    there = next(folder for folder in target.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=there) as folder:
        yield Path(folder)


def publish(folder: Path, entries: Sequence[str], target: Path, description: Mapping[str, Any]) -> Path:
    """Give what lies in `folder` its names beside `target`, the description last: what has one is whole. Returns the
    description's file."""
    about = description_file(target)
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)  # it is of what is replaced now
    for entry in entries:
        place = target.parent / entry
        if place.is_dir() and not place.is_symlink():
            old = folder / f"{entry}.old"
            old.parent.mkdir(parents=True, exist_ok=True)
            place.rename(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / entry, place)
    write_whole(about, laid_out(description))
    return about
