"""Damaged files through the whole input path: `make fuzz`; `test_fuzz.py` runs a slice.

A seed makes files that are damaged in every way `damage.py` knows. They go through the scan of `prepare`, a training
epoch and an evaluation on each backend, twice: as a data set that was scanned when it was already damaged, and as
one that was damaged after the scan, when the manifest still tells what the file held. Whatever is handed on as a
good clip is compared, frame by frame, with the undamaged original.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from support.damage import Damaged, make_damaged
from support.paths import SHARED
from support.videos import write_video
from torch import Tensor

from pipelines.bad_clips import BadClipPolicy
from pipelines.clip import ClipSpec
from pipelines.dali import CPU_CODECS
from pipelines.errors import BadClip
from pipelines.loader import ClipLoader, Decoder, create_decoder
from pipelines.manifest import Videos
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.scan import scan_file
from pipelines.video import OK, Sample, Video, VideoFile
from tdn_bench.cli import run_command
from tdn_bench.records import default_folder, make_record, write_record

SPEC = ClipSpec(num_segments=8, size=64)
HANG_S = 600  # a run without an answer for so long has hung; the stack is printed and the process ends
SAME = 8.0  # mean difference of a frame's pixels, of 255, up to which it is the original's


@dataclass
class Verdict:
    """What became of the damaged files on one backend. Names are file names."""

    named: int = 0  # files that the decoder or the scan refused, with a reason
    intact: int = 0  # handed on, and every frame is the original's
    altered: int = 0  # handed on with other pixels, as a decoder shows damage; only a checksum finds these
    black: list[str] = field(default_factory=list)  # handed on with a black frame that the original has not
    repeated: list[str] = field(default_factory=list)  # … with two equal frames that the original has not
    by_kind: Counter[str] = field(default_factory=Counter)

    def count(self, what: str, damaged: Damaged) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.by_kind[f"{damaged.kind}: {what}"] += 1


def judge(clip: Tensor | BadClip, original: Tensor, damaged: Damaged, verdict: Verdict) -> None:
    """Compare a clip, uint8 (T, L, H, W, C), with that of the undamaged file."""
    if isinstance(clip, BadClip):
        assert clip.reason, f"{damaged.path}: refused without a reason"
        assert "\n" not in str(clip), f"{damaged.path}: a reason of several lines"
        verdict.count("named", damaged)
        return
    found, wanted = (c.flatten(0, 1).float().flatten(1) for c in (clip, original))  # (T·L, pixels)
    if (found - wanted).abs().mean(1).max() <= SAME:
        verdict.count("intact", damaged)
        return
    verdict.count("altered", damaged)
    if ((found.mean(1) < 4) & (found.std(1) < 4) & (wanted.mean(1) > 12)).any():
        verdict.black.append(damaged.path.name)
    twins, were = ((c[1:] == c[:-1]).all(1) for c in (found, wanted))
    if (twins & ~were).any():
        verdict.repeated.append(damaged.path.name)


def as_row(path: Path, file: VideoFile) -> Video:
    return Video(Sample(path.name, str(path), 0, "train"), file)


def through_the_loader(rows: Sequence[Video], backend: str) -> dict[str, int]:
    """A training epoch and an evaluation of rows as they were scanned. Raises AssertionError where a clip that is
    known to be bad is handed on, or a training batch is not full."""
    videos = Videos.of(rows)
    counts = {}
    for flipped in ((0,), None):
        policy = BadClipPolicy(max_share=1)
        with ClipLoader(videos, SPEC, 4, flipped_labels=flipped, backend=backend, workers=2, policy=policy) as loader:
            names: list[str] = []
            for batch in loader.epoch():
                faulthandler.dump_traceback_later(HANG_S, exit=True)
                assert flipped is None or len(batch) == 4
                assert batch.frames.shape == (len(batch), *SPEC.shape)
                names += batch.ids
            bad = {os.path.basename(path) for path in loader.bad_clips.reasons}
        assert not bad & set(names), "a bad clip was handed on"
        if flipped is None:
            assert len(bad) + len(names) == len(rows), "a video was lost in silence"
            counts["named"] = len(bad)
        else:
            counts["stand_ins"] = loader.bad_clips.replacements
    return counts


def decode_all(decoder: Decoder, plans: Sequence[ClipPlan], at_once: int = 8) -> Iterable[Tensor | BadClip]:
    for start in range(0, len(plans), at_once):
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        yield from decoder(plans[start : start + at_once])


def fuzz(sources: Sequence[Path], folder: Path, count: int, seed: int, backends: Sequence[str]) -> dict[str, Any]:
    """Make `count` damaged files from `sources` below `folder` and send them through everything."""
    damaged = make_damaged(sources, folder, count, seed)
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    originals = {source: scan_file(str(source)) for source in {d.source for d in damaged}}
    assert all(file.status == OK for file in originals.values()), "a source is not sound"
    scanned = [as_row(d.path, scan_file(str(d.path))) for d in damaged]
    figures: dict[str, Any] = {
        "files": len(damaged),
        "kinds": len({d.kind for d in damaged}),
        "refused_by_scan": sum(row.file.status != OK for row in scanned),
        # no damage is without effect on the checksum of the scan before it
        "same_checksum": sum(
            r.file.sha256 == originals[d.source].sha256 for r, d in zip(scanned, damaged, strict=True)
        ),
    }
    for backend in backends:
        usable = CPU_CODECS if backend == "dali" else {f.codec for f in originals.values()}
        mine = [i for i, d in enumerate(damaged) if originals[d.source].codec in usable]
        figures |= {f"{backend}_{k}": v for k, v in through_the_loader([scanned[i] for i in mine], backend).items()}
        decoder = create_decoder(backend, SPEC, torch.device("cpu"), 2)
        clean = {
            source: next(iter(decode_all(decoder, [plan_evaluation(as_row(source, file), SPEC)])))
            for source, file in originals.items()
            if file.codec in usable
        }
        # as if damaged after the scan; without the checksum, so that the size does not give it away
        stale = [as_row(damaged[i].path, replace(originals[damaged[i].source], sha256="")) for i in mine]
        before = [scanned[i] if scanned[i].file.status == OK else None for i in mine]
        for name, rows in (("after_scan", stale), ("before_scan", before)):
            verdict = Verdict()
            kept = [(damaged[i], row) for i, row in zip(mine, rows, strict=True) if row is not None]
            plans = []
            for d, row in kept:
                # the frames that the original's plan names, so that clip and original can be compared
                plans.append(replace(plan_evaluation(as_row(d.source, originals[d.source]), SPEC), video=row))
            comparable = [p.frames.max() < p.video.file.num_frames and _same_picture(p) for p in plans]
            for (d, _), fits, clip in zip(kept, comparable, decode_all(decoder, plans), strict=True):
                original = clean[d.source]
                assert isinstance(original, Tensor)
                if fits or isinstance(clip, BadClip):
                    judge(clip, original, d, verdict)
                else:
                    verdict.count("altered", d)
            found = asdict(verdict)
            figures |= {f"{backend}_{name}_{k}": v for k, v in found.items() if k != "by_kind"}
            figures[f"{backend}_{name}_by_kind"] = dict(sorted(verdict.by_kind.items()))
        decoder.close()
    faulthandler.cancel_dump_traceback_later()
    return figures


def _same_picture(plan: ClipPlan) -> bool:
    x, y, w, h = plan.crop
    return x + w <= plan.video.file.width and y + h <= plan.video.file.height


def shared_sources(data: Path, each: int) -> list[Path]:
    """Real clips of every container, `each` of a kind, smallest pictures first; none where there is no such folder."""
    kinds = (
        sorted((data / "ucf10" / "20bn-something-something-v2").glob("*.webm"))[:: max(1, 740 // max(each - 1, 1))],
        [data / "mixed_clips" / "something-something-v2_1.webm"],
        sorted((data / "mixed_clips" / "torchvision").glob("*.mp4")),
        sorted((data / "mixed_clips" / "torchvision").glob("*.avi")),
        sorted((data / "ucf101_clips").glob("*/*.avi"))[::17],
        sorted((data / "ssv1_frames" / "20bn-something-something-v1").iterdir()),
    )
    return [path for kind in kinds for path in kind[:each]]


def made_sources(folder: Path) -> list[Path]:
    """Clips made on the spot: VP9, H.264, MPEG-4 and a folder of frames."""
    made = []
    for name, encoder in (("a.webm", "libvpx-vp9"), ("b.mp4", "libx264"), ("c.avi", "mpeg4")):
        made.append(write_video(folder / name, textured(160, 128, 48), encoder))
    frames = folder / "d"
    frames.mkdir(parents=True)
    for number, picture in enumerate(textured(134, 100, 40), 1):
        (frames / f"{number:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, quality=90))
    return [*made, frames]


def textured(width: int, height: int, count: int) -> np.ndarray:
    """uint8 (count, H, W, 3): coloured waves that move, no two pictures alike and none of them dark."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(count)[:, None, None]
    waves = [130 + 50 * np.sin((x + 3 * t) / (7 + c)) + 40 * np.cos((y - 2 * t) / (5 + c)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Fuzz:
    """Send damaged files through scan, training and evaluation, and write a record."""

    files: int = 1000
    """Damaged files to make."""
    seed: int = 0
    """Of the damage: the same files for a seed on any machine."""
    data: Path = SHARED / "data"
    """Folder with real clips; without it clips made on the spot are damaged."""
    each: int = 4
    """Real clips of a kind."""
    results: Path | None = None
    """Folder for the record; default: runs/fuzz. To publish: results/<machine>."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print what became of the files, write a record; exit 1 where a wrong frame was handed on as good."""
    import tyro

    config = tyro.cli(Fuzz, args=argv, prog="tests/fuzz.py")
    with tempfile.TemporaryDirectory() as folder:
        real = config.data.is_dir()
        sources = shared_sources(config.data, config.each) if real else made_sources(Path(folder) / "made")
        figures = fuzz(sources, Path(folder) / "damaged", config.files, config.seed, ("pyav", "dali"))
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name:40s}{value}")
    device = torch.device("cpu")
    settings = asdict(config) | {"data": "real clips" if real else "made clips", "sources": [s.name for s in sources]}
    numbers = {k: len(v) if isinstance(v, list) else v for k, v in figures.items() if not isinstance(v, dict)}
    details = {k: v for k, v in figures.items() if isinstance(v, dict | list)}
    record = make_record(
        "fuzz", "damaged-files", figures=numbers, samples={}, settings=settings, device=device, details=details
    )
    print(f"record: {write_record(record, config.results or default_folder('fuzz'))}")
    if wrong := [name for key, names in figures.items() if isinstance(names, list) for name in names]:
        print(f"handed on as good with a black or repeated frame: {', '.join(wrong)}")
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
