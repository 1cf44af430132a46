"""The HTML page of a folder of records: all that it must show, as it stands in the records, and nothing that they say
is taken for markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pages import Reader, made, throughput, training

from tdn_bench.cli import run_command
from tdn_bench.records import PUBLISHED, write_record
from tdn_bench.report import main
from tdn_bench.reporting import charts, html_path, page, write_report
from tdn_bench.reporting import report as report_module
from tdn_bench.reporting.confusions import comparable, gains, most_confused
from tdn_bench.reporting.page import safe_json


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pictures, no library; but every chart is held against Vega-Lite's schema."""
    for name in ("plot_stages", "plot_confusion"):
        monkeypatch.setattr(report_module, name, lambda records, path: path.write_bytes(b"x"))
    monkeypatch.setattr(page, "_bundle", lambda: "var vegaEmbed;")
    monkeypatch.setattr(charts, "VALIDATE", True)


def page_of(folder, *records):
    for record in records:
        write_record(record, folder)
    write_report(folder)
    return html_path(folder).read_text(encoding="utf-8")


def specs_of(text):
    return json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL)[1])


def values_of(spec):
    """All rows of data in a chart."""
    layers = [spec, *spec.get("layer", [])]
    return [row for layer in layers for row in layer.get("data", {}).get("values", [])]


def chart_titles(text):
    return re.findall(r'class="chart-title">(.*?)</h', text)


def test_figures_are_the_records_and_void_runs_are_kept_out_of_the_headline_and_the_charts(tmp_path):
    slow, fast = throughput("eager", 20.0), throughput("onnx", 8.125, engine="onnx")
    void = throughput("broken", 1.0, engine="aoti", status="void", status_reasons=("foreign load",))
    shaky = throughput("shaky", 4.0, engine="compile", status="unstable", status_reasons=("drift",))
    text = page_of(tmp_path, slow, fast, void, shaky)
    read = Reader(text)
    rows = read.table("Engine × precision × network")
    assert [row["run"][0] for row in rows] == ["shaky", "onnx", "eager", "broken"]  # void ones last
    assert [float(row["ms/video"][1]) for row in rows] == [4.0, 8.125, 20.0, 1.0]
    assert rows[1]["ms/video"][0] == "8.12 ± 0.81"
    assert [row["status"][0] for row in rows] == ["unstable", "stable", "stable", "void"]
    [name] = [name for name in read.classes if name.startswith("Engine ×")]
    assert read.classes[name][1:] == ["unstable", "stable", "stable", "void"]
    [headline] = read.table("Of every network on its data")
    assert headline["fastest engine"][0] == "onnx fp32"  # neither the void run nor the disturbed one
    assert float(headline["× eager fp32"][1]) == pytest.approx(20 / 8.125)
    drawn = [row for spec in specs_of(text).values() for row in values_of(spec)]
    names = {row["run"] for row in drawn if "run" in row}
    assert names == {"eager", "onnx", "shaky (unstable)"}
    infer = {row["run"]: row["ms"] for row in drawn if row.get("stage") == "infer"}
    assert infer["onnx"] == pytest.approx(0.8 * 8.125)


def test_a_disturbed_run_stands_in_the_headline_only_with_its_mark(tmp_path):
    shaky = throughput("a", 4.0, status="unstable", status_reasons=("drift",))
    read = Reader(page_of(tmp_path, shaky, throughput("b", 2.0, status="void")))
    [headline] = read.table("Of every network on its data")
    assert (headline["ms/video"][1], headline["status"][0]) == ("4.0", "unstable")


def test_every_published_row_is_shown_beside_what_was_measured(tmp_path):
    classes = [str(i) for i in range(174)]
    exact = training("exact", np.diag([9] + [1] * 173).tolist(), classes)
    small = training("small", np.eye(4, dtype=int).tolist(), list("abcd"), model="tsm_resnet_small")
    read = Reader(page_of(tmp_path, exact, small))
    tables = {name: rows for name, rows in read.tables.items() if re.match(r"Table \d[a-f]?:", name)}
    shown = [row for rows in tables.values() for row in rows[1:]]
    assert len(shown) == len(PUBLISHED)
    for cells, row in zip(shown, PUBLISHED, strict=True):
        assert cells[0][0] == row.name
        assert (cells[3][0], cells[6][0]) == tuple(
            "–" if v is None else f"{v:g}" for v in (row.top1_percent, row.top5_percent)
        )
    [tdn] = [r for r in read.table("Table 1f: ") if r["network"][0] == "TDM"]
    assert (tdn["top-1 %"][0], float(tdn["measured top-1 %"][1]), tdn["counted here"][0]) == ("52.3", 100.0, "35.6")
    [tsm] = [r for r in read.table("Table 1f: ") if r["network"][0] == "TSM"]
    assert tsm["of what"][0].startswith("tsm_resnet_small")
    [name] = [name for name in read.classes if name.startswith("Table 1f")]
    aside = [row[0][0] for row, of in zip(read.tables[name], read.classes[name], strict=True) if "aside" in of]
    assert aside == ["TSM"]  # other data: it looks it


def test_machines_and_owners_have_sections_of_their_own(tmp_path):
    for i, cpu in enumerate(("CPU 1", "CPU 2")):
        write_record(throughput("same", 5.0 + i, machine={"cpu": cpu}), tmp_path / f"deep{i}")
    text = page_of(tmp_path)
    heads = re.findall(r"<h2>(Machine: [^<]*)</h2>", text)
    assert heads == ["Machine: CPU 1, 2 cores, 16 GiB", "Machine: CPU 2, 2 cores, 16 GiB"]
    parts = re.split("<h2>Machine", text)[1:]
    assert all(f'data-value="{5.0 + i}"' in part for i, part in enumerate(parts))
    assert 'data-value="6.0"' not in parts[0]


def test_every_link_leads_to_a_record_and_every_record_is_linked(tmp_path):
    odd = throughput("odd name's #1 %41 é", 3.0)
    write_record(odd, tmp_path / "sub folder")
    read = Reader(page_of(tmp_path, throughput("a", 5.0)))
    files = {link for link in read.links if not link.startswith("#")}
    found = {(tmp_path / unquote(link)).resolve() for link in files}
    assert found == {path.resolve() for path in tmp_path.rglob("*.json")}
    commands = [row["command"][0] for row in read.table("The records that this page is of")]
    assert all(commands)


def test_a_page_needs_no_network_and_runs_no_script_but_its_own(tmp_path):
    text = page_of(tmp_path, throughput("a", 5.0))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    sums = ["sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"sha256-[^']+", policy) == sums
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


HOSTILE = "</script><script>alert(1)</script><!-- & \" ' <img src=x onerror=y> \u2028 \x1b[2J\udcff {{7*7}} $x$"


def test_text_of_records_is_text(tmp_path):
    classes = [HOSTILE, "a"]
    records = [
        training(HOSTILE, [[1, 3], [0, 4]], classes),
        training("tsn", [[0, 4], [1, 3]], classes, model="tsn_resnet50"),
        throughput(HOSTILE[:90], 5.0, status="unstable", status_reasons=(HOSTILE,)),
        made(HOSTILE, HOSTILE, {HOSTILE: {"x_ms": 3.0}}, machine={"cpu": HOSTILE}),
    ]
    text = page_of(tmp_path, *[replace(r, command=[HOSTILE]) for r in records])
    assert "{{" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).replace("{{7*7}}", "")
    read = Reader(text)
    assert read.tags.count("script") == 3
    assert {"img", "iframe", "object"} & set(read.tags) == set()
    assert "\u2028" not in text
    assert "\x1b" not in text
    assert any(HOSTILE[:9] in row["true class"][0] for row in read.table("Most confused by </script>"))
    gain = next(spec for spec in specs_of(text).values() if "Bars: gain" in spec["description"])
    assert values_of(gain)[0]["class"].startswith("</script>")
    assert values_of(gain)[0]["points"] == 25.0


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_json_in_a_page_ends_no_element_and_says_the_same(value):
    text = safe_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value


def test_other_kinds_and_what_is_no_record_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    odd = throughput("odd", 1.0)
    odd = replace(odd, figures={"batches": "x|y"})
    text = page_of(tmp_path, made("brand_new", "thing", {"a_ms": 1.25, "deep": {"b_s": 2}}), odd)
    [other] = Reader(text).table("Records that have no table of their own")
    assert (other["kind"][0], other["name"][0]) == ("brand_new", "thing")
    assert re.search(r'<dt>deep\.b_s</dt><dd data-value="2">', text)
    not_shown = text.split("<h2>Not shown</h2>")[1]
    assert "x.json: not a record" in not_shown
    assert "has no ms_per_video" in not_shown


def test_comparisons_are_shown(tmp_path):
    compare = {"path_ms_ratio": 0.9, "path_ms_ratio_low": 0.875, "path_ms_ratio_high": 0.95}
    compare |= {"path_ms_detectable_ratio": 1.03}
    checks = [{"name": "loader ms", "verdict": "same", "ratio": 1.01, "low": 0.99, "high": 1.02, "text": "+1 %"}]
    engines = {"onnx-int8": {"max_difference": 0.08, "top1_percent": 100.0, "build_s": 3}, "trt": {"error": "no GPU"}}
    records = [made("compare", "a-vs-b", compare), made("regress", "demo", {}, details={"checks": checks})]
    text = page_of(tmp_path, *records, made("parity", "engines", engines))
    read = Reader(text)
    [row] = read.table("Two sides, measured in turns: a-vs-b")
    assert (float(row["B ÷ A"][1]), float(row["to"][1]), row["B is"][0]) == (0.9, 0.95, "faster")
    [row] = read.table("The regression gate: demo")
    assert (row["verdict"][0], float(row["now ÷ before"][1])) == ("same", 1.01)
    assert read.table("Engines beside eager fp32: engines")[1]["not built"][0] == "no GPU"
    markdown = (tmp_path / "report.md").read_text()
    assert "| path_ms | 0.9000 | 0.8750 | 0.9500 | faster | 1.030 |" in markdown
    assert "| loader ms | same | 1.0100 | 0.9900 | 1.0200 | – | +1 % |" in markdown


def table5(**changes):
    networks = [str(row.variant) for row in PUBLISHED if row.table == "5"]
    figures = {
        name: {
            "ms_per_video": 10.0 * (i + 1),
            "loading_ms": 1.0,
            "network_ms": 9.0,
            "ratio": i + 1.0,
            "ratio_low": i + 0.9,
            "ratio_high": i + 1.2,
        }
        for i, name in enumerate(networks)
    }
    return made("benchmark", "table5-resnet50-fp32", figures | changes, settings={"rounds": 9})


def test_table_5_stands_beside_the_papers_ratios(tmp_path):
    text = page_of(tmp_path, table5())
    rows = Reader(text).table("table5-resnet50-fp32")
    assert [row["network"][0] for row in rows] == ["TSN", "TSM", "STM", "I3D", "S-TDM", "L-TDM", "TDN"]
    assert [float(row["÷ TSN"][1]) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert float(rows[6]["published ÷ TSN"][1]) == pytest.approx(22.1 / 7.9)
    assert rows[6]["÷ TSN"][0] == "7.00 [6.90, 7.20]"
    assert "Time as a multiple of TSN" in text
    for bad in ({"tdn": 3}, {"tdn": {}}):
        damaged = page_of(tmp_path, replace(table5(**bad), created_utc="2026-01-05T00:00:00Z"))
        assert "tdn" in damaged.split("<h2>Not shown</h2>")[1] or "ms_per_video" in damaged


def test_large_matrices_are_pairs_and_small_ones_are_drawn(tmp_path):
    many = [f"class {i}" for i in range(174)]
    counts = 5 * np.eye(174, dtype=int)
    counts[7, 9] = 20
    text = page_of(tmp_path, training("large", counts.tolist(), many), training("small", [[3, 1], [0, 4]], ["x", "y"]))
    assert chart_titles(text).count("Confusion matrix") == 1
    [pair] = Reader(text).table("Most confused by large")
    assert (pair["true class"][0], pair["taken for"][0], pair["videos"][0]) == ("class 7", "class 9", "20 of 25")
    assert pair["% of the true class"][1] == "80.0"
    markdown = (tmp_path / "report.md").read_text()
    assert "| class 7 | class 9 | 80.0 | 20 of 25 |" in markdown


def test_the_gain_is_over_tsn_on_the_same_videos(tmp_path):
    tsn = training("tsn", [[2, 2], [4, 0]], ["x", "y"], model="tsn_resnet50")
    other = training("other-data", [[4, 0, 0], [0, 4, 0], [0, 0, 4]], ["x", "y", "z"])
    text = page_of(tmp_path, training("tdn", [[3, 1], [0, 4]], ["x", "y"]), tsn, other)
    found = [spec for spec in specs_of(text).values() if "Bars: gain" in spec["description"]]
    [rows] = map(values_of, found)
    assert [(row["class"].strip(), row["points"]) for row in rows] == [("y", 100.0), ("x", 25.0)]


def test_a_figure_that_was_measured_again_has_a_history(tmp_path):
    runs = [throughput("a", 5.0 + day, day=day, commit=str(day) * 40) for day in (1, 2, 3)]
    runs[1] = replace(runs[1], status="void")
    text = page_of(tmp_path, *runs, throughput("once", 9.0))
    [spec] = [spec for spec in specs_of(text).values() if spec["description"].startswith("ms_per_video over")]
    rows = values_of(spec)
    assert [(row["value"], row["status"]) for row in rows] == [(6.0, "stable"), (7.0, "void"), (8.0, "stable")]


def test_runs_that_differ_in_their_seed_are_one_point(tmp_path):
    runs = [training(f"seed{i}", [[10 - i, i], [0, 10]], ["x", "y"]) for i in (0, 2, 4)]
    text = page_of(tmp_path, *runs)
    [spec] = [spec for spec in specs_of(text).values() if "0 published points" in spec["description"]]
    [row] = values_of(spec)
    assert (row["runs"], row["top1"]) == (3, pytest.approx(90.0))
    assert row["high"] - row["top1"] == pytest.approx(np.std([100, 90, 80], ddof=1))
    [headline] = Reader(text).table("Of every network on its data")
    assert headline["top-1 %"][0] == "90.00 ± 10.00"


def test_latencies_of_a_search_are_those_of_the_trial_that_is_reported(tmp_path):
    samples = {"trial_00_latency_ms": [1.0, 2.0, 3.0], "trial_01_latency_ms": [5.0, 6.0, 9.0, 7.0]}
    record = made("scenario", "server", {"p50_latency_ms": 6.5, "videos_per_s": 1.0}, samples=samples)
    text = page_of(tmp_path, record)
    [spec] = [spec for spec in specs_of(text).values() if "latency, ms" in spec["description"]]
    assert {row["ms"] for row in values_of(spec)} == {5.0, 6.0, 7.0, 9.0}


def lists(of, size):
    return st.lists(of, min_size=size, max_size=size)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_pairs_and_gains_are_shares_of_the_true_class(counts):
    names = [f"c{i}" for i in range(len(counts))]
    matrix, rows = (np.array(counts, float), names), []
    for i, row in enumerate(counts):
        rows += [(n / sum(row), n, i, j) for j, n in enumerate(row) if i != j and n]
    wanted = [(names[i], names[j]) for _, _, i, j in sorted(rows, key=lambda r: (-r[0], -r[1], r[2], r[3]))[:10]]
    assert [(a, b) for a, b, *_ in most_confused(matrix)[1]] == wanted
    mirrored = (np.array([row[::-1] for row in counts], float), names)
    assert comparable(matrix, mirrored)
    for g in gains(matrix, mirrored):
        i = names.index(g.name)
        assert g.points == pytest.approx(100 * (counts[i][i] - counts[i][::-1][i]) / sum(counts[i]))
        assert g.videos == sum(counts[i])
    assert len(gains(matrix, mirrored)) == sum(any(row) for row in counts)


def test_the_command_names_both_pages(tmp_path, capsys):
    write_record(throughput("a", 5.0), tmp_path)
    assert run_command(main, [str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [f"page: {tmp_path}/report.html", f"report: {tmp_path}/report.md"]
    assert Path(f"{tmp_path}/report.html").stat().st_size < 3_000_000
