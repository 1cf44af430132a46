"""Marks that ask for a device, a private cache folder, and what many tests share: small data sets and weights."""

import fcntl
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.paths import SHARED, TESTS

from pipelines.synthetic import make_dataset
from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.models import create_model

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core, so one thread each; also of what a test starts
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")


def missing_device(item: pytest.Item) -> str | None:
    """What the marks of a test ask for and this machine lacks."""
    if item.get_closest_marker("needs_gpu") and not torch.cuda.is_available():
        return "no CUDA GPU"
    runtimes = ("tensorrt", "tensorrt_rtx")  # looked for, not imported: that takes seconds
    if item.get_closest_marker("needs_tensorrt") and not any(map(importlib.util.find_spec, runtimes)):
        return "neither tensorrt nor tensorrt_rtx is installed"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Beside a test marked `alone` no other test of this checkout runs: it waits for them, and they for it."""
    exclusive = item.get_closest_marker("alone") is not None
    with open(__file__) as lock:
        with (TESTS / "support" / "paths.py").open() as queue:  # or those that share the lock would never let it in
            fcntl.flock(queue, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing_device(item)
    if reason and os.environ.get("TDN_REQUIRE_GPU") == "1":
        pytest.fail(f"{reason}, but TDN_REQUIRE_GPU=1", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's folders; processes that a test starts inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        compiled = Path(tempfile.gettempdir(), f"torchinductor_tdn_{os.geteuid()}")  # else each run would compile anew
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
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
