"""`tdn-bench history`: commits in git's order, machines apart, void runs shown and not joined."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

from tdn_bench.cli import run_command
from tdn_bench.history import main
from tdn_bench.records import make_record, write_record
from tdn_bench.reporting.history import commit_order, lines_of, plot


@pytest.fixture
def commits(tmp_path, monkeypatch):
    """Four commits of a repository that is the working folder, oldest first; all made within a second."""
    monkeypatch.chdir(tmp_path)

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for i in range(4):
        git("commit", "-q", "--allow-empty", "-m", str(i))
    return git("log", "--reverse", "--first-parent", "--format=%H").split()


def record(commit, day, ms, *, machine="m", cpu="x", name="a", **more):
    made = make_record(
        "throughput",
        name,
        figures={"ms_per_video": ms, "real_time": True, "part": {"inner_ms": 2 * ms}},
        samples={"interval_s": [0.01, 0.04, 0.03], "videos": [1, 2, 1]},
        settings={},
        device=torch.device("cpu"),
        **more,
    )
    described = {**made.machine, "name": machine, "cpu": cpu}
    return replace(made, commit=commit, created_utc=f"2026-01-{day:02d}T00:00:00Z", machine=described)


def test_commits_stand_as_git_orders_them_whenever_they_were_measured(commits):
    order = commit_order()
    assert [c for c, _ in sorted(order.items(), key=lambda item: item[1])] == commits
    a, b, c, _ = commits
    measured = ((c, 3, 3.0), (a, 9, 1.0), (b, 2, 2.0), (c, 4, 4.0), (b + "+", 2, 2.5), ("f" * 40, 5, 5.0))
    records = [record(*one) for one in (*measured, (None, 1, 0.5))]
    [points] = lines_of(records, "ms_per_video", order).values()
    labels = ["none?", a[:9], b[:9], b[:9] + "+", c[:9], c[:9], "fffffffff?"]
    assert [p.commit for p in points] == labels
    assert [p.value for p in points] == [0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0]
    [points] = lines_of(records, "ms_per_video", {}).values()  # without git: by time
    assert [p.value for p in points] == [0.5, 2.0, 2.5, 3.0, 4.0, 5.0, 1.0]


def test_machines_kinds_and_names_are_lines_of_their_own():
    records = [record("f" * 40, 1, 1.0, **{key: v}) for key in ("machine", "cpu", "name") for v in ("p", "q")]
    records.append(replace(records[0], kind="loader"))
    lines = lines_of(records, "ms_per_video", {})
    assert len(lines) == 7
    machines = {line[0].split(",")[0] for line in lines}
    assert {"p (x", "m (p", "m (q"} <= machines


def test_bars_are_quartiles_of_what_the_figure_was_made_of():
    made = record(None, 1, 20.0)
    [[point]] = lines_of([made], "ms_per_video", {}).values()
    assert point.quartiles == pytest.approx((15.0, 25.0))  # batches of 10, 20 and 30 ms a video
    [[point]] = lines_of([made], "part.inner_ms", {}).values()
    assert (point.value, point.quartiles) == (40.0, ())
    timed = replace(made, figures={"x_ms": 2.0}, samples={"x_ms": [1.0, None, 2.0, 3.0]})
    for kind, expected in (("benchmark", (1.5, 2.5)), ("train", ())):  # a curve over epochs is no spread
        [[point]] = lines_of([replace(timed, kind=kind)], "x_ms", {}).values()
        assert point.quartiles == pytest.approx(expected)
    assert lines_of([replace(made, figures={"x_ms": None})], "x_ms", {}) == {}


def test_void_is_shown_but_not_joined_and_what_is_not_sound_is_hollow(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda _: None)
    statuses = ("stable", "void", "unstable", "unwatched")
    records = [record(str(day) * 40, day, float(day), status=status) for day, status in enumerate(statuses, 1)]
    plot(lines_of(records, "ms_per_video", {}), "ms_per_video", tmp_path / "x.png")
    drawn = plt.gcf().axes[0].lines
    monkeypatch.undo()
    assert [list(line.get_ydata()) for line in drawn if len(line.get_ydata()) > 2] == [[1.0, 3.0, 4.0]]
    single = {line.get_ydata()[0]: line for line in drawn if len(line.get_ydata()) == 1}
    hollow = {value: line.get_markerfacecolor() == "white" for value, line in single.items()}
    assert hollow == {1.0: False, 2.0: True, 3.0: True, 4.0: False}
    assert single[2.0].get_marker() == "X"


def test_the_command(commits, capsys):
    for i, commit in enumerate(commits):
        status = {"status": "void", "status_reasons": ["foreign load", "drift"]} if i == 2 else {}
        write_record(record(commit, i + 1, 1.5 + i, **status), Path("r/deep"))
    Path("r/deep/other.json").write_text("[]")
    arguments = ["r", "r/deep", "--figure", "ms_per_video", "--out", "new/h.png"]
    assert run_command(main, arguments) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")][1:]
    assert [row[0] for row in rows] == [c[:9] for c in commits]  # each once, though both folders hold it
    assert [row[3] for row in rows] == ["1.5", "2.5", "3.5", "4.5"]
    assert out.splitlines()[4].endswith("void: foreign load; drift")
    assert "other.json: not a record" in err
    assert Path("new/h.png").stat().st_size > 1000
    assert run_command(main, ["r"]) == 0
    assert capsys.readouterr().out == "throughput: ms_per_video, part.inner_ms\n"


def test_mistakes_are_one_line(commits, capsys):
    write_record(record(commits[0], 1, 1.5), Path("r"))
    for arguments, said in (
        ("r --figure ms_per_vidio", "--figure ms_per_vidio: in no record; there is ms_per_video"),
        ("r --figure real_time", "--figure real_time: in no record"),
        ("r --kind train", "there are throughput a"),
        ("r nowhere", "nowhere: no records"),
        ("", "FOLDERS is missing: Folders with records"),
        ("r --figure ms_per_video --out x.foo", "--out x.foo: cannot be written"),
    ):
        assert run_command(main, arguments.split()) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
