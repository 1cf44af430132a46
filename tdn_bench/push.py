"""Share trained weights on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tdn_bench.cli import parse, run_command
from tdn_bench.hub.names import hub_library
from tdn_bench.hub.share import check_new_folder, check_share, evidence, push, write_folder

EXAMPLES = (
    "tdn-bench push runs/demo/tdn/best.safetensors user/tdn-demo --license apache-2.0 --dry-run runs/tdn-demo",
    "tdn-bench push runs/demo/tdn/best.safetensors user/tdn-demo --license apache-2.0 --private",
)
COMMON = ("checkpoint", "repo", "license", "record", "private", "dry_run")


@dataclass(frozen=True, kw_only=True)
class Push:
    """Share a checkpoint: model.safetensors, config.json and a model card whose every figure is a record's."""

    checkpoint: Positional[Path]
    """What `tdn-bench train` wrote (.safetensors)."""
    repo: Positional[str]
    """The repository, user/name; made where there is none."""
    license: str
    """The licence of the weights as the Hub writes it, such as apache-2.0. The licence of the videos may bind you."""
    record: tuple[Path, ...] = ()
    """Records of train and evaluate for the card; default: that of the training beside the checkpoint."""
    private: bool = False
    """Let nobody else see a repository that is made."""
    message: str = "Weights, configuration and card by tdn-bench push"
    """The commit's message."""
    dry_run: Path | None = None
    """Only write what would be pushed to this new folder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Check that records and weights belong together, then write or push the folder."""
    config = parse(Push, argv, "push", examples=EXAMPLES, common=COMMON)
    hub_library()
    if config.dry_run is not None:
        check_new_folder("--dry-run", config.dry_run)
    check_share(config.checkpoint, config.repo, config.license)
    records = evidence(config.checkpoint, config.record)
    if config.dry_run is not None:
        write_folder(config.dry_run, config.checkpoint, config.repo, records, config.license)
        print(f"nothing was pushed; {config.repo} would get the files in {config.dry_run}")
        return
    made = push(config.checkpoint, config.repo, records, config.license, private=config.private, message=config.message)
    print(f"pushed: {made}\nothers take it as --checkpoint hf-hub:{config.repo}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
