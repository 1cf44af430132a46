"""Marks that ask for a device, a private cache folder, small data sets, and clips whose frames can be read back."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import settings

from pipelines.synthetic import make_dataset
from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.models import create_model

settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def missing_device(item: pytest.Item) -> str | None:
    """What the marks of a test ask for and this machine lacks."""
    if item.get_closest_marker("needs_gpu") and not torch.cuda.is_available():
        return "no CUDA GPU"
    runtimes = ("tensorrt", "tensorrt_rtx")  # looked for, not imported: that takes seconds
    if item.get_closest_marker("needs_tensorrt") and not any(map(importlib.util.find_spec, runtimes)):
        return "neither tensorrt nor tensorrt_rtx is installed"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing_device(item)
    if reason and os.environ.get("TDN_REQUIRE_GPU") == "1":
        pytest.fail(f"{reason}, but TDN_REQUIRE_GPU=1", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache folder; processes that a test starts inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def motion_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny synthetic data set: 16 training and 8 validation clips."""
    root = tmp_path_factory.mktemp("motion") / "set"
    return make_dataset(root, train=16, validation=8, seed=0, workers=1, progress=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and label files, kept beside the repository and not part of it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}")
    return SHARED / "data"


def has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


def write_video(path: Path, frames: np.ndarray, encoder: str = "libvpx-vp9", **muxer_options: str) -> Path:
    """Encode uint8 (N, H, W, 3) RGB; the container follows from the file's suffix. Skips without the encoder."""
    if not has_encoder(encoder):
        pytest.skip(f"this FFmpeg has no encoder {encoder}")
    options = {
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "12"},
        "libx264": {"bf": "2", "g": "12", "crf": "16", "preset": "veryfast"},
        "mpeg4": {"bf": "2", "g": "12", "q": "2", "qmin": "2", "qmax": "2"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer_options) as container:
        stream = container.add_stream(encoder, rate=12, options=options.get(encoder, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(encoder, "yuv420p")
        stream.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered_frames(count: int, width: int, height: int, first: int = 0) -> np.ndarray:
    """Pictures that carry their number (0 … 255): 4 × 2 blocks, white for a one, the highest bit at the top left."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    bits = np.unpackbits(numbers[:, None], axis=1).reshape(count, 2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return np.repeat(255 * bits[:, rows][:, :, columns, None], 3, axis=3).astype(np.uint8)


def read_numbers(pictures: np.ndarray) -> list[int]:
    """The numbers that (…, H, W, 3) pictures of `numbered_frames` carry, read in the middle of each block."""
    *_, height, width, _ = pictures.shape
    rows, columns = np.arange(1, 4, 2) * height // 4, np.arange(1, 8, 2) * width // 8
    bits = pictures.reshape(-1, height, width, 3)[:, rows][:, :, columns].mean(3) > 127
    return np.packbits(bits.reshape(-1, 8), axis=1)[:, 0].tolist()


def flat_frames(count: int, level: int, size: int = 48) -> np.ndarray:
    """One grey level in all pictures: it survives any crop and flip."""
    return np.full((count, size, size, 3), level, np.uint8)


@pytest.fixture(params=["pyav", "dali"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return request.param


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small TDN for `motion_data`'s classes: fresh, but with classes that differ."""
    torch.manual_seed(0)
    network = create_model("tdn_resnet_small", num_classes=8, num_segments=4)
    torch.nn.init.normal_(network.classifier.weight, 0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(network, path, {"model": "tdn_resnet_small", "num_segments": 4, "size": 64, "crop_ratio": 1.0})
    return path
