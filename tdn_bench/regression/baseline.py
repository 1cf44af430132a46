"""What a baseline holds: what is measured, the samples of then, and what every engine said of every video."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from engines import ENGINES, default_precision, supported_precisions
from pipelines.errors import printable
from pipelines.files import write_whole
from pipelines.ledger import WORK
from pipelines.manifest import checksum
from tdn_bench.cli import pick_device
from tdn_bench.cli.flags import CROP_RATIOS, MAX_SEGMENTS, SIZES
from tdn_bench.cli.ranges import MAX_BATCH
from tdn_bench.cli.settings import leaves
from tdn_bench.cli.workload import Precision
from tdn_bench.correctness.scores import load_scores
from tdn_bench.errors import UserError
from tdn_bench.records import Record, read_record, to_json, utc_now
from tdn_bench.records.reading import is_number
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.interleaving import Interleaved
from tdn_bench.regression.verdicts import FAILS, OK, REGRESSION, Check, is_undecided
from tdn_bench.regression.worker import Reference

BASE = "base "  # what the names of the other commit's workers begin with
# Of the loader: named, and parts of its verdict.
STAGES = tuple(f"{stage}_ms" for stage in WORK if stage not in ("infer", "train", "copy_back"))
# What a worker may be told by a baseline, whoever wrote that.
NUMBERS = {"num_segments": (1, MAX_SEGMENTS), "size": SIZES, "crop_ratio": CROP_RATIOS, "split": (1, 3)}
NUMBERS |= {"batch_size": (1, MAX_BATCH)}
TEXTS = ("model", "dataset", "data", "labels", "manifest", "train_list", "val_list", "class_names")
MAX_VIDEOS, MAX_THREADS = 100_000, 1024
PRECISIONS = get_args(Precision)
TIME_MS = (1e-6, 1e9)  # that a turn may have taken


@dataclass(frozen=True)
class GatePlan:
    """What is measured: the flags of `throughput` that all workers share, the engines, the training step."""

    flags: Mapping[str, Any]
    engines: tuple[tuple[str, str], ...]  # name, precision
    videos: int  # in a turn
    train: bool
    threads: int  # of decoding and of arithmetic, on a CPU; 0: one a core
    reference_version: int
    checkpoint: str | None  # relative to the baseline's folder
    checkpoint_sha256: str | None

    @classmethod
    def read(cls, held: object) -> GatePlan:
        """From a record, where it is JSON. Baselines of before there were threads took all. Raises ValueError where it
        is no plan."""
        known = {f.name for f in fields(cls)}
        raw = {"threads": 0, **held} if isinstance(held, dict) else {}
        if odd := sorted(known ^ raw.keys()):
            raise ValueError(f"{'no' if odd[0] in known else 'unknown'} {odd[0]}")
        limits = {"videos": (1, MAX_VIDEOS), "threads": (0, MAX_THREADS), "reference_version": (0, 10**6)}
        for name, (low, high) in limits.items():
            if type(raw[name]) is not int or not low <= raw[name] <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        for name in ("checkpoint", "checkpoint_sha256"):
            if not isinstance(raw[name], str | None) or "\0" in (raw[name] or ""):
                raise ValueError(f"{name} is no text")
        if (raw["checkpoint"] is None) != (raw["checkpoint_sha256"] is None):
            raise ValueError("checkpoint and checkpoint_sha256 do not belong together")
        if not isinstance(raw["train"], bool):
            raise ValueError("train is neither true nor false")
        _check_flags(raw["flags"])
        return cls(**{**raw, "engines": _engines(raw["engines"])})

    @classmethod
    def make(cls, config: Regress) -> GatePlan:
        """What `--update` will hold. Raises UserError for an engine without the precision that is asked of it."""
        network, data, device = config.network.resolve(), config.data, str(pick_device(config.device))
        chosen = []
        for name in config.engines:
            engine, _, precision = name.partition(":")
            precision = precision or default_precision(engine, device)
            if precision not in supported_precisions(engine, device):
                raise UserError(f"--engines {name}: {engine} has no such precision here")
            chosen.append((engine, precision))
        flags: dict[str, Any] = {f: getattr(network, f) for f in ("model", "num_segments", "size", "crop_ratio")}
        flags |= {"dataset": data.dataset, "split": data.split}
        paths = {f: getattr(data, f) for f in ("data", "labels", "manifest", "train_list", "val_list", "class_names")}
        flags |= {f: str(path) for f, path in paths.items() if path is not None}
        checkpoint = network.checkpoint
        return cls(
            flags=flags | {"batch_size": config.batch_size},
            engines=tuple(chosen),
            videos=config.videos,
            train=config.train,
            threads=config.threads,
            reference_version=Reference.VERSION,
            checkpoint=None if checkpoint is None else os.path.relpath(checkpoint, config.baseline.parent),
            checkpoint_sha256=None if checkpoint is None else checksum(str(checkpoint)),
        )

    def weights(self, config: Regress) -> Path | None:
        """The checkpoint as it lies here. Raises UserError where it is not there, or not the baseline's."""
        path = config.network.checkpoint
        if path is None and self.checkpoint is not None:
            path = config.baseline.parent / self.checkpoint
        if path is None:
            return None
        if not path.is_file():
            raise UserError(f"{path}: the baseline's weights are not there; say where by --checkpoint FILE")
        if self.checkpoint_sha256 not in (None, checksum(str(path))):
            raise UserError(f"{path}: not the weights of {config.baseline}; --update makes a baseline of others")
        return path.resolve()

    def environment(self, device: str) -> dict[str, str]:
        """The environment that gives a worker's libraries their threads."""
        return {"OMP_NUM_THREADS": str(self.threads)} if self.threads and device == "cpu" else {}


def _check_flags(flags: Any) -> None:
    """Raise ValueError for flags that `GatePlan.make` does not hold."""
    if not isinstance(flags, dict):
        raise ValueError("flags is no object")
    for name, value in flags.items():
        if name in NUMBERS:
            low, high = NUMBERS[name]
            if not is_number(value) or not low <= value <= high or (name != "crop_ratio" and type(value) is not int):
                raise ValueError(f"flag {name} is not from {low} to {high}")
        elif name not in TEXTS:
            raise ValueError(f"unknown flag {name}")
        elif not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"flag {name} is no text")


def _engines(listed: Any) -> tuple[tuple[str, str], ...]:
    """Pairs of engine and precision. Raises ValueError where they are none."""
    pairs = [tuple(pair) for pair in listed if isinstance(pair, list)] if isinstance(listed, list) else [()]
    if not all(len(pair) == 2 and pair[0] in ENGINES and pair[1] in PRECISIONS for pair in pairs):
        raise ValueError("engines are no pairs of an engine and a precision")
    if len(pairs) < len(listed) or len(set(pairs)) < len(pairs):
        raise ValueError("engines are no pairs, each once")
    return tuple(pairs)  # type: ignore[arg-type]


def judged(plan: GatePlan) -> list[tuple[str, str]]:
    """(worker, figure) of the times that the verdict depends on."""
    figures = [("loader", "loader_ms")]
    figures += [(f"{e}-{p}", figure) for e, p in plan.engines for figure in ("infer_ms", "path_ms")]
    return [*figures, *([("train", "train_ms")] if plan.train else [])]


def rounds_of(record: Record, worker: str, figure: str, low: float = TIME_MS[0]) -> list[np.ndarray]:
    """A baseline's samples of a figure, by round. Raises UserError where there are none, or they are not times (the
    shortest may be `low`), or not those of its rounds."""
    values = np.array(record.samples.get(f"{worker}_{figure}", ()), float)  # null: NaN
    turns = record.details["turns"]
    if sum(turns) != len(values) or not ((values >= low) & (values <= TIME_MS[1])).all():
        what = f"the baseline's times of {worker} {figure}"
        raise UserError(f"{what} are damaged; remove it and make it anew with --update")
    return np.split(values, np.cumsum(turns)[:-1])


def read_baseline(path: Path) -> Record:
    """A baseline, all of which was looked at: before hours of measuring, not after. Raises UserError for a file that is
    none, or is of another reference network."""
    record = read_record(path)
    shown = f"--baseline {printable(str(path))}"
    if record.kind != "baseline":
        kind = printable(record.kind)
        raise UserError(f"{shown}: a record of kind {kind}, no baseline; `--update` makes one")
    try:
        plan = GatePlan.read(record.details.get("held"))
        _check_details(record.details)
    except ValueError as e:
        why = f"does not say what it measured ({printable(str(e))}); remove it and make it anew with --update"
        raise UserError(f"{shown}: {why}") from e
    if plan.reference_version != Reference.VERSION:
        raise UserError(f"{shown}: of another reference network; remove it and make it anew by --update")
    try:
        for worker, figure in [*judged(plan), ("reference", "reference_ms")]:
            rounds_of(record, worker, figure)
        for stage in STAGES:  # of which a decoder may not have one: zeros
            if f"loader_{stage}" in record.samples:
                rounds_of(record, "loader", stage, 0)
    except UserError as e:
        raise UserError(f"{shown}: {e}") from e
    return record


def _check_details(details: Mapping[str, Any]) -> None:
    """Raise ValueError for what the gate could not compare with."""
    turns = details.get("turns")
    if not isinstance(turns, list) or not all(type(n) is int and 0 < n < 10**6 for n in turns):
        raise ValueError("turns are no counts")
    if len(turns) < 2 or len(turns) * min(turns) < 10:  # as `statistics.change` needs
        raise ValueError("turns are fewer than ten, or of one round")
    if not isinstance(details.get("data_digest"), str):
        raise ValueError("no data_digest")
    memory = details.get("memory")
    if not isinstance(memory, dict) or not all(isinstance(kinds, dict) for kinds in memory.values()):
        raise ValueError("no memory by worker")
    for kinds in memory.values():
        for kind, peaks in kinds.items():
            if not isinstance(peaks, list) or not peaks or not all(is_number(p) and p > 0 for p in peaks):
                raise ValueError(f"memory {kind} is no list of peaks")
    if not isinstance(details.get("scores_sha256"), dict | None):
        raise ValueError("scores_sha256 is no object")
    if not isinstance(details.get("accepted", []), list):
        raise ValueError("accepted is no list")


def check_scores(path: Path, record: Record) -> None:
    """Raise UserError where what the baseline's engines said is not there, is damaged, or is another baseline's."""
    plan = GatePlan.read(record.details["held"])
    for engine, precision in plan.engines:
        file = scores_file(path, f"{engine}-{precision}")
        scores, notes = load_scores(file)
        why, digests = None, record.details.get("scores_sha256")  # older baselines have none
        if not scores.logits.isfinite().all():
            why = "holds scores that are no numbers"
        elif notes.get("data") != record.details["data_digest"]:
            why = f"holds scores of other videos than {path.name}"
        elif digests is not None and digests.get(f"{engine}-{precision}") != checksum(str(file)):
            why = f"has changed since {path.name} was written (other SHA-256)"
        if why is not None:
            raise UserError(f"{printable(str(file))}: {why}; remove the baseline and make it anew with --update")


def scores_file(baseline: Path, worker: str) -> Path:
    """Where what an engine said lies, beside the baseline."""
    return baseline.with_name(f"{baseline.stem}.{worker}.safetensors")


def keeps_settings(config: Regress) -> bool:
    """Whether an --update leaves what is measured as it is: no flag says otherwise."""
    places = ("baseline", "against", "update", "accept", "device", "junit", "markdown", "json")
    measuring = ("margin", "transfer", "memory_margin", "accuracy_margin", "confidence", "max_seconds", "round_s")
    return all(value == default for name, value, default in leaves(config) if name not in (*places, *measuring))


def update(
    config: Regress, record: Record, found: Interleaved, before: Record | None, checks: Sequence[Check], code: int
) -> int:
    """Write the baseline, unless that would hide something and nobody has accepted it; return the exit status."""
    hides = _hides(record, found, before, checks)
    if hides and config.accept is None:
        print("the baseline was not written, it would hide:\n  " + "\n  ".join(hides), file=sys.stderr)
        print("accept it by --update --accept REASON", file=sys.stderr)
        return code or REGRESSION
    accepted = list(before.details.get("accepted", [])) if before is not None else []
    if hides:
        accepted.append({"reason": config.accept, "hides": hides, "utc": utc_now(), "commit": record.commit})
    details = {k: v for k, v in record.details.items() if k not in ("checks", "exit_status")} | {"accepted": accepted}
    digests = {}
    for name, scores in found.scores.items():
        file = scores_file(config.baseline, name)
        scores.save(file, {"data": record.details["data_digest"]})
        digests[name] = checksum(str(file))
    details["scores_sha256"] = digests
    try:
        write_whole(config.baseline, to_json(replace(record, kind="baseline", details=details)))
    except OSError as e:
        raise UserError(f"--baseline {printable(str(config.baseline))}: cannot be written ({e.strerror})") from e
    print(f"baseline: {config.baseline}")
    return OK


def _hides(record: Record, found: Interleaved, before: Record | None, checks: Sequence[Check]) -> list[str]:
    """What a new baseline would hide, a line each."""
    hides = [f"{c.name}: {c.verdict}" for c in checks if c.verdict in FAILS or is_undecided(c)]
    if before is not None:
        old, new = GatePlan.read(before.details["held"]), GatePlan.read(record.details["held"])
        if lost := set(old.engines) - set(new.engines):
            hides.append(f"{', '.join('-'.join(engine) for engine in sorted(lost))}: no longer measured")
        if old != new or before.details["data_digest"] != record.details["data_digest"]:
            hides.append("the old baseline is of other data, weights or settings: accuracy cannot be compared")
    if found.worst == "void":
        hides.append(f"the run is void: {found.reasons[-1]}")
    return hides


def held(plan: GatePlan) -> dict[str, Any]:
    """The plan as a record keeps it."""
    return asdict(plan) | {"engines": [list(engine) for engine in plan.engines]}
