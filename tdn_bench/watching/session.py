"""From flags to labels: what is loaded and opened, in which order, and closed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from engines import EngineError, EngineUnavailable, default_precision, supported_precisions, why_unavailable
from pipelines.errors import printable
from tdn_bench.cli import BuildFlags, pick_device, settings_of
from tdn_bench.errors import UserError
from tdn_bench.recognizer import load_trained
from tdn_bench.records import Record
from tdn_bench.watching.flags import WatchFlags
from tdn_bench.watching.labeller import Labeller, create_labeller, why_nothing_is_kept
from tdn_bench.watching.live import Watch
from tdn_bench.watching.output import Label
from tdn_bench.watching.overlay import Overlay
from tdn_bench.watching.reader import Opened, Reader
from tdn_bench.watching.result import figures_of, record_of
from tdn_bench.watching.source import SourceFailed, find_source, open_source
from tdn_bench.watching.window import WindowPlan, plan_windows

FPS = 25.0  # of an overlay, where the source does not say


class Session:
    """One watch, from its flags on. Raises UserError, CheckpointError and EngineError for what cannot be, before the
    source is opened."""

    def __init__(self, flags: WatchFlags) -> None:
        flags.check()
        self.flags, self.source = flags, find_source(flags.source)
        openvino = flags.device == "auto" and flags.engine == "openvino"  # it does not run on NVIDIA's GPUs
        self.device = pick_device("cpu" if openvino else flags.device)
        where, engine = str(self.device), flags.engine
        if (reason := why_unavailable(engine, where)) is not None:
            raise EngineUnavailable(f"engine {engine!r} on {where}: {reason}")
        self.precision = default_precision(engine, where) if flags.precision == "auto" else flags.precision
        if self.precision not in (known := supported_precisions(engine, where)):
            raise EngineError(f"engine {engine!r} has no {self.precision} on {where}: choose {' or '.join(known)}")
        if self.source.kind == "file":
            self._try_to_open()
        self.trained = load_trained(flags.network.checkpoint or "", flags.network, device=self.device)
        self.spec = self.trained.clip_spec()
        self.not_kept = "--no-reuse" if not flags.reuse else why_nothing_is_kept(self.trained, engine)
        self._labeller: Labeller | None = None
        read_s = 2 * flags.stall_s
        reader = Reader(self.source, realtime=flags.realtime, connect_s=flags.connect_s, read_s=read_s)
        self.watch = Watch(
            reader, self.spec, self.trained.classes, self._plan, self._overlay, top=flags.top, stall_s=flags.stall_s
        )

    def labels(self) -> Iterator[Label | None]:
        """A label for every window that there is time for; None, several times a second, where there is none yet.
        Raises UserError where nothing comes, or nothing more."""
        if self.source.kind == "file":
            labeller = self._build()
            if not self.flags.realtime:
                yield from self.watch.every_label(labeller, self.flags.seconds)
                return
            self.watch.start(self.flags.connect_s)
        else:
            self.watch.start(self.flags.connect_s)  # one connection, and the newest frames while the engine is built
            labeller = self._build()
            self.watch.newest_only()
        yield from self.watch.labels(labeller, self.flags.seconds)

    def close(self) -> None:
        """End the reader, the overlay and the engine. Raises OSError and UserError for an overlay that failed."""
        try:
            self.watch.close()
        finally:
            if self._labeller is not None:
                self._labeller.close()

    def facts(self) -> dict[str, Any]:
        """What is watched, and how; known with the first label or None of `labels`."""
        plan, opened = self.watch.plan, self.watch.reader.opened
        return {
            "source": self.source.shown,
            "fps": opened.fps if opened else None,
            "size": list(self.watch.pictures.size),
            "window_frames": plan.length,
            "hop_frames": plan.hop,
            "model": self.trained.network.model,
            "engine": self.flags.engine,
            "precision": self.precision,
            "features_kept": self.not_kept is None,
            "classes": len(self.trained.classes),
        }

    def facts_line(self) -> str:
        """The same for a person."""
        f = self.facts()
        fps = f["fps"] or FPS
        rate = f"{f['fps']:.4g} frames/s" if f["fps"] else "frame rate unknown"
        kept = "features kept from window to window" if self.not_kept is None else f"whole windows ({self.not_kept})"
        return (
            f"watching {f['source']}: {f['size'][0]}×{f['size'][1]}, {rate}; a window of {f['window_frames']} frames "
            f"({f['window_frames'] / fps:.2f} s), a label every {f['hop_frames']} ({f['hop_frames'] / fps:.2f} s); "
            f"{printable(f['model'])}, {f['engine']} {f['precision']}, {kept}"
        )

    def record(self, events: Iterable[tuple[float, str, str]]) -> Record:
        """The watch, once it is over."""
        network = self.trained.network
        settings = settings_of(self.flags) | settings_of(network) | {"precision": self.precision}
        name = f"{network.model}-{network.num_segments}f-{self.flags.engine}-{self.precision}"
        details = {"not_kept": self.not_kept, "device": str(self.device)}
        return record_of(self.watch, figures_of(self.watch), settings, events, details, name, self.device)

    def _build(self) -> Labeller:
        flags = self.flags
        self._labeller = create_labeller(
            self.trained, flags.engine, self.precision, self.device, BuildFlags(), keep=self.not_kept is None
        )
        return self._labeller

    def _try_to_open(self) -> None:
        try:
            with open_source(self.source, self.flags.connect_s, self.flags.connect_s):
                pass
        except SourceFailed as e:
            raise UserError(f"{self.source.shown}: {e}") from e

    def _plan(self, opened: Opened) -> WindowPlan:
        flags = self.flags
        if opened.fps is None and (flags.window_frames is None or flags.every_ms is not None):
            why = "does not say its frame rate; give the window by --window-frames, and no --every-ms"
            raise UserError(f"{self.source.shown}: {why}")
        fps = opened.fps or FPS
        length = flags.window_frames or max(1, round(flags.window_s * fps))
        every = None if flags.every_ms is None else max(1, round(flags.every_ms * fps / 1000))
        plan = plan_windows(self.spec, length, every, grid=flags.reuse)
        plan.check_memory()
        return plan

    def _overlay(self, opened: Opened) -> Overlay | None:
        if self.flags.overlay is None:
            return None
        lossless = not self.flags.realtime
        return Overlay(self.flags.overlay, opened.fps or FPS, lossless=lossless)
