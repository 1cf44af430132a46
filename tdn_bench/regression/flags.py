"""What `tdn-bench regress` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tdn_bench.cli import DataFlags, NetworkFlags
from tdn_bench.cli.ranges import DAY_S, MAX_BATCH, check_ranges
from tdn_bench.errors import UserError
from tdn_bench.records import check_file


@dataclass(frozen=True, kw_only=True)
class Regress:
    """Has this working tree become slower or less accurate? Compares it with a stored baseline or with another commit.

    Exit status 0: no regression, 1: a regression, 2: cannot run, 3: inconclusive. The baseline decides what is
    measured. Flags for data and network only count together with --update, apart from --data and --checkpoint, which
    say where the baseline's data and weights are on this machine."""

    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    baseline: Path = Path("results/baselines/demo.json")
    """The baseline to compare with, or to write."""
    against: str | None = None
    """Compare with this commit instead of the baseline's figures. It is measured now, taking turns with the working
    tree."""
    update: bool = False
    """Write a new baseline. Refused if it would hide a regression."""
    accept: str | None = None
    """With --update: why a regression is acceptable. The reason is kept in the baseline."""
    engines: tuple[str, ...] = ("eager", "onnx")
    """With --update: engines to measure, `engine` or `engine:precision`."""
    batch_size: int = 8
    """With --update: videos in a batch."""
    videos: int = 8
    """With --update: videos in one timed turn. Many short turns tell more than a few long ones. Accuracy always uses
    the whole split."""
    threads: int = 1
    """With --update: threads for decoding and for arithmetic on a CPU (0: one per core). With one thread the gate
    detects smaller changes: a burst of another program then delays one turn, not all threads that wait for each
    other. How well work spreads over cores does not show."""
    train: bool = True
    """With --update: also measure the training step."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    margin: float = 0.03
    """How much slower a time may become, as a share (0.03: 3 %)."""
    transfer: float = 0.10
    """Added to the margin if the baseline comes from another machine, where the ratio to the reference may differ."""
    memory_margin: float = 0.05
    """How much peak memory may grow, as a share."""
    accuracy_margin: float = 0.5
    """How far accuracy may fall, in percentage points."""
    confidence: float = 0.99
    """Confidence that all intervals hold together."""
    max_seconds: float = 600
    """The longest that the whole command may take, in seconds, starts and engine builds included. It ends sooner if the
    noise allows a verdict, and at once, with status 2, if six rounds do not fit."""
    round_s: float = 12
    """Seconds of measuring in each round of fresh processes, or less if --max-seconds leaves less."""
    junit: Path | None = None
    """Also write the verdicts as JUnit XML to this file."""
    markdown: Path | None = None
    """Also write the verdicts as GitHub-flavoured Markdown to this file."""
    json: Path | None = None
    """Also write a record with all samples and verdicts to this file."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be, and for a file that cannot be written: before any work."""
        check_ranges(
            self,
            batch_size=(1, MAX_BATCH),
            videos=(1, 100_000),
            threads=(0, 1024),
            margin=(0, 100),
            transfer=(0, 100),
            memory_margin=(0, 100),
            accuracy_margin=(0, 100),
            confidence=(0.5, 0.999999),
            max_seconds=(1, DAY_S),
            round_s=(0, DAY_S),
        )
        for name in ("junit", "markdown", "json"):
            check_file(f"--{name}", getattr(self, name))
        if self.update:
            check_file("--baseline", self.baseline)
        named = [self.baseline, self.junit, self.markdown, self.json]
        written = [path.absolute() for path in named if path is not None]
        if len(set(written)) < len(written):
            raise UserError("--baseline, --junit, --markdown and --json: two name the same file; name different ones")
