"""Workers that take turns: order, fresh processes, errors in one line, other commits; and one real worker."""

import math
import subprocess
from pathlib import Path

import pytest
import torch

import tdn_bench.regression.interleaving as interleave_module
from tdn_bench.errors import UserError
from tdn_bench.regression.budget import Budget, OutOfTime
from tdn_bench.regression.interleaving import WorkerProcess, WorkerSpec, checked_out, interleave

FAKE = """
import os, sys, time
from multiprocessing.connection import Connection

pipe = Connection(int(sys.argv[1]))
setup = pipe.recv()
name, ms, log = setup["flags"]
if ms == "broken":
    raise SystemExit("a line of no interest\\nit fell over")
if ms == "hangs":
    time.sleep(600)
if ms == "refuses":
    pipe.send(RuntimeError("no such engine"))
pipe.send({"pid": os.getpid(), "path": sys.path[0]})
while True:
    try:
        request, argument = pipe.recv()
    except EOFError:
        break
    if request == "turn":
        with open(log, "a") as f:
            f.write(name)
        pipe.send({"path_ms": float(ms), "parts": float(len(argument[0]))})
    else:
        pipe.send({"host_bytes": 1000.0})
"""


@pytest.fixture
def fake(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def make(name: str, ms: object) -> WorkerSpec:
        return WorkerSpec(name, (name, str(ms), str(tmp_path / "log")), ("path",), script=script)

    return make


def test_turns_alternate_and_rounds_are_fresh_processes(fake, tmp_path):
    rounds = list(interleave([fake("A", 2), fake("B", 3), fake("C", 4)], videos=1, rounds=2, round_s=0, min_turns=3))
    warm = "ABC"
    assert (tmp_path / "log").read_text() == 2 * (warm + "ABCCBAABCCBA")  # an even number of turns
    found = rounds[-1]
    assert found.times["B"]["path_ms"] == [[3.0] * 4] * 2
    assert found.turns() == [4, 4]
    assert found.samples()["C_path_ms"] == [4.0] * 8
    assert found.memory["A"] == {"host_bytes": [1000.0, 1000.0]}
    assert found.log_ratio(("B", "path_ms"), ("A", "path_ms")) == [[math.log(1.5)] * 4] * 2
    assert len(found.status) == 2


def test_each_round_has_new_processes(fake):
    pids = set()
    for _ in range(2):
        with interleave_module.started([fake("A", 1)], 1) as (_, facts, _):
            pids.add(facts[0]["pid"])
    assert len(pids) == 2


class Card:
    """A GpuMonitor of a card that was slowed down, with `processes` on it."""

    reasons, processes = 0.0, 2.0

    def __init__(self, device):
        assert device == torch.device("cuda:1")

    def __enter__(self):
        self.samples = {"throttle_reasons": [0.0, self.reasons], "compute_processes": [self.processes]}
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("reasons", "processes", "says"),
    [(0x20, 2, "the GPU was slowed down by its temperature or power supply"), (0, 3, "other processes used the GPU")],
)
def test_rounds_are_void_where_the_card_was_disturbed(fake, monkeypatch, reasons, processes, says):
    monkeypatch.setattr(Card, "reasons", reasons)
    monkeypatch.setattr(Card, "processes", processes)
    monkeypatch.setattr(interleave_module, "GpuMonitor", Card)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    pair = [fake("A", 1), fake("B", 1)]
    found = list(interleave(pair, videos=1, rounds=2, round_s=0, device="cuda:1"))[-1]
    assert found.status == ["void", "void"]
    assert found.worst == "void"
    assert f"round 2: {says}" in found.reasons
    assert found.samples()["gpu_compute_processes"] == [processes] * 2


@pytest.mark.parametrize(("how", "says"), [("broken", "A: it fell over"), ("refuses", "A: no such engine")])
def test_what_goes_wrong_there_is_one_line_here(fake, how, says):
    with pytest.raises(UserError, match=f"^{says}$"):
        next(interleave([fake("A", how)], videos=1, rounds=1, round_s=0))


class Jumps:
    """A clock that stands still for a while and then is far on."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self):
        self.looks -= 1
        return 0.0 if self.looks > 0 else 1e6


def test_a_worker_that_hangs_is_ended_when_the_time_is_over(fake, monkeypatch):
    monkeypatch.setattr(interleave_module, "POLL_S", 0.01)
    budget = Budget(60, 6, Jumps(20))
    with pytest.raises(OutOfTime, match=r"^--max-seconds 60: 6 rounds"):
        list(interleave([fake("A", 1), fake("B", "hangs")], videos=1, rounds=9, round_s=0, budget=budget))


def test_with_enough_rounds_a_round_that_is_not_over_does_not_count(fake, monkeypatch):
    monkeypatch.setattr(interleave_module, "POLL_S", 0.01)
    workers = [fake("A", 1), fake("B", 2)]
    whole = list(interleave(workers, videos=1, rounds=1, round_s=0, budget=Budget(60, 1)))[-1]
    assert whole.turns() == [4]
    clock = Jumps(10**9)
    rounds = []
    for found in interleave(workers, videos=1, rounds=9, round_s=0, budget=Budget(60, 1, clock)):
        rounds.append(found)
        clock.looks = 6  # so the next one is cut off
    assert len(rounds) == 1
    assert rounds[0].turns() == [4]
    assert len(rounds[0].status) == 1


def test_another_commit_is_a_checkout_of_its_own(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    for text in ("old", "new"):
        (tmp_path / "what").write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
    monkeypatch.setattr(interleave_module, "HERE", tmp_path)
    with checked_out("HEAD~1") as tree:
        assert (tree / "what").read_text() == "old"
    assert not tree.exists()
    assert (tmp_path / "what").read_text() == "new"
    with pytest.raises(UserError, match=r"commit nope: .*name one that this clone holds"), checked_out("nope"):
        pass
    monkeypatch.setattr(interleave_module, "HERE", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no git checkout"), checked_out("HEAD"):
        pass


def test_a_real_worker_times_all_its_parts(small_checkpoint, motion_data):
    flags = ("--engine", "eager", "--data", str(motion_data), "--checkpoint", str(small_checkpoint), "--device", "cpu")
    parts = ("loader", "engine", "path", "train", "reference")
    spec = WorkerSpec("A", (*flags, "--batch-size", "4", "--workers", "1"), parts)
    process = WorkerProcess(spec, videos=8, device="cpu")
    try:
        facts = process.receive()
        assert facts["videos"] == 8
        assert facts["agreement_with_eager_fp32"]["max_difference"] < 1e-3
        times = process.turn()
        assert {"loader_ms", "decode_ms", "infer_ms", "path_ms", "train_ms", "reference_ms"} <= times.keys()
        assert all(math.isfinite(value) and value >= 0 for value in times.values())
        scores = process.scores()
        assert len(scores.ids) == 8
        assert scores.logits.shape == (8, 1, 8)
        peak = process.peak_memory()
        assert not Path("/proc/self/clear_refs").exists() or peak["host_bytes"] > 1e7
    finally:
        process.close()
