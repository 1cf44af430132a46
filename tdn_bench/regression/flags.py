"""What `tdn-bench regress` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tdn_bench.cli import DataFlags, NetworkFlags


@dataclass(frozen=True, kw_only=True)
class Regress:
    """Measure again what a baseline holds, and compare. Exit status 0: no regression, 1: a regression, 2: cannot run,
    3: inconclusive. The baseline says what is measured; flags for data and network count with --update only, but for
    --data and --checkpoint, which say where they lie here."""

    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    baseline: Path = Path("results/baselines/demo.json")
    """The baseline to compare with, or to write."""
    against: str | None = None
    """Compare with this commit, measured in turn with the working tree, not with the baseline's figures."""
    update: bool = False
    """Write a new baseline; refused where it would hide a regression."""
    accept: str | None = None
    """With --update: why a regression is accepted. The reason is stored."""
    engines: tuple[str, ...] = ("eager", "onnx")
    """With --update: engines to measure, `engine` or `engine:precision`."""
    batch_size: int = 8
    """With --update: videos in a batch."""
    videos: int = 8
    """With --update: videos in a timed turn (accuracy takes all of the split): many short turns tell more than few."""
    threads: int = 1
    """With --update: threads that decode, and that compute, on a CPU; 0: one a core. With one the gate sees smaller
    changes, since another program's burst on one core stops all of several; how work spreads over cores it sees not."""
    train: bool = True
    """With --update: also hold the training step."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    margin: float = 0.03
    """A time may be slower by this share."""
    transfer: float = 0.10
    """Added to the margin where the baseline is another machine's: so far the ratio to the reference may be another."""
    memory_margin: float = 0.05
    """Peak memory may grow by this share."""
    accuracy_margin: float = 0.5
    """Accuracy may fall by so many points."""
    confidence: float = 0.99
    """Of all intervals together."""
    max_seconds: float = 180
    """Measure for at most about this long; it ends sooner where the noise allows."""
    round_s: float = 12
    """Seconds of turns in a round of fresh processes."""
    junit: Path | None = None
    """Also write the verdicts as JUnit XML."""
    markdown: Path | None = None
    """Also write them as GitHub-flavoured Markdown."""
    json: Path | None = None
    """Also write a record with all samples and verdicts."""
