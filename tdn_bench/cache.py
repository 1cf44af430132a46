"""Show and prune what is kept on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pipelines.errors import printable
from storage.private import NotPrivate
from tdn_bench.cli import parse, run_command
from tdn_bench.cli.kept import Kept, find_kept
from tdn_bench.cli.ranges import check_ranges
from tdn_bench.errors import UserError

EXAMPLES = (
    "tdn-bench cache",
    "tdn-bench cache --prune --older-than 7 --dry-run",
    "tdn-bench cache --prune --all",
)
COMMON = ("prune", "older_than", "all", "dry_run")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Show what is kept for later runs: built engines, compiled kernels, scans of data sets, synthetic videos below
    `runs/`, and what killed runs left. Checkpoints and records are no part of it, and nothing else of yours is."""

    prune: bool = False
    """Remove what was not used for --older-than days, and what killed runs left half written."""
    older_than: float = 30
    """With --prune: days since the last use."""
    all: bool = False
    """With --prune: remove everything, however new."""
    dry_run: bool = False
    """With --prune: only say what would be removed."""

    def check(self) -> None:
        """Raise UserError for flags that cannot be."""
        check_ranges(self, older_than=(0, 36_500))
        if not self.prune and (self.all or self.dry_run or self.older_than != Cache.older_than):
            raise UserError("--older-than, --all and --dry-run say what --prune removes; add --prune")


def main(argv: Sequence[str] | None = None) -> None:
    """Show what is kept; remove what is to go."""
    config = parse(Cache, argv, "cache", examples=EXAMPLES, common=COMMON)
    try:
        kept = find_kept()
    except NotPrivate as e:
        raise UserError(f"{e}; nothing was removed") from e
    show(kept)
    if config.prune:
        doomed = [k for k in kept if config.all or k.kind == "left half written" or k.age_days > config.older_than]
        prune(doomed, config.dry_run)


def show(kept: Sequence[Kept]) -> None:
    """A line for each kind: how many, how large, when used, where."""
    if not kept:
        print("nothing is kept")
    for kind, group in groupby(sorted(kept, key=lambda k: k.kind), lambda k: k.kind):
        items = list(group)
        ages = sorted(k.age_days for k in items)
        where = printable(str(items[0].path if len(items) == 1 else items[0].path.parent))
        used = f"{ages[0]:.1f}" if len(ages) == 1 else f"{ages[0]:.1f} to {ages[-1]:.1f}"
        size_mb = sum(k.size_bytes for k in items) / 1e6
        print(f"{kind:20s}{len(items):5d} {size_mb:10.1f} MB   used {used} days ago   {where}")


def prune(doomed: Sequence[Kept], dry_run: bool) -> None:
    """Remove, and say what; what is in use stays."""
    size_bytes = left = 0
    for one in doomed:
        gone = dry_run or one.remove()
        left += not gone
        size_bytes += one.size_bytes * gone
        what = "would remove" if dry_run else "removed" if gone else "in use, or not to be removed"
        print(f"{what}: {one.kind}, {one.size_bytes / 1e6:.1f} MB, {printable(str(one.path))}")
    said = "would be removed" if dry_run else "removed"
    print(f"{len(doomed) - left} of {len(doomed)} {said}, {size_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
