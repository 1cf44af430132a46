"""The gate on made-up turns: exit statuses, margins, stages, memory, accuracy, baselines, outputs. And one real run."""

import json
from functools import partial
from xml.etree import ElementTree

import pytest
from support.turns import Machine

import tdn_bench.regression.checks as checks
import tdn_bench.regression.gate as gate_module
from tdn_bench.cli import run_command
from tdn_bench.records import read_record
from tdn_bench.regress import main


@pytest.fixture
def gate(tmp_path, monkeypatch, small_checkpoint, motion_data):
    """The machine, with `run` and `update`: the exit status of `tdn-bench regress` with a baseline in tmp_path."""
    machine = Machine()
    monkeypatch.setattr(gate_module, "interleave", machine)
    common = ["--baseline", str(tmp_path / "b.json"), "--device", "cpu"]
    new = ["--update", "--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--engines", "eager"]

    def checked(argv):
        try:
            return run_command(main, argv)
        except SystemExit as stop:
            return stop.code

    machine.run = lambda *flags: checked([*common, *flags])
    machine.update = lambda *flags: checked([*common, *new, *flags])
    machine.baseline = tmp_path / "b.json"
    return machine


def test_identical_code_passes_at_any_speed_of_the_machine(gate, capsys):
    assert gate.update() == 0
    for speed in (1.0, 0.3, 2.5):
        gate.speed = speed
        assert gate.run() == 0
    assert "no regression" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        (("decode_ms", "loader_ms", "path_ms"), "loader decode_ms"),
        (("infer_ms", "path_ms"), "eager-fp32 infer_ms"),
        (("train_ms",), "train train_ms"),
    ],
)
def test_a_slower_part_fails_and_is_named(gate, capsys, figures, named):
    gate.update()
    gate.factors = dict.fromkeys(figures, 1.10)
    assert gate.run() == 1
    out = capsys.readouterr().out
    assert "REGRESSION" in out
    assert f"slower: {named}" in out


def test_slower_within_the_margin_passes_and_is_said(gate, capsys):
    gate.noise = 0.003
    gate.update()
    gate.factors = {"train_ms": 1.015}
    assert gate.run() == 0
    assert "slower: train train_ms" in capsys.readouterr().out


def test_an_undecided_stage_is_no_pass_and_decides_nothing(gate, capsys, tmp_path):
    gate.update()
    gate.noisy = {"decode_ms": 0.8}
    markdown, junit = tmp_path / "m.md", tmp_path / "j.xml"
    assert gate.run("--markdown", str(markdown), "--junit", str(junit)) == 0
    out = capsys.readouterr().out
    assert "undecided parts: loader decode_ms; the loader as a whole decides" in out
    assert "| ❔ | `loader decode_ms` | inconclusive |" in markdown.read_text()
    suite = ElementTree.parse(junit).getroot()
    [skipped] = [case.attrib["name"] for case in suite.findall("testcase") if case.find("skipped") is not None]
    assert skipped == "loader decode_ms"
    assert gate.update() == 0  # nor does a new baseline hide anything


def test_noise_that_allows_no_verdict_is_no_verdict(gate, capsys):
    gate.update()
    gate.noise = 0.5
    assert gate.run() == 3
    out = capsys.readouterr().out
    assert "inconclusive" in out
    assert "the smallest change this run could detect is" in out


def test_a_void_run_accuses_nobody(gate):
    gate.update()
    gate.factors, gate.status = {"train_ms": 1.5}, "void"
    assert gate.run() == 3


def test_another_machines_baseline_has_a_wider_margin(gate, capsys):
    gate.update()
    raw = json.loads(gate.baseline.read_text())
    raw["machine"]["cpu"] = "another"
    gate.baseline.write_text(json.dumps(raw))
    gate.factors, gate.memory = {"train_ms": 1.08}, 5e9
    assert gate.run() == 0
    assert "another machine" in capsys.readouterr().out
    gate.factors = {"train_ms": 1.3}
    assert gate.run() == 1


def test_a_round_of_another_machine_state_is_not_counted():
    # by hand: the quickest round's median is 100, so 111 is out and 109 is not; of seven rounds six must be left
    rounds = [[100, 100, 300], [111, 111, 1], [109, 109, 109], *[[105, 104, 106]] * 4]
    assert checks.disturbed(rounds) == [1]
    assert checks.disturbed(rounds[:6]) == []
    assert checks.without("abcd", [1]) == ["a", "c", "d"]


def test_against_another_commit_needs_no_figures_of_the_baseline(gate, monkeypatch, tmp_path, capsys):
    from contextlib import nullcontext

    monkeypatch.setattr(gate_module, "checked_out", lambda commit: nullcontext(tmp_path))
    gate.update()
    gate.factors = gate.base_factors = dict.fromkeys(("train_ms", "path_ms"), 1.3)
    assert gate.run("--against", "HEAD~1") == 0
    gate.base_factors = {}
    assert gate.run("--against", "HEAD~1") == 1


def test_memory_and_accuracy_fail_too(gate, capsys):
    gate.update()
    gate.memory = 1.2e9
    assert gate.run() == 1
    assert "+20.0%" in capsys.readouterr().out
    gate.memory, gate.wrong = 1e9, 1
    assert gate.run() == 1  # one video of forty, which no test of significance could find
    assert "1 videos lost" in capsys.readouterr().out


def test_update_hides_no_regression_without_a_reason(gate, capsys):
    gate.update()
    before = gate.baseline.read_text()
    gate.factors = {"train_ms": 1.2}
    assert gate.update() == 1
    assert gate.baseline.read_text() == before
    assert "--accept REASON" in capsys.readouterr().err
    assert gate.update("--accept", "the optimiser checks its gradients") == 0
    details = read_record(gate.baseline).details
    assert details["accepted"][0]["reason"] == "the optimiser checks its gradients"
    assert details["accepted"][0]["hides"] == ["train train_ms: regression"]
    assert gate.run() == 0
    assert gate.update() == 0  # no change: nothing to accept, and the reasons stay
    assert len(read_record(gate.baseline).details["accepted"]) == 1


def test_a_figure_cannot_be_dropped_in_silence(gate, capsys):
    gate.update()
    assert gate.update("--no-train") == 1
    assert "other data, weights or settings" in capsys.readouterr().err


def test_what_cannot_run_is_one_line_and_status_2(gate, capsys, tmp_path, small_checkpoint):
    for flags, says in (
        ((), "no such file"),
        (("--accept", "why"), "--accept goes with --update"),
    ):
        assert gate.run(*flags) == 2
        assert says in capsys.readouterr().err
    assert gate.update("--against", "HEAD") == 2
    capsys.readouterr()
    assert gate.update() == 0
    other = tmp_path / "other.safetensors"
    other.write_bytes(small_checkpoint.read_bytes() + b"x")
    for flags, says in (
        (("--checkpoint", str(other)), "not the weights"),
        (("--checkpoint", str(tmp_path / "none")), "not there"),
    ):
        assert gate.run(*flags) == 2
        error = capsys.readouterr().err
        assert says in error
        assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
    gate.digest = "other"
    assert gate.run() == 2
    assert "not those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw["details"].pop("held"),
        lambda raw: raw["details"]["held"].pop("engines"),
        lambda raw: raw["details"]["held"].update(engines=[["eager"]]),
        lambda raw: raw["details"]["held"].update(videos="eight"),
        lambda raw: raw["details"]["held"].update(of_a_newer_version=1),
        lambda raw: raw["samples"]["train_train_ms"].pop(),  # rounds would be cut at the wrong places
        lambda raw: raw["samples"]["train_train_ms"].__setitem__(0, None),  # NaN, as records write it
        lambda raw: raw["samples"]["reference_reference_ms"].__setitem__(0, 0.0),
        lambda raw: raw["samples"].pop("train_train_ms"),  # which would not be judged
        lambda raw: raw["samples"].update(loader_decode_ms=[1.0]),
        lambda raw: raw["details"].pop("memory"),
        lambda raw: raw["details"]["memory"].update(train={"host_bytes": []}),
        lambda raw: raw["details"].update(turns="12"),
        lambda raw: raw["details"].update(turns=[12, 0]),
        lambda raw: raw["details"].pop("data_digest"),
        lambda raw: raw["details"].update(scores_sha256={"eager-fp32": "0" * 64}),
        lambda raw: raw["details"]["held"]["flags"].update(cache_dir="/tmp/x"),
        lambda raw: raw["details"]["held"]["flags"].update(batch_size=10**6),
        lambda raw: raw["details"]["held"].update(checkpoint_sha256=None),
    ],
)
def test_a_damaged_baseline_is_named_and_nothing_is_said(gate, capsys, damage):
    gate.update()
    raw = json.loads(gate.baseline.read_text())
    damage(raw)
    gate.noise = None  # nothing is measured
    gate.baseline.write_text(json.dumps(raw))
    capsys.readouterr()
    assert gate.run() == 2
    said = capsys.readouterr()
    assert "make it anew with --update" in said.err
    assert said.err.count("\n") == 1
    assert "no regression" not in said.out


def test_outputs_say_the_same(gate, tmp_path, capsys):
    gate.update()
    gate.factors, gate.noise = {"train_ms": 1.2}, 0.012
    paths = {kind: tmp_path / f"out/{kind}" for kind in ("junit", "markdown", "json")}
    assert gate.run(*(text for kind, path in paths.items() for text in (f"--{kind}", str(path)))) == 1
    suite = ElementTree.parse(paths["junit"]).getroot()
    assert suite.attrib["failures"] == "1"
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    (failed,) = [case.attrib["name"] for case in suite.findall("testcase") if case.find("failure") is not None]
    assert failed == "train train_ms"
    markdown = paths["markdown"].read_text()
    assert "REGRESSION" in markdown
    assert "| ❌ | `train train_ms` | regression |" in markdown
    record = read_record(paths["json"])
    assert record.details["exit_status"] == 1
    assert [c["name"] for c in record.details["checks"] if c["verdict"] == "regression"] == ["train train_ms"]
    assert len(record.samples["train_train_ms"]) == 96
    ratio = next(c["ratio"] for c in record.details["checks"] if c["name"] == "train train_ms")
    assert ratio == pytest.approx(1.2, rel=0.02)
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.alone
def test_a_real_baseline_and_a_real_check(tmp_path, small_checkpoint, motion_data, capsys, monkeypatch):
    for module in (gate_module, checks):
        monkeypatch.setattr(module, "MIN_ROUNDS", 2)
    interleave = partial(gate_module.interleave, min_turns=6)  # an interval needs ten in all
    monkeypatch.setattr(gate_module, "interleave", interleave)
    baseline = tmp_path / "real.json"
    flags = ["--baseline", str(baseline), "--device", "cpu", "--max-seconds", "100", "--round-s", "1"]
    new = ["--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--engines", "eager", "--videos", "8"]
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--update", *new, "--accept", "a busy machine"])
    assert stop.value.code == 0
    held = read_record(baseline)
    assert (held.kind, held.details["held"]["engines"]) == ("baseline", [["eager", "fp32"]])
    assert len(held.samples["eager-fp32_path_ms"]) == sum(held.details["turns"])
    report = tmp_path / "r.json"
    with pytest.raises(SystemExit) as stop:  # widest margins: of one short round nothing else can be told
        main([*flags, "--margin", "50", "--json", str(report)])
    assert stop.value.code == 0, capsys.readouterr().out
    verdicts = {c["name"]: c["verdict"] for c in read_record(report).details["checks"]}
    assert verdicts["eager-fp32 accuracy"] == "same"
    times = {"loader loader_ms", "eager-fp32 infer_ms", "eager-fp32 path_ms", "train train_ms"}
    assert times <= verdicts.keys()
    if not (gate_module.HERE / ".git").exists():  # an unpacked archive has no other commit
        return
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--margin", "50", "--against", "HEAD", "--json", str(report)])
    assert stop.value.code == 0, capsys.readouterr().out
    record = read_record(report)
    assert times <= {c["name"] for c in record.details["checks"]}
    assert len(record.samples["base eager-fp32_path_ms"]) == len(record.samples["eager-fp32_path_ms"])
