"""Say what this machine can run, or what ails a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from engines import ENGINES, supported_precisions, why_unavailable
from pipelines.errors import printable
from pipelines.manifest import Manifest
from tdn_bench.cli import SourceFlags, parse, pick_device, run_command
from tdn_bench.cli.flags import Source
from tdn_bench.dataset_tools.audit import Audit, examine
from tdn_bench.dataset_tools.loading_advice import advice_page, print_advice
from tdn_bench.dataset_tools.loading_cost import advise
from tdn_bench.dataset_tools.summary import counted, print_findings, print_summary
from tdn_bench.errors import UserError
from tdn_bench.records.environment import describe_machine, versions

EXAMPLES = (
    "tdn-bench doctor",
    "tdn-bench doctor sthv2 --root runs/demo/data",
    "tdn-bench doctor --manifest runs/sthv2.arrow --checksums --json runs/found.json",
)
COMMON = ("root", "manifest", "checksums", "reference", "advice", "trial", "all", "json", "device")

EXIT_FINDINGS = 1


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say which engines and loader backends are ready here; or, with a data set or --manifest, what is wrong with its
    files and what loading them costs on this machine. Exit status 1 where something is wrong."""

    dataset: Positional[Source | None] = None
    """A data set to examine, as `tdn-bench prepare` takes it; without one, the machine."""
    source: SourceFlags = field(default_factory=SourceFlags)
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
    """Name every bad file, not only a few of each kind."""
    json: Path | None = None
    """Write everything that was found and measured to this file."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""

    def open(self) -> Manifest:
        """The manifest that the flags name, or that a scan makes. Raises UserError where they name two."""
        if self.dataset is None:
            assert self.manifest is not None
            return Manifest.open(self.manifest, self.source.root)
        if self.manifest is not None:
            raise UserError(f"{self.dataset} and --manifest {self.manifest} exclude each other; leave one out")
        return self.source.open(self.dataset)


def why_no_dali() -> str | None:
    """None where DALI can be imported, else why not."""
    try:
        import nvidia.dali.experimental.dynamic  # noqa: F401
    except ImportError as e:
        return f"{e}: pip install nvidia-dali-cuda120"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """The page of the machine, or of a data set. Ends with SystemExit(1) where something is wrong with the data."""
    config = parse(Doctor, argv, "doctor", examples=EXAMPLES, common=COMMON)
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
    reason, where = why_no_dali(), "GPU" if device.type == "cuda" else "CPU"
    print(f"  dali      {f'ready on the {where}' if reason is None else f'missing: {reason}'}")


def data_page(config: Doctor, device: torch.device) -> bool:
    """Say what is wrong with a data set and what loading it costs; True where nothing must be acted on."""
    manifest = config.open()
    reference = Manifest.open(config.reference) if config.reference is not None else None
    print_summary(manifest)
    found = examine(manifest, checksums=config.checksums, reference=reference, workers=config.source.workers)
    print_audit(found, config.all)
    advice = None
    if config.advice:
        advice = advise(manifest, device, trial=config.trial)
        print_advice(advice)
    if config.json is not None:
        write_json(config.json, found.page(manifest) | ({"advice": advice_page(advice)} if advice is not None else {}))
    count = found.need_attention(advice.damaged if advice is not None else ())
    checked = "" if config.checksums else " (file contents were not compared with the scan; --checksums does that)"
    wrong = [f"{count} of {len(manifest.videos)} videos need attention"] * bool(count)
    wrong += [f"classes: {sentence}" for sentence in found.classes]
    print(f"{'; '.join(wrong) or 'no problems found'}{checked}")
    return not wrong


def print_audit(found: Audit, everything: bool) -> None:
    """Findings by kind and split, then file by file; then the videos that only lie there, or only in the reference."""
    print_findings("findings: number of videos by kind and split", found.findings, everything)
    for where, names in (("in no split", found.unlisted), ("in the reference only", found.only_in_reference)):
        few = printable(", ".join(names if everything else names[:3]))
        if names:
            print(f"{counted(len(names), 'video')} {where}: {few}{', …' * (len(names) > 3 and not everything)}")


def write_json(path: Path, page: dict[str, Any]) -> None:
    """Write a page. Raises UserError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"--json {path}: cannot be written ({e.strerror})") from e
    print(f"json: {path}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
