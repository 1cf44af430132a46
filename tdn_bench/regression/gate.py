"""The regression gate: does this commit decode, infer and train as fast as the baseline, and is it as accurate?

`tdn-bench regress` measures again what a baseline holds. Times are never compared as seconds: each is divided by that
of a fixed reference network which takes turns with it (`turns.Reference`), then and now; with `--against COMMIT` by
that of the other commit, which takes turns with this one. What fails is what is slower than the margin for sure.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import default_precision, supported_precisions, why_unavailable
from pipelines.ledger import WORK
from pipelines.manifest import checksum
from pipelines.synthetic import make_dataset
from tdn_bench.cli.flags import DataFlags, NetworkFlags, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.scores import load_scores
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Change, Rounds, change
from tdn_bench.records.record import Record, make_record, read_record, to_json, utc_now
from tdn_bench.regression.accuracy import compare_scores
from tdn_bench.regression.interleaving import HERE, MIN_ROUNDS, Contestant, Interleaved, checked_out, interleave
from tdn_bench.regression.verdicts import FAILS, OK, REGRESSION, Check, exit_status, table, to_junit, to_markdown
from tdn_bench.regression.worker import Reference

SYNTHETIC_DATA, SYNTHETIC_VIDEOS = Path("runs/regress"), 320
STAGES = tuple(
    f"{stage}_ms" for stage in WORK if stage not in ("infer", "train", "copy_back")
)  # of the loader: named, not judged
DISTURBED = 1.10  # times the reference's median of the quickest round
NEGLIGIBLE = 0.05  # of the loader's thread time: a stage below is not looked at
# glibc gives large buffers back to the kernel and takes them anew at each call, in some processes and in others not:
# that alone makes the reference a fifth slower or faster. So it keeps them (32 MiB is the most that glibc takes here).
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**28)
}  # fmt: skip
BASE = "base "  # what the other commit's contestants are called


@dataclass(frozen=True, kw_only=True)
class Regress(NetworkFlags, DataFlags):
    """Measure again what a baseline holds, and compare. Exit status 0: no regression, 1: a regression, 2: cannot run,
    3: cannot tell. What is measured is the baseline's affair; flags for data and network count with --update only, but
    --data and --checkpoint, which say where they lie here."""

    baseline: Path = Path("results/baselines/demo.json")
    """The baseline to compare with, or to write."""
    against: str | None = None
    """Compare with this commit, measured in turn with the working tree, not with the baseline's figures."""
    update: bool = False
    """Write a new baseline; refused where it would hide a regression."""
    accept: str | None = None
    """With --update: why a regression is accepted. The reason is stored."""
    engines: tuple[str, ...] = ("eager", "onnx")
    """With --update: engines to measure, `engine` or `engine:precision`."""
    batch_size: int = 8
    """With --update: videos in a batch."""
    videos: int = 8
    """With --update: videos in a timed turn (accuracy takes all of the split): many short turns tell more than few."""
    threads: int = 1
    """With --update: threads that decode, and that compute, on a CPU; 0: one a core. With one the gate sees smaller
    changes, since another program's burst on one core stops all of several; how work spreads over cores it sees not."""
    train: bool = True
    """With --update: also hold the training step."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    margin: float = 0.03
    """A time may be slower by this share."""
    transfer: float = 0.10
    """Added to the margin where the baseline is another machine's: so far the ratio to the reference may be another."""
    memory_margin: float = 0.05
    """Peak memory may grow by this share."""
    accuracy_margin: float = 0.5
    """Accuracy may fall by so many points."""
    confidence: float = 0.99
    """Of all intervals together."""
    max_seconds: float = 180
    """Measure for at most about this long; it ends sooner where the noise allows."""
    round_s: float = 12
    """Seconds of turns in a round of fresh processes."""
    junit: Path | None = None
    """Also write the verdicts as JUnit XML."""
    markdown: Path | None = None
    """Also write them as GitHub-flavoured Markdown."""
    json: Path | None = None
    """Also write a record with all samples and verdicts."""


def plan(config: Regress) -> dict[str, Any]:
    """What --update will hold: the flags of `throughput` that all contestants share, and which contestants."""
    config = config.resolved()
    chosen = []
    for name in config.engines:
        engine, _, precision = name.partition(":")
        precision = precision or default_precision(engine, str(pick_device(config.device)))
        if precision not in supported_precisions(engine, str(pick_device(config.device))):
            raise UserError(f"--engines {name}: {engine} has no such precision here")
        chosen.append([engine, precision])
    kept = {f: getattr(config, f) for f in ("model", "num_segments", "size", "crop_ratio", "dataset", "split")}
    paths = {f: getattr(config, f) for f in ("data", "labels", "manifest", "train_list", "val_list", "class_names")}
    return {
        "flags": kept | {f: str(p) for f, p in paths.items() if p is not None} | {"batch_size": config.batch_size},
        "engines": chosen, "videos": config.videos, "train": config.train, "threads": config.threads,
        "reference_version": Reference.VERSION,
        "checkpoint": None if config.checkpoint is None else os.path.relpath(config.checkpoint, config.baseline.parent),
        "checkpoint_sha256": None if config.checkpoint is None else checksum(str(config.checkpoint)),
    }  # fmt: skip


def contestants(held: dict[str, Any], config: Regress, tree: Path = HERE, prefix: str = "") -> list[Contestant]:
    """The processes that take turns: the loader, each engine, the training step."""
    device = str(pick_device(config.device))
    flags = dict(held["flags"])
    if config.data is not None:
        flags["data"] = str(config.data)
    elif not flags.keys() & {"data", "manifest", "train_list"}:
        flags["data"] = str(make_dataset(SYNTHETIC_DATA, train=8, validation=SYNTHETIC_VIDEOS, progress=False))
    checkpoint = config.checkpoint
    if checkpoint is None and held["checkpoint"] is not None:
        checkpoint = config.baseline.parent / held["checkpoint"]
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint}: the baseline's weights are not there; say where by --checkpoint FILE")
        if held["checkpoint_sha256"] not in (None, checksum(str(checkpoint))):
            raise UserError(f"{checkpoint}: not the weights of {config.baseline}; --update makes a baseline of others")
        flags["checkpoint"] = str(checkpoint.resolve())
    if "data" in flags:
        flags["data"] = str(Path(flags["data"]).resolve())
    common = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    common += ["--device", device]
    alone = threads_of(held, device)
    if alone:
        common += ["--workers", str(held["threads"])]

    def contestant(name: str, flags: tuple[str, ...], *parts: str) -> Contestant:
        return Contestant(f"{prefix}{name}", (*common, *flags), parts, tree, environment=alone)

    found = [contestant("loader", ("--engine", "none"), "loader")]
    for engine, precision in held["engines"]:
        if (reason := why_unavailable(engine, device)) is not None:
            raise UserError(f"{config.baseline} holds engine {engine}, which is not ready here: {reason}")
        # infer is timed apart from the path, so that a slower decoder is not taken for a slower engine
        flags_ = ("--engine", engine, "--precision", precision)
        found.append(contestant(f"{engine}-{precision}", flags_, "engine", "path"))
    if held["train"]:
        found.append(contestant("train", ("--engine", "none"), "train"))
    return found


def threads_of(held: dict[str, Any], device: str) -> dict[str, str]:
    """The environment that gives a contestant's libraries the threads that the baseline holds; baselines of before
    there were any have all."""
    threads = held.get("threads", 0)
    return {"OMP_NUM_THREADS": str(threads)} if threads and device == "cpu" else {}


def judged(held: dict[str, Any]) -> list[tuple[str, str]]:
    """(contestant, figure) of the times that the verdict depends on."""
    figures = [("loader", "loader_ms")]
    figures += [(f"{e}-{p}", figure) for e, p in held["engines"] for figure in ("infer_ms", "path_ms")]
    return [*figures, *([("train", "train_ms")] if held["train"] else [])]


def stages(found: Interleaved) -> list[tuple[str, str]]:
    """The loader's stages that take a share worth a look."""
    times = found.times["loader"]
    middle = {s: float(np.median(np.concatenate(times[s]))) for s in STAGES if s in times}
    return [("loader", s) for s, ms in middle.items() if ms > NEGLIGIBLE * sum(middle.values())]


def rounds_of(record: Record, contestant: str, figure: str) -> list[np.ndarray]:
    """A baseline's samples of a figure, by round."""
    return np.split(np.array(record.samples[f"{contestant}_{figure}"]), np.cumsum(record.details["turns"])[:-1])


def disturbed(reference_ms: Sequence[Sequence[float] | np.ndarray]) -> list[int]:
    """Rounds in which the reference, which no commit changes, took over DISTURBED of what it took in the quickest: the
    machine was another one then, and slowed some work more than other. None where too few would be left."""
    medians = [float(np.median(r)) for r in reference_ms]
    found = [i for i, ms in enumerate(medians) if ms > DISTURBED * min(medians)]
    return found if len(medians) - len(found) >= MIN_ROUNDS else []


def without(rounds: Sequence[Any], left_out: Sequence[int]) -> list[Any]:
    return [r for i, r in enumerate(rounds) if i not in left_out]


def compare_times(
    found: Interleaved, before: Record | None, held: dict[str, Any], config: Regress
) -> dict[str, Change]:
    """The change of every time that both sides have, by `<contestant> <figure>`, at the confidence that keeps all
    together at `config.confidence`."""
    names = [*judged(held), *stages(found)]
    if before is not None:
        names = [(c, f) for c, f in names if f"{c}_{f}" in before.samples]
    else:
        names = [(c, f) for c, f in names if f in found.times[BASE + c]]
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


def time_checks(changes: dict[str, Change], margin: float, void: bool) -> list[Check]:
    """Verdicts on times. A stage can only be found slower: what cannot be told of it, its whole tells."""
    checks = []
    for name, c in changes.items():
        is_stage = name.split()[1] in STAGES
        verdict = c.verdict(margin)
        text = f"{c.ratio.value - 1:+.1%} [{c.ratio.low - 1:+.1%}, {c.ratio.high - 1:+.1%}]"
        if is_stage and verdict == "cannot tell":
            verdict = "slower" if c.ratio.low > 1 else "same"
        if void and verdict == "regression":
            verdict, text = "cannot tell", f"{text}, but the run is void"
        if verdict == "cannot tell" and c.ratio.low > 1:
            text += "; slower for sure, by how much not"
        text += f"; {c.detectable - 1:.1%} would have been found"
        checks.append(Check(name, verdict, text, c.ratio.value, c.ratio.low, c.ratio.high, c.detectable))
    return checks


def culprits(checks: Sequence[Check]) -> list[str]:
    """The stages that are slower for sure, most so first: the loader's, and each engine's own time."""
    slower = [
        c for c in checks if c.low is not None and c.low > 1 and c.name.split()[1] in (*STAGES, "infer_ms", "train_ms")
    ]
    return [c.name for c in sorted(slower, key=lambda c: -(c.ratio or 0))]


def memory_checks(found: Interleaved, before: Record | None, config: Regress, same_machine: bool) -> list[Check]:
    """Peak memory of each contestant: no noise to speak of, so the least of now against the most of before."""
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
                continue
            ratio = float(np.median(now) / np.median(then))
            text = f"{np.median(now) / 2**20:.0f} MiB, {ratio - 1:+.1%}"
            verdict = "regression" if min(now) > max(then) * (1 + config.memory_margin) else "same"
            if not same_machine:
                verdict, text = "same", f"{text} (another machine's baseline: not judged)"
            checks.append(Check(f"{name} {kind}", verdict, text, ratio))
    return checks


def scores_file(baseline: Path, contestant: str) -> Path:
    return baseline.with_name(f"{baseline.stem}.{contestant}.safetensors")


def accuracy_checks(found: Interleaved, config: Regress, held: dict[str, Any], same_code: bool) -> list[Check]:
    """Verdicts on what every engine says of the split's videos, against what it said. Where machine and libraries are
    the same, arithmetic is: then no precision excuses more than float32's tolerance."""
    checks = []
    for engine, precision in held["engines"]:
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
    keys = ("cpu", "cores", "torch_threads", "gpu", "driver", "system")
    return all(before.machine.get(k) == now.machine.get(k) for k in keys)


def measure(held: dict[str, Any], config: Regress, before: Record | None) -> tuple[Interleaved, Record]:
    """Take turns until every judged time could show a change of the margin, or the time is over."""
    with ExitStack() as stack:
        all_ = contestants(held, config)
        device = pick_device(config.device)
        flags = ("--engine", "none", "--device", str(device), "--data", ".")
        environment = KEEP_FREED_MEMORY | threads_of(held, str(device))
        all_.append(Contestant("reference", flags, ("reference",), environment=environment))
        if config.against is not None:
            tree = stack.enter_context(checked_out(config.against))
            all_ += contestants(held, config, tree, BASE)
        begun, found = time.monotonic(), Interleaved()
        for found in interleave(
            all_, videos=held["videos"], rounds=1000, round_s=config.round_s, with_scores=True, device=device
        ):
            passed = time.monotonic() - begun
            print(f"round {len(found.status)}: {passed:.0f} s, {found.turns()[-1]} turns each, {found.status[-1]}",
                  file=sys.stderr, flush=True)  # fmt: skip
            digest = found.facts["loader"]["data_digest"]
            if before is not None and not config.update and before.details["data_digest"] != digest:
                raise UserError(
                    f"the videos are not those of {config.baseline}: say by --data where they are, or use --against"
                )
            bad = disturbed(found.times["reference"]["reference_ms"])
            if len(found.status) - len(bad) < MIN_ROUNDS:  # too few processes to know what differs from one to the next
                continue
            if passed * (1 + 1 / len(found.status)) > config.max_seconds:
                break
            if config.update or (before is None and config.against is None):
                continue  # a baseline takes all the time that it may
            changes = compare_times(found, before, held, config)
            if all(c.detectable <= 1 + config.margin for n, c in changes.items() if n.split()[1] not in STAGES):
                break
    record = make_record(
        "regress", config.baseline.stem, figures=figures(found, held), samples=found.samples(),
        device=device,
        settings={k: v for k, v in asdict(config).items() if v is not None},
        details={"held": held, "turns": found.turns(), "memory": found.memory, "facts": found.facts,
                 "data_digest": digest},
        status=found.worst, status_reasons=found.reasons,
    )  # fmt: skip
    return found, record


def figures(found: Interleaved, held: dict[str, Any]) -> dict[str, float]:
    """For `tdn-bench history`: medians of the times, alone and ÷ the reference's, and accuracies."""
    times = {}
    for c, f in [*judged(held), ("reference", "reference_ms")]:
        times[f"{c}_{f}"] = float(np.median(np.concatenate(found.times[c][f])))
        if c != "reference":
            ratio = np.concatenate(found.log_ratio((c, f), ("reference", "reference_ms")))
            times[f"{c}_{f}_per_reference_ms"] = float(np.exp(np.median(ratio)))
    top1 = {f"{c}_top1_percent": s.top(1) for c, s in found.scores.items() if not c.startswith(BASE)}
    return times | top1


def read_baseline(path: Path) -> Record:
    """Raises UserError for a file that is none, or is of another reference network."""
    record = read_record(path)
    if record.kind != "baseline":
        raise UserError(f"--baseline {path}: a record of kind {record.kind}, no baseline; `--update` makes one")
    if record.details["held"]["reference_version"] != Reference.VERSION:
        raise UserError(f"--baseline {path}: of another reference network; remove it and make it anew by --update")
    return record


def keeps_settings(config: Regress) -> bool:
    """Whether an --update leaves what is measured as it is: no flag says otherwise."""
    places = ("baseline", "against", "update", "accept", "device", "junit", "markdown", "json")
    measuring = ("margin", "transfer", "memory_margin", "accuracy_margin", "confidence", "max_seconds", "round_s")
    return all(getattr(config, f.name) == f.default for f in fields(config) if f.name not in (*places, *measuring))


def run(config: Regress) -> int:
    """Measure, compare, print, write what was asked for; return the exit status."""
    if config.accept is not None and not config.update:
        raise UserError("--accept goes with --update: it says why a new baseline may hide a regression")
    if config.update and config.against is not None:
        raise UserError("--update and --against exclude each other: a baseline is of the working tree")
    exists = config.baseline.is_file()
    if not exists and not config.update:
        raise UserError(f"--baseline {config.baseline}: no such file; `tdn-bench regress --update` makes one")
    before = read_baseline(config.baseline) if exists else None
    if before is not None and (not config.update or keeps_settings(config)):
        held = before.details["held"]
    else:
        held = plan(config)
    side = None if config.against else before
    found, record = measure(held, config, side)
    checks: list[Check] = []
    same_machine = True
    if side is not None and side.details["data_digest"] != record.details["data_digest"]:
        side = None  # an --update for other videos
    if config.against is not None or side is not None:
        same_machine = side is None or is_same_machine(side, record)
        margin = config.margin if same_machine else config.margin + config.transfer
        changes = compare_times(found, side, held, config)
        checks += time_checks(changes, margin, void=side is not None and found.worst == "void")
        checks += memory_checks(found, side, config, same_machine)
        if not config.update or held == before.details["held"]:  # type: ignore[union-attr]
            same_libraries = side is None or side.versions == record.versions
            checks += accuracy_checks(found, config, held, same_machine and same_libraries)
    code = exit_status(checks)
    verdicts = {"checks": [asdict(c) for c in checks], "exit_status": code}
    record = replace(record, details={**record.details, **verdicts})
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
    print(table(checks, notes, code))
    write_outputs(config, record, checks, notes, code)
    if config.update:
        return update(config, record, found, before, checks, code)
    return code


def update(
    config: Regress, record: Record, found: Interleaved, before: Record | None, checks: Sequence[Check], code: int
) -> int:
    """Write the baseline, unless that would hide something and nobody has accepted it."""
    hides = [f"{c.name}: {c.verdict}" for c in checks if c.verdict in (*FAILS, "cannot tell")]
    if before is not None:
        old, new = before.details["held"], record.details["held"]
        if lost := {tuple(e) for e in old["engines"]} - {tuple(e) for e in new["engines"]}:
            hides.append(f"{', '.join('-'.join(e) for e in sorted(lost))}: no longer measured")
        if old != new or before.details["data_digest"] != record.details["data_digest"]:
            hides.append("the old baseline is of other data, weights or settings: accuracy cannot be compared")
    if found.worst == "void":
        hides.append(f"the run is void: {found.reasons[-1]}")
    if hides and config.accept is None:
        print("the baseline was not written, it would hide:\n  " + "\n  ".join(hides), file=sys.stderr)
        print("accept it by --update --accept REASON", file=sys.stderr)
        return code or REGRESSION
    accepted = list(before.details.get("accepted", [])) if before is not None else []
    if hides:
        accepted.append({"reason": config.accept, "hides": hides, "utc": utc_now(), "commit": record.commit})
    details = {k: v for k, v in record.details.items() if k not in ("checks", "exit_status")} | {"accepted": accepted}
    config.baseline.parent.mkdir(parents=True, exist_ok=True)
    for name, scores in found.scores.items():
        scores.save(scores_file(config.baseline, name), {"data": record.details["data_digest"]})
    temporary = config.baseline.with_suffix(".tmp")
    temporary.write_bytes(to_json(replace(record, kind="baseline", details=details)))
    os.replace(temporary, config.baseline)
    print(f"baseline: {config.baseline}")
    return OK


def write_outputs(config: Regress, record: Record, checks: Sequence[Check], notes: Sequence[str], code: int) -> None:
    texts = {
        "junit": lambda: to_junit(checks, notes).encode(),
        "markdown": lambda: to_markdown(checks, notes, code).encode(),
        "json": lambda: to_json(record),
    }
    for flag, text in texts.items():
        path: Path | None = getattr(config, flag)
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text())
        except OSError as e:
            raise UserError(f"--{flag} {path}: cannot be written ({e.strerror})") from e


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare, and end with the verdict's exit status."""
    import tyro

    torch.backends.cudnn.allow_tf32 = False
    raise SystemExit(run(tyro.cli(Regress, args=argv, prog="tdn-bench regress")))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
