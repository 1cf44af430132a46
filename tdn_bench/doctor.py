"""What this machine can run, and for what is missing, how to get it; or what is wrong with a data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from engines import ENGINES, supported_precisions, why_unavailable
from pipelines.annotations import SPLITS
from pipelines.manifest import Manifest
from tdn_bench.cli.flags import pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.models.variants import BACKBONES, VARIANTS
from tdn_bench.prepare import Source, SourceFlags, print_counts, print_files, print_summary
from tdn_bench.recipes import RECIPES
from tdn_bench.records.environment import describe_machine, versions
from tdn_bench.training.ablation import TABLES

EXIT_FINDINGS = 1


@dataclass(frozen=True, kw_only=True)
class Doctor(SourceFlags):
    """Say which engines and loader backends are ready here; or, with a data set or --manifest, what is wrong with its
    files and what loading them costs on this machine. Exit status 1 where something is wrong."""

    dataset: tyro.conf.Positional[Source | None] = None
    """A data set to examine, as `tdn-bench prepare` takes it; without one, the machine."""
    manifest: Path | None = None
    """Instead of a data set: a manifest that `tdn-bench prepare` wrote; --root says where its videos lie now."""
    checksums: bool = False
    """Read every file again and compare it with the scan: nothing else finds silent bit errors."""
    reference: Path | None = None
    """Another copy's manifest, to compare contents by id."""
    advice: bool = True
    """Measure on samples what loading costs here (about a minute)."""
    trial: bool = True
    """Also re-encode a few samples, into a temporary folder, to measure what that would gain."""
    all: bool = False
    """Name every bad file, not a few of each kind."""
    json: Path | None = None
    """Write everything that was found and measured here."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""


def why_no_dali() -> str | None:
    """None where DALI can be imported, else why not."""
    try:
        import nvidia.dali.experimental.dynamic  # noqa: F401
    except ImportError as e:
        return f"{e}: pip install nvidia-dali-cuda120"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """The page of the machine, or of a data set. Ends with SystemExit(1) where something is wrong with the data."""
    config = tyro.cli(Doctor, args=argv, prog="tdn-bench doctor")
    device = pick_device(config.device)
    if config.dataset is None and config.manifest is None:
        machine_page(device)
    elif not data_page(config, device):
        raise SystemExit(EXIT_FINDINGS)


def machine_page(device: torch.device) -> None:
    """Say which engines and loader backends are ready here, and how to get the others."""
    print("machine")
    for key, value in describe_machine(device).items():
        print(f"  {key:20s}{value}")
    print("versions\n  " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print("engines")
    for engine in ENGINES:
        where = "cpu" if engine == "openvino" else str(device)
        reason = why_unavailable(engine, where)
        ready = f"ready: {', '.join(supported_precisions(engine, where))}"
        print(f"  {engine:10s}{ready if reason is None else f'missing: {reason}'}")
    print("loader backends\n  pyav      ready")
    reason = why_no_dali()
    print(f"  dali      {'missing: ' + reason if reason else 'ready on the ' + device.type}")


def data_page(config: Doctor, device: torch.device) -> bool:
    """Say what is wrong with a data set and what loading it costs; True where nothing must be acted on."""
    from tdn_bench.dataset_tools.audit import NOTES, examine, only_in_reference, unlisted
    from tdn_bench.dataset_tools.loading_cost import advise, conclusions, print_advice

    manifest = open_manifest(config)
    reference = Manifest.open(config.reference) if config.reference is not None else None
    print_summary(manifest)
    findings = examine(manifest, checksums=config.checksums, reference=reference, workers=config.workers)
    wrong = [f for f in findings if f.kind not in NOTES]
    if findings:
        print("found, videos by kind and split")
        print_counts([(f.kind, f.split) for f in findings])
        print_files([(f.kind, f.path, f.reason) for f in findings], config.all)
    extra = unlisted(manifest)
    print_some("that are in no split", extra, config.all)
    absent = only_in_reference(manifest, reference) if reference is not None else []
    print_some("that only the reference lists", absent, config.all)

    page: dict[str, Any] = {
        "name": manifest.name, "root": str(manifest.root), "digest": manifest.digest(),
        "videos": dict(Counter(manifest.videos.column("split").tolist())), "checksums": config.checksums,
        "counts": {split: dict(Counter(f.kind for f in findings if f.split == split)) for split in SPLITS},
        "findings": [asdict(f) for f in findings], "unlisted": extra, "only_in_reference": absent,
    }  # fmt: skip
    damaged: dict[str, str] = {}
    if config.advice:
        advice = advise(manifest, device, trial=config.trial)
        damaged = advice.damaged
        print_advice(advice)
        rates = {"clips_per_s": advice.clips_per_s, "measured_per_s": advice.measured_per_s}
        page["advice"] = asdict(advice) | rates | {"conclusions": conclusions(advice)}
    if config.json is not None:
        write_json(config.json, page)
    count = len({(f.path, f.split) for f in wrong}) + len(set(damaged) - {f.path for f in wrong})
    checked = "" if config.checksums else " (contents not read again: --checksums does)"
    print(f"{count} of {len(manifest.videos)} videos need attention{checked}" if count else f"all is well{checked}")
    return not count


def open_manifest(config: Doctor) -> Manifest:
    """The manifest that the flags name, or that a scan makes."""
    if config.dataset is None:
        assert config.manifest is not None
        return Manifest.open(config.manifest, config.root)
    if config.manifest is not None:
        raise UserError(f"{config.dataset} and --manifest {config.manifest} exclude each other; leave one out")
    return config.open_source(config.dataset)


def print_some(what: str, names: list[str], everything: bool) -> None:
    """How many videos, and the first few of them."""
    if names:
        few = names if everything else names[:3]
        print(f"{len(names)} videos {what}: {', '.join(few)}{', …' if len(few) < len(names) else ''}")


def write_json(path: Path, page: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"--json {path}: cannot be written ({e.strerror})") from e
    print(f"json: {path}")


def list_main(argv: Sequence[str] | None = None) -> None:
    """Name the networks, the recipes and the tables that `ablate` trains."""
    print("models: <variant>_<backbone>, backbones " + ", ".join(BACKBONES))
    for name, variant in VARIANTS.items():
        clip = f"{variant.num_segments} × {variant.frames_per_segment} frames"
        print(f"  {name:30s}{clip:15s}{variant.what}")
    print("recipes")
    for name, make in RECIPES.items():
        print(f"  {name:14s}{(make.__doc__ or '').splitlines()[0]}")
    print("tables of networks (tdn-bench ablate)")
    for name, table in TABLES.items():
        print(f"  {name:14s}{table.what}: {', '.join(table.variants)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
