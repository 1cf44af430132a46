"""Progress: lines where nobody looks at a terminal, a bar where somebody does, and a time left that can be believed."""

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT

from pipelines import progress as module
from pipelines.progress import duration, progress, set_quiet, tracked


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_lines_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with progress("Evaluating", 24777) as advance:
        for _ in range(50):
            clock.now += 1
            advance(100)
    out, err = capsys.readouterr()
    assert out == ""
    first, *more, last = err.splitlines()
    assert first == "Evaluating: 1,000 of 24,777 videos, 3 min 58 s left"  # 237.77 s at 100 a second
    assert len(more) == 4
    assert last == "Evaluating: 5,000 of 24,777 videos in 50 s"
    assert "\x1b" not in err


def test_short_and_failed_work_says_no_end(clock, capsys):
    with progress("Evaluating", 5) as advance:
        clock.now += 1
        advance(5)
    assert capsys.readouterr().err == ""

    def fail():
        with progress("Evaluating", 5) as advance:
            clock.now += 11
            advance(1)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert capsys.readouterr().err == "Evaluating: 1 of 5 videos, 44 s left\n"


def test_nothing_is_known_before_the_first_and_of_a_burst_at_the_start(clock):
    pace = module.Pace(100, "videos")
    assert pace.left() == ""
    pace.add(32)  # decoded ahead: all at once
    assert pace.left() == ""
    clock.now = 8
    pace.add(8)
    assert pace.left() == "12 s left"  # 40 in 8 s
    clock.now = 11
    assert pace.left() == "9 s left"  # it goes down between reports
    clock.now = 100
    assert pace.left() == "0 s left"


def test_what_was_done_before_is_no_speed(clock):
    pace = module.Pace(1000, "videos", done=900)
    clock.now = 10
    pace.add(10)
    assert pace.count() == "910 of 1,000 videos"
    assert pace.left() == "1 min 30 s left"


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 10**6)), max_size=20),
    st.one_of(st.none(), st.integers(0, 10**7)),
    st.integers(0, 100),
)
def test_left_is_a_time_or_nothing(reports, total, done):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        pace = module.Pace(total, "videos", done)
        for seconds, more in reports:
            clock.now += seconds
            pace.add(more)
            assert re.fullmatch(r"|\d+ s left|\d+ min \d\d s left|[\d,]+ h \d\d min left", pace.left())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (303, "5 min 03 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_quiet_hidden_inner_and_empty_ones_are_silent(clock, capsys):
    def work(**options):
        with progress("Working", options.pop("total", 4), **options) as advance:
            clock.now += 20
            advance(4)

    work(shown=False)
    work(total=0)
    set_quiet(True)
    work()
    set_quiet(False)
    assert capsys.readouterr().err == ""
    with progress("Outer", None, "") as advance:
        work()
        advance()
    assert capsys.readouterr().err.splitlines() == ["Outer", "Outer: in 20 s"]


def test_tracked_gives_the_items(clock, capsys):
    def slow():
        for i in range(3):
            clock.now += 6
            yield i

    assert list(tracked(slow(), "Reading", 3, "files")) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 2 of 3 files, 6 s left",
        "Reading: 3 of 3 files in 18 s",
    ]


def test_nobody_reads(clock, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        with progress("Evaluating", 2) as advance:
            clock.now += 20
            advance(2)
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            closed.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())


PROGRAM = """
import sys, time
from pipelines.progress import progress
with progress("Evaluating {x} [red]", 3, still=len(sys.argv) > 1) as advance:
    for i in range(3):
        print("answer", i)
        print("note", i, file=sys.stderr)
        time.sleep(0.6)
        advance(1, "going well")
"""


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_at_a_terminal(still, term):
    """stderr is a terminal, stdout a pipe: the bar is on the one, and what is printed stays on the other."""
    ours, its = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *["still"] * still],
        cwd=ROOT,
        env=os.environ | {"TERM": term, "NO_COLOR": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
        timeout=60,
    )
    os.close(its)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # its other end is closed
            break
        if not more:
            break
        shown += more
    os.close(ours)
    text = shown.decode()
    assert done.returncode == 0, text
    assert done.stdout == "answer 0\nanswer 1\nanswer 2\n"
    assert all(f"note {i}" in text for i in range(3))
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", text)  # NO_COLOR
    if term == "dumb":
        assert "\x1b" not in text
    else:
        assert "Evaluating {x} [red]" in text
        assert " of 3 videos" in text
