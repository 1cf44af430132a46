"""The engine cache: what its key sees, what it hands out after damage, and what processes do to each other."""

import copy
import errno
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import engines.cache
from engines import EngineError, EngineSpec
from engines.cache import NotCacheable, cached, default_folder, engine_key, prune
from tdn_bench.models import FrameClassifier, create_model

ROOT = Path(engines.__file__).parents[1]
SPEC = EngineSpec((4, 5, 32, 32, 3), max_batch=2)
KEY = {"engine": "onnx", "spec": {"max_batch": 2}}
OTHER = {"engine": "onnx", "spec": {"max_batch": 3}}
CONTENT = bytes(range(256)) * 40
fork = multiprocessing.get_context("fork")  # children need no second import of torch


class Mode(Enum):
    FAST = 1
    EXACT = 2


@dataclass(frozen=True)
class Options:
    scales: tuple[float, ...] = (0.5, 1.0)


SLOPE = 3


def scaled(x: Tensor) -> Tensor:
    return SLOPE * x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.rounded = nn.Linear(4, 2, dtype=torch.bfloat16)
        self.register_buffer("mean", torch.ones(3), persistent=False)
        self.num_segments, self.mode, self.options, self.dtype = 8, Mode.FAST, Options(), torch.float32
        self.extra = {"names": ["a", "b"], "unordered": {"x", "y", "z"}}
        self.activation: Callable[[Tensor], Tensor] = functools.partial(nn.functional.leaky_relu, negative_slope=0.1)
        self.hidden = [nn.Linear(2, 2)]  # torch does not see it as a part

    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.activation(self.norm(self.conv(x))))


def key_of(network: nn.Module, spec: EngineSpec = SPEC, **others: object) -> dict:
    arguments = {"name": "onnx", "libraries": ["onnxruntime"], "calibration": None} | others
    return engine_key(network=network, spec=spec, **arguments)  # type: ignore[arg-type]


def differing(a: dict, b: dict) -> set[str]:
    assert a.keys() == b.keys()
    return {part for part in a if a[part] != b[part]}


def flip_last_bit(tensor: Tensor) -> None:
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # whatever the memory format
    storage[-tensor.element_size()] ^= 1


def shift_hook(by: int) -> Callable:
    return lambda module, arguments, output: output + by


CHANGES = {
    "a weight's last bit": ({"weights"}, lambda net: flip_last_bit(net.conv.weight)),
    "a bf16 weight's last bit": ({"weights"}, lambda net: flip_last_bit(net.rounded.weight)),
    "a statistic": ({"weights"}, lambda net: net.norm.running_var.add_(1)),
    "a buffer that is not saved": ({"weights"}, lambda net: flip_last_bit(net.mean)),
    "a weight torch does not see": ({"weights"}, lambda net: flip_last_bit(net.hidden[0].bias)),
    "a weight's dtype": ({"weights"}, lambda net: setattr(net, "mean", net.mean.double())),
    "a weight's shape": ({"weights"}, lambda net: setattr(net, "mean", net.mean[None])),
    "no bias": ({"weights", "graph"}, lambda net: setattr(net.conv, "bias", None)),
    "two submodules in each other's place": (
        {"weights", "graph"},
        lambda net: (setattr(net, "conv", net.norm), setattr(net, "norm", net.conv)),
    ),
    "an int": ({"graph"}, lambda net: setattr(net, "num_segments", 16)),
    "an int that equals a float": ({"graph"}, lambda net: setattr(net, "num_segments", 8.0)),
    "a float's last bit": ({"graph"}, lambda net: setattr(net.norm, "eps", 1.0000000000000003e-5)),
    "an enum": ({"graph"}, lambda net: setattr(net, "mode", Mode.EXACT)),
    "a frozen dataclass": ({"graph"}, lambda net: setattr(net, "options", Options((0.5,)))),
    "a dtype": ({"graph"}, lambda net: setattr(net, "dtype", torch.float16)),
    "deep inside": ({"graph"}, lambda net: net.extra["names"].append("c")),
    "a set": ({"graph"}, lambda net: net.extra["unordered"].add("w")),
    "a partial's argument": (
        {"graph"},
        lambda net: setattr(net, "activation", functools.partial(nn.functional.leaky_relu, negative_slope=0.2)),
    ),
    "a function": ({"graph"}, lambda net: setattr(net, "activation", lambda x: x.relu())),
    "a forward of its own": ({"graph"}, lambda net: setattr(net, "forward", lambda x: x)),
    "a module's class": ({"graph"}, lambda net: setattr(net.norm, "__class__", nn.SyncBatchNorm)),
    "a hook": ({"graph"}, lambda net: net.register_forward_hook(shift_hook(1))),
    "a parametrization": (
        {"graph", "weights"},
        lambda net: parametrize.register_parametrization(net.conv, "weight", nn.Tanh()),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_all_that_a_network_computes_with_is_in_the_key(name: str) -> None:
    parts, change = CHANGES[name]
    before, network = key_of(Net()), Net()
    change(network)
    assert differing(before, key_of(network)) == parts


def test_every_leaf_of_the_real_network_is_in_the_key() -> None:
    def network(**options: int) -> nn.Module:
        torch.manual_seed(0)
        return FrameClassifier(create_model("tdn_resnet_small", **({"num_classes": 5, "num_segments": 4} | options)))

    before = key_of(network())
    assert key_of(network()) == before
    assert differing(before, key_of(network(num_segments=8))) == {"graph"}
    changed = network()
    for tensor in itertools.chain(changed.parameters(), changed.buffers()):
        flip_last_bit(tensor)
        assert key_of(changed)["weights"] != before["weights"]
        flip_last_bit(tensor)
    assert key_of(changed) == before


def test_what_is_bound_to_a_hook_is_in_the_key() -> None:
    keys = []
    for by in (1, 2, 2):
        network = Net()
        network.register_forward_pre_hook(lambda module, arguments: None).remove()  # hooks are numbered by process
        network.norm.register_forward_hook(shift_hook(by))
        keys.append(key_of(network))
    assert differing(keys[0], keys[1]) == {"graph"}
    assert keys[1] == keys[2]


def test_code_is_seen_as_it_runs(monkeypatch) -> None:
    before = key_of(Net())
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "SLOPE", 4)  # a constant that a function that forward calls reads
        assert differing(before, key_of(Net())) == {"graph"}
    with monkeypatch.context() as patch:
        patch.setattr(Net, "forward", lambda self, x: x)
        assert differing(before, key_of(Net())) == {"graph"}
    assert key_of(Net()) == before


def test_code_is_seen_through_base_classes(monkeypatch) -> None:
    def network() -> nn.Module:
        network = Net()
        network.weight = nn.Parameter(torch.ones(2))
        parametrize.register_parametrization(network, "weight", nn.Tanh())  # its class is now one of torch's making
        assert type(network).__module__.startswith("torch.")
        return network

    before = key_of(network())
    monkeypatch.setattr(Net, "forward", lambda self, x: x)
    assert differing(before, key_of(network())) == {"graph"}


def test_what_makes_no_difference_is_not_in_the_key() -> None:
    network = Net()
    before = key_of(network)
    network.to(memory_format=torch.channels_last)
    network.eval().requires_grad_(False)
    network.hidden[0].weight = nn.Parameter(network.hidden[0].weight.t().contiguous().t())  # other strides
    assert key_of(network) == before
    assert key_of(network, replace(SPEC, device="cpu:0")) == before
    network(torch.zeros(1, 3, 8, 8))
    assert key_of(copy.deepcopy(network)) == before


SOURCE = """
import enum, functools, torch
from helper import shift
Kind = enum.Enum("Kind", "NEAR FAR")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(3.0))
        self.kinds, self.rule = {"near": Kind.NEAR, "far": Kind.FAR}, functools.partial(shift, by=2)
        self.names = {"one", "two", "three", "four"}
        self.sets = [frozenset(Kind), {torch.float16, torch.bfloat16, torch.float32}, {("a", 1), ("b", 2), ("c", 3)}]
    def forward(self, x):
        return self.rule(x) if x.ndim in {1, 2, 3} or "one" in {"one", "two", "three"} else x
"""
HELPER = "def shift(x, by):\n    return x + by\n"


def imported(folder: Path, monkeypatch) -> Callable[[], nn.Module]:
    """The class Net as a process that starts now would import it."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file of the same second and size would be taken over
    for name in ("helper", "network_on_disk"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("network_on_disk").Net


def test_source_lines_are_in_the_key(tmp_path: Path, monkeypatch) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network_on_disk.py").write_text(SOURCE)
        (tmp_path / folder / "helper.py").write_text(HELPER)
    first = imported(tmp_path / "first", monkeypatch)
    before = key_of(first())
    assert key_of(imported(tmp_path / "second", monkeypatch)()) == before, "the folder's own name matters"
    helper = tmp_path / "second" / "helper.py"
    helper.write_text(HELPER.replace("x + by", "x - by"))
    fresh = key_of(imported(tmp_path / "second", monkeypatch)())
    assert differing(before, fresh) == {"graph", "sources"}
    (tmp_path / "first" / "helper.py").write_text(helper.read_text())
    stale = key_of(first())  # runs the old code beside the new file: neither the old entry's key nor the new one's
    assert stale not in (before, fresh)


def test_the_key_is_the_same_in_every_process(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "network_on_disk.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text(HELPER)
    program = (
        "import json; from engines import EngineSpec; from engines.cache import engine_key\n"
        "from network_on_disk import Net; import torch.fx\n"
        f"print(json.dumps(engine_key('onnx', Net(), {SPEC!r}, ['onnxruntime'], None)))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    key = key_of(imported(tmp_path, monkeypatch)())
    assert json.loads(run.stdout) == json.loads(json.dumps(key))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": "openvino"}, "engine"),
        ({"spec": replace(SPEC, precision="fp16")}, "spec"),
        ({"spec": replace(SPEC, max_batch=3)}, "spec"),
        ({"spec": replace(SPEC, frames_shape=(8, 5, 32, 32, 3))}, "spec"),
        ({"libraries": ["onnxruntime", "no-such-library"]}, "versions"),
        ({"calibration": [torch.zeros(1, 2, dtype=torch.uint8)]}, "calibration"),
    ],
)
def test_all_that_an_engine_is_built_with_is_in_the_key(changes: dict, part: str) -> None:
    assert differing(key_of(Net()), key_of(Net(), **changes)) == {part}


def test_calibration_frames_count_with_their_values_and_order() -> None:
    one, two = torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2, 3, dtype=torch.uint8)
    choices = ([one], [two], [one, two], [two, one], [one.reshape(3, 2)], [one.float()], [], None)
    keys = [key_of(Net(), calibration=frames) for frames in choices]
    assert all(differing(a, b) == {"calibration"} for a, b in itertools.combinations(keys, 2))


def test_versions_are_in_the_key(monkeypatch) -> None:
    before = key_of(Net())
    assert before["versions"]["torch"] == torch.__version__
    assert key_of(Net(), libraries=["no-such-library"])["versions"]["no-such-library"] == "missing"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    assert differing(before, key_of(Net())) == {"versions"}
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "9.0")
    assert differing(before, key_of(Net())) == {"versions"}
    monkeypatch.undo()
    monkeypatch.setattr(engines.cache, "_OWN_SOURCES", "edited")
    assert differing(before, key_of(Net())) == {"sources"}


def test_the_processor_is_in_the_key(monkeypatch) -> None:
    def cpuinfo(model: str, flags: str) -> dict:
        text = f"processor\t: 0\nmodel name\t: {model}\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: X\n"
        monkeypatch.setattr(Path, "read_text", lambda path, **options: text)
        return key_of(Net())

    before = cpuinfo("Fast 9", "sse avx2")
    assert cpuinfo("Fast 9", "avx2 sse") == before
    assert differing(before, cpuinfo("Fast 8", "sse avx2")) == {"machine"}
    assert differing(before, cpuinfo("Fast 9", "sse avx2 avx512f")) == {"machine"}


def test_the_card_is_in_the_key_and_its_number_is_not(monkeypatch) -> None:
    cuda = replace(SPEC, device="cuda")
    none = key_of(Net(), cuda)
    card = {"name": "Card 1", "major": 9, "minor": 0, "multi_processor_count": 132}
    cards = [card, card, card | {"name": "Card 2"}, card | {"minor": 1}, card | {"multi_processor_count": 16}]
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "600.1", NVMLError=OSError)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**cards[torch.device(device).index or 0])
    )
    keys = [key_of(Net(), replace(SPEC, device=f"cuda:{index}")) for index in range(len(cards))]
    assert key_of(Net(), cuda) == keys[0] == keys[1]
    assert all(differing(keys[0], other) == {"machine"} for other in (none, *keys[2:]))
    monkeypatch.setattr(nvml, "nvmlSystemGetDriverVersion", lambda: "600.2")
    assert differing(keys[0], key_of(Net(), cuda)) == {"machine"}
    assert differing(keys[0], key_of(Net(), SPEC)) == {"machine", "spec"}


def nested() -> list:
    value: list = []
    for _ in range(2000):
        value = [value]
    return value


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated, not gone
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (threading.Lock, r"Net\.odd is a lock, unfit for the engine cache"),
        (lambda: [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)], r"Net\.odd is a Tensor"),
        (lambda: torch.ones(2).to_sparse(), r"Net\.odd is a Tensor"),
        (lambda: nn.Parameter(torch.ones(2, device="meta")), r"Net\.odd is unfit for the engine cache"),
        (nested, "nests too deep"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    network = Net()
    network.odd = make()  # type: ignore[assignment]
    with pytest.raises(NotCacheable, match=message) as caught:
        key_of(network)
    assert "\n" not in str(caught.value)


class Builds:
    """A `build` that writes `content` and counts its calls."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.count = content, 0

    def __call__(self, path: Path) -> None:
        self.count += 1
        path.write_bytes(self.content)


def fetch(folder: Path, build: Callable[[Path], None], key: dict = KEY, **options: object) -> tuple[bytes, bool]:
    with cached(folder, key, build, **options) as artifact:  # type: ignore[arg-type]
        return artifact.path.read_bytes(), artifact.hit


def entry(folder: Path, suffix: str = ".engine") -> tuple[Path, Path]:
    """The payload and the header of the only entry in `folder`."""
    (payload,), (header,) = folder.glob(f"*{suffix}"), folder.glob("*.json")
    return payload, header


def test_a_second_call_is_a_hit(tmp_path: Path) -> None:
    folder, build = tmp_path / "a" / "b", Builds()
    assert fetch(folder, build, suffix=".onnx") == (CONTENT, False)
    assert fetch(folder, build, dict(reversed(KEY.items())), suffix=".onnx") == (CONTENT, True)
    assert build.count == 1
    assert fetch(folder, Builds(b"other"), OTHER, suffix=".onnx") == (b"other", False)
    assert fetch(folder, build, suffix=".onnx") == (CONTENT, True)
    assert {path.suffix for path in folder.iterdir()} == {".onnx", ".json", ".lock"}


def test_a_real_key_is_found_again(tmp_path: Path) -> None:
    assert fetch(tmp_path, Builds(), key_of(Net()))[1] is False  # tuples come back from JSON as lists
    assert fetch(tmp_path, Builds(), key_of(Net()))[1] is True


def rewrite(header: Path, **changes: object) -> None:
    header.write_text(json.dumps(json.loads(header.read_text()) | changes))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def into_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "payload empty": lambda payload, header: truncate(payload, 0),
    "payload of one byte": lambda payload, header: truncate(payload, 1),
    "payload half": lambda payload, header: truncate(payload, len(CONTENT) // 2),
    "payload one byte short": lambda payload, header: truncate(payload, len(CONTENT) - 1),
    "payload one byte long": lambda payload, header: payload.write_bytes(CONTENT + b"\0"),
    "payload gone": lambda payload, header: payload.unlink(),
    "payload a folder": lambda payload, header: into_folder(payload),
    "payload a pipe": lambda payload, header: into_pipe(payload),
    "payload a dangling link": lambda payload, header: (payload.unlink(), payload.symlink_to("nowhere")),
    "header empty": lambda payload, header: truncate(header, 0),
    "header half": lambda payload, header: truncate(header, header.stat().st_size // 2),
    "header gone": lambda payload, header: header.unlink(),
    "header a folder": lambda payload, header: into_folder(header),
    "header no object": lambda payload, header: header.write_text("[1]"),
    "header no text": lambda payload, header: header.write_bytes(b"\xff\xfe\0"),
    "header nested": lambda payload, header: header.write_text("[" * 100_000),
    "header of another format": lambda payload, header: rewrite(header, format=engines.cache.FORMAT + 1),
    "header of another key": lambda payload, header: rewrite(header, key=OTHER),
    "header with true for 1": lambda payload, header: rewrite(header, format=True),
    "header with another size": lambda payload, header: rewrite(header, bytes=len(CONTENT) + 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_rebuilt(tmp_path: Path, name: str) -> None:
    fetch(tmp_path, Builds())
    DAMAGE[name](*entry(tmp_path))
    build = Builds(b"built again")
    assert fetch(tmp_path, build) == (b"built again", False)
    assert fetch(tmp_path, build) == (b"built again", True)
    assert build.count == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fetch(folder, Builds())
    return folder


@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_never_handed_out(whole: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(whole, Path(scratch) / "copy"))
        path = data.draw(st.sampled_from(entry(folder)))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        build = Builds()
        got, hit = fetch(folder, build)
        assert got == CONTENT
        assert hit == (build.count == 0)
        assert not hit or path.suffix == ".json"  # its date, or white space


def test_files_of_another_entry_are_not_handed_out(tmp_path: Path) -> None:
    fetch(tmp_path, Builds(b"this"), KEY)
    first, header = entry(tmp_path)
    fetch(tmp_path, Builds(b"that"), OTHER)
    (second,) = set(tmp_path.glob("*.engine")) - {first}
    first.write_bytes(b"that"), second.write_bytes(b"this")
    assert fetch(tmp_path, Builds(b"this"), KEY) == (b"this", False)
    assert fetch(tmp_path, Builds(b"that"), OTHER) == (b"that", False)
    shutil.copy(second, first), shutil.copy(second.with_suffix(".json"), header)  # a whole entry under a wrong name
    assert fetch(tmp_path, Builds(b"this"), KEY) == (b"this", False)


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(CONTENT)
        path.with_suffix(".data").write_bytes(b"beside it")
        raise EngineError("this network cannot be built")

    with pytest.raises(EngineError, match="cannot be built"):
        fetch(tmp_path, build)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert fetch(tmp_path, Builds()) == (CONTENT, False)


def test_what_the_caller_raises_is_not_the_caches(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), cached(tmp_path, KEY, Builds()):
        raise OSError(errno.ENOSPC, "mine")
    assert fetch(tmp_path, Builds()) == (CONTENT, True)


def build_slowly(path: Path) -> None:
    with open(path.parent / "builds.txt", "a") as log:
        log.write("build\n")
    with path.open("wb") as file:
        for start in range(0, len(CONTENT), 1024):
            file.write(CONTENT[start : start + 1024])
            file.flush()
            time.sleep(0.03)


def test_six_processes_build_once(tmp_path: Path, monkeypatch) -> None:
    all_looked, answers = fork.Barrier(6), fork.Queue()
    intact, looks = engines.cache._intact, itertools.count()

    def look(*arguments: object) -> bool:
        found = intact(*arguments)  # type: ignore[arg-type]
        if next(looks) == 0:
            all_looked.wait(timeout=60)  # none finds an entry at first, and all want to build one
        return found

    monkeypatch.setattr(engines.cache, "_intact", look)
    processes = [fork.Process(target=lambda: answers.put(fetch(tmp_path, build_slowly))) for _ in range(6)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(hit for _, hit in got) == [False, True, True, True, True, True]
    assert {content for content, _ in got} == {CONTENT}
    assert (tmp_path / "builds.txt").read_text() == "build\n"


def test_six_threads_build_once(tmp_path: Path) -> None:
    got: list[tuple[bytes, bool]] = []
    threads = [threading.Thread(target=lambda: got.append(fetch(tmp_path, build_slowly))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(hit for _, hit in got) == [False, True, True, True, True, True]
    assert {content for content, _ in got} == {CONTENT}
    assert (tmp_path / "builds.txt").read_text() == "build\n"


@contextmanager
def builder_at_work(folder: Path) -> Iterator["multiprocessing.process.BaseProcess"]:
    """A process that has written half of the entry for KEY and will never finish."""

    def build(path: Path) -> None:
        path.write_bytes(CONTENT[:5000])
        half_written.set()
        time.sleep(600)

    half_written = fork.Event()
    process = fork.Process(target=fetch, args=(folder, build))
    process.start()
    try:
        assert half_written.wait(timeout=60)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_builder_blocks_no_other_key(tmp_path: Path) -> None:
    with builder_at_work(tmp_path):
        assert fetch(tmp_path, Builds(b"other"), OTHER, keep_bytes=0) == (b"other", False)
        assert len(list(tmp_path.glob("*.part.engine"))) == 1, "the work of a living builder was removed"


def test_a_killed_builder_frees_the_key_and_its_half_is_not_used(tmp_path: Path) -> None:
    with builder_at_work(tmp_path) as process:
        os.kill(process.pid or 0, signal.SIGKILL)
    assert len(list(tmp_path.glob("*.part.engine"))) == 1
    assert fetch(tmp_path, Builds()) == (CONTENT, False)
    assert not list(tmp_path.glob("*.part*"))


def test_a_killed_builders_half_is_removed_when_another_key_is_built(tmp_path: Path) -> None:
    with builder_at_work(tmp_path) as process:
        os.kill(process.pid or 0, signal.SIGKILL)
    fetch(tmp_path, Builds(b"other"), OTHER)
    assert not list(tmp_path.glob("*.part*"))


def keys_kept(folder: Path) -> list[int]:
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.engine")))
    return sorted(json.loads(path.read_text())["key"]["number"] for path in folder.glob("*.json"))


def test_prune_removes_the_least_recently_used(tmp_path: Path) -> None:
    foreign = tmp_path / "mine.engine.txt"
    foreign.write_bytes(bytes(10**6))
    for number in range(4):
        before = set(tmp_path.iterdir())
        fetch(tmp_path, Builds(bytes(10_000)), {"number": number})
        for path in set(tmp_path.iterdir()) - before:
            os.utime(path, (1000 + number, 1000 + number))
    assert fetch(tmp_path, Builds(), {"number": 0})[1], "now the one used last"
    prune(tmp_path)
    assert keys_kept(tmp_path) == [0, 1, 2, 3]
    prune(tmp_path, keep_bytes=25_000)
    assert keys_kept(tmp_path) == [0, 3]
    prune(tmp_path, keep_bytes=0)
    assert keys_kept(tmp_path) == []
    assert foreign.exists(), "a file that is not the cache's was removed"


def test_an_entry_in_use_is_not_removed_and_a_new_one_makes_room(tmp_path: Path) -> None:
    fetch(tmp_path, Builds(bytes(10_000)), {"number": 0})
    fetch(tmp_path, Builds(bytes(10_000)), {"number": 1})
    with cached(tmp_path, {"number": 0}, Builds()) as artifact:
        assert fetch(tmp_path, Builds(bytes(10_000)), {"number": 2}, keep_bytes=1) == (bytes(10_000), False)
        assert artifact.path.read_bytes() == bytes(10_000)
    assert keys_kept(tmp_path) == [0, 2]


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineError, match=f"no engine cache can be made at {folder}, name another") as caught:
            fetch(folder, Builds())
        assert "\n" not in str(caught.value)


def test_without_its_default_folder_the_cache_warns_and_builds(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    build = Builds()
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"no engine can be kept in {default_folder()}, each start"):
            assert fetch(default_folder(), build) == (CONTENT, False)
    assert build.count == 2


def test_the_default_folder_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tdn_bench" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "tdn_bench" / "engines"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_engine_is_built_elsewhere(tmp_path: Path, code: int) -> None:
    folder = tmp_path / "full"
    places: list[Path] = []

    def build(path: Path) -> None:
        places.append(path)
        path.write_bytes(CONTENT)
        if path.parent == folder:
            raise OSError(code, os.strerror(code))

    with pytest.warns(UserWarning, match=f"no engine can be kept in {folder}.*{os.strerror(code)}") as caught:
        assert fetch(folder, build) == (CONTENT, False)
    assert [warning.filename for warning in caught] == [__file__]
    assert "\n" not in str(caught[0].message)
    assert not places[-1].parent.exists()
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


@contextmanager
def without_write_access(folder: Path) -> Iterator[None]:
    """As a user who may read `folder` only."""
    user = os.geteuid()
    folder.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_that_is_only_readable_gives_hits_and_takes_no_engines() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        fetch(folder, Builds())
        for path in folder.iterdir():
            path.chmod(0o444)
        with without_write_access(folder):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert fetch(folder, Builds(b"again")) == (CONTENT, True)
            with pytest.warns(UserWarning, match=f"no engine can be kept in {folder}"):
                assert fetch(folder, Builds(b"other"), OTHER) == (b"other", False)


def test_modules_without_a_file_are_seen_by_their_code() -> None:
    def network(body: str) -> nn.Module:
        module = ModuleType("typed_at_a_prompt")
        exec(
            f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return {body}", vars(module)
        )
        return module.Net()

    assert key_of(network("x + 1")) == key_of(network("x + 1"))
    assert differing(key_of(network("x + 1")), key_of(network("x + 2"))) == {"graph"}
    assert differing(key_of(network("x + 1")), key_of(network("x - 1"))) == {"graph"}
