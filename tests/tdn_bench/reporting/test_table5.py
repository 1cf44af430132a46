"""`benchmarks/table5.py` on a small backbone: its record says what its samples do, and the report shows it."""

import os
import statistics
import subprocess
import sys

import pytest
from support.pages import Reader
from support.paths import ROOT

from tdn_bench.records import PUBLISHED, latest_records
from tdn_bench.reporting import charts, html_path, page, write_report


@pytest.mark.slow
def test_seven_networks_take_turns_and_the_report_shows_their_ratios(tmp_path, monkeypatch):
    command = [sys.executable, "benchmarks/table5.py", "--backbone", "resnet_small", "--size", "64", "--rounds", "6"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [*command, "--device", "cpu", "--results", str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    [record] = latest_records(tmp_path)
    networks = [row.variant for row in PUBLISHED if row.table == "5"]
    assert sorted(record.figures) == sorted(networks)
    total = {
        n: [a + b for a, b in zip(*(record.samples[f"{n}_{what}_ms"] for what in ("loading", "network")), strict=True)]
        for n in networks
    }
    for name in networks:
        ratios = sorted(own / base for own, base in zip(total[name], total["tsn"], strict=True))
        figures = record.figures[name]
        assert figures["ratio"] == pytest.approx(statistics.median(ratios))
        assert (figures["ratio_low"], figures["ratio_high"]) == pytest.approx((ratios[0], ratios[-1]))  # of six
    assert record.figures["i3d"]["views"] == 6
    monkeypatch.setattr(page, "_bundle", lambda: "var vegaEmbed;")
    monkeypatch.setattr(charts, "VALIDATE", True)
    write_report(tmp_path)
    rows = Reader(html_path(tmp_path).read_text()).table("table5-resnet_small-fp32")
    assert [float(row["÷ TSN"][1]) for row in rows] == [record.figures[name]["ratio"] for name in networks]
