"""Two configurations against each other: `throughput --compare A B`, in fresh processes that take turns.

A and B are what differs, `field=value,…` with the fields of `throughput`, and `@commit` for another commit's code:
`--compare engine=eager engine=openvino,precision=int8`, `--compare @main @HEAD`, `--compare backend=pyav backend=dali`.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from tdn_bench.cli.flags import as_flags, pick_device
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Change, change
from tdn_bench.records.record import Record, make_record
from tdn_bench.regression.interleaving import HERE, MIN_ROUNDS, Contestant, Interleaved, checked_out, interleave

if TYPE_CHECKING:
    from tdn_bench.measurement.throughput import Throughput

ROUND_S = 4.0  # of turns, before both start anew in fresh processes
TITLES = {"path_ms": "file to label", "loader_ms": "loader alone", "infer_ms": "engine alone"}


def parse(text: str, config: Throughput) -> tuple[list[str], str | None]:
    """One side: its flags, and its commit. Raises UserError for what `throughput` does not have."""
    flags, commit = [], None
    known = {f.name for f in fields(config)} - {"compare", "name", "results"}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if part.startswith("@"):
            commit = part[1:]
        elif not equals or name.replace("-", "_") not in known:
            raise UserError(f"--compare {text}: {part!r} is neither @commit nor field=value with a flag of throughput")
        elif value in ("true", "false"):
            flags.append(f"--{'' if value == 'true' else 'no-'}{name.replace('_', '-')}")
        else:
            flags += [f"--{name.replace('_', '-')}", value]
    return flags, commit


def sides(config: Throughput, stack: ExitStack) -> list[Contestant]:
    """Both, each with the checkout that it runs."""
    assert config.compare is not None
    # what the turns do not use, and an older commit may not know
    of_the_whole = ("compare", "confidence", "interval", "max_seconds", "name", "results", "trace")
    common = as_flags(config, leave_out=of_the_whole)
    found = []
    for name, text in zip("AB", config.compare, strict=True):
        flags, commit = parse(text, config)
        changed = {flag.removeprefix("--no-").removeprefix("--") for flag in flags if flag.startswith("--")}
        kept = [word for flag, *values in common if flag.removeprefix("--no-").removeprefix("--") not in changed
                for word in (flag, *values)]  # fmt: skip
        tree = HERE if commit is None else stack.enter_context(checked_out(commit))
        no_engine = [v for f, v in zip([*kept, *flags], [*kept, *flags][1:], strict=False) if f == "--engine"][-1:] == [
            "none"
        ]
        found.append(
            Contestant(name, (*kept, *flags), ("loader",) if no_engine else ("loader", "engine", "path"), tree)
        )
    return found


def ratios(found: Interleaved, confidence: float) -> dict[str, Change]:
    """B ÷ A of every time that both have; the confidence is of all intervals together."""
    names = [f for f in found.times["A"] if f in found.times["B"] and f != "idle_ms"]
    names = [f for f in names if all(min(map(min, found.times[side][f])) > 0 for side in "AB")]
    each = 1 - (1 - confidence) / len(names)
    return {f: change(found.log_ratio(("B", f), ("A", f)), confidence=each) for f in names}


def compare(config: Throughput, videos: int = 32) -> Record:
    """Take turns until the interval of the main ratio is as narrow as `config.interval` wants (± 1 % without it), for
    six rounds of fresh processes at least and about `config.max_seconds` at most; print and return B ÷ A."""
    assert config.compare is not None
    from tdn_bench.measurement.throughput import resolve

    names, wanted = config.compare, 0.01 if config.interval is None else config.interval
    # renders missing videos here, once; what depends on a side's own flags is left to it
    config = replace(config, data=resolve(replace(config, engine="none", precision="auto")).data)
    with ExitStack() as stack:
        both = sides(config, stack)
        device = pick_device(config.device)
        main = "path_ms" if all("path" in c.parts for c in both) else "loader_ms"
        begun, found, result = time.monotonic(), Interleaved(), {}
        for found in interleave(both, videos=videos, rounds=1000, round_s=ROUND_S, device=device):
            passed, rounds = time.monotonic() - begun, len(found.status)
            if rounds < MIN_ROUNDS:  # too few processes to know what differs from one to the next
                continue
            result = ratios(found, config.confidence)
            interval = result[main].ratio
            print(f"round {rounds}, {passed:.0f} s: {TITLES[main]} B ÷ A = {interval}", file=sys.stderr, flush=True)
            narrow = (interval.high - interval.low) / 2 <= wanted * interval.value
            if narrow or passed * (1 + 1 / rounds) > config.max_seconds:
                break
    figures: dict[str, Any] = {}
    for name, c in result.items():
        figures |= {
            f"{name}_ratio": c.ratio.value,
            f"{name}_ratio_low": c.ratio.low,
            f"{name}_ratio_high": c.ratio.high,
        }
        figures |= {f"{name}_detectable_ratio": c.detectable}
    lines = [f"A: {names[0]}   B: {names[1]}   B ÷ A (below 1: B is faster), {config.confidence:.0%} "
             f"confidence of all together, {sum(found.turns())} turns in {len(found.status)} rounds"]  # fmt: skip
    for name, c in sorted(result.items(), key=lambda item: item[0] not in TITLES):
        said = "slower" if c.ratio.low > 1 else "faster" if c.ratio.high < 1 else "no difference shown"
        lines.append(f"  {TITLES.get(name, '  loader: ' + name.removesuffix('_ms')):20s} {c.ratio!s:28s} {said}; "
                     f"{c.detectable - 1:.1%} would have been found")  # fmt: skip
    lines += [f"  note: {reason}" for reason in found.reasons]
    print("\n".join(lines))
    return make_record(
        "compare", config.name or re.sub(r"[^\w.]+", "-", "-vs-".join(names)).strip("-"),
        figures=figures, samples=found.samples(), settings=asdict(config), device=device,
        status=found.worst, status_reasons=found.reasons,
        details={"turns": found.turns(), "facts": found.facts, "memory": found.memory},
    )  # fmt: skip
