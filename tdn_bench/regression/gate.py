"""The regression gate: does this commit decode, infer and train as fast as the baseline, and is it as accurate?

What a baseline holds is measured again. Times are never compared as seconds: each is divided by that of a fixed
reference network which takes turns with it (`worker.Reference`), then and now; with `--against COMMIT` by that of the
other commit, which takes turns with this one. What fails is what is certainly slower than the margin allows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from engines import why_unavailable
from pipelines.errors import printable
from pipelines.files import write_whole
from pipelines.synthetic import make_dataset
from tdn_bench.cli import flag, pick_device, settings_of
from tdn_bench.errors import UserError
from tdn_bench.records import Record, make_record, to_json
from tdn_bench.regression.baseline import (
    BASE,
    GatePlan,
    check_scores,
    held,
    judged,
    keeps_settings,
    read_baseline,
    update,
)
from tdn_bench.regression.budget import Budget
from tdn_bench.regression.checks import (
    DISTURBED,
    STAGES,
    accuracy_checks,
    compare_times,
    culprits,
    disturbed,
    is_same_machine,
    memory_checks,
    time_checks,
)
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.interleaving import HERE, MIN_ROUNDS, Interleaved, WorkerSpec, checked_out, interleave
from tdn_bench.regression.verdicts import INCONCLUSIVE_VERDICT, Check, exit_status, table, to_junit, to_markdown

SYNTHETIC_DATA, SYNTHETIC_VIDEOS = Path("runs/regress"), 320
# glibc gives large buffers back to the kernel and takes them anew at each call, in some processes and in others not:
# that alone makes the reference a fifth slower or faster. So it keeps them (32 MiB is the most that glibc takes here).
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True)
class Verdict:
    """What the gate found: its checks, what else is to be said, the exit status, and a record of it all."""

    checks: Sequence[Check]
    notes: Sequence[str]
    code: int
    record: Record


def worker_specs(plan: GatePlan, config: Regress, tree: Path = HERE, prefix: str = "") -> list[WorkerSpec]:
    """The workers that take turns: the loader, each engine, the training step."""
    device = str(pick_device(config.device))
    flags = dict(plan.flags)
    if config.data.data is not None:
        flags["data"] = str(config.data.data)
    elif not flags.keys() & {"data", "manifest", "train_list"}:
        flags["data"] = str(make_dataset(SYNTHETIC_DATA, train=8, validation=SYNTHETIC_VIDEOS, progress=False))
    if (checkpoint := plan.weights(config)) is not None:
        flags["checkpoint"] = str(checkpoint)
    if "data" in flags:
        flags["data"] = str(Path(flags["data"]).resolve())
    common = [text for name, value in flags.items() for text in (flag(name), str(value))] + ["--device", device]
    alone = plan.environment(device)
    if alone:
        common += ["--workers", str(plan.threads)]

    def spec(name: str, flags: tuple[str, ...], *parts: str) -> WorkerSpec:
        return WorkerSpec(f"{prefix}{name}", (*common, *flags), parts, tree, environment=alone)

    found = [spec("loader", ("--engine", "none"), "loader")]
    for engine, precision in plan.engines:
        if (reason := why_unavailable(engine, device)) is not None:
            raise UserError(f"{config.baseline} holds engine {engine}, which is not ready here: {reason}")
        # infer is timed apart from the path, so that a slower decoder is not taken for a slower engine
        engine_flags = ("--engine", engine, "--precision", precision)
        found.append(spec(f"{engine}-{precision}", engine_flags, "engine", "path"))
    if plan.train:
        found.append(spec("train", ("--engine", "none"), "train"))
    return found


def measure(plan: GatePlan, config: Regress, before: Record | None, budget: Budget) -> tuple[Interleaved, Record]:
    """Take turns until every judged time could show a change of the margin, or the time is over. Raises UserError where
    it does not suffice for a verdict."""
    device = pick_device(config.device)
    with ExitStack() as stack:
        specs = worker_specs(plan, config)
        flags = ("--engine", "none", "--device", str(device), "--data", ".")
        environment = KEEP_FREED_MEMORY | plan.environment(str(device))
        specs.append(WorkerSpec("reference", flags, ("reference",), environment=environment))
        if config.against is not None:
            tree = stack.enter_context(checked_out(config.against))
            specs += worker_specs(plan, config, tree, BASE)
        found = Interleaved()
        for found in interleave(
            specs,
            videos=plan.videos,
            rounds=1000,
            round_s=config.round_s,
            with_scores=True,
            device=device,
            budget=budget,
        ):
            passed, turns = budget.passed_s(), found.turns()[-1]
            print(
                f"round {len(found.status)}: {passed:.0f} s, {turns} turns each, {found.status[-1]}",
                file=sys.stderr,
                flush=True,
            )
            digest = found.facts["loader"]["data_digest"]
            if before is not None and not config.update and before.details["data_digest"] != digest:
                raise UserError(
                    f"the videos are not those of {config.baseline}: say by --data where they are, or use --against"
                )
            compared = budget.passed_s()
            if _is_enough(found, before, plan, config):
                break
            budget.keep(budget.passed_s() - compared)  # the verdict takes as long again
    details = {
        "held": held(plan),
        "turns": found.turns(),
        "memory": found.memory,
        "facts": found.facts,
        "data_digest": digest,
    }
    record = make_record(
        "regress",
        config.baseline.stem,
        figures=figures(found, plan),
        samples=found.samples(),
        settings={k: v for k, v in settings_of(config).items() if v is not None},
        device=device,
        details=details,
        status=found.worst,
        status_reasons=found.reasons,
    )
    return found, record


def _is_enough(found: Interleaved, before: Record | None, plan: GatePlan, config: Regress) -> bool:
    """Whether the rounds so far suffice."""
    rounds = len(found.status)
    bad = disturbed(found.times["reference"]["reference_ms"])
    if rounds - len(bad) < MIN_ROUNDS:  # too few processes to know what differs from one to the next
        return False
    if config.update or (before is None and config.against is None):
        return False  # a baseline takes all the time that it may
    changes = compare_times(found, before, plan, config)
    return all(c.detectable <= 1 + config.margin for n, c in changes.items() if n.split()[1] not in STAGES)


def figures(found: Interleaved, plan: GatePlan) -> dict[str, float]:
    """For `tdn-bench history`: medians of the times, alone and ÷ the reference's, and accuracies."""
    times = {}
    for c, f in [*judged(plan), ("reference", "reference_ms")]:
        times[f"{c}_{f}"] = float(np.median(np.concatenate(found.times[c][f])))
        if c != "reference":
            ratio = np.concatenate(found.log_ratio((c, f), ("reference", "reference_ms")))
            times[f"{c}_{f}_per_reference_ms"] = float(np.exp(np.median(ratio)))
    top1 = {f"{c}_top1_percent": s.top(1) for c, s in found.scores.items() if not c.startswith(BASE)}
    return times | top1


def run(config: Regress) -> int:
    """Measure, compare, print, write what was asked for; return the exit status."""
    config.check()
    budget = Budget(config.max_seconds, MIN_ROUNDS)
    if config.accept is not None and not config.update:
        raise UserError("--accept goes with --update: it says why a new baseline may hide a regression")
    if config.update and config.against is not None:
        raise UserError("--update and --against exclude each other: a baseline is of the working tree")
    exists = config.baseline.is_file()
    if not exists and not config.update:
        raise UserError(f"--baseline {config.baseline}: no such file; `tdn-bench regress --update` makes one")
    before = read_baseline(config.baseline) if exists else None
    if before is not None and (not config.update or keeps_settings(config)):
        plan = GatePlan.read(before.details["held"])
    else:
        plan = GatePlan.make(config)
    if before is not None and plan == GatePlan.read(before.details["held"]) and config.against is None:
        check_scores(config.baseline, before)
    found, record = measure(plan, config, None if config.against else before, budget)
    verdict = judge(plan, config, found, record, before)
    print(table(verdict.checks, verdict.notes, verdict.code))
    write_outputs(config, verdict)
    if config.update:
        return update(config, verdict.record, found, before, verdict.checks, verdict.code)
    return verdict.code


def judge(plan: GatePlan, config: Regress, found: Interleaved, record: Record, before: Record | None) -> Verdict:
    """Compare what was found with the baseline `before`, or with the other commit's workers."""
    same_plan = before is None or GatePlan.read(before.details["held"]) == plan
    side = None if config.against else before  # whose figures count
    if side is not None and side.details["data_digest"] != record.details["data_digest"]:
        side = None  # an --update for other videos
    checks: list[Check] = []
    same_machine = side is None or is_same_machine(side, record)
    if config.against is not None or side is not None:
        margin = config.margin if same_machine else config.margin + config.transfer
        changes = compare_times(found, side, plan, config)
        checks += time_checks(changes, margin, void=side is not None and found.worst == "void")
        checks += memory_checks(found, side, config, same_machine)
        if not config.update or same_plan:
            same_libraries = side is None or side.versions == record.versions
            checks += accuracy_checks(found, config, plan, same_machine and same_libraries)
    code = exit_status(checks)
    details = {**record.details, "checks": [asdict(c) for c in checks], "exit_status": code}
    notes = _notes(config, found, record, side, checks, same_machine)
    return Verdict(checks, notes, code, replace(record, details=details))


def _notes(
    config: Regress,
    found: Interleaved,
    record: Record,
    side: Record | None,
    checks: Sequence[Check],
    same_machine: bool,
) -> list[str]:
    notes = list(dict.fromkeys(found.reasons))
    if bad := disturbed(found.times["reference"]["reference_ms"]):
        rounds = ", ".join(str(i + 1) for i in bad)
        notes.append(f"round {rounds}: not counted, the reference took over {DISTURBED - 1:.0%} longer than elsewhere")
    if not same_machine:
        notes.append(f"the baseline is another machine's: times may be slower by {config.margin + config.transfer:.0%}")
    if side is not None and side.versions != record.versions:
        changed = sorted(k for k, v in record.versions.items() if side.versions.get(k) != v)
        notes.append(f"other versions than the baseline's: {', '.join(changed)}")
    if slow := culprits(checks):
        notes.append(f"slower: {', '.join(slow)}")
    if undecided := [c.name for c in checks if c.part and c.verdict == INCONCLUSIVE_VERDICT]:
        notes.append(f"undecided parts: {', '.join(undecided)}; the loader as a whole decides")
    return notes


def write_outputs(config: Regress, verdict: Verdict) -> None:
    """The files that were asked for. Raises UserError where one cannot be written."""
    texts = {
        "junit": lambda: to_junit(verdict.checks, verdict.notes).encode(),
        "markdown": lambda: to_markdown(verdict.checks, verdict.notes, verdict.code).encode(),
        "json": lambda: to_json(verdict.record),
    }
    for name, text in texts.items():
        path: Path | None = getattr(config, name)
        if path is None:
            continue
        try:
            write_whole(path, text())
        except OSError as e:
            raise UserError(f"--{name} {printable(str(path))}: cannot be written ({e.strerror})") from e
