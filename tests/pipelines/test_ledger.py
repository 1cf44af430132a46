"""The ledger: sums against a slow formulation, what it must explain and must not, its trace, and a GPU's clock."""

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.flags import configure
from torch import Tensor

from pipelines import ledger as module
from pipelines import loader as loader_module
from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.ledger import IDLE, OFF, WORK, Lane, Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Videos
from pipelines.plan import ClipPlan
from pipelines.video import Sample, Video, VideoFile
from tdn_bench.measurement.throughput import Throughput, measure, run_batches
from tdn_bench.measurement.time_breakdown import TimeBreakdown, break_down, write_trace

SPEC = ClipSpec(num_segments=2, size=16)


def finished(rows: dict[str, dict[str, float]], wall_s: float) -> Ledger:
    """A ledger whose threads booked these seconds by stage within one period."""
    ledger = Ledger()
    ledger.since_s, ledger.until_s = 100.0, 100.0 + wall_s
    for name, seconds in rows.items():
        lane = Lane(name)
        lane.born_s = 0.0
        for stage, s in seconds.items():
            lane.seconds[stage] = s
        (ledger.device_lanes if name.startswith("cuda") else ledger.lanes).append(lane)
        if name == "consumer":
            ledger.consumer = lane
    return ledger


spans = st.lists(
    st.tuples(st.sampled_from((*WORK, IDLE)), st.integers(-20, 120), st.integers(0, 40)), min_size=1, max_size=30
)


@given(spans)
def test_sums_are_those_of_the_spans_within_the_period(spans: list[tuple[str, int, int]]) -> None:
    """Slowly: count the whole seconds from 0 to 100 that a span covers."""
    lane = Lane(since_s=0.0, trace=True)
    lane.until_s = 100.0
    for stage, start, length in spans:
        lane.add(stage, float(start), float(start + length), "v")
    for stage in (*WORK, IDLE):
        expected = sum(1 for s, start, n in spans if s == stage for t in range(start, start + n) if 0 <= t < 100)
        assert lane.seconds[stage] == expected
        assert lane.spans is not None
        assert sum(end - start for s, start, end, _ in lane.spans if s == stage) == expected
    assert lane.spans is not None
    assert all(0 <= start < end <= 100 for _, start, end, _ in lane.spans)


def test_the_account_of_a_constructed_timeline() -> None:
    breakdown = break_down(
        finished(
            {
                "decode_0": {"read": 1, "decode": 6, "augment": 1, IDLE: 2},
                "decode_1": {"read": 1, "decode": 7, "augment": 1.5, IDLE: 0.5},
                "loader_0": {"copy": 0.5, IDLE: 9.4},
                "loader_1": {IDLE: 3},  # never worked: its time needs no explanation
                "consumer": {"infer": 4, "copy_back": 1, IDLE: 4.2},
            },
            wall_s=10,
        )
    )
    assert breakdown.bottleneck == "decode"
    assert breakdown.overlap_efficiency == pytest.approx((8 + 9.5) / 2 / 10)
    assert {r["thread"]: r["unexplained_percent"] for r in breakdown.threads} == pytest.approx(
        {"decode_0": 0, "decode_1": 0, "loader_0": 1, "consumer": 8}
    )
    assert breakdown.unexplained_percent == pytest.approx(8)
    (reason,) = breakdown.reasons()
    assert "8.0 %" in reason
    assert "consumer" in reason
    figures = breakdown.figures(videos=100)
    assert figures["ledger_decode_ms"] == pytest.approx(130)
    assert figures["ledger_infer_ms"] == pytest.approx(40)
    assert figures["ledger_idle_ms"] == pytest.approx(42)  # the consumer's
    assert figures["ledger_demux_ms"] == 0


def test_a_gpus_own_clock_counts_for_what_it_did() -> None:
    rows = {
        "decode_0": {"decode": 2, IDLE: 8},
        "consumer": {"infer": 9.6, IDLE: 0.4},  # waits for the GPU
        "cuda-loader_0": {"copy": 0.5},
        "cuda-MainThread": {"infer": 9.7},
    }
    breakdown = break_down(finished(rows, wall_s=10))
    assert (breakdown.bottleneck, breakdown.overlap_efficiency) == ("infer", pytest.approx(0.97))
    assert breakdown.stages_s["infer"] == pytest.approx(9.7)
    assert breakdown.stages_s["copy"] == pytest.approx(0.5)
    assert breakdown.unexplained_percent == pytest.approx(0)  # nobody asks a GPU what it did between two launches


class Sleeper:
    """A backend of two threads whose stages are sleeps: 1 read, 3 decode, 2 augment."""

    name, device, concurrent = "sleeper", torch.device("cpu"), True
    SHARES = (("read", 1), ("decode", 3), ("augment", 2))

    def __init__(self, ledger: Ledger, unit_s: float) -> None:
        self.ledger, self.unit_s = ledger, unit_s
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="decode")

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
        clips: list[Tensor | BadClip] = list(self.pool.map(self.one, plans))
        self.ledger.lane().lap(IDLE)
        return clips

    def one(self, plan: ClipPlan) -> Tensor:
        lane = self.ledger.lane()
        lane.begin(plan.video.id)
        for stage, share in self.SHARES:
            time.sleep(share * self.unit_s)
            lane.lap(stage)
        lane.end()
        return torch.zeros(SPEC.shape, dtype=torch.uint8)

    def close(self) -> None:
        self.pool.shutdown()


def asleep(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, unit_s: float = 0.006, count: int = 16) -> ClipLoader:
    file = VideoFile(width=32, height=32, num_frames=20)
    rows = [Video(Sample(f"v{i}", f"/v{i}", i % 3, "train"), file) for i in range(count)]
    monkeypatch.setattr(loader_module, "create_decoder", lambda *_: Sleeper(ledger, unit_s))
    return ClipLoader(Videos.of(rows), SPEC, 4, ledger=ledger)


def sleeping_network(seconds: float) -> Callable[[Tensor], Tensor]:
    def classify(frames: Tensor) -> Tensor:
        time.sleep(seconds)
        return frames.flatten(1)[:, :3].float()

    return classify


def run_asleep(monkeypatch: pytest.MonkeyPatch, infer_s: float, ledger: Ledger | None = None) -> TimeBreakdown:
    ledger = ledger or Ledger()
    with asleep(monkeypatch, ledger) as loader:
        list(loader.epoch())  # as a warm-up: none of it may count
        run_batches(loader, sleeping_network(infer_s), passes=2)
    return break_down(ledger)


def test_known_sleeps_come_out_as_stages_and_explain_the_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    breakdown = run_asleep(monkeypatch, infer_s=0.002)
    read, decode, augment = (breakdown.stages_s[stage] for stage, _ in Sleeper.SHARES)
    assert decode / read == pytest.approx(3, rel=0.35)  # a busy machine oversleeps, short sleeps the most
    assert augment / read == pytest.approx(2, rel=0.35)
    assert breakdown.bottleneck == "decode"
    assert 0.5 < breakdown.overlap_efficiency <= 1
    assert breakdown.unexplained_percent < 5
    assert breakdown.reasons() == []
    assert {row["thread"].partition("_")[0] for row in breakdown.threads} == {"decode", "loader", "consumer"}


def test_a_slow_network_is_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    breakdown = run_asleep(monkeypatch, infer_s=0.15)
    assert breakdown.bottleneck == "infer"
    assert 0.5 < breakdown.overlap_efficiency <= 1


def test_work_that_nobody_books_is_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer sleeps where no stage is measured."""
    ledger = Ledger()
    with asleep(monkeypatch, ledger) as loader:
        real = loader.epoch

        def epoch(*args: int, **options: int):  # type: ignore[no-untyped-def]
            for batch in real(*args, **options):
                time.sleep(0.02)
                yield batch

        monkeypatch.setattr(loader, "epoch", epoch)
        run_batches(loader, sleeping_network(0.01), passes=2)
    breakdown = break_down(ledger)
    rows = {row["thread"]: row["unexplained_percent"] for row in breakdown.threads}
    assert rows["consumer"] == breakdown.unexplained_percent > 5
    assert max(share for name, share in rows.items() if name.startswith("decode")) < 5
    assert any("consumer" in reason for reason in breakdown.reasons())


def test_a_consumer_that_only_waits_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    with asleep(monkeypatch, ledger) as loader:
        run_batches(loader, None, passes=1)
    breakdown = break_down(ledger)
    (row,) = (row for row in breakdown.threads if row["thread"] == "consumer")
    assert row["busy_percent"] == 0
    assert row["unexplained_percent"] < 25  # a busy machine lets a thread wait before it books
    assert row["idle_s"] == pytest.approx(breakdown.stages_s[IDLE])


def test_a_second_period_begins_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(trace=True)
    with asleep(monkeypatch, ledger) as loader:
        for _ in range(2):
            run_batches(loader, sleeping_network(0.002), passes=1)
            wall_s = ledger.until_s - ledger.since_s
            for lane in ledger.lanes:
                assert lane.busy_s + lane.seconds[IDLE] <= wall_s * 1.001
                assert lane.spans is not None
                assert all(ledger.since_s <= s < e <= ledger.until_s + 1e-9 for _, s, e, _ in lane.spans)
    names = [lane.name for lane in ledger.lanes]
    assert names.count("consumer") == 1
    assert len(names) == len(set(names))  # the first run's loader threads are gone


def test_a_trace_names_every_thread_and_nests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ledger = Ledger(trace=True)
    run_asleep(monkeypatch, 0.002, ledger)
    write_trace(ledger, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = trace["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert {e["ph"] for e in events} == {"M", "X"}
    assert {e["tid"] for e in events if e["ph"] == "X"} == set(names)
    assert {"consumer", "decode_0", "loader_0"} <= set(names.values())
    assert trace["otherData"] == {}
    for tid in names:
        open_until: list[float] = []
        before = 0.0
        for e in (e for e in events if e["ph"] == "X" and e["tid"] == tid):
            assert e["ts"] >= before
            before = e["ts"]
            while open_until and open_until[-1] <= e["ts"] + 0.002:
                open_until.pop()
            assert not open_until or e["ts"] + e["dur"] <= open_until[-1] + 0.002  # rounded to nanoseconds
            open_until.append(e["ts"] + e["dur"])
    decoded = [e["args"]["of"] for e in events if e["name"] == "decode"]
    assert sorted(decoded) == sorted([f"v{i}" for i in range(16)] * 2)  # two passes, none of the warm-up


def test_a_trace_keeps_no_more_than_its_share_of_memory_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "MAX_SPANS", 5)
    monkeypatch.setattr("tdn_bench.measurement.time_breakdown.MAX_SPANS", 5)
    ledger = Ledger(trace=True)
    ledger.start()
    for i in range(9):
        ledger.lane().add("infer", time.perf_counter(), time.perf_counter() + 1e-3, f"batch {i}")
    ledger.stop()
    write_trace(ledger, tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    assert len([e for e in trace["traceEvents"] if e["ph"] == "X"]) == 5
    assert trace["otherData"] == {"cut": "only the first 5 spans of consumer"}


def test_nothing_is_kept_while_the_ledger_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with asleep(monkeypatch, OFF, unit_s=0) as loader:
        assert sum(map(len, loader.epoch())) == 16
    assert OFF.lanes == []
    assert not any(OFF.lane().seconds.values())


class Gpu:
    """CUDA as `on_device` sees it: an event's time is the GPU's clock when it was recorded, in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 7000.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at_ms: float | None = None
                self.done = False

            def record(self, stream: object) -> None:
                assert stream == f"stream of {threading.current_thread().name}"
                self.at_ms = gpu.now_ms

            def synchronize(self) -> None:
                assert self.at_ms is not None
                self.done = True

            def elapsed_time(self, end: "Event") -> float:
                assert self.at_ms is not None
                assert end.at_ms is not None
                assert self.done or end.done, "asked before the work was done"
                return end.at_ms - self.at_ms

        self.Event = Event

    def current_stream(self, device: torch.device) -> str:
        assert device.type == "cuda"
        return f"stream of {threading.current_thread().name}"


def test_work_on_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Gpu()
    monkeypatch.setattr(module.torch, "cuda", gpu)
    ledger = Ledger("cuda", trace=True)
    with ledger.on_device("infer", "warm-up"):  # before the period: not timed
        gpu.now_ms += 999
    ledger.start()
    ledger.until_s = ledger.since_s + 10  # the fake's clock does not wait for ours

    def copy() -> None:
        ledger.lane().begin()
        with ledger.on_device("copy", "batch 0"):
            gpu.now_ms += 2
        ledger.lane().end()

    thread = threading.Thread(target=copy, name="loader_0")
    thread.start()
    thread.join()
    for number in range(2):
        gpu.now_ms += 5  # idle
        with ledger.on_device("infer", f"batch {number}"):
            gpu.now_ms += 30
    by_name = {lane.name: lane for lane in ledger.device_lanes}
    assert by_name["cuda-loader_0"].seconds["copy"] == pytest.approx(0.002)
    infer = by_name["cuda-MainThread"]
    assert infer.seconds["infer"] == pytest.approx(0.060)
    assert infer.spans is not None
    assert [(s, what) for s, _, _, what in infer.spans] == [("infer", "batch 0"), ("infer", "batch 1")]
    starts = [1000 * (start - ledger.since_s) for _, start, _, _ in infer.spans]
    assert starts == pytest.approx([2 + 5, 2 + 5 + 30 + 5])
    write_trace(ledger, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {"cuda-loader_0", "cuda-MainThread"} <= {e["args"]["name"] for e in events if e["ph"] == "M"}


def test_a_gpu_step_that_nobody_waits_for_is_booked_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(module.torch, "cuda", gpu)
    ledger = Ledger("cuda", trace=True)
    for _ in range(2):  # two epochs: the first leaves nothing to the second
        ledger.start()
        gpu_s = 0.004
        for number in range(3):
            gpu.now_ms += 1  # idle
            with ledger.on_device("train", f"step {number}", wait=False):
                gpu.now_ms += 1000 * gpu_s
        lane = ledger.device_lanes[0]
        assert lane.seconds["train"] == 0
        time.sleep(0.02)  # the fake's clock does not wait for ours
        ledger.stop()
        assert lane.seconds["train"] == pytest.approx(3 * gpu_s)
        assert lane.spans is not None
        assert [1000 * (start - ledger.since_s) for _, start, _, _ in lane.spans] == pytest.approx([1, 6, 11])


@pytest.mark.alone
def test_a_whole_run_reconciles_on_both_backends(
    small_checkpoint: Path, motion_data: Path, backend: str, tmp_path: Path
) -> None:
    trace = tmp_path / "sub" / "trace.json"
    config = configure(Throughput(), checkpoint=small_checkpoint, data=motion_data, device="cpu", backend=backend)
    config = configure(config, seconds=1, batch_size=4, workers=1, trace=trace)
    for _ in range(3):  # other programs may keep a thread off its core just where it books nothing
        record = measure(config)
        f = record.figures
        if f["ledger_unexplained_percent"] < 5:
            break
    busy = ("open", "read", "demux") if backend == "pyav" else ("read",)  # DALI opens and demultiplexes inside
    assert all(f[f"ledger_{s}_ms"] > 0 for s in (*busy, "plan", "decode", "augment", "copy", "infer", "copy_back"))
    assert f["ledger_copy_ms"] < f["ledger_decode_ms"]  # waiting for the decoder is no work
    assert f["ledger_unexplained_percent"] < 5, record.details["ledger"]
    assert "reasons" not in record.details
    assert 0 < f["overlap_efficiency"] <= 1
    assert f["bottleneck"] in WORK
    assert {row["thread"].partition("_")[0] for row in record.details["ledger"]} >= {"loader", "consumer"}
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_ledger_of_many_threads_loses_nothing() -> None:
    ledger = Ledger()
    ledger.start()
    booked = [random.Random(i).random() / 1e3 for i in range(400)]

    def book(seconds: float) -> None:
        lane = ledger.lane()
        lane.add("decode", ledger.since_s + 1, ledger.since_s + 1 + seconds)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(book, booked))
    assert sum(lane.seconds["decode"] for lane in ledger.lanes) == pytest.approx(sum(booked))
    assert len({lane.thread for lane in ledger.lanes}) == len(ledger.lanes)
