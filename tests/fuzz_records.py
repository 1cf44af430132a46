"""Damaged and hostile records through `report` and `history`, and baselines through the gate: `make fuzz`;
`test_fuzz_records.py` runs a slice.

Each is shown, or named with a reason in one line. Nothing else happens: no traceback, no waiting, nothing left out.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import random
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from unittest import mock

import pytest
from support.damaged_json import changed, content_of, write_odd
from support.pages import Reader
from support.paths import ROOT
from support.turns import Machine

import tdn_bench.regression.gate as gate_module
from pipelines.errors import printable
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.history import main as history
from tdn_bench.measurement import statistics
from tdn_bench.records import read_record
from tdn_bench.records.tables import markdown_text
from tdn_bench.regress import main as regress
from tdn_bench.report import main as report
from tdn_bench.reporting.tables import shortened

HANG_S = 120  # without an answer for so long it has hung; the stack is printed and the process ends
BASELINES = ROOT / "results" / "baselines"
DEMO = ROOT / "results" / "amd-epyc-2core"


def said(command: Callable[[Sequence[str] | None], None], *argv: str) -> tuple[int, str, str]:
    """A command's exit status, stdout and stderr, as text that any terminal takes."""
    out, err = io.StringIO(), io.StringIO()
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run_command(command, argv)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    faulthandler.cancel_dump_traceback_later()
    for text in (out.getvalue(), err.getvalue()):
        text.encode()  # no lone surrogate
        odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"]
        assert not odd, f"control characters {odd} in {text!r}"
    return status, out.getvalue(), err.getvalue()


def one_line(err: str) -> str:
    """The one line of an error."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert err.endswith(f"{errors[0]}\n"), err
    return errors[0]


def record_sources() -> list[dict[str, object]]:
    """A published record of every kind, and an evaluation; few samples."""
    names = ("demo/train-demo-tdn", "demo/throughput-eager", "demo/loader-pyav", "demo/scenario-", "parity-engines")
    paths = [path for name in names for path in sorted(DEMO.glob(f"{name}*.json"))]
    paths += sorted(ROOT.glob("results/intel*/parity-decoders*.json")) + sorted(DEMO.glob("fuzz-*.json"))
    raws = [json.loads(path.read_text()) | {"schema_version": 2} for path in paths]
    found = []
    for raw in raws:
        raw = {"status": "unwatched", "status_reasons": []} | raw
        found.append(raw | {"samples": {name: values[:5] for name, values in raw["samples"].items()}})
    figures = {"videos": 8, "views": 1, "top1_percent": 50.0, "top5_percent": 75.0, "bad_clips": 0}
    return [*found, found[0] | {"kind": "evaluate", "name": "evaluated", "samples": {}, "figures": figures}]


def fuzz_records(folder: Path, count: int, seed: int, at_once: int = 20) -> Counter[str]:
    """`count` damaged records, `at_once` in a folder, through `report` and `history`."""
    rng, sources, found = random.Random(seed), record_sources(), Counter[str]()
    for start in range(0, count, at_once):
        place = folder / str(start)
        place.mkdir(parents=True)
        good = rng.choice(sources)
        (place / "good.json").write_bytes(content_of(good | {"name": "the-good-one"}))
        for number in range(start, min(start + at_once, count)):
            source = rng.choice(sources)
            found[write_odd(place / f"odd-{number}.json", source | {"name": f"n{number}"}, rng)] += 1
        found.update(judge_folder(place))
    return found


def judge_folder(place: Path) -> Counter[str]:
    """What became of the records of a folder. Raises AssertionError where one is neither shown nor named."""
    found = Counter[str]()
    status, _, err = said(report, str(place))
    assert (status, err) == (0, ""), err
    page = (place / "report.md").read_text(encoding="utf-8")
    assert "the-good-one" in page
    check_page(page)
    check_html((place / "report.html").read_text(encoding="utf-8"), [p.name for p in place.glob("*.json")])
    notes = said(history, str(place))[2]
    named = re.findall(r"^note: not shown: .*$", notes, re.MULTILINE)
    readable = {}
    for path in sorted(place.glob("*.json")):
        with contextlib.suppress(UserError):
            readable[path] = read_record(path)
        if markdown_text(path.name) in page and path not in readable:
            found["named"] += 1
            assert sum(path.name in line for line in named) == 1, notes
        elif path.name in page:
            found["named or listed"] += 1
        else:
            assert path in readable, f"{path}: left out in silence"
            name = markdown_text(shortened(readable[path].name))
            assert name in page or "older records in this folder are not shown" in page, f"{path}: left out"
            found["shown"] += 1
    for figure in ("ms_per_video", "top1_percent"):
        status, _, err = said(history, str(place), "--figure", figure, "--out", str(place / "h.png"))
        assert status in (0, 2), err
        assert status == 0 or one_line(err)
    return found


def check_page(page: str) -> None:
    """Tables are whole, and no text of a record became markup."""
    assert "<script" not in page
    assert not re.search(r"(?<!\\)\[l\]", page)
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def check_html(text: str, files: Sequence[str]) -> None:
    """No text of a record became markup, charts are JSON without what is none, and every file is named."""
    page = Reader(text)
    assert page.tags.count("script") == (3 if "vega" in text else 2)
    assert {"img", "iframe", "object", "embed", "l"} & set(page.tags) == set()
    specs = re.search(r'id="specs">(.*?)</script>', text, re.DOTALL)
    assert specs is not None
    json.loads(specs[1], parse_constant=lambda found: pytest.fail(f"{found} in a chart"))
    for name in files:
        assert escape(printable(name)) in text or "older records are not listed" in text, name


def fuzz_baselines(folder: Path, count: int, seed: int) -> Counter[str]:
    """`count` damaged baselines through the gate, with turns that are made up: refused in one line that names the file,
    or compared."""
    rng, found, machine = random.Random(seed), Counter[str](), Machine()
    folder.mkdir(parents=True)
    place = folder / "demo.json"
    flags = ("--device", "cpu", "--data", str(folder))
    with (
        mock.patch.object(gate_module, "interleave", machine),
        mock.patch.object(statistics, "RESAMPLES", 1000),
        mock.patch.object(gate_module, "KEEP_FREED_MEMORY", {}),
    ):
        shutil.copy(BASELINES / "demo.weights.safetensors", folder)
        first = ("--update", "--checkpoint", str(folder / "demo.weights.safetensors"), "--baseline", str(place))
        assert said(regress, *first, *flags, "--engines", "eager", "onnx")[0] == 0
        raw = json.loads(place.read_text())
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        assert said(regress, "--baseline", str(place), *flags)[0] == 0
        for number in range(count):
            for path, content in kept.items():
                path.write_bytes(content)
            (folder / "demo.samples.json.xz").unlink(missing_ok=True)
            if number % 10 == 0:  # what its engines said
                scores = rng.choice([path for path in kept if path.name.startswith(("demo.eager", "demo.onnx"))])
                damaged = bytearray(kept[scores])
                for _ in range(rng.choice((1, 8))):
                    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                scores.write_bytes(rng.choice((damaged, damaged[: rng.randrange(len(damaged))])))
            elif number % 3:
                place.write_bytes(content_of(raw | {"details": changed(raw["details"], rng)}))
            else:
                place.unlink()
                write_odd(place, raw, rng)
            status, _, err = said(regress, "--baseline", str(place), *flags)
            if status == 2:
                assert str(folder) in one_line(err) or "tdn_bench" in err, err
                found["refused"] += 1
            else:
                assert status in (0, 1, 3), err
                found[f"compared: status {status}"] += 1
                assert number % 10, "damaged scores were compared"
            place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)
    return found


@dataclass(frozen=True)
class Fuzz:
    """Send damaged records and baselines through report, history and the gate, and write a record."""

    records: int = 1000
    """Damaged records."""
    baselines: int = 1000
    """Damaged baselines."""
    seed: int = 0
    """Of the damage: the same files for a seed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and print what became of the files; a failure is an AssertionError."""
    import tyro

    config = tyro.cli(Fuzz, args=argv, prog="tests/fuzz_records.py")
    with tempfile.TemporaryDirectory() as folder:
        print("records:", dict(fuzz_records(Path(folder) / "records", config.records, config.seed)))
        print("baselines:", dict(fuzz_baselines(Path(folder) / "baselines", config.baselines, config.seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
