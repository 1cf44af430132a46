"""Re-encode a data set so that clips decode faster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import printable
from pipelines.processes import max_workers
from tdn_bench.cli import parse, run_command
from tdn_bench.cli.ranges import check_ranges
from tdn_bench.dataset_tools.encoding import Encoding
from tdn_bench.dataset_tools.summary import counted
from tdn_bench.dataset_tools.transcode_folder import plan_folder, transcode_all
from tdn_bench.dataset_tools.transcoding import Transcoded
from tdn_bench.errors import UserError

EXAMPLES = (
    "tdn-bench transcode --data-root something-something-v2 --out sthv2-small",
    "tdn-bench transcode --data-root UCF-101 --out ucf-vp9 --codec vp9 --limit 20",
)
COMMON = ("short_side", "keyframe_spacing", "codec", "crf", "workers", "limit")


@dataclass(frozen=True, kw_only=True)
class Transcode:
    """Re-encode a data set's videos for faster decoding; frames keep their number, order and times.

    Label files (.json, .csv, .txt) are copied, but for links to outside of --data-root. A second run does only what is
    new.
    """

    data_root: Path
    """Folder of the data set; all videos below it."""
    out: Path
    """Folder of the result, laid out the same."""
    encoding: Encoding = field(default_factory=Encoding)
    keep_names: bool = True
    """Keep the files' names, so that labels still find them (readers go by content); else names end with .mp4 or
    .webm."""
    workers: int | None = None
    """Encoding processes; default: one per core."""
    limit: int | None = None
    """Only the first so many videos, to try."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, workers=(1, max_workers()), limit=(1, 1_000_000_000))


def main(argv: Sequence[str] | None = None) -> None:
    """Transcode a data set; raises UserError at the end if any video failed."""
    config = parse(Transcode, argv, "transcode", examples=EXAMPLES, common=COMMON)
    plan = plan_folder(config.data_root, config.out, config.encoding, keep_names=config.keep_names, limit=config.limit)
    before = plan.videos - len(plan.jobs)
    print(f"{counted(plan.videos, 'video')}, {before} of them done before; {counted(plan.label_files, 'label file')}")
    if plan.left_out:
        few = printable(", ".join(map(str, plan.left_out[:3])) + ", …" * (len(plan.left_out) > 3))
        print(f"not copied, as links out of --data-root or no regular files: {few}")
    clock = time.perf_counter()
    results = list(transcode_all(plan.jobs, config.encoding, config.workers))
    done = {source: result for source, result in results if isinstance(result, Transcoded)}
    failures = [result for _, result in results if isinstance(result, str)]
    if done:
        print_summary(done, time.perf_counter() - clock)
    for failure in failures:
        print(f"  failed: {printable(failure)}")
    if failures:
        raise UserError(f"{len(failures)} of {plan.videos} videos could not be transcoded; they are listed above")


def print_summary(done: Mapping[Path, Transcoded], wall_s: float) -> None:
    """Time, sizes and quality of the videos that were re-encoded, by their source."""
    before, after = sum(t.input_bytes for t in done.values()), sum(t.output_bytes for t in done.values())
    frames, encode_s = sum(t.num_frames for t in done.values()), sum(t.encode_s for t in done.values())
    worst = min(done, key=lambda source: done[source].psnr_db)
    mean_db = sum(t.psnr_db for t in done.values()) / len(done)
    what = f"{counted(len(done), 'video')} of {frames} frames"
    print(f"{what} in {wall_s:.1f} s ({encode_s:.1f} s of encoding in all processes)")
    print(f"  {before / 1e9:.3f} GB → {after / 1e9:.3f} GB ({after / before:.0%})")
    print(f"  luma PSNR: mean {mean_db:.1f} dB, lowest {done[worst].psnr_db:.1f} dB ({printable(str(worst))})")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
