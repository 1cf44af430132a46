"""What a video that cannot be used does to a run, and the list of those that were found."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import BadClip, DataError

OnBadClip = Literal["error", "skip"]


@dataclass(frozen=True)
class BadClipPolicy:
    """What a video that cannot be used does to a run; the same for every command and backend.

    `on_bad_clip`: `error` ends the run; with `skip` an evaluation leaves the video out and never puts another in its
    place, and training takes a replacement sample drawn by seed, epoch and place. Either way the video is counted and
    added to `log` (JSON lines: id, path, reason). When more than `max_share` (0 to 1) of the videos are bad the run
    ends. `verify_checksums` reads each file whole and compares its sha256 with the scan's.
    """

    on_bad_clip: OnBadClip = "skip"
    max_share: float = 0.01
    verify_checksums: bool = False
    log: Path | None = None


DEFAULT_POLICY = BadClipPolicy()


class BadClips:
    """The videos that one loader could not use: path → reason in `reasons`, each once; `replacements` counts the
    replacement samples that were drawn for them. Safe to use from several threads."""

    def __init__(self, policy: BadClipPolicy, total: int) -> None:
        """`total`: the videos that the policy's share is of."""
        self.policy, self.total = policy, total
        self.reasons: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self.replacements = 0
        self._log_failed = False
        self._lock = threading.Lock()

    def add(self, bad: BadClip) -> None:
        """Note a bad clip. Raises DataError where the policy says that it ends the run."""
        with self._lock:
            if not self._note(bad):
                return
        if self.policy.on_bad_clip == "error":
            raise DataError(f"{bad}; repair the file, or leave bad clips out with --on-bad-clip skip")

    def _note(self, bad: BadClip) -> bool:
        """Note a bad clip in the log too, and whether it was not known."""
        if bad.path in self.reasons:
            return False
        self.reasons[bad.path], self._ids[bad.path] = bad.reason, bad.video_id
        if self.policy.log is not None:
            line = json.dumps({"id": bad.video_id, "path": bad.path, "reason": bad.reason}, ensure_ascii=False)
            self._append(self.policy.log, line)
        return True

    def _append(self, file: Path, line: str) -> None:
        """Add a line to the log. That a disk is full ends no run; it is said once."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as e:
            if not self._log_failed:
                logging.getLogger("tdn_bench").warning("%s: cannot be written (%s)", file, e.strerror)
            self._log_failed = True

    def found(self) -> list[BadClip]:
        """The bad clips, in the paths' order."""
        return [BadClip(self._ids[path], path, reason) for path, reason in self.by_path().items()]

    def add_replacements(self, count: int) -> None:
        """Note that `count` replacement samples were drawn."""
        with self._lock:
            self.replacements += count

    def join(self, others: Iterable[BadClip]) -> None:
        """Count what other processes found in their parts of the split. Raises as `check_share`."""
        with self._lock:
            for bad in others:
                self._note(bad)
        self.check_share()

    def by_path(self) -> dict[str, str]:
        """`reasons` in the paths' order: the order in which threads found them is another in every run."""
        with self._lock:
            return dict(sorted(self.reasons.items()))

    def check_share(self) -> None:
        """Raise DataError where too many videos are bad."""
        if len(self) > self.policy.max_share * self.total:
            path, reason = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self)} of {self.total} videos ({len(self) / self.total:.1%}) cannot be used, more than "
                f"--max-bad-share {self.policy.max_share:g} allows; first {path}: {reason}"
            )

    def __len__(self) -> int:
        return len(self.reasons)
