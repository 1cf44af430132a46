"""Say what happens in videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from engines import QUANTISED, EngineUnavailable, why_unavailable
from pipelines.errors import BadClip, printable
from pipelines.finding import find_named, passed_over
from pipelines.label_files import class_lines
from pipelines.processes import max_workers
from tdn_bench.cli import NetworkFlags, parse, run_command
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import MAX_BATCH, check_ranges
from tdn_bench.cli.videos import named_videos
from tdn_bench.cli.workload import EngineName, Precision
from tdn_bench.errors import UserError
from tdn_bench.hub.names import is_named
from tdn_bench.prediction import Writer, check_not_read, open_output
from tdn_bench.recognizer import VIEWS, Recognizer, device_of, load_recognizer
from tdn_bench.records import check_file

EXAMPLES = (
    "tdn-bench predict clip.mp4 --checkpoint runs/demo/tdn/best.safetensors",
    "tdn-bench predict videos/ --checkpoint runs/demo/tdn/best.safetensors --format csv --output said.csv",
    "tdn-bench predict 'videos/*.mp4' --checkpoint runs/demo/tdn/best.safetensors --format json --limit 100",
    "tdn-bench predict clip.mp4 --checkpoint TDN_sthv2_r50_8f.pth.tar --class-names classes.txt",
)
COMMON = ("videos", "checkpoint", "top", "engine", "precision", "views", "format", "output", "limit", "device")
EXIT_SOME_BAD = 1


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Say what happens in videos. The checkpoint knows its network, its clips and its classes. A video that cannot be
    used is named on stderr, and the others are answered: exit status 1."""

    videos: Annotated[Positional[tuple[str, ...]], arg(metavar="VIDEO…")] = ()
    """Files, folders, quoted patterns. A folder with all below it; one of JPEG frames is a video; 'videos/**/*.mp4'."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    top: int = 5
    """How many classes to name for each video."""
    engine: EngineName = "eager"
    """What runs the network. `tdn-bench doctor` says which engines are ready. eager: as `evaluate` does."""
    precision: Precision = "auto"
    """Precision of the network's arithmetic. auto: fp32 on a CPU, fp16 on a GPU."""
    views: Literal[1, 30] = 1
    """Views of each video. 1: a clip from the middle, the centre crop. 30: ten clips × three crops of 256 pixels."""
    format: Literal["table", "json", "csv"] = "table"
    """How answers look. table: for people; json: a line for each video; csv: a row for each class that is named."""
    output: Path | None = None
    """Write to this file. It is there whole or not at all."""
    limit: int | None = None
    """Look at the first N videos only."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    backend: Literal["pyav", "dali"] = "pyav"
    """What decodes. pyav takes every video; dali is faster on a GPU, and refuses many (those of other colours)."""
    batch_size: int = 16
    """Views that the network takes at a time."""
    class_names: Path | None = None
    """File of class names. For a checkpoint that knows none (the authors'): one a line, in its order."""
    calibrate_on: tuple[str, ...] = ()
    """Videos to calibrate int8 and fp8 on. Best of those that it was trained on; 64 of them are read."""
    workers: int | None = None
    """Threads that scan and decode; default: one per core."""

    def check(self) -> Path:
        """The checkpoint. Raises UserError for flags that cannot be, before any work."""
        check_ranges(self, top=(1, 100_000), limit=(1, 10**9), batch_size=(1, MAX_BATCH), workers=(1, max_workers()))
        if self.network.checkpoint is None:
            raise UserError("--checkpoint is missing: name the weights to predict with")
        if not any(self.videos):
            raise UserError("no videos named: give files, folders or patterns")
        check_file("--output", self.output)
        where = str(device_of(self.engine, self.device))
        if self.engine == "none":
            raise UserError("--engine none: predicts nothing; choose an engine")
        if (reason := why_unavailable(self.engine, where)) is not None:
            raise EngineUnavailable(f"engine {self.engine!r} on {where}: {reason}")
        if self.precision in QUANTISED and not self.calibrate_on:
            raise UserError(f"--precision {self.precision} is calibrated on videos: name some with --calibrate-on")
        if self.calibrate_on and self.precision not in QUANTISED:
            raise UserError("--calibrate-on is for --precision int8 and fp8; leave it out")
        return self.network.checkpoint

    def open(self, checkpoint: Path, num_videos: int) -> Recognizer:
        """The recognizer. Says on stderr what is assumed of a checkpoint that does not say it."""
        resolved, given = self.network.resolve(), self.network
        says = checkpoint.suffix == ".safetensors" or is_named(str(checkpoint))
        if not says and None in (given.model, given.num_segments):
            assumed = f"{resolved.model} with {resolved.num_segments} segments of {resolved.size} pixels"
            _say(f"{checkpoint}: does not say its network: taken for {assumed} (--model, --num-segments, --size)")
        usual = VIEWS[self.views][2]
        if usual is not None and given.size is None and resolved.size < 224:
            _say(f"{self.views} views are of {usual} pixels, but the network's clips of {resolved.size}: try --size")
        return load_recognizer(
            checkpoint,
            engine=self.engine,
            precision=self.precision,
            views=self.views,
            device=self.device,
            backend=self.backend,
            batch_size=min(self.batch_size, self.views * num_videos),
            classes=None if self.class_names is None else class_lines(self.class_names),
            network=self.network,
            calibrate_on=named_videos("--calibrate-on", self.calibrate_on),
            workers=self.workers,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write what each video is. Ends with SystemExit(1) where some could not be used."""
    config = parse(Predict, argv, "predict", examples=EXAMPLES, common=COMMON)
    checkpoint = config.check()
    found = find_named(config.videos)
    videos = found.videos[: config.limit]
    if note := passed_over(found.ignored):
        _say(note)
    check_not_read(config.output, [*videos, str(checkpoint)])
    bad = 0
    shown = config.output is None and sys.stdout.isatty()  # then the answers themselves say how far it is
    with config.open(checkpoint, len(videos)) as recognize, open_output(config.output) as file:
        writer = Writer(file, config.format, config.top)
        bar = nullcontext(lambda more: None) if shown else progress("Predicting", len(videos), "videos")
        with bar as advance:
            for video, answer in zip(videos, recognize.many(videos), strict=True):
                if isinstance(answer, BadClip):
                    bad += 1
                    _say(f"{video}: {answer.reason}")
                writer.write(video, answer)
                advance(1)
    if config.output is not None:
        print(f"{config.format}: {config.output}")
    if bad == len(videos):
        raise UserError(f"no video could be used, of {bad}")
    if bad:
        _say(f"{bad} of {len(videos)} videos could not be used")
        raise SystemExit(EXIT_SOME_BAD)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
