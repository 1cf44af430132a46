"""The engine cache: what its key sees, what it hands out after damage, and what processes do to each other."""

import copy
import hashlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT, TESTS
from torch import Tensor, nn

import engines.key
from engines import EngineError, EngineSpec, create_engine
from engines.cache import cached, default_cache_dir, prune
from engines.key import NotCacheable, engine_key
from tdn_bench.models import FrameClassifier, create_model

SPEC = EngineSpec((4, 1, 32, 32, 3), max_batch=2)
KEY, OTHER = {"engine": "onnx", "batches": (2, 4)}, {"engine": "onnx", "batches": (3, 4)}
CONTENT = bytes(range(256)) * 40
TYPED_IN = type("Typed", (nn.Module,), {"forward": eval("lambda self, x: x")})  # as at a prompt
pytestmark = pytest.mark.filterwarnings("ignore:.*is not what you built here")
fork = multiprocessing.get_context("fork")  # children need no second import of torch
Mode, Options = Enum("Mode", "FAST EXACT"), make_dataclass("Options", ["scale"], frozen=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("mean", torch.ones(3), persistent=False)
        self.num_segments, self.mode, self.options = 8, Mode.FAST, Options(0.5)
        self.extra = {"names": ["a", "b"], "unordered": {"x", "y", "z"}, "modes": frozenset(Mode)}
        self.hidden = [nn.Linear(2, 2)]  # torch does not see it as a part

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.float().flatten(0, 2).permute(0, 3, 1, 2) / 255
        return self.head(self.norm(self.conv(x)).mean((2, 3))).unflatten(0, (len(frames), -1)).mean(1)


def key_of(network: nn.Module, spec: EngineSpec = SPEC, **others: object) -> dict:
    arguments = {"name": "onnx", "libraries": ["onnx"], "calibration": None} | others
    return engine_key(network=network, spec=spec, **arguments)  # type: ignore[arg-type]


def differing(a: dict, b: dict) -> set[str]:
    assert a.keys() == b.keys()
    return {part for part in a if a[part] != b[part]}


def flip_last_bit(tensor: Tensor) -> None:
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # whatever the memory format
    storage[-tensor.element_size()] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda net: flip_last_bit(net.conv.weight),
        lambda net: flip_last_bit(net.mean),  # a buffer that is not saved
        lambda net: flip_last_bit(net.hidden[0].bias),
        lambda net: setattr(net, "mean", net.mean.double()),
        lambda net: setattr(net, "mean", net.mean[None]),
        lambda net: setattr(net.conv, "bias", None),
        lambda net: (setattr(net, "conv", net.norm), setattr(net, "norm", net.conv)),
        lambda net: setattr(net, "num_segments", 8.0),  # which equals the int
        lambda net: setattr(net.norm, "eps", math.nextafter(net.norm.eps, 1)),
        lambda net: setattr(net, "mode", Mode.EXACT),
        lambda net: setattr(net, "options", Options(0.25)),
        lambda net: net.extra["names"].append("c"),
        lambda net: net.extra["unordered"].add("w"),
    ],
)
def test_all_that_a_network_computes_with_is_in_the_key(change: Callable[[Net], object]) -> None:
    before, network = key_of(Net()), Net()
    change(network)
    assert differing(before, key_of(network)) == {"network"}


def test_what_makes_no_difference_is_not_in_the_key() -> None:
    network = Net()
    before = key_of(network)
    network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    network.hidden[0].weight = nn.Parameter(network.hidden[0].weight.t().contiguous().t())  # other strides
    assert key_of(network) == before
    assert key_of(copy.deepcopy(network), replace(SPEC, device="cpu:0")) == before


def keys_of_networks() -> list[dict]:
    torch.manual_seed(0)
    return [key_of(Net()), key_of(FrameClassifier(create_model("tdn_resnet_small", num_classes=5, num_segments=4)))]


def test_the_key_is_the_same_in_every_process() -> None:
    program = f"import json, {__name__} as tests; print(json.dumps(tests.keys_of_networks()))"
    path = os.pathsep.join(map(str, (ROOT, TESTS)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    output = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(output) == json.loads(json.dumps(keys_of_networks()))


def test_source_files_are_in_the_key(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "network_on_disk.py").write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = importlib.import_module("network_on_disk").Net()
    with pytest.raises(NotCacheable, match=r"network_on_disk\.py was edited while this process ran: restart it"):
        key_of(network)
    monkeypatch.setattr(engines.key, "IMPORTED_S", math.inf)
    before = key_of(network)
    (tmp_path / "helper.py").write_text("SHIFT = 1\n")
    assert differing(before, key_of(network)) == {"sources"}


def test_all_that_an_engine_is_built_with_is_in_the_key(monkeypatch) -> None:
    before = key_of(Net())
    frames = torch.zeros(2, 3, dtype=torch.uint8)
    for part, change in (
        ("engine", {"name": "openvino"}),
        ("spec", {"spec": replace(SPEC, precision="fp16")}),
        ("spec", {"spec": replace(SPEC, frames_shape=(8, 1, 32, 32, 3))}),
        ("versions", {"libraries": ["onnx", "no-such-library"]}),
        ("calibration", {"calibration": [frames]}),
    ):
        assert differing(before, key_of(Net(), **change)) == {part}
    choices = ([frames], [frames + 1], [frames, frames + 1], [frames + 1, frames], [frames.reshape(3, 2)])
    keys = [key_of(Net(), calibration=choice) for choice in choices]
    assert all(differing(a, b) == {"calibration"} for a, b in itertools.combinations(keys, 2))
    monkeypatch.setattr(engines.key, "distributions", lambda name: [SimpleNamespace(version="0.0.1")])
    assert differing(before, key_of(Net())) == {"versions"}


def test_the_processor_is_in_the_key(monkeypatch) -> None:
    def on(cpu: str) -> dict:
        monkeypatch.setattr(Path, "read_text", lambda path, **options: f"model name: {cpu}\n\nmodel name: X{cpu}\n")
        return key_of(Net())

    assert on("Fast 9\ncpu MHz: 1\nflags: avx2") == on("Fast 9\ncpu MHz: 2\nflags: avx2")
    assert differing(on("Fast 9\nflags: avx2"), on("Fast 8\nflags: avx2")) == {"machine"}
    assert differing(on("Fast 9\nflags: avx2"), on("Fast 9\nflags: avx2 avx512f")) == {"machine"}


def test_the_card_is_in_the_key_and_its_number_is_not(monkeypatch) -> None:
    none = key_of(Net(), replace(SPEC, device="cuda"))
    card = {"name": "Card 1", "major": 9, "minor": 0, "multi_processor_count": 132}
    cards = [card, card, card | {"name": "Card 2"}, card | {"minor": 1}, card | {"multi_processor_count": 16}]
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "600.1", NVMLError=OSError)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**cards[int(device[-1])]))
    keys = [key_of(Net(), replace(SPEC, device=f"cuda:{index}")) for index in range(len(cards))]
    assert keys[0] == keys[1]
    assert all(differing(keys[0], other) == {"machine"} for other in (none, *keys[2:]))
    monkeypatch.setattr(nvml, "nvmlSystemGetDriverVersion", lambda: "600.2")
    assert differing(keys[0], key_of(Net(), replace(SPEC, device="cuda:0"))) == {"machine"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "forward", lambda x: x), r"Net\.forward is a function, unfit for the engine cache"),
        (lambda net: setattr(net, "odd", torch.ones(2).to_sparse()), r"Net\.odd is no plain tensor"),
        (lambda net: net.norm.register_forward_hook(print), r"Net\.norm has a forward hook"),
        (lambda net: net.norm.register_forward_pre_hook(print), r"Net\.norm has a forward hook"),
        (lambda net: setattr(net, "odd", torch.fx.symbolic_trace(nn.ReLU())), r"Net\.odd\._\w+ is a"),
        (lambda net: net.extra.update(net=[net]), "nests too deep"),
        (lambda net: setattr(net, "odd", TYPED_IN()), r"Net\.odd is a Typed, which has no source file"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Callable[[Net], object], message: str) -> None:
    network = Net()
    change(network)
    with pytest.raises(NotCacheable, match=message):
        key_of(network)


def test_an_engine_is_built_once_and_again_for_another_weight(tmp_path: Path) -> None:
    def run() -> tuple[Tensor, bool]:
        with create_engine("onnx", network, SPEC, cache=tmp_path) as engine:
            return engine(frames), engine.details()["from_cache"]  # type: ignore[return-value]

    pytest.importorskip("onnxruntime")
    network, frames = Net(), torch.randint(0, 256, (2, *SPEC.frames_shape), dtype=torch.uint8)
    (first, built), (second, loaded) = run(), run()
    assert (built, loaded) == (False, True)
    assert torch.equal(first, second)
    network.head.bias.data += 1
    third, found = run()
    assert not found
    torch.testing.assert_close(third, first + 1)
    network.odd = torch.relu
    with pytest.warns(UserWarning, match=r"this engine is not cached: Net\.odd is a builtin"):
        assert not run()[1]


def fetch(folder: Path, build: Any = CONTENT, key: dict = KEY, **options: Any) -> tuple[bytes, bool]:
    """What the cache hands out, and whether it had it; `build` may be just the content to write."""
    with cached(folder, key, build if callable(build) else lambda path: path.write_bytes(build), **options) as artifact:
        return artifact.path.read_bytes(), artifact.hit


def test_a_second_call_is_a_hit(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert fetch(folder, suffix=".onnx") == (CONTENT, False)
    assert fetch(folder, b"again", dict(reversed(KEY.items())), suffix=".onnx") == (CONTENT, True)
    assert fetch(folder, b"other", OTHER, suffix=".onnx") == (b"other", False)
    assert {path.suffix for path in folder.iterdir()} == {".onnx", ".json", ".lock"}


@pytest.mark.parametrize("suffix", [".engine", ".json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
)
def test_damage_is_rebuilt(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    fetch(tmp_path)
    damage(*tmp_path.glob(f"*{suffix}"))
    assert fetch(tmp_path, b"built again") == (b"built again", False)
    assert fetch(tmp_path) == (b"built again", True)


@settings(max_examples=100)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_never_handed_out(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        fetch(Path(name))
        path = data.draw(st.sampled_from([*Path(name).glob("*.engine"), *Path(name).glob("*.json")]))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert fetch(Path(name), b"built again") == (b"built again", False)


def test_files_of_another_entry_are_not_handed_out(tmp_path: Path) -> None:
    fetch(tmp_path, b"this", KEY)
    (first,) = tmp_path.glob("*.engine")
    fetch(tmp_path, b"that", OTHER)
    (second,) = set(tmp_path.glob("*.engine")) - {first}
    shutil.copy(second, first)
    assert fetch(tmp_path, b"built again") == (b"built again", False)
    shutil.copy(second, first)
    shutil.copy(second.with_suffix(".json"), first.with_suffix(".json"))
    assert fetch(tmp_path, b"built again") == (b"built again", False)


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fetch(tmp_path, lambda path: path.write_bytes(CONTENT) / 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert fetch(tmp_path) == (CONTENT, False)


def build_slowly(path: Path, pause_s: float = 0.5) -> None:
    path.write_bytes(b"half")
    time.sleep(pause_s)
    path.write_text(f"whole, by {os.getpid()}")


def test_six_processes_build_once(tmp_path: Path) -> None:
    with fork.Pool(6) as pool:
        got = pool.starmap(fetch, [(tmp_path, build_slowly)] * 6, chunksize=1)
    (content,) = {content for content, _ in got}
    assert content.startswith(b"whole")
    assert sorted(hit for _, hit in got) == [False] + [True] * 5


def test_a_killed_builder_blocks_nobody_and_its_half_goes(tmp_path: Path) -> None:
    process = fork.Process(target=fetch, args=(tmp_path, partial(build_slowly, pause_s=600)), daemon=True)
    process.start()
    while process.is_alive() and not any(tmp_path.glob("*.part/*")):
        time.sleep(0.01)
    assert fetch(tmp_path, b"other", OTHER, keep_bytes=0) == (b"other", False)
    assert list(tmp_path.glob("*.part")), "the work of a living builder was removed"
    process.kill()
    process.join()
    prune(tmp_path)
    assert not list(tmp_path.glob("*.part"))
    assert fetch(tmp_path) == (CONTENT, False)


def test_prune_removes_the_least_recently_used_but_none_in_use(tmp_path: Path) -> None:
    def use(number: int, **options: int) -> bool:
        time.sleep(0.02)  # the clock of files ticks every few ms
        return fetch(tmp_path, b"%d" % number * 10_000, {"number": number}, **options)[1]

    def kept() -> str:
        assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.engine"))) - 1
        return "".join(sorted(path.read_text()[0] for path in tmp_path.glob("*.engine")))

    (tmp_path / "mine.engine").write_bytes(b"m" * 10**6), (tmp_path / "mine.lock").touch()
    assert [use(number) for number in (0, 1, 2, 3, 0)] == [False, False, False, False, True]
    prune(tmp_path, keep_bytes=25_000)
    assert kept() == "03m"
    with cached(tmp_path, {"number": 3}, Path.touch):
        use(4, keep_bytes=1)
        assert kept() == "34m"
    prune(tmp_path, keep_bytes=0)
    assert kept() == "m"


def test_a_folder_that_cannot_be_made_is_refused_or_the_default_done_without(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineError, match=f"cannot use the engine cache {folder}: .*; name another folder"):
            fetch(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache_dir() == tmp_path / "file" / "tdn_bench" / "engines"
    with pytest.warns(UserWarning, match=f"cannot write to the engine cache {default_cache_dir()}, engines") as caught:
        assert fetch(default_cache_dir()) == (CONTENT, False)
    assert len(caught) == 1


def test_a_folder_that_is_only_readable_gives_hits_and_takes_no_engines(monkeypatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder, user = Path(name), os.geteuid()
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        try:
            if user == 0:
                os.chown(folder, 65534, 65534)
                os.seteuid(65534)  # root may write everywhere
            fetch(folder)
            for path in (*folder.glob("*.*"), folder):
                path.chmod(0o555)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert fetch(folder, b"again") == (CONTENT, True)
            with pytest.warns(UserWarning, match=f"cannot write to the engine cache {folder}") as caught:
                assert fetch(folder, b"other", OTHER) == (b"other", False)
            assert len(caught) == 1
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def plant(folder: Path, content: bytes, key: dict = KEY) -> Path:
    """What somebody who knows the key and the format can put into a cache: all but the seal."""
    fetch(folder, b"the user's own", key)
    (payload,) = folder.glob("*.engine")
    header = payload.with_suffix(".json")
    about = json.loads(header.read_text())
    about["sha256"] = hashlib.sha256(content).hexdigest()
    payload.write_bytes(content)
    header.write_text(json.dumps(about, sort_keys=True, indent=1))
    return payload


def test_what_somebody_else_built_is_built_anew_and_said(tmp_path: Path, monkeypatch) -> None:
    payload = plant(tmp_path, b"planted")
    with pytest.warns(UserWarning, match=f"{payload} is not what you built here: it is built anew"):
        assert fetch(tmp_path) == (CONTENT, False)
    assert fetch(tmp_path) == (CONTENT, True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    with pytest.warns(UserWarning, match="built anew"):
        assert fetch(tmp_path, b"again") == (b"again", False)


@pytest.mark.parametrize("name", ["*.engine", "*.json"])
@pytest.mark.parametrize("mode", [0o666, 0o602])
def test_an_entry_that_others_can_write_is_built_anew(tmp_path: Path, name: str, mode: int) -> None:
    fetch(tmp_path)
    (path,) = tmp_path.glob(name)
    path.chmod(mode)
    with pytest.warns(UserWarning, match="built anew"):
        assert fetch(tmp_path, b"again") == (b"again", False)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}


@pytest.mark.parametrize("name", ["*.engine", "*.json"])
def test_a_link_to_a_whole_entry_is_not_followed(tmp_path: Path, name: str) -> None:
    fetch(tmp_path / "mine")
    (path,) = (tmp_path / "mine").glob(name)
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    assert fetch(tmp_path / "mine", b"again") == (b"again", False)
    assert (tmp_path / path.name).read_bytes() != b"again"


def test_a_folder_that_others_can_write_is_refused_or_the_default_done_without(tmp_path: Path, monkeypatch) -> None:
    (folder := tmp_path / "tdn_bench" / "engines").mkdir(parents=True)
    fetch(folder)
    folder.chmod(0o777)
    with pytest.raises(
        EngineError, match=f"{folder} can be written by other users.* chmod go-w {folder}; name another"
    ):
        fetch(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="can be written by other users"):
        assert fetch(folder, b"again") == (b"again", False)


def test_without_a_place_for_the_seal_nothing_is_kept_and_nothing_believed(tmp_path: Path, monkeypatch) -> None:
    fetch(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="engines are built anew at every start"):
        assert fetch(tmp_path, b"again") == (b"again", False)


def test_a_planted_package_never_runs(tmp_path: Path) -> None:
    """The whole way, with an engine whose loader runs what the file says, as AOTInductor's does."""
    from engines.base import FileEngine

    class Loads(FileEngine):
        name, cpu_precisions, suffix, libraries = "loads", ("fp32",), ".py", ()
        ran: list[str] = []  # noqa: RUF012

        def __init__(self, spec: EngineSpec, path: Path) -> None:
            super().__init__(spec, path)
            exec(path.read_text(), {"ran": self.ran})  # as a loader of packages does

        @classmethod
        def build(cls, network, spec, calibration, path: Path) -> None:
            path.write_text("ran.append('mine')")

        def _run(self, frames: Tensor) -> Tensor:
            return frames

        def details(self) -> dict[str, object]:
            return {}

        @staticmethod
        def what_is_missing(device: str) -> None:
            return None

    network = Net()
    Loads.create(network, SPEC, None, tmp_path)
    (payload,) = tmp_path.glob("*.py")
    payload.write_text("ran.append('planted')")
    header = payload.with_suffix(".json")
    about = json.loads(header.read_text())
    about["sha256"] = hashlib.sha256(payload.read_bytes()).hexdigest()
    header.write_text(json.dumps(about, sort_keys=True, indent=1))
    with pytest.warns(UserWarning, match="built anew"):
        Loads.create(network, SPEC, None, tmp_path)
    assert Loads.ran == ["mine", "mine"]
