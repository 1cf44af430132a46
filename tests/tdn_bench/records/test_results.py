"""What is published under results/: results/README.md names it, its links lead somewhere, and all of it can be read."""

import json
import re
from fnmatch import fnmatch

import jsonschema
import pytest
from support.paths import ROOT

from tdn_bench.measurement.statistics import change
from tdn_bench.records import read_record

RESULTS = ROOT / "results"
PAGE = (RESULTS / "README.md").read_text()
RECORDS = sorted(RESULTS.rglob("*.json"))
LINKS = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
PATTERNS = re.findall(r"`([^` ]*\*[^` ]*)`", PAGE)  # a series of files: `folder/name-*.json`
ROWS = [line for line in PAGE.splitlines() if line.startswith("| [") and line.count("|") == 4]


def test_the_page_names_every_file_and_no_other():
    files = [
        str(p.relative_to(RESULTS))
        for p in RESULTS.rglob("*")
        if p.is_file() and p.name != "README.md" and p.suffix != ".toml"
    ]
    unnamed = [f for f in files if f not in LINKS and not any(fnmatch(f, pattern) for pattern in PATTERNS)]
    assert unnamed == []
    assert [link for link in LINKS if not (RESULTS / link).exists()] == []
    assert [pattern for pattern in PATTERNS if not any(fnmatch(f, pattern) for f in files)] == []


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.md")), ids=lambda p: str(p.relative_to(RESULTS)))
def test_the_links_of_every_page_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.findall(r"\]\(([^)]+)\)", row)[0])
def test_a_row_states_the_command_of_its_record(row):
    link, stated = re.findall(r"\]\(([^)]+)\)", row)[0], re.findall("`([^`]+)` [|]$", row)
    if not link.endswith(".json"):
        return
    command = list(read_record(RESULTS / link).command)
    if "--results" in command:
        at = command.index("--results")
        del command[at : at + 2]
    # the row may leave out what was local to that machine: the values of some flags, each written "…"
    parts = [re.escape(part) for part in stated[0].split("…")]
    assert re.fullmatch(r"(?:(?!--).)+?".join(parts), " ".join(command)), command


def test_a_record_lies_in_the_folder_of_its_machine():
    for path in RECORDS:
        machine = path.relative_to(RESULTS).parts[0]
        assert machine in (read_record(path).machine["name"], "baselines"), path


def test_files_are_as_the_schema_says_and_small():
    schema = json.loads((ROOT / "tdn_bench" / "records" / "record.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for path in RECORDS:
        raw = json.loads(path.read_text())
        if raw["schema_version"] == 2:  # test_record.py has the older ones, as they are once read
            validator.validate(raw)
        assert path.stat().st_size < 500_000, f"{path}: python -m tdn_bench.records.compress makes it smaller"


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*/benchmark-gate-power-turns-added-*.json")), ids=lambda p: p.stem
)
def test_what_the_gate_said_follows_from_compressed_samples(path):
    record = read_record(path)
    said, turns, rounds = record.details["comparisons"][0], record.details["turns"][0], record.settings["rounds"]
    for figure, (value, low, high, _) in said["value_low_high_detectable"].items():
        ratios = record.samples[f"log_ratio_e4_{figure}_by_{said['by']:g}_{said['stage']}"]
        by_round = [[x / 1e4 for x in ratios[i * turns : (i + 1) * turns]] for i in range(rounds)]
        ratio = change(by_round, confidence=1 - 0.01 / len(said["value_low_high_detectable"])).ratio
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((value, low, high), abs=2e-4)
