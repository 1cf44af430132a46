"""Which JPEG decoder reads folders of frames fastest: `python benchmarks/jpeg.py --frames DIR`.

All take the same bytes in memory and return RGB, uint8, in one thread, in turn; the times are CPU milliseconds a
frame. That simplejpeg was chosen rests on this, and on its refusal of damaged frames (`strict`), which others fill
with grey and pass on. Records: `results/intel-xeon-2core/benchmark-jpeg-*.json`.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from pipelines.jpeg import frame_files
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.records import make_record, record_folder, write_record

Decode = Callable[[list[bytes]], list[np.ndarray]]  # all frames of a video, as DALI wants them


@dataclass(frozen=True)
class Benchmark:
    """Time JPEG decoders on frames of a given size, and write a record."""

    frames: Path | None = None
    """Folder of JPEG frames; default: made ones."""
    width: int = 176
    """Of made frames; Something-Something V1's are 100 pixels high."""
    height: int = 100
    """Of made frames."""
    rounds: int = 20
    """Times that every decoder takes all frames."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def made_frames(width: int, height: int) -> list[bytes]:
    import simplejpeg

    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    pictures = [
        np.stack([128 + 60 * np.sin(x / (5 + k) + i) + 50 * np.cos(y / 7) for k in range(3)], 2) for i in range(40)
    ]
    return [
        simplejpeg.encode_jpeg(np.clip(p + rng.normal(0, 6, p.shape), 0, 255).astype(np.uint8), quality=90)
        for p in pictures
    ]


def decoders() -> dict[str, Decode]:
    """Those that are installed."""
    import simplejpeg
    from PIL import Image

    found: dict[str, Decode] = {
        "simplejpeg": lambda frames: [simplejpeg.decode_jpeg(data, fastdct=True, strict=True) for data in frames],
        "pillow": lambda frames: [np.asarray(Image.open(BytesIO(data)).convert("RGB")) for data in frames],
    }
    if importlib.util.find_spec("turbojpeg"):
        from turbojpeg import TJPF_RGB, TurboJPEG

        try:
            turbo = TurboJPEG()
        except RuntimeError:  # its library is the system's, not the package's
            pass
        else:
            found["turbojpeg"] = lambda frames: [turbo.decode(data, pixel_format=TJPF_RGB) for data in frames]
    if importlib.util.find_spec("nvidia.dali"):
        import nvidia.dali.experimental.dynamic as ndd

        ndd.set_num_threads(1)

        def dali(frames: list[bytes]) -> list[np.ndarray]:
            batch = ndd.batch([np.frombuffer(data, np.uint8) for data in frames])
            return [np.asarray(t) for t in ndd.decoders.image(batch, device="cpu").evaluate().tensors]

        found["dali_cpu"] = dali
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/jpeg.py")
    results = record_folder(config.results, "benchmarks")
    if config.frames is not None and not config.frames.is_dir():
        raise UserError(f"--frames {config.frames}: no such folder")
    files = [Path(f).read_bytes() for f in frame_files(str(config.frames))] if config.frames is not None else []
    frames = files or made_frames(config.width, config.height)
    ways = decoders()
    (reference,) = ways["pillow"](frames[:1])
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for name, decode in ways.items():
        difference = np.abs(decode(frames[:1])[0].astype(int) - reference).mean()
        assert difference < 3, f"{name} differs from Pillow by {difference:.1f} a pixel"
    for _ in range(config.rounds):
        for name, decode in ways.items():
            start = time.process_time()
            decode(frames)
            cpu_ms[name].append(1000 * (time.process_time() - start) / len(frames))
    ratios = {
        f"{name}_to_simplejpeg": statistics.median(
            a / b for a, b in zip(cpu_ms[name], cpu_ms["simplejpeg"], strict=True)
        )
        for name in ways
        if name != "simplejpeg"
    }
    figures = {f"{name}_cpu_ms": statistics.median(v) for name, v in cpu_ms.items()} | ratios
    figures |= {"height": reference.shape[0], "width": reference.shape[1], "frames": len(frames)}
    for name, value in figures.items():
        print(f"{name:30s}{value:10.3f}")
    device = torch.device("cpu")
    samples = {f"{name}_cpu_ms": v for name, v in cpu_ms.items()}
    record = make_record("benchmark", "jpeg", figures=figures, samples=samples, settings=asdict(config), device=device)
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
