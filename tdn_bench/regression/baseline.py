"""What a baseline holds: what is measured, the samples of then, and what every engine said of every video."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines import default_precision, supported_precisions
from pipelines.files import write_whole
from pipelines.manifest import checksum
from tdn_bench.cli import pick_device
from tdn_bench.cli.settings import leaves
from tdn_bench.errors import UserError
from tdn_bench.records import Record, read_record, to_json, utc_now
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.interleaving import Interleaved
from tdn_bench.regression.verdicts import FAILS, INCONCLUSIVE_VERDICT, OK, REGRESSION, Check
from tdn_bench.regression.worker import Reference

BASE = "base "  # what the names of the other commit's workers begin with


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
    def read(cls, held: Mapping[str, Any]) -> GatePlan:
        """From a record, where it is JSON. Baselines of before there were threads took all. Raises KeyError, TypeError
        or ValueError where that is no plan."""
        engines = tuple((str(engine), str(precision)) for engine, precision in held["engines"])
        plan = cls(**{"threads": 0, **held, "engines": engines})
        counts = (plan.videos, plan.threads, plan.reference_version)
        if any(type(count) is not int or count < 0 for count in counts) or not plan.videos:
            raise ValueError(f"videos, threads and reference_version are {counts}")
        return plan

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


def read_baseline(path: Path) -> Record:
    """Raises UserError for a file that is none, or is of another reference network."""
    record = read_record(path)
    if record.kind != "baseline":
        raise UserError(f"--baseline {path}: a record of kind {record.kind}, no baseline; `--update` makes one")
    try:
        plan = GatePlan.read(record.details["held"])
    except (KeyError, TypeError, ValueError) as e:
        why = f"does not say what it measured ({e}); remove it and make it anew with --update"
        raise UserError(f"--baseline {path}: {why}") from e
    if plan.reference_version != Reference.VERSION:
        raise UserError(f"--baseline {path}: of another reference network; remove it and make it anew by --update")
    return record


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
    for name, scores in found.scores.items():
        scores.save(scores_file(config.baseline, name), {"data": record.details["data_digest"]})
    with write_whole(config.baseline) as temporary:
        temporary.write_bytes(to_json(replace(record, kind="baseline", details=details)))
    print(f"baseline: {config.baseline}")
    return OK


def _hides(record: Record, found: Interleaved, before: Record | None, checks: Sequence[Check]) -> list[str]:
    """What a new baseline would hide, a line each."""
    hides = [f"{c.name}: {c.verdict}" for c in checks if c.verdict in (*FAILS, INCONCLUSIVE_VERDICT)]
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
