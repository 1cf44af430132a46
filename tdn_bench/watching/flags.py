"""The flags of a watch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from engines import ENGINES
from pipelines.errors import printable
from tdn_bench.cli import NetworkFlags
from tdn_bench.cli.ranges import DAY_S, check_ranges
from tdn_bench.errors import UserError
from tdn_bench.records import check_file, check_folder
from tdn_bench.watching.overlay import check_overlay
from tdn_bench.watching.source import find_source

if TYPE_CHECKING:  # a type checker wants literals written out
    EngineName = str
else:
    EngineName = Literal[ENGINES]


@dataclass(frozen=True, kw_only=True)
class WatchFlags:
    """Labels of a sliding window over the newest frames. What the engine has no time for is passed over and counted, so
    that a label is never late. Ctrl-C ends the watch with a summary."""

    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    """A video file; a camera, as 0 or /dev/video0; or a URL: rtsp, http, tcp, udp, rtp, rtmp, srt."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    engine: EngineName = "eager"
    """What runs the network. eager and compile compute only the segments that are new in a window (--reuse)."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of the network's arithmetic. auto: fp32 on a CPU, fp16 on a GPU."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    window_s: float = 4.0
    """Length of the window in seconds, at the source's frame rate. It should be that of the videos that the network was
    trained on."""
    window_frames: int | None = None
    """Length of the window in frames, instead."""
    every_ms: float | None = None
    """Time from label to label. Default: a T-th of the window, T being the network's segments."""
    reuse: bool = True
    """Keep what the network made of segments that the next window has, too. The window and --every-ms are rounded so
    that segments coincide; --no-reuse takes them to the frame."""
    realtime: bool = True
    """Play a file at its own rate. --no-realtime labels every window of a file, as fast as that goes."""
    top: int = 5
    """How many classes to show."""
    overlay: Path | None = None
    """Also write a video with the labels (.mp4, .mkv or .webm)."""
    json: Path | None = None
    """Also write a line of JSON for every label and event to this file; - is stdout."""
    seconds: float | None = None
    """End after so many seconds."""
    stall_s: float = 5.0
    """Say that a source is silent after so many seconds. A URL is opened again after twice as many."""
    connect_s: float = 15.0
    """Give up if the first picture has not come by then."""
    results: Path | None = None
    """Also write a record with the latency of every label to this folder."""

    def check(self) -> None:
        """Raise UserError for what cannot be, before anything is loaded."""
        check_ranges(self, window_s=(0.1, 3600), window_frames=(1, 100_000), every_ms=(1, 1000 * DAY_S), top=(1, 1000))
        check_ranges(self, seconds=(0.1, 365 * DAY_S), stall_s=(0.1, DAY_S), connect_s=(0.1, DAY_S))
        source = find_source(self.source)
        if source.kind != "file" and not self.realtime:
            raise UserError(f"--no-realtime {source.shown}: only a file waits; a camera and a stream do not")
        if self.network.checkpoint is None:
            raise UserError("say what to label with: --checkpoint FILE, as `tdn-bench train` writes it")
        for name, path in (("--overlay", self.overlay), ("--json", self.json)):
            for read in (Path(source.target), self.network.checkpoint):
                if path is not None and path.exists() and read.exists() and path.samefile(read):
                    raise UserError(f"{name} {printable(str(path))}: would overwrite what is read; name another file")
        if self.json is not None and self.overlay is not None and self.json.absolute() == self.overlay.absolute():
            raise UserError(f"--json {printable(str(self.json))}: is the --overlay, too; name another file")
        check_overlay(self.overlay)
        check_file("--overlay", self.overlay)
        if self.json is not None and str(self.json) != "-":
            check_file("--json", self.json)
        if self.results is not None:
            check_folder("--results", self.results)
