"""The page of a folder of records: machines and owners apart, nothing left out, void runs apart from good ones."""

import errno
import re
import subprocess
from dataclasses import replace

import pytest
import torch

from tdn_bench.cli import run_command
from tdn_bench.records import make_record, write_record
from tdn_bench.records import record as record_module
from tdn_bench.report import main
from tdn_bench.reporting import page, plots, write_report
from tdn_bench.reporting import report as report_module


def record(name, ms=1.0, kind="throughput", *, day=1, machine=None, **more):
    figures = {"ms_per_video": ms, "clips_per_s": 1000 / ms, "ledger_infer_ms": ms}
    made = make_record(kind, name, figures=figures, samples={}, settings={}, device=torch.device("cpu"))
    described = {**made.machine, "name": "m", "cpu": "CPU 1", "cores": 2, "memory_bytes": 2**34, **(machine or {})}
    return replace(made, machine=described, created_utc=f"2026-01-{day:02d}T00:00:00Z", **more)


@pytest.fixture
def undrawn(monkeypatch):
    """Plots that are files without pictures, and charts without their library, which take a while."""
    monkeypatch.setattr(page, "_bundle", lambda: "var vegaEmbed;")
    for name in ("plot_stages", "plot_confusion"):
        monkeypatch.setattr(report_module, name, lambda records, path: path.write_bytes(b"x"))


def sections(text):
    """Heading of a machine → what is below it."""
    parts = re.split(r"^# (.*)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


GPU = {"gpu": "NVIDIA GeForce RTX 4090", "gpu_memory_bytes": 24 * 2**30, "gpu_power_limit_w": 450.0}
MACHINES = {
    "CPU 1, 2 cores, 16 GiB": {},
    "CPU 2, 2 cores, 16 GiB": {"cpu": "CPU 2"},
    "CPU 1, 4 cores, 16 GiB": {"cores": 4},
    "NVIDIA GeForce RTX 4090 (24 GiB, 450 W), CPU 1, 2 cores, 16 GiB": GPU,
    "NVIDIA GeForce RTX 4090 (24 GiB, 300 W), CPU 1, 2 cores, 16 GiB": GPU | {"gpu_power_limit_w": 300.0},
    "NVIDIA GeForce RTX 4080 (16 GiB), CPU 1, 2 cores, 16 GiB": {
        "gpu": "NVIDIA GeForce RTX 4080",
        "gpu_memory_bytes": 16 * 2**30,
    },
}


def test_every_machine_has_its_own_tables_though_all_have_one_name(tmp_path, undrawn):
    for i, machine in enumerate(MACHINES.values()):
        write_record(record("same-name", 10.0 + i, machine=machine), tmp_path)
    text = write_report(tmp_path).read_text()
    found = sections(text)
    for i, title in enumerate(MACHINES):
        own = found[f"Not published: {title}"]
        assert f"Machine: {title}." in own
        assert own.count("| same-name |") == 1
        assert f"| {10 + i}.00 |" in own
        assert len(list(re.finditer(r"!\[Work per video by stage\]\((.*)\)", own))) == 1
    pictures = re.findall(r"\]\((.*?\.png)\)", text)
    assert len(set(pictures)) == len(MACHINES)
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_published_records_stand_apart_from_ones_own(tmp_path, undrawn):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    published = write_record(record("eager", 5.0), tmp_path)
    subprocess.run(["git", "-C", tmp_path, "add", published.name], check=True)
    write_record(record("eager", 9.0, day=2), tmp_path)
    found = sections(write_report(tmp_path).read_text())
    theirs, own = found["Published: CPU 1, 2 cores, 16 GiB"], found["Not published: CPU 1, 2 cores, 16 GiB"]
    assert "published with this repository" in theirs
    assert "| 5.00 |" in theirs
    assert "| 9.00 |" not in theirs
    assert "| 9.00 |" in own
    assert "| 5.00 |" not in own


def test_void_runs_stand_apart_and_hide_no_good_one(tmp_path, undrawn):
    write_record(record("a", 5.0), tmp_path)
    write_record(record("a", 1.0, day=2, status="void", status_reasons=("foreign load",)), tmp_path)
    write_record(record("b", 7.0, status="void", status_reasons=("drift",)), tmp_path)
    write_record(record("b", 8.0, day=2), tmp_path)  # the void one is older, and of no interest
    text = write_report(tmp_path).read_text()
    good, void = text.split("**Void: do not use these figures**")
    assert re.findall(r"^\| (\w) .*\| (\d\.00) \|.*\| (\w+) \|$", good, re.MULTILINE) == [
        ("a", "5.00", "unwatched"),
        ("b", "8.00", "unwatched"),
    ]
    assert "| 1.00 |" in void
    assert "7.00" not in text
    assert "a (throughput): void: foreign load" in void
    assert "1 older records in this folder are not shown" in text


def test_evaluations_and_parities_are_shown_and_other_kinds_listed(tmp_path, undrawn):
    settings = {"model": "tdn_resnet50", "num_segments": 8, "size": 224, "subset": "validation"}
    accuracy = {"videos": 160, "views": 30, "bad_clips": 2, "top1_percent": 76.5, "top5_percent": 93.25}
    evaluated = replace(record("k400", kind="evaluate"), figures=accuracy, settings=settings)
    evaluated = replace(evaluated, data={"name": "kinetics400", "digest": "d", "videos": 162})
    write_record(evaluated, tmp_path)
    engines = {
        "onnx-int8": {"max_difference": 0.081, "top1_percent": 100.0, "accuracy_top1_percent": 75.5, "build_s": 3}
    }
    engines |= {"trt-fp16": {"error": "no GPU | here"}}
    write_record(replace(record("engines", kind="parity"), figures=engines), tmp_path)
    decoders = {"cases": 9, "false_scans": 0, "pyav": {"exact": 7, "refused": 1, "wrong": 1, "false_pictures": 0}}
    decoders |= {"pyav–dali": {"psnr_median_db": 52.58, "psnr_min_db": 37.73}}
    write_record(replace(record("decoders", kind="parity"), figures=decoders), tmp_path)
    write_record(record("strange", kind="anything"), tmp_path)
    text = write_report(tmp_path).read_text()
    network = "tdn_resnet50, T = 8, 224 px"
    row = f"| k400 | {network} | kinetics400 | validation | 160 | 2 | 30 | 76.50 | 93.25 | – | unwatched |"
    assert row in text
    assert "| onnx-int8 | 8.1e-02 | 100.0 | – | 75.50 | – | 3.0 | – |" in text
    assert r"| trt-fp16 | – | – | – | – | – | – | no GPU \| here |" in text
    assert "| pyav | 7 | 1 | 1 | 0 |" in text
    assert "| pyav–dali | 52.6 | 37.7 | – | – | – | – |" in text
    assert re.search(r"^\| anything \| strange \| unwatched \| `anything-strange-.*\.json` \|$", text, re.MULTILINE)


def test_what_is_no_record_is_named_and_the_rest_is_shown(tmp_path, undrawn, capsys):
    write_record(record("good", 5.0), tmp_path)
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    odd = write_record(record("odd"), tmp_path)
    odd.write_text(odd.read_text().replace('"ms_per_video": 1.0', '"batches": "x|y"'))
    text = write_report(tmp_path).read_text()
    assert "| good |" in text
    named = text.split("## Not shown")[1]
    assert "x.json: not a record (has no schema" in named
    assert "folder.json: not a record (is not a regular file)" in named
    assert f"{odd.name}: has no ms_per_video" in named.replace("\\", "")
    for path in tmp_path.glob("*good*.json"):
        path.unlink()
    odd.unlink()
    assert run_command(main, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no records; 2 cannot be read, the first: " in error
    assert error.count("\n") == 1


def test_hostile_names_are_text(tmp_path, undrawn):
    name = "a|b <script>x</script> `$x$`\n# _y_ \x1b[2J\udcff"
    written = write_record(record(name, status="unstable", status_reasons=(name,)), tmp_path)
    assert re.fullmatch(r"[\w.+=-]+", written.name)
    assert written.parent == tmp_path
    text = write_report(tmp_path).read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:3]}) == 1


def test_a_record_stays_in_its_folder_whatever_its_name(tmp_path):
    folder = tmp_path / "in"
    for name in ("../../x", "/etc/x", "a\0b", "é" * 300, ".."):
        assert write_record(record(name, kind="../k"), folder).parent == folder
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_matrices_of_other_classes_do_not_share_an_axis(tmp_path):
    for name, classes in (("a", ["x", "$y$"]), ("b", ["_p", "q", "r"])):
        counts = [[1] * len(classes)] * len(classes)
        made = record(name, kind="train")
        write_record(replace(made, details={"classes": classes, "confusion": counts}), tmp_path)
    bad = replace(record("bad", kind="train"), details={"classes": ["x"], "confusion": [[1, 2]]})
    path = write_record(bad, tmp_path)
    text = write_report(tmp_path).read_text()
    assert "![Confusion matrices: true and predicted classes](confusion.png)" in text
    assert f"{path.name}: confusion matrix is not 1 × 1 counts" in text
    assert "| bad |" in text  # its accuracy is shown all the same


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_page_that_cannot_be_written_is_one_line_and_leaves_the_old_one(tmp_path, undrawn, capsys, monkeypatch, code):
    write_record(record("a"), tmp_path)
    before = write_report(tmp_path).read_bytes()

    def fails(_):
        raise OSError(code, "no room")

    monkeypatch.setattr(record_module.os, "fsync", fails)
    assert run_command(main, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "the report cannot be written (no room)" in error
    assert error.count("\n") == 1
    assert (tmp_path / "report.md").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_plots_say_of_how_many_records_they_are(tmp_path, monkeypatch):
    for i in range(45):
        write_record(record(f"r{i}", 1.0 + i), tmp_path)
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    text = write_report(tmp_path).read_text()
    assert len(re.findall(r"^\| r\d+ \|", text, re.MULTILINE)) == 45
    [axis] = drawn[0].axes
    assert axis.get_xlabel().startswith(f"the fastest {plots.MAX_BARS} of 45; ms per video")
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"r{i}" for i in range(plots.MAX_BARS)][::-1]
    plots.pyplot().close(drawn[0])
