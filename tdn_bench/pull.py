"""Get trained weights from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pipelines.errors import printable
from tdn_bench.cli import parse, run_command
from tdn_bench.hub.folder import WEIGHTS
from tdn_bench.hub.names import HUB, check_repo
from tdn_bench.hub.share import pull

EXAMPLES = (
    "tdn-bench pull user/tdn-demo",
    "tdn-bench pull user/tdn-demo@v1 --out runs/tdn-demo-v1",
)
COMMON = ("repo", "out")


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Get a network that `tdn-bench push` has shared. Nothing of it is run: only tensors and JSON are read."""

    repo: Positional[str]
    """The repository, user/name or user/name@revision."""
    out: Path | None = None
    """New folder for its files; default: runs/<name>."""


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, check, copy; say how to use it."""
    config = parse(Pull, argv, "pull", examples=EXAMPLES, common=COMMON)
    repo = config.repo.removeprefix(HUB)
    name = repo.partition("@")[0]
    check_repo(name)
    folder = config.out or Path("runs", name.partition("/")[2])
    network = pull(repo, folder)
    print(
        printable(f"{network.model}, {len(network.classes)} classes, T = {network.num_segments}, {network.size} pixels")
    )
    print(f"checkpoint: {folder / WEIGHTS}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
