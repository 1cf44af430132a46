"""Runs each step in a process of its own, goes on where an earlier run stopped, and makes the table of what came of
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tdn_bench.gpu_checks.run import Run, run_quietly
from tdn_bench.gpu_checks.steps import STEPS
from tdn_bench.records import Record, latest_records, machine_name, make_record, utc_now, versions, write_record

KIND = "gpu_suite"


@dataclass(frozen=True)
class Verdict:
    """How a step ended. `failures` is empty where it passed; without a record it broke off."""

    step: str
    record: Record | None
    failures: Sequence[str]
    earlier: bool = False

    @property
    def text(self) -> str:
        """The verdict in the table."""
        return "FAILED" if self.failures else "passed (earlier)" if self.earlier else "passed"


def run_step(name: str, run: Run) -> Record:
    """Run one step in this process and write its record."""
    found = STEPS[name](run)
    record = make_record(
        KIND,
        name,
        figures=found.figures,
        samples=found.samples,
        settings=run.settings(),
        device=run.device,
        details=found.details | {"failures": found.failures, "rows": [asdict(row) for row in found.rows]},
    )
    write_record(record, run.folder)
    return record


def find_record(name: str, run: Run, since: str = "") -> Record | None:
    """The step's newest record, none older than `since` (see `utc_now`), if it is of this code, these settings, this
    device and these versions."""
    if not run.folder.is_dir():
        return None
    same = run.settings(), versions(), machine_name(run.device)
    for record in latest_records(run.folder, since):
        if (record.kind, record.name) == (KIND, name):
            return record if (record.settings, record.versions, record.machine["name"]) == same else None
    return None


def supervise(name: str, run: Run, again: bool) -> Verdict:
    """Run one step in a process of its own, unless it has passed before and need not run `again`."""
    before = None if again else find_record(name, run)
    if before is not None and not before.details["failures"]:
        return Verdict(name, before, (), earlier=True)
    started = utc_now()
    flags = ["--step", name, "--device", str(run.device), "--results", str(run.folder)]
    flags += ["--data", str(run.data)] if run.data is not None else []
    error = run_quietly("tdn_bench.gpu_suite", flags, run.sizes)
    record = find_record(name, run, started)
    failures = list(record.details["failures"]) if record is not None else []
    if not failures and (error is not None or record is None):
        failures = [error or "left no record of this code: was it edited meanwhile?"]
    return Verdict(name, record, failures)


def table(verdicts: Sequence[Verdict]) -> str:
    """Each step's verdict, its failures and its headline figures; rates also as a share of the ceiling."""
    figures = next((v.record.figures for v in verdicts if v.step == "ceilings" and v.record is not None), {})
    ceiling = figures.get("matmul_tflop_per_s")
    lines = []
    for verdict in verdicts:
        lines.append(f"{verdict.step}: {verdict.text}")
        lines += [f"    ! {failure}" for failure in verdict.failures]
        for row in verdict.record.details["rows"] if verdict.record is not None else ():
            line, rate = f"    {row['figure']:42s} {row['value']}", row["tflop_per_s"]
            if rate is not None:
                line += f", {rate:.3g} TFLOP/s"
                line += f" = {rate / ceiling:.1%} of the matrix product" if ceiling is not None else ""
            lines.append(line)
    return "\n".join(lines)
