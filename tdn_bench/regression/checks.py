"""From what the workers took to verdicts: times, peak memory and accuracy, each against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tdn_bench.correctness.scores import load_scores
from tdn_bench.measurement.statistics import Change, Rounds, change
from tdn_bench.records import Record, machine_text
from tdn_bench.regression.accuracy import compare_scores
from tdn_bench.regression.baseline import BASE, STAGES, GatePlan, judged, rounds_of, scores_file
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.interleaving import MIN_ROUNDS, Interleaved
from tdn_bench.regression.verdicts import NOT_JUDGED, Check

DISTURBED = 1.10  # times the reference's median of the quickest round
NEGLIGIBLE = 0.05  # of the loader's thread time: a stage below is not looked at


def stages(found: Interleaved) -> list[tuple[str, str]]:
    """The loader's stages that take a share worth a look."""
    times = found.times["loader"]
    middle = {s: float(np.median(np.concatenate(times[s]))) for s in STAGES if s in times}
    return [("loader", s) for s, ms in middle.items() if ms > NEGLIGIBLE * sum(middle.values())]


def disturbed(reference_ms: Sequence[Sequence[float] | np.ndarray]) -> list[int]:
    """Rounds in which the reference, which no commit changes, took over DISTURBED of what it took in the quickest: the
    machine was another one then, and slowed some work more than other. None where too few would be left."""
    medians = [float(np.median(r)) for r in reference_ms]
    found = [i for i, ms in enumerate(medians) if ms > DISTURBED * min(medians)]
    return found if len(medians) - len(found) >= MIN_ROUNDS else []


def without(rounds: Sequence[Any], left_out: Sequence[int]) -> list[Any]:
    return [r for i, r in enumerate(rounds) if i not in left_out]


def compare_times(found: Interleaved, before: Record | None, plan: GatePlan, config: Regress) -> dict[str, Change]:
    """The change of every time that both sides have, by `<worker> <figure>`, at the confidence that keeps all
    together at `config.confidence`."""
    names = judged(plan)
    for c, f in stages(found):  # the other side's loader may know others, or need no time for one
        then_ms = before.samples.get(f"{c}_{f}", ()) if before is not None else _flat(found.times[BASE + c].get(f, ()))
        if min(then_ms, default=0) > 0 and min(_flat(found.times[c][f])) > 0:
            names.append((c, f))
    confidence = 1 - (1 - config.confidence) / len(names)
    changes = {}
    bad = disturbed(found.times["reference"]["reference_ms"])
    if before is not None:
        reference = rounds_of(before, "reference", "reference_ms")
        bad_then = disturbed(reference)
    for c, f in names:
        then: Rounds | None = None
        if before is not None:
            ratios = [np.log(x / r).tolist() for x, r in zip(rounds_of(before, c, f), reference, strict=True)]
            then = without(ratios, bad_then)
        other = (BASE + c, f) if before is None else ("reference", "reference_ms")
        changes[f"{c} {f}"] = change(without(found.log_ratio((c, f), other), bad), then, confidence=confidence)
    return changes


def _flat(rounds: Rounds) -> list[float]:
    return [ms for turns in rounds for ms in turns]


def time_checks(changes: dict[str, Change], margin: float, void: bool) -> list[Check]:
    """Verdicts on times. A stage is a part of the loader: where it is inconclusive, its whole decides."""
    checks = []
    for name, c in changes.items():
        verdict = c.verdict(margin)
        text = f"{c.ratio.value - 1:+.1%} [{c.ratio.low - 1:+.1%}, {c.ratio.high - 1:+.1%}]"
        if void and verdict == "regression":
            verdict, text = "inconclusive", f"{text}, but the run is void"
        if verdict == "inconclusive" and c.ratio.low > 1:
            text += "; slower, but by how much is not certain"
        text += f"; the smallest change this run could detect is {c.detectable - 1:.1%}"
        part = name.split()[1] in STAGES
        checks.append(Check(name, verdict, text, c.ratio.value, c.ratio.low, c.ratio.high, c.detectable, part))
    return checks


def culprits(checks: Sequence[Check]) -> list[str]:
    """The stages that are certainly slower, most so first: the loader's, and each engine's own time."""
    slower = [
        c for c in checks if c.low is not None and c.low > 1 and c.name.split()[1] in (*STAGES, "infer_ms", "train_ms")
    ]
    return [c.name for c in sorted(slower, key=lambda c: -(c.ratio or 0))]


def memory_checks(found: Interleaved, before: Record | None, config: Regress, same_machine: bool) -> list[Check]:
    """Peak memory of each worker: no noise to speak of, so the least of now against the most of before."""
    checks = []
    for name, kinds in found.memory.items():
        if name.startswith((BASE, "reference")):
            continue
        for kind, now in kinds.items():
            if before is None:
                then = found.memory[BASE + name].get(kind, [])
            else:
                then = before.details["memory"].get(name, {}).get(kind, [])
            if not then:
                text = f"{np.median(now) / 2**20:.0f} MiB; the other side has no such figure"
                checks.append(Check(f"{name} {kind}", NOT_JUDGED, text))
                continue
            ratio = float(np.median(now) / np.median(then))
            text = f"{np.median(now) / 2**20:.0f} MiB, {ratio - 1:+.1%}"
            verdict = "regression" if min(now) > max(then) * (1 + config.memory_margin) else "same"
            if not same_machine:
                verdict, text = NOT_JUDGED, f"{text} (another machine's baseline)"
            checks.append(Check(f"{name} {kind}", verdict, text, ratio))
    return checks


def accuracy_checks(found: Interleaved, config: Regress, plan: GatePlan, same_code: bool) -> list[Check]:
    """Verdicts on what every engine says of the split's videos, against what it said. Where machine and libraries are
    the same, arithmetic is: then no precision excuses more than float32's tolerance."""
    checks = []
    for engine, precision in plan.engines:
        name = f"{engine}-{precision}"
        before = found.scores[BASE + name] if config.against else load_scores(scores_file(config.baseline, name))[0]
        v = compare_scores(
            found.scores[name],
            before,
            precision="fp32" if same_code else precision,
            margin_points=config.accuracy_margin,
            confidence=config.confidence,
        )
        checks.append(Check(f"{name} accuracy", v.verdict, v.explanation))
    return checks


def is_same_machine(before: Record, now: Record) -> bool:
    """Whether times and peak memory can be compared: the machines are alike, and what runs on them."""
    keys = ("torch_threads", "driver", "system")
    alike = machine_text(before.machine) == machine_text(now.machine)
    return alike and all(before.machine.get(k) == now.machine.get(k) for k in keys)
