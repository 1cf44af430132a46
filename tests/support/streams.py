"""Streams that FFmpeg serves on loopback, and labellers that look at the frames they are given."""

from __future__ import annotations

import base64
import select
import shutil
import signal
import socket
import subprocess
import threading
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


class RtspServer:
    """A camera: one client, its password asked for (Basic), RTP interleaved in the RTSP connection (RFC 2326). FFmpeg
    makes the RTP, once the client says PLAY; at its end the camera closes the connection."""

    def __init__(self, clip: Path, user: str, password: str) -> None:
        self._clip = clip
        self._wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self._rtp.settimeout(1)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}/stream"
        self.refused = 0
        self._ffmpeg: subprocess.Popen | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _command(self, *flags: str) -> list[str]:
        target = f"rtp://127.0.0.1:{self._rtp.getsockname()[1]}"
        command = ["ffmpeg", "-v", "error", "-nostdin", *flags, "-i", str(self._clip), "-map", "0:v", "-c", "copy"]
        return [*command, "-f", "rtp", target]

    def _serve(self) -> None:
        sdp = subprocess.run(self._command("-t", "0.1"), capture_output=True, text=True, check=True).stdout
        sdp = sdp[sdp.index("v=0") :].replace("\n", "\r\n") + "a=control:track\r\n"
        while select.select([self._rtp], [], [], 0)[0]:
            self._rtp.recv(2048)
        connection, _ = self._listener.accept()
        requests = connection.makefile("rb")
        while True:
            lines = iter(lambda: requests.readline().decode().strip(), "")
            method, *headers = list(lines) or ["END"]
            fields = dict(line.split(": ", 1) for line in headers)
            answer = {"CSeq": fields.get("CSeq", "0"), "Session": "1"}
            body, status = "", "200 OK"
            if method.startswith("DESCRIBE") and fields.get("Authorization") != self._wanted:
                status, self.refused = "401 Unauthorized", self.refused + 1
                answer["WWW-Authenticate"] = 'Basic realm="camera"'
            elif method.startswith("DESCRIBE"):
                body = sdp
                answer |= {"Content-Type": "application/sdp", "Content-Length": str(len(sdp))}
            elif method.startswith("SETUP"):
                answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
            elif method.startswith("OPTIONS"):
                answer["Public"] = "DESCRIBE, SETUP, PLAY, TEARDOWN"
            head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
            connection.sendall(f"RTSP/1.0 {status}\r\n{head}\r\n{body}".encode())
            if method.startswith("PLAY"):
                break
        self._ffmpeg = subprocess.Popen(self._command("-re", "-readrate", "5"), stdout=subprocess.DEVNULL)
        try:
            while True:
                packet = self._rtp.recv(2048)
                connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
        except OSError:  # none for a second, or the client has gone
            requests.close()
            connection.close()

    def close(self) -> None:
        self._listener.close()
        if self._ffmpeg is not None:
            self._ffmpeg.kill()
            self._ffmpeg.wait()


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


def slow_down(watch: Watch, seconds: float) -> None:
    """Let every picture take so long to decode."""
    pictures = watch.pictures

    class Slow:
        size, changes, rotation, mirrored = property(lambda self: pictures.size), pictures.changes, 0, False

        def __call__(self, frame):
            time.sleep(seconds)
            return pictures(frame)

    watch.pictures = Slow()  # type: ignore[assignment]
