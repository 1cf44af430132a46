"""Streams that FFmpeg serves on loopback, and labellers that look at the frames they are given."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.odd_clips import read_numbers
from tdn_bench.watching.labeller import Read
from tdn_bench.watching.live import Watch
from tdn_bench.watching.reader import Reader
from tdn_bench.watching.source import find_source
from tdn_bench.watching.window import plan_windows

SPEC = ClipSpec(4, 5, size=64, crop_ratio=0.875)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """An FFmpeg that plays `clip` at its own rate to whoever connects; `url` is where."""

    def __init__(self, clip: Path, kind: str = "tcp", *flags: str) -> None:
        port = free_port()
        where = {
            "tcp": (f"tcp://127.0.0.1:{port}?listen=1", f"tcp://127.0.0.1:{port}"),
            "http": (f"http://127.0.0.1:{port}/live", f"http://127.0.0.1:{port}/live"),
            "udp": (f"udp://127.0.0.1:{port}?pkt_size=1316", f"udp://127.0.0.1:{port}"),
        }
        target, self.url = where[kind]
        self.command = [
            "ffmpeg",
            "-v",
            "error",
            "-nostdin",
            "-re",
            *flags,
            "-i",
            str(clip),
            "-map",
            "0:v",
            "-c",
            "copy",
        ]
        self.command += ["-muxdelay", "0", "-f", "mpegts", *(("-listen", "1") if kind == "http" else ()), target]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def served(clip: Path, kind: str = "tcp", *flags: str) -> Iterator[Server]:
    """Skips where there is no ffmpeg."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on this machine: it serves the streams of these tests")
    server = Server(clip, kind, *flags)
    try:
        yield server
    finally:
        server.kill()


class Numbers:
    """A labeller that notes the numbers in the pictures of every window; each takes `engine_s`."""

    kept_segments = 0

    def __init__(self, engine_s: float = 0.0) -> None:
        self.engine_s = engine_s
        self.seen: list[np.ndarray] = []  # (T, L) a window
        self.asked: list[np.ndarray] = []

    def read(self, frames: np.ndarray, read: Read) -> None:
        self.asked.append(frames)
        self._clip = read(frames)

    def label(self) -> Tensor:
        self.seen.append(np.array(read_numbers(self._clip.numpy())).reshape(self.asked[-1].shape))
        time.sleep(self.engine_s)
        return torch.tensor([0.75, 0.25], dtype=torch.float64)

    def close(self) -> None:
        pass


def make_watch(
    source: str, length: int = 24, every: int | None = None, *, grid: bool = True, realtime: bool = True, **options
) -> Watch:
    reader = Reader(
        find_source(source), realtime=realtime, connect_s=options.pop("connect_s", 20), read_s=options.pop("read_s", 20)
    )
    return Watch(reader, SPEC, ("yes", "no"), lambda _: plan_windows(SPEC, length, every, grid=grid), **options)
