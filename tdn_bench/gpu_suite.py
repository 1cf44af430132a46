"""Check and measure everything on a GPU machine.

Each step runs in a process of its own and writes a record; a step that has passed with the same code, settings
and versions is not run again, so that an interrupted run goes on where it stopped. Without a GPU the same steps
run at toy size on the CPU: that shows that the suite works, and its figures mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdn_bench.cli import begin_run, parse, pick_device, run_command
from tdn_bench.errors import UserError, log
from tdn_bench.gpu_checks import STEPS, Run, Verdict, dry, full, run_step, supervise, table
from tdn_bench.records import record_folder

EXAMPLES = (
    "tdn-bench gpu-suite",
    "tdn-bench gpu-suite --only decoders loader",
)
COMMON = ("device", "results", "data", "only", "again")


@dataclass(frozen=True, kw_only=True)
class GpuSuite:
    """Check, then measure, decoder, loader, training step, engines and the whole path from file to label. A table of
    all figures comes last. The exit status is 1 if a check failed."""

    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one. On a CPU everything is a dry run at toy size."""
    results: Path | None = None
    """Folder for the records; default: runs/gpu-suite, for a dry run runs/gpu-suite-dry. To publish:
    results/<machine>/gpu-suite."""
    data: Path | None = None
    """Videos in Something-Something V2's layout; default: synthetic ones, rendered once to runs/gpu-suite-data."""
    only: tuple[str, ...] = ()
    """Run only these steps, in their usual order; default: all."""
    again: bool = False
    """Run steps again that have passed before."""
    step: str | None = None
    """Run one step here, in this process, and end (what the suite starts for each of its steps)."""


def prepare(config: GpuSuite) -> Run:
    """Resolve the flags. Raises UserError for an unknown step or device."""
    for flag, steps in (("--only", config.only), ("--step", () if config.step is None else (config.step,))):
        if unknown := [step for step in steps if step not in STEPS]:
            raise UserError(f"{flag} {' '.join(unknown)}: no such step; choose from {', '.join(STEPS)}")
    device = pick_device(config.device)
    gpu = device.type == "cuda"
    folder = record_folder(config.results, "gpu-suite" if gpu else "gpu-suite-dry")
    return Run(full() if gpu else dry(), device, folder, config.data)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps and print the table. Ends with exit status 1 if a check failed."""
    config = parse(GpuSuite, argv, "gpu-suite", examples=EXAMPLES, common=COMMON)
    run = prepare(config)
    if config.step is not None:
        record = run_step(config.step, run)
        print(table([Verdict(config.step, record, record.details["failures"])]))
        raise SystemExit(bool(record.details["failures"]))
    begin_run(run.folder, "gpu-suite", config)
    verdicts, start = [], time.perf_counter()
    for name in [s for s in STEPS if s in config.only or not config.only]:
        log.info("[%4.0f s] %s", time.perf_counter() - start, name)
        verdicts.append(supervise(name, run, config.again))
    dry_run = "" if run.device.type == "cuda" else " (a dry run on the CPU: its figures mean nothing)"
    print(f"\n{table(verdicts)}\n\nrecords: {run.folder}{dry_run}")
    if any(v.failures for v in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
