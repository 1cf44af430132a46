"""Two configurations against each other: `throughput --compare A B`, by workers that take turns.

A and B are what differs, `field=value,…` with flags of `throughput`, and `@commit` for another commit's code:
`--compare engine=eager engine=openvino,precision=int8`, `--compare @main @HEAD`, `--compare backend=pyav backend=dali`.
"""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from tdn_bench.cli import WorkloadFlags, as_flags, flag, pick_device, settings_of
from tdn_bench.cli.settings import RECORD_KEYS
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Change, change
from tdn_bench.measurement.throughput import Throughput
from tdn_bench.records import Record, make_record
from tdn_bench.regression.budget import Budget
from tdn_bench.regression.interleaving import HERE, MIN_ROUNDS, Interleaved, WorkerSpec, checked_out, interleave

ROUND_S = 4.0  # of turns, before both start anew in fresh processes
INTERVAL = 0.01  # of the ratio, where --interval says nothing else
TITLES = {"path_ms": "file to label", "loader_ms": "loader alone", "infer_ms": "engine alone"}


@dataclass(frozen=True)
class Comparison:
    """B ÷ A of every time that both have, and the same for a terminal."""

    record: Record
    lines: list[str]


def parse_side(text: str, flags: WorkloadFlags) -> tuple[list[str], str | None]:
    """One side: its flags, and its commit. Raises UserError for what is no flag of a workload."""
    found: list[str] = []
    commit = None
    known = settings_of(flags).keys() | RECORD_KEYS.keys()
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        name = name.replace("-", "_")
        if part.startswith("@"):
            commit = part[1:]
        elif not equals or name not in known:
            raise UserError(f"--compare {text}: {part!r} is neither @commit nor field=value with a flag of throughput")
        else:
            name = RECORD_KEYS.get(name, name)  # which an earlier commit knows too
            found += (
                [flag(name if value == "true" else f"no_{name}")] if value in ("true", "false") else [flag(name), value]
            )
    return found, commit


def sides(compare: tuple[str, str], flags: WorkloadFlags, stack: ExitStack) -> list[WorkerSpec]:
    """The workers of both, each with the checkout that it runs."""
    common = as_flags(flags)
    found = []
    for name, text in zip("AB", compare, strict=True):
        own, commit = parse_side(text, flags)
        changed = {_name(word) for word in own if word.startswith("--")}
        words = [word for f, *values in common if _name(f) not in changed for word in (f, *values)] + own
        tree = HERE if commit is None else stack.enter_context(checked_out(commit))
        engines = [value for f, value in pairwise(words) if f == "--engine"]
        parts = ("loader",) if engines[-1:] == ["none"] else ("loader", "engine", "path")
        found.append(WorkerSpec(name, tuple(words), parts, tree))
    return found


def _name(flag: str) -> str:
    return flag.removeprefix("--no-").removeprefix("--")


def ratios(found: Interleaved, confidence: float) -> dict[str, Change]:
    """B ÷ A of every time that both have; the confidence is of all intervals together."""
    names = [f for f in found.times["A"] if f in found.times["B"] and f != "idle_ms"]
    names = [f for f in names if all(min(map(min, found.times[side][f])) > 0 for side in "AB")]
    each = 1 - (1 - confidence) / len(names)
    return {f: change(found.log_ratio(("B", f), ("A", f)), confidence=each) for f in names}


def compare(config: Throughput, pair: tuple[str, str], videos: int = 32) -> Comparison:
    """Take turns until the interval of the main ratio is as narrow as --interval wants (± 1 % without it), for six
    rounds of fresh processes at least and --max-seconds at most. `pair` is A and B as --compare writes them; a turn
    loads `videos` videos. Raises UserError for a side that is none, and where six rounds do not fit."""
    config.check()
    budget = Budget(config.timing.max_seconds, MIN_ROUNDS)
    # renders missing videos here, once; what depends on a side's own flags is left to it
    data = replace(config.workload, engine="none", precision="auto").resolve().data
    flags = replace(config.workload, data=data)
    device = pick_device(flags.device)
    with ExitStack() as stack:
        found, result = _take_turns(config, sides(pair, flags, stack), videos, device, budget)
    figures: dict[str, Any] = {}
    for name, c in result.items():
        figures |= {
            f"{name}_ratio": c.ratio.value,
            f"{name}_ratio_low": c.ratio.low,
            f"{name}_ratio_high": c.ratio.high,
            f"{name}_detectable_ratio": c.detectable,
        }
    name = config.output.name or re.sub(r"[^\w.]+", "-", "-vs-".join(pair)).strip("-")
    limit = flags.part.limit  # the workers open the data, each its own: no manifest says it here
    record = make_record(
        "compare",
        name if limit is None else f"{name}-limit{limit}",
        figures=figures,
        samples=found.samples(),
        settings=settings_of(replace(config, workload=flags)),
        device=device,
        status=found.worst,
        status_reasons=found.reasons,
        details={"turns": found.turns(), "facts": found.facts, "memory": found.memory},
    )
    return Comparison(record, table(pair, config.confidence, found, result))


def _take_turns(
    config: Throughput, both: list[WorkerSpec], videos: int, device: torch.device, budget: Budget
) -> tuple[Interleaved, dict[str, Change]]:
    main = "path_ms" if all("path" in side.parts for side in both) else "loader_ms"
    wanted = INTERVAL if config.timing.interval is None else config.timing.interval
    found, result = Interleaved(), {}
    for found in interleave(both, videos=videos, rounds=1000, round_s=ROUND_S, device=device, budget=budget):
        rounds, compared = len(found.status), budget.passed_s()
        if rounds < MIN_ROUNDS:  # too few processes to know what differs from one to the next
            continue
        result = ratios(found, config.confidence)
        interval = result[main].ratio
        print(f"round {rounds}, {compared:.0f} s: {TITLES[main]} B ÷ A = {interval}", file=sys.stderr, flush=True)
        if (interval.high - interval.low) / 2 <= wanted * interval.value:
            break
        budget.keep(budget.passed_s() - compared)
    return found, result


def table(pair: tuple[str, str], confidence: float, found: Interleaved, result: dict[str, Change]) -> list[str]:
    """The ratios for a terminal, a line each."""
    a, b = pair
    lines = [
        f"A: {a}   B: {b}   B ÷ A (below 1: B is faster), {confidence:.0%} confidence of all together, "
        f"{sum(found.turns())} turns in {len(found.status)} rounds"
    ]
    for name, c in sorted(result.items(), key=lambda item: item[0] not in TITLES):
        said = "slower" if c.ratio.low > 1 else "faster" if c.ratio.high < 1 else "no difference shown"
        title = TITLES.get(name, f"  loader: {name.removesuffix('_ms')}")
        lines.append(f"  {title:20s} {c.ratio!s:28s} {said}; smallest detectable change {c.detectable - 1:.1%}")
    return lines + [f"  note: {reason}" for reason in found.reasons]
